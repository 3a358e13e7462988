"""How revisions run on a database that is in use: one upgrade at a time, each step short, and tried again.

Alembic's environment hands its work to `run`. Each revision is a transaction of its own, which waits for its locks a
short while only; one that did not get them is rolled back and tried again, and the application's writers go on
meanwhile. Indexes are built outside of transactions (`agents_pg_session.revising`).

That one upgrade works at a time is kept by an advisory lock, which a second connection holds in a transaction of its
own: that works behind PgBouncer in transaction mode too. It is idle there without a snapshot, for the build of an index
waits for everybody who has one. So nobody may wait for this lock inside a statement without an end.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import PendingRollbackError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import NullPool
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from agents_pg_session.engine import create_engine
from agents_pg_session.errors import SchemaOutdated, SessionError, StorageUnavailable
from agents_pg_session.failures import Verdict, advice, cause_to_show, describe, judge, sqlstate_of
from agents_pg_session.lock_waits import LIFT, Witness, lift_limits, limit_lock_waits
from agents_pg_session.patience import PARTING
from agents_pg_session.schema import LOCK, checked_schema, newest_revision
from agents_pg_session.texts import shown
from agents_pg_session.urls import engine_url

__all__ = ["LOCK_TIMEOUT", "RETRY_FOR", "Settings", "Steps", "Target", "run", "settings_from", "translated"]

logger = logging.getLogger("agents_pg_session.migrations")

#: Seconds one transaction of an upgrade waits for its locks, and with it whoever comes after it.
LOCK_TIMEOUT = 2.0

#: Seconds a step is tried again while others hold what it needs.
RETRY_FOR = 300.0

#: Seconds between two lines that say that another upgrade is at work.
_REMIND_AFTER = 15.0

#: The server gave up a wait for a lock, or ended a deadlock: nothing of the step was done.
_PASSING = frozenset({"55P03", "40P01"})


@dataclass(frozen=True)
class Settings:
    """Which database, and how patient an upgrade of it is."""

    url: str = field(repr=False)
    schema: str | None
    lock_timeout: float = LOCK_TIMEOUT
    retry_for: float = RETRY_FOR

    @property
    def backend(self) -> str:
        return engine_url(self.url)[0].get_backend_name()


def settings_from(given: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Return the settings that were *given* by name, else those of the environment.

    Raises `ValueError` where there is no URL, or one that cannot work.
    """
    url = given.get("url") or environment.get("AGENTS_PG_URL") or ""
    if not url:
        raise ValueError("no database: set AGENTS_PG_URL, or add -x url=postgresql://… behind `alembic`")
    on_postgres = engine_url(url)[0].get_backend_name() == "postgresql"
    schema = checked_schema(given.get("schema") or environment.get("AGENTS_PG_SCHEMA") or "agents")
    patience = {
        name: _seconds(name, value)
        for name in ("lock_timeout", "retry_for")
        if (value := given.get(name) or environment.get(f"AGENTS_PG_{name.upper()}"))
    }
    return Settings(url, schema if on_postgres else None, **patience)


def _seconds(name: str, value: object) -> float:
    try:
        seconds = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise ValueError(f"{name} must be a positive number of seconds, not {shown(value)}")
    return seconds


@dataclass(frozen=True)
class Target:
    """What Alembic's environment tells `run`: its scripts, and how one try of its command is made."""

    script: ScriptDirectory
    changes: bool  #: whether the command may change the database; one that only looks waits for nobody
    plan: Callable[[Any, MigrationContext], Iterable[Any]]  #: the command's own idea of the steps to take
    migrate: Callable[[Connection, Steps], None]  #: configures the environment on a connection and runs the steps


class Steps:
    """The steps of one command, planned once: a try after the first goes on where the last one stopped."""

    def __init__(self, target: Target, confirm: Callable[[], None]) -> None:
        self._target = target
        self._confirm = confirm
        self._left: list[Any] | None = None
        self.stuck_since: float | None = None  #: when the present step failed for the first time

    def __call__(self, heads: Any, context: MigrationContext) -> Iterator[Any]:
        if self._left is None:
            _require_known(self._target.script, heads)
            self._left = list(self._target.plan(heads, context))
        while self._left:
            self._confirm()
            if self.stuck_since is None:
                logger.info("%s", self.present)
            yield self._left[0]
            self._left.pop(0)  # Alembic comes back for the next when this one is committed
            self.stuck_since = None

    @property
    def present(self) -> str:
        """The step under way, in a few words."""
        return " ".join(str(self._left[0]).split()) if self._left else "the revision of the database"


def _require_known(script: ScriptDirectory, heads: Any) -> None:
    known = {each.revision for each in script.walk_revisions()}
    unknown = [head for head in heads if head not in known]
    if unknown:
        raise SchemaOutdated(
            f"the database is at revision {', '.join(unknown)}, which this version does not know (its newest is "
            f"{newest_revision()}); upgrade the package agents-pg-session"
        )


async def run(settings: Settings, target: Target) -> None:
    """Run a command of Alembic, alone and under load. Raises errors of this package, one line each."""
    with translated():
        if settings.backend == "sqlite":
            await _run_on_sqlite(settings, target)
        elif not target.changes:
            async with _engine(settings) as (engine, _name), engine.connect() as connection:
                await connection.run_sync(target.migrate, Steps(target, lambda: None))
        else:
            await _run_on_postgres(settings, target)


async def _run_on_sqlite(settings: Settings, target: Target) -> None:
    """One transaction for all: there is one writer at a time anyway."""
    engine = create_engine(settings.url, engine_kwargs={"poolclass": NullPool})
    try:
        async with engine.connect() as connection:
            # The driver would begin a transaction at the first INSERT only, after the tables: begin it before them.
            await connection.exec_driver_sql("BEGIN IMMEDIATE")
            await connection.run_sync(target.migrate, Steps(target, lambda: None))
            await connection.exec_driver_sql("COMMIT")
    finally:
        await engine.dispose()


async def _run_on_postgres(settings: Settings, target: Target) -> None:
    async with _engine(settings) as (engine, name), _alone(engine) as confirm, engine.connect() as connection:
        witness = Witness(engine, name, every=min(0.25, settings.lock_timeout / 4))
        watching = asyncio.create_task(witness.watch())
        assert connection.sync_connection is not None
        limit_lock_waits(connection.sync_connection, settings.lock_timeout)
        try:
            await _persist(connection, target, Steps(target, confirm), witness, settings)
        finally:
            witness.end()
            await asyncio.wait({watching}, timeout=PARTING)
            watching.cancel()


async def _persist(
    connection: AsyncConnection, target: Target, steps: Steps, witness: Witness, settings: Settings
) -> None:
    """Take the steps, and each again with growing pauses while others hold its locks and the budget lasts."""

    def spent(_state: RetryCallState) -> bool:
        steps.stuck_since = steps.stuck_since or time.monotonic()
        return time.monotonic() - steps.stuck_since >= settings.retry_for

    def tell(state: RetryCallState) -> None:
        assert state.next_action is not None
        seen = witness.last or "a lock that nobody holds any more"
        logger.warning("%s: waiting for %s; trying again in %.1f s", steps.present, seen, state.next_action.sleep)

    retrying = AsyncRetrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_random_exponential(multiplier=0.5, max=10.0),
        stop=spent,
        before_sleep=tell,
        reraise=True,
    )
    try:
        await retrying(_once, connection, target, steps, settings)
    except SQLAlchemyError as error:
        if _may_pass(error):
            raise _blocked(steps, witness, settings) from cause_to_show(error)
        raise


async def _once(connection: AsyncConnection, target: Target, steps: Steps, settings: Settings) -> None:
    try:
        await connection.run_sync(target.migrate, steps)
    except BaseException:
        if not connection.invalidated:
            await connection.rollback()
        raise


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, SQLAlchemyError) and sqlstate_of(error) in _PASSING


def _blocked(steps: Steps, witness: Witness, settings: Settings) -> StorageUnavailable:
    """Say which lock was not to be had, who has it, and what to do."""
    seen, advice = "locks that others hold", "see pg_locks and pg_stat_activity for who they are"
    if witness.last is not None:
        seen = str(witness.last)
        calls = ", ".join(f"`SELECT pg_terminate_backend({pid})`" for pid in witness.last.pids)
        advice = f"let that end{f', or end it with {calls}' if calls else ''}"
    return StorageUnavailable(
        f"{steps.present}: waited {settings.retry_for:g} s for {seen}; {advice}, then run the same command again: it "
        "goes on where it stopped (or give it longer with -x retry_for=SECONDS)",
        sqlstate="55P03",
    )


@asynccontextmanager
async def _engine(settings: Settings) -> AsyncIterator[tuple[AsyncEngine, str]]:
    """An engine for a few connections, and the name by which the server knows them from all others."""
    name = f"agents_pg_session migrations {secrets.token_hex(4)}"
    on_psycopg = engine_url(settings.url)[0].get_driver_name().startswith("psycopg")
    arguments = {"application_name": name} if on_psycopg else {"server_settings": {"application_name": name}}
    engine = create_engine(
        settings.url,
        engine_kwargs={"poolclass": NullPool, "connect_args": arguments},
        isolation_level="READ COMMITTED",
    )
    event.listen(engine.sync_engine, "connect", lift_limits)
    try:
        yield engine, name
    finally:
        await engine.dispose()


@asynccontextmanager
async def _alone(engine: AsyncEngine) -> AsyncIterator[Callable[[], None]]:
    """Keep every other upgrade away; gives a function that makes sure that this still holds."""
    async with engine.connect() as guard:
        await _take_turn(guard)
        await guard.exec_driver_sql(LIFT)
        await guard.run_sync(_stay)

        def confirm() -> None:
            assert guard.sync_connection is not None
            _stay(guard.sync_connection)

        try:
            yield confirm
        finally:
            if not guard.invalidated:
                await guard.rollback()


def _stay(guard: Connection) -> None:
    """Speak to the server without a snapshot, and stop it from ending a transaction that is idle on purpose.

    The statement before this one keeps its snapshot until another comes; the build of an index would wait for it.
    """
    guard.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")


async def _take_turn(guard: AsyncConnection) -> None:
    """Come again in short transactions until the lock is free: whoever waited for it would hold a snapshot."""
    pause, told = 0.02, 0.0
    while not await guard.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": LOCK}):
        await guard.rollback()
        if time.monotonic() > told + _REMIND_AFTER:
            told = time.monotonic()
            logger.info("another upgrade of this database is at work; waiting until it has ended")
        await asyncio.sleep(pause * (0.5 + secrets.randbelow(1000) / 1000))
        pause = min(pause * 1.5, 1.0)


@contextmanager
def translated() -> Iterator[None]:
    """Say in one line of ours what a driver says through three libraries."""
    try:
        yield
    except (OSError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError) as failure:
        error: BaseException = failure
        if isinstance(failure, PendingRollbackError) and failure.__context__ is not None:
            error = failure.__context__  # what Alembic stumbled over on the way out says nothing of what happened
        said = f"the database said no: {describe(error)}{advice(error)}"
        away = judge(error, sent=False) in (Verdict.RETRY, Verdict.CONFIGURATION)
        kind = StorageUnavailable if away else SessionError
        raise kind(said, sqlstate=sqlstate_of(error)) from cause_to_show(error)
