"""Whose engine, and for which event loop.

A pool belongs to the loop that made its connections. `OwnEngines` makes one engine per running loop from a URL and
disposes it with that loop; `BorrowedEngine` is somebody else's: never disposed, and refused in a second loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet, finalize, ref

from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool, Pool, StaticPool

from agents_pg_session.engine import create_engine, memory_keeper, named_memory_url
from agents_pg_session.errors import SessionError
from agents_pg_session.urls import engine_url

__all__ = ["BorrowedEngine", "Engines", "OwnEngines", "shared_engines"]


class Engines(Protocol):
    """Where the engine for the running loop comes from."""

    @property
    def dialect(self) -> str:
        """`postgresql` or `sqlite`."""
        ...

    @property
    def owned(self) -> bool:
        """Whether we made them: then connections come in autocommit, and closing means something."""
        ...

    @property
    def created(self) -> set[str | None]:
        """The schemas whose tables were created through these engines, so that nobody asks again."""
        ...

    def current(self) -> AsyncEngine:
        """Return the engine of the running loop; outside of any loop, the one the first loop will get."""
        ...

    def turnstile(self) -> asyncio.Lock | None:
        """Return a lock to hold while using a connection, where all tasks share a single one."""
        ...

    async def close(self) -> None:
        """Close what is owned."""
        ...


@dataclass(slots=True)
class _LoopPool:
    engine: AsyncEngine
    guard: AsyncGenerator[None, None] | None  #: disposes the engine when the loop ends


class OwnEngines:
    """One engine per event loop, all from one URL: any number of loops and threads can share it."""

    owned = True

    def __init__(
        self, url: str | URL, *, engine_kwargs: Mapping[str, Any] | None = None, pgbouncer: bool = False
    ) -> None:
        memory = named_memory_url(url)
        # Closed with the last reference: a database in memory lives as long as somebody can ask for it.
        self._release = None if memory is None else finalize(self, memory_keeper(memory).close)
        self._url = memory or url
        self._engine_kwargs = engine_kwargs
        self._pgbouncer = pgbouncer
        self._pools: dict[asyncio.AbstractEventLoop, _LoopPool] = {}
        self._lock = threading.Lock()
        self.created: set[str | None] = set()
        # Made now: a URL or a setting that cannot work is refused where it was written. The first loop takes it.
        self._unbound: AsyncEngine | None = self._create()
        self.dialect = self._unbound.dialect.name

    def current(self) -> AsyncEngine:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return self._without_loop()
        pool = self._pools.get(loop)
        return (pool or self._open(loop)).engine

    def turnstile(self) -> asyncio.Lock | None:
        return _known(self.current()).turnstile

    async def close(self) -> None:
        """Dispose the engines of all loops; in a loop that runs elsewhere, over there."""
        here = asyncio.get_running_loop()
        with self._lock:
            pools, self._pools = self._pools, {}
        for loop, pool in pools.items():
            if loop is here:
                await _dispose(pool)
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_dispose(pool), loop))
            else:
                _abandon(pool)
        if self._release is not None:
            self._release()

    def _create(self) -> AsyncEngine:
        return create_engine(self._url, engine_kwargs=self._engine_kwargs, pgbouncer=self._pgbouncer)

    def _without_loop(self) -> AsyncEngine:
        with self._lock:
            if self._unbound is None:
                return next(iter(self._pools.values())).engine if self._pools else self._create()
            return self._unbound

    def _open(self, loop: asyncio.AbstractEventLoop) -> _LoopPool:
        with self._lock:
            for closed in [each for each in self._pools if each.is_closed()]:
                _abandon(self._pools.pop(closed))
            engine, self._unbound = self._unbound or self._create(), None
            pool = self._pools[loop] = _LoopPool(engine, _guard(engine, loop))
        return pool


async def _until_the_loop_ends(engine: AsyncEngine) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await engine.dispose()


def _guard(engine: AsyncEngine, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None] | None:
    """Have *engine* disposed when *loop* ends.

    A loop closes its unfinished asynchronous generators before it ends (`loop.shutdown_asyncgens`, which `asyncio.run`
    and every server call): the one public hook there is. A generator joins in with its first step, taken here by hand.
    """
    if getattr(loop, "_asyncgens_shutdown_called", False):
        return None  # such a loop (of Runner.run_sync) lives on with its pool, and would warn about a new generator
    guard = _until_the_loop_ends(engine)
    with suppress(StopIteration):
        guard.__anext__().send(None)
    return guard


async def _dispose(pool: _LoopPool) -> None:
    if pool.guard is not None:
        await pool.guard.aclose()
    await pool.engine.dispose()


def _abandon(pool: _LoopPool) -> None:
    """Let go of a pool whose loop cannot run any more; its sockets close with their last reference."""
    pool.engine.sync_engine.dispose(close=False)


class BorrowedEngine:
    """Somebody else's engine: used, never disposed."""

    owned = False

    def __init__(self, engine: AsyncEngine) -> None:
        if not isinstance(engine, AsyncEngine):
            raise ValueError("engine must be an AsyncEngine: write sqlalchemy.ext.asyncio.create_async_engine(...)")
        self.dialect = engine.dialect.name
        if self.dialect not in ("postgresql", "sqlite"):
            raise ValueError(f"engine speaks {self.dialect}; this package stores sessions in PostgreSQL or SQLite")
        self._engine = engine

    @property
    def created(self) -> set[str | None]:
        return _known(self._engine).created

    def current(self) -> AsyncEngine:
        if self.dialect == "postgresql":
            _refuse_second_loop(self._engine)
        return self._engine

    def turnstile(self) -> asyncio.Lock | None:
        return _known(self._engine).turnstile

    async def close(self) -> None:
        """Nothing: who opens, closes."""


@dataclass(slots=True)
class _Known:
    """What we know of an engine's pool, for all handles that use it."""

    pool: ref[Pool]
    loop: ref[asyncio.AbstractEventLoop] | None
    turnstile: asyncio.Lock | None
    created: set[str | None] = field(default_factory=set)


_engines: WeakKeyDictionary[Engine, _Known] = WeakKeyDictionary()


def _known(engine: AsyncEngine) -> _Known:
    """Return what is known; a disposed engine has a new pool, of which nothing is known."""
    pool = engine.sync_engine.pool
    known = _engines.get(engine.sync_engine)
    if known is None or known.pool() is not pool:
        # One connection for all (`StaticPool`): two tasks on it would end each other's transactions.
        turnstile = asyncio.Lock() if isinstance(pool, StaticPool) else None
        known = _engines[engine.sync_engine] = _Known(ref(pool), None, turnstile)
    return known


def _refuse_second_loop(engine: AsyncEngine) -> None:
    """Raise where the pool holds connections of another loop: the driver would only say something about futures."""
    if isinstance(engine.sync_engine.pool, NullPool):
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    known = _known(engine)
    if known.loop is None:
        known.loop = ref(loop)
    elif known.loop() is not loop:
        raise SessionError(
            "this engine's pool belongs to another event loop; open the store from a URL (SessionStore.open or "
            "PGSession.from_url keep one pool per loop), or await engine.dispose() before its loop ends"
        )


@dataclass(eq=False, slots=True)
class _Shared:
    engines: OwnEngines
    users: WeakSet[SharedEngines] = field(default_factory=WeakSet)


_shared: dict[object, _Shared] = {}
_shared_lock = threading.Lock()


class SharedEngines:
    """A share of one set of engines that all handles with the same URL and settings use together.

    A server that makes a handle per request and drops it keeps one pool. Closing the last open share closes the pool.
    """

    owned = True

    def __init__(self, key: object, shared: _Shared) -> None:
        self._key = key
        self._shared = shared
        self.dialect = shared.engines.dialect
        self.created = shared.engines.created
        self.current = shared.engines.current
        self.turnstile = shared.engines.turnstile

    async def close(self) -> None:
        with _shared_lock:
            self._shared.users.discard(self)
            last = not self._shared.users and _shared.get(self._key) is self._shared
            if last:
                del _shared[self._key]
        if last:
            await self._shared.engines.close()


def shared_engines(
    url: str | URL, *, engine_kwargs: Mapping[str, Any] | None = None, pgbouncer: bool = False
) -> Engines:
    """Return a share of the engines for *url* and these settings; the first one makes them.

    Databases in memory are not shared: each is a new one, as with SQLAlchemy itself.
    """
    if named_memory_url(url) is not None:
        return OwnEngines(url, engine_kwargs=engine_kwargs, pgbouncer=pgbouncer)
    parsed, arguments = engine_url(url)
    key = (parsed, _frozen(arguments), _frozen(engine_kwargs or {}), pgbouncer)
    with _shared_lock:
        shared = _shared.get(key)
        if shared is None:
            shared = _shared[key] = _Shared(OwnEngines(url, engine_kwargs=engine_kwargs, pgbouncer=pgbouncer))
        share = SharedEngines(key, shared)
        shared.users.add(share)
    return share


def _frozen(value: object) -> object:
    """A hashable stand-in for nested settings; what cannot be hashed counts as itself."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), _frozen(each)) for key, each in value.items()))
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(_frozen(each) for each in value)
    return value if getattr(type(value), "__hash__", None) else id(value)
