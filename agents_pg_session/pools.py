"""Whose engine, and for which event loop.

A pool belongs to the event loop that made its connections, and to the process. `OwnEngines` makes one engine per
running loop from a URL and disposes it with that loop; `BorrowedEngine` is somebody else's: never disposed, and refused
in a second loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import finalize, ref

from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import NullPool

from agents_pg_session.engine import checked_settings, create_engine, memory_keeper, named_memory_url
from agents_pg_session.errors import SessionError
from agents_pg_session.lines import Line, facts_of, lines_of, together, use_of
from agents_pg_session.patience import PARTING
from agents_pg_session.records import PoolUse
from agents_pg_session.urls import place_of
from agents_pg_session.wire import hang_up

__all__ = ["BorrowedEngine", "Engines", "OwnEngines", "discard"]

logger = logging.getLogger("agents_pg_session.connections")

#: Under this name a connection carries the time it was first taken from its pool, until it is replaced.
_SEEN_FIRST = "agents_pg_session.seen_first"

#: Seconds `close` waits for a pool to be closed in a loop that runs in another thread.
CLOSE_TIMEOUT = 5.0


class Engines(Protocol):
    """Where the engine for the running loop comes from."""

    @property
    def owned(self) -> bool:
        """Whether we made them: then connections come in autocommit, and closing means something."""
        ...

    @property
    def created(self) -> set[str | None]:
        """The schemas known to fit, created through these engines or looked at, so that nobody asks again."""
        ...

    @property
    def engine(self) -> AsyncEngine:
        """The engine to look at: the running loop's; outside of any loop, the one the first loop will get."""
        ...

    def current(self) -> AsyncEngine:
        """Return the engine to use in the running loop."""
        ...

    def lines(self, *, writes: bool) -> Sequence[Line]:
        """Return where to wait for one's turn, in this order: where only one can write, and for a place in the pool."""
        ...

    async def connect(self) -> AsyncConnection:
        """Take a connection that is not suspected to be lost; only with one's turn is there one at once."""
        ...

    def suspect(self, why: str) -> None:
        """Suspect all connections made so far: one was lost, and a server seldom loses one alone."""
        ...

    def use(self) -> PoolUse:
        """Return what the pools are doing, those of all loops together."""
        ...

    async def close(self) -> None:
        """Close what is owned."""
        ...


class _Pooled(ABC):
    """What is the same for every engine: how its connections are taken."""

    @abstractmethod
    def current(self) -> AsyncEngine: ...

    @abstractmethod
    def _every(self) -> Sequence[AsyncEngine]: ...

    def lines(self, *, writes: bool) -> Sequence[Line]:
        return lines_of(self.current().sync_engine, writes=writes)

    async def connect(self) -> AsyncConnection:
        return await _connect(self.current())

    def suspect(self, why: str) -> None:
        engine = self.current()
        facts = facts_of(engine.sync_engine)
        # Of connections that are lost together, the first one is news.
        level = logging.DEBUG if facts.is_suspected else logging.INFO
        logger.log(level, "a connection to %s was lost (%s); the pool replaces its others", place_of(engine.url), why)
        facts.suspected_at, facts.is_suspected = time.monotonic(), True

    def use(self) -> PoolUse:
        return together(use_of(engine.sync_engine) for engine in self._every())


@dataclass(slots=True)
class _LoopPool:
    engine: AsyncEngine
    guard: AsyncGenerator[None, None] | None  #: disposes the engine when the loop ends
    thread: threading.Thread = field(default_factory=threading.current_thread)
    process: int = field(default_factory=os.getpid)


class OwnEngines(_Pooled):
    """One engine per event loop, all from one URL: any number of loops and threads can share it."""

    owned = True

    def __init__(
        self, url: str | URL, *, engine_kwargs: Mapping[str, Any] | None = None, pgbouncer: bool = False
    ) -> None:
        memory = named_memory_url(url)
        # Closed with the last reference: a database in memory lives as long as somebody can ask for it.
        self._release = None if memory is None else finalize(self, memory_keeper(memory).close)
        self._url = memory or url
        self._engine_kwargs = checked_settings("engine_kwargs", engine_kwargs)
        self._pgbouncer = pgbouncer
        self._pools: dict[asyncio.AbstractEventLoop, _LoopPool] = {}
        self._lock = threading.Lock()
        self.created: set[str | None] = set()
        # Made now: a URL or a setting that cannot work is refused where it was written. The first loop takes it.
        self._unbound: AsyncEngine | None = self._create()

    @property
    def engine(self) -> AsyncEngine:
        try:
            return self.current()
        except RuntimeError:  # no running loop
            with self._lock:
                if self._unbound is None:
                    return next(iter(self._pools.values())).engine if self._pools else self._create()
                return self._unbound

    def current(self) -> AsyncEngine:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None or pool.process != os.getpid():
            pool = self._open(loop)
        return pool.engine

    async def close(self) -> None:
        """Dispose the engines of all loops; in a loop that runs elsewhere, over there."""
        here = asyncio.get_running_loop()
        with self._lock:
            pools, self._pools = self._pools, {}
        for loop, pool in pools.items():
            if loop is here and pool.process == os.getpid():
                await _dispose(pool)
            elif loop.is_running() and pool.process == os.getpid():
                await _dispose_elsewhere(pool, loop)
            else:
                _abandon(pool)
        if self._release is not None:
            self._release()

    def _every(self) -> Sequence[AsyncEngine]:
        with self._lock:
            engines = [pool.engine for loop, pool in self._pools.items() if not _has_ended(loop, pool)]
        return engines or [self.engine]  # before the first call: the one it will use

    def _create(self) -> AsyncEngine:
        engine = create_engine(self._url, engine_kwargs=self._engine_kwargs, pgbouncer=self._pgbouncer)
        if engine.dialect.name == "postgresql":
            facts = facts_of(engine.sync_engine)
            event.listen(engine.sync_engine, "connect", lambda made, _: facts.connections.add(made.driver_connection))
        return engine

    def _open(self, loop: asyncio.AbstractEventLoop) -> _LoopPool:
        with self._lock:
            for ended in [each for each, pool in self._pools.items() if _has_ended(each, pool)]:
                _abandon(self._pools.pop(ended))
            engine, self._unbound = self._unbound or self._create(), None
            pool = self._pools[loop] = _LoopPool(engine, _guard(engine, loop))
        return pool


def _has_ended(loop: asyncio.AbstractEventLoop, pool: _LoopPool) -> bool:
    """Whether nobody can use a pool any more: its loop was closed or left behind by its thread, or we are a fork."""
    if pool.process != os.getpid():
        return True
    return loop.is_closed() or not (loop.is_running() or pool.thread.is_alive())


async def _until_the_loop_ends(engine: AsyncEngine) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        await _close(engine)


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
    await _close(pool.engine)


async def _close(engine: AsyncEngine) -> None:
    """Close an engine's connections; those whose server says nothing any more are hung up after a while."""
    connections = list(facts_of(engine.sync_engine).connections)
    alarms = [asyncio.get_running_loop().call_later(PARTING, hang_up, connection) for connection in connections]
    try:
        await engine.dispose()
    finally:
        for alarm in alarms:
            alarm.cancel()


async def _dispose_elsewhere(pool: _LoopPool, loop: asyncio.AbstractEventLoop) -> None:
    """Dispose a pool in the loop of another thread; a loop that has no time now does it later, without us."""
    disposing = _dispose(pool)
    try:
        disposed = asyncio.run_coroutine_threadsafe(disposing, loop)
    except RuntimeError:  # the loop was closed this very moment
        disposing.close()
        _abandon(pool)
    else:
        await asyncio.wait([asyncio.wrap_future(disposed)], timeout=CLOSE_TIMEOUT)


def _abandon(pool: _LoopPool) -> None:
    """Let go of a pool whose loop cannot run any more; its sockets close with their last reference."""
    pool.engine.sync_engine.dispose(close=False)


class BorrowedEngine(_Pooled):
    """Somebody else's engine: used, never disposed."""

    owned = False

    def __init__(self, engine: AsyncEngine) -> None:
        if not isinstance(engine, AsyncEngine):
            raise ValueError("engine must be an AsyncEngine: write sqlalchemy.ext.asyncio.create_async_engine(...)")
        dialect = engine.dialect.name
        if dialect not in ("postgresql", "sqlite"):
            raise ValueError(f"engine speaks {dialect}; this package stores sessions in PostgreSQL or SQLite")
        self.engine = engine

    @property
    def created(self) -> set[str | None]:
        return facts_of(self.engine.sync_engine).created

    def _every(self) -> Sequence[AsyncEngine]:
        return [self.engine]

    def current(self) -> AsyncEngine:
        _refuse_another_process(self.engine)
        if self.engine.dialect.name == "postgresql":
            _refuse_second_loop(self.engine)
        return self.engine

    async def close(self) -> None:
        """Nothing: who opens, closes."""


async def _connect(engine: AsyncEngine) -> AsyncConnection:
    """Take a connection from the pool; those made before another one was lost are replaced on the way."""
    facts = facts_of(engine.sync_engine)
    while True:
        connection = await engine.connect()
        if connection.info.setdefault(_SEEN_FIRST, time.monotonic()) >= facts.suspected_at:
            if facts.is_suspected:
                facts.is_suspected = False
                logger.info("connected to %s again", place_of(engine.url))
            return connection
        logger.debug("a connection to %s that may be lost is replaced", place_of(engine.url))
        # Hung up first: a polite end would wait for a server that is not there. Its place in the pool is filled anew by
        # whoever takes it next.
        hang_up((await connection.get_raw_connection()).driver_connection)
        await discard(connection)


async def discard(connection: AsyncConnection) -> None:
    """End a connection, to the end: interrupted halfway, it would keep its place in the pool without an owner."""

    async def ending() -> None:
        await connection.invalidate()
        await connection.close()

    await asyncio.shield(ending())


def _refuse_another_process(engine: AsyncEngine) -> None:
    """Raise in a forked child: two processes that speak on one socket read each other's answers."""
    if isinstance(engine.sync_engine.pool, NullPool):
        return
    facts, process = facts_of(engine.sync_engine), os.getpid()
    if facts.process is None:
        facts.process = process
    elif facts.process != process:
        raise SessionError(
            "this engine's pool belongs to the process this one was forked from; open the store from a URL "
            "(SessionStore.open or PGSession.from_url notice a fork), or await engine.dispose(close=False) first"
        )


def _refuse_second_loop(engine: AsyncEngine) -> None:
    """Raise where the pool holds connections of another loop: the driver would only say something about futures."""
    if isinstance(engine.sync_engine.pool, NullPool):
        return
    facts, loop = facts_of(engine.sync_engine), asyncio.get_running_loop()
    if facts.loop is None:
        facts.loop = ref(loop)
    elif facts.loop() is not loop:
        raise SessionError(
            "this engine's pool belongs to another event loop; open the store from a URL (SessionStore.open or "
            "PGSession.from_url keep one pool per loop), or await engine.dispose() before its loop ends"
        )
