"""One set of pools for all handles that were opened from the same URL with the same settings.

A server that makes a handle per request and drops it keeps one pool. Closing the last open share closes the pool.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet, finalize

from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from agents_pg_session.engine import named_memory_url
from agents_pg_session.pools import Engines, OwnEngines
from agents_pg_session.urls import engine_url

__all__ = ["shared_engines"]


def shared_engines(
    url: str | URL, *, engine_kwargs: Mapping[str, Any] | None = None, pgbouncer: bool = False
) -> Engines:
    """Return a share of the engines for *url* and these settings; the first one makes them.

    Databases in memory are not shared: each is a new one, as with SQLAlchemy itself.
    """
    if named_memory_url(url) is not None:
        return OwnEngines(url, engine_kwargs=engine_kwargs, pgbouncer=pgbouncer)
    parsed, arguments = engine_url(url)
    settings = engine_kwargs or {}
    key = (parsed, _frozen(arguments), _frozen(settings), pgbouncer)
    with _lock:
        pooled = _pooled.get(key)
        if pooled is None:
            pooled = _pooled[key] = _Pooled(OwnEngines(url, engine_kwargs=settings, pgbouncer=pgbouncer))
        share = _Share(key, pooled)
        pooled.shares.add(share)
        if not _is_plain(settings):
            # The next request may bring a new object of the same kind (an SSL context, a callback), which nobody can
            # tell from another one: its pool must not outlive the handles that use it.
            finalize(share, _forget_if_unused, key, pooled)
    return share


@dataclass(eq=False, slots=True)
class _Pooled:
    engines: OwnEngines
    shares: WeakSet[_Share] = field(default_factory=WeakSet)


_pooled: dict[object, _Pooled] = {}
_lock = threading.RLock()  # a finalizer may run while its own thread holds it


class _Share:
    """The engines, until this share of them is given back."""

    owned = True

    def __init__(self, key: object, pooled: _Pooled) -> None:
        self._key = key
        self._pooled = pooled
        self.created = pooled.engines.created
        self.current = pooled.engines.current
        self.lines = pooled.engines.lines
        self.connect = pooled.engines.connect
        self.suspect = pooled.engines.suspect
        self.use = pooled.engines.use

    @property
    def engine(self) -> AsyncEngine:
        return self._pooled.engines.engine

    async def close(self) -> None:
        with _lock:
            self._pooled.shares.discard(self)
            last = _forget_if_unused(self._key, self._pooled)
        if last:
            await self._pooled.engines.close()


def _forget_if_unused(key: object, pooled: _Pooled) -> bool:
    with _lock:
        # A share that is being finalized is still counted, but no longer found.
        unused = not list(pooled.shares) and _pooled.get(key) is pooled
        if unused:
            del _pooled[key]
    return unused


def _frozen(value: object) -> object:
    """A hashable stand-in for nested settings; what cannot be hashed counts as itself."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), _frozen(each)) for key, each in value.items()))
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(_frozen(each) for each in value)
    return value if getattr(type(value), "__hash__", None) else id(value)


def _is_plain(value: object) -> bool:
    """Whether an equal value in the next call can be told to be equal."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bytes | int | float | type)
