"""Where callers wait for a connection, and what a pool is doing: known without asking the database.

One line per pool, served in order. Whoever wants to know how a pool is doing (`SessionStore.pool`, metrics in a thread
of their own) reads numbers; nothing here is kept alive by being counted.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy.engine import Engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool, QueuePool, StaticPool

from agents_pg_session.records import PoolUse

__all__ = ["Line", "PoolFacts", "facts_of", "lines_of", "pools_in_use", "together", "use_of"]


class Line(Protocol):
    """Where tasks wait for their turn."""

    async def acquire(self) -> Literal[True]: ...

    def release(self) -> None: ...


class _InOrder:
    """A line that is served in order, and how many callers wait in it."""

    def __init__(self, gate: asyncio.Semaphore | asyncio.Lock, places: int | None) -> None:
        self._gate = gate
        self.places = places
        self.held = self.waiting = 0

    async def acquire(self) -> Literal[True]:
        if not self._gate.locked():
            return await self._gate.acquire()
        self.waiting += 1
        try:
            return await self._gate.acquire()
        finally:
            self.waiting -= 1

    def release(self) -> None:
        self._gate.release()


class _Crowd:
    """No line: any number may come at once, from any loop and thread. They are only counted."""

    places = None
    waiting = 0

    def __init__(self) -> None:
        self._counting = threading.Lock()
        self.held = 0

    async def acquire(self) -> Literal[True]:
        with self._counting:
            self.held += 1
        return True

    def release(self) -> None:
        with self._counting:
            self.held -= 1


class _Turnstile:
    """A lock for tasks of any loop and thread; asked again and again, so that a cancelled waiter cannot keep it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self.waiting = 0
        self.was_held = False

    @property
    def held(self) -> bool:
        return self._lock.locked()

    async def acquire(self) -> Literal[True]:
        if not self._lock.acquire(blocking=False):
            await self._wait()
        self.was_held = True
        return True

    async def _wait(self) -> None:
        with self._counting:
            self.waiting += 1
        try:
            while not self._lock.acquire(blocking=False):  # noqa: ASYNC110 -- an Event belongs to one loop
                await asyncio.sleep(0.002)
        finally:
            with self._counting:
                self.waiting -= 1

    def release(self) -> None:
        self._lock.release()


@dataclass(slots=True)
class PoolFacts:
    """What we know of an engine's pool, for all handles that use it."""

    pool: ref[Pool]
    line: _InOrder | _Crowd  #: a place for each connection the pool may have
    made_in: int = field(default_factory=os.getpid)
    process: int | None = None
    loop: ref[asyncio.AbstractEventLoop] | None = None
    created: set[str | None] = field(default_factory=set)
    connections: WeakSet[Any] = field(default_factory=WeakSet)  #: as their driver made them; of our own engines only
    turnstile: _Turnstile = field(default_factory=_Turnstile)
    writing: WeakKeyDictionary[asyncio.AbstractEventLoop, _InOrder] = field(default_factory=WeakKeyDictionary)
    suspected_at: float = 0.0  #: connections that are older may be lost
    is_suspected: bool = False  #: until one that was made since is taken


_facts: WeakKeyDictionary[Engine, PoolFacts] = WeakKeyDictionary()
_changing = threading.Lock()  # metrics are read in a thread of their own


def facts_of(engine: Engine) -> PoolFacts:
    """Return what is known; a disposed engine has a new pool, of which nothing is known."""
    pool = engine.pool
    facts = _facts.get(engine)
    if facts is None or facts.pool() is not pool:
        with _changing:
            facts = _facts[engine] = PoolFacts(ref(pool), _line_for(pool))
    return facts


def lines_of(engine: Engine, *, writes: bool) -> Sequence[Line]:
    """One connection for all (`StaticPool`): two tasks on it would end each other's transactions. Else, first come."""
    facts = facts_of(engine)
    if isinstance(engine.pool, StaticPool):
        return (facts.turnstile,)
    if not writes or engine.dialect.name != "sqlite":
        return (facts.line,)
    # SQLite has one writer at a time, and sleeps between looks at its lock: our own writers come in turn instead.
    loop = asyncio.get_running_loop()
    if (turn := facts.writing.get(loop)) is None:
        turn = facts.writing[loop] = _InOrder(asyncio.Lock(), 1)
    return turn, facts.line


def _line_for(pool: Pool) -> _InOrder | _Crowd:
    """Return a line that is served in order.

    SQLAlchemy's queue is not: a connection that comes back goes to whoever asks before the one it was meant for has
    woken up, and that one waits behind all others again. Callers that ask again at once would starve everybody else.
    """
    overflow = getattr(pool, "_max_overflow", -1)
    if not isinstance(pool, AsyncAdaptedQueuePool) or overflow < 0:
        return _Crowd()
    places = pool.size() + overflow
    return _InOrder(asyncio.Semaphore(places), places)


def pools_in_use() -> Iterator[tuple[Engine, PoolUse]]:
    """Yield the pools that this process can use: none that was closed, forgotten, or came with a fork."""
    with _changing:
        known = list(_facts.items())
    for engine, facts in known:
        if facts.pool() is engine.pool and facts.made_in == os.getpid():
            yield engine, _use(engine.pool, facts)


def use_of(engine: Engine) -> PoolUse:
    """Return what the engine's pool is doing now."""
    return _use(engine.pool, facts_of(engine))


def together(uses: Iterable[PoolUse]) -> PoolUse:
    """Return what several pools are doing, as if they were one."""
    every = tuple(uses)
    limits = [use.limit for use in every if use.limit is not None]
    return PoolUse(
        size=sum(use.size for use in every),
        in_use=sum(use.in_use for use in every),
        idle=sum(use.idle for use in every),
        waiting=sum(use.waiting for use in every),
        limit=sum(limits) if len(limits) == len(every) else None,
        pools=sum(use.pools for use in every),
    )


def _use(pool: Pool, facts: PoolFacts) -> PoolUse:
    in_use, idle, limit = facts.line.held, 0, facts.line.places
    if isinstance(pool, StaticPool):
        in_use, limit = int(facts.turnstile.held), 1
        idle = int(facts.turnstile.was_held) - in_use
    elif isinstance(pool, QueuePool):  # it counts an application's own use of its engine too
        in_use, idle = pool.checkedout(), pool.checkedin()
    waiting = facts.line.waiting + facts.turnstile.waiting + sum(turn.waiting for turn in list(facts.writing.values()))
    return PoolUse(size=in_use + idle, in_use=in_use, idle=idle, waiting=waiting, limit=limit)
