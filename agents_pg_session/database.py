"""One door to the database: every statement goes through here.

What a verb does not have to think about lives in this file, once: retrying what may pass, finding out what became of
a try whose answer was lost, waiting for a mutation to settle when the caller is cancelled, and saying errors in our
words.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar
from uuid import uuid4

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from agents_pg_session.drivers import Rows, driver_of
from agents_pg_session.errors import SchemaOutdated, SessionClosed, SessionError, StorageUnavailable
from agents_pg_session.failures import STALE_PLAN, Verdict, cause_to_show, describe, judge, sqlstate_of
from agents_pg_session.patience import Budget, TimeLimit, cancellations, settled
from agents_pg_session.pools import Engines, Line, discard
from agents_pg_session.schema import UPGRADE_COMMAND, checked_schema, create
from agents_pg_session.statements import Command, Statements, Subject, Write
from agents_pg_session.statements.postgres import PostgresStatements
from agents_pg_session.statements.reads import Reads
from agents_pg_session.statements.sqlite import SQLiteStatements
from agents_pg_session.texts import shown

__all__ = ["COMMAND_TIMEOUT", "RETRY_FOR", "Database"]

logger = logging.getLogger("agents_pg_session")

#: Seconds a verb may take in all, with waiting for a connection and retrying, before it raises `StorageUnavailable`.
RETRY_FOR = 15.0

#: Seconds one try of a statement may take before its connection is given up and the verb tries again.
COMMAND_TIMEOUT = 10.0

#: What is longer counts as so long: thirty years.
MAX_SECONDS = 1e9

#: What an error adds when nobody could find out what became of a try.
IN_DOUBT = "; the answer was lost, so it has taken effect once, whole, or not at all"

#: What another connection may do, where trying again on this one would not: the server cannot write (a standby, or a
#: primary that was demoted), or this connection has prepared its statements over columns that have changed since.
ON_ANOTHER_CONNECTION = frozenset({"25006", STALE_PLAN})

_T = TypeVar("_T")


class _Passing(Exception):
    """A failure that may pass; inside this file only."""

    def __init__(self, error: BaseException, *, in_doubt: bool) -> None:
        super().__init__(describe(error))
        self.error = error
        self.in_doubt = in_doubt


class Database:
    """Runs commands: each exactly once, or with an error that says what is known."""

    def __init__(
        self,
        engines: Engines,
        *,
        schema: str = "agents",
        create_tables: bool = False,
        retry_for: float = RETRY_FOR,
        command_timeout: float = COMMAND_TIMEOUT,
    ) -> None:
        self._engines = engines
        self._on_postgres = engines.engine.dialect.name == "postgresql"
        self._driver = driver_of(engines.engine.dialect)
        self._schema = checked_schema(schema) if self._on_postgres else None
        self.sql: Statements = PostgresStatements(schema) if self._on_postgres else SQLiteStatements()
        self.reads = Reads(self._schema)
        self._create_tables = create_tables
        self._closed = False
        self._retry_for = _positive("retry_for", retry_for)
        self._command_timeout = _positive("command_timeout", command_timeout)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled, and with it every store and handle: connections do not travel."""
        raise TypeError("a store or a session cannot be pickled: send the database's URL and the session id instead")

    @property
    def engine(self) -> AsyncEngine:
        """The engine of the running event loop. Raises `SessionClosed` after `close`: nobody would dispose it."""
        self.require_open()
        return self._engines.engine

    @property
    def schema(self) -> str | None:
        """The PostgreSQL schema of the tables; None on SQLite."""
        return self._schema

    def require_open(self) -> None:
        """Raise `SessionClosed` after `close`."""
        if self._closed:
            raise SessionClosed("this session or its store was closed; open a new one")

    async def close(self) -> None:
        """Close the engines if they are ours; a borrowed engine is left alone, and stays usable through this door."""
        if self._engines.owned and not self._closed:
            self._closed = True
            await self._engines.close()

    async def read(self, command: Command) -> Rows:
        """Run a command that changes nothing and return its rows.

        Raises `StorageUnavailable` when the database stays away longer than the budget: no rows always means there
        are none.
        """
        await self._ensure_tables()
        budget = self.budget()

        async def attempt() -> Rows:
            return await self._attempt(command, budget)

        reading = self._persist(attempt, budget, command.subject)
        # A read cut short on SQLite would leave a cursor behind, and with it a lock, until somebody collects garbage.
        return await (reading if self._on_postgres else settled(reading, budget))

    def budget(self, *, at_most: float | None = None) -> Budget:
        """Return the time for one verb, from now on; a verb that writes twice takes one for both."""
        return Budget(self._retry_for if at_most is None else min(self._retry_for, at_most))

    async def write(self, write: Write, budget: Budget, landed: Callable[[Rows], None] | None = None) -> Rows:
        """Run a mutation so that it takes effect exactly once, and return its rows.

        Once it is under way, cancelling the caller waits until it has settled. *landed* is called with the rows of a
        mutation that took effect, also when its caller was cancelled and never gets them. Raises `StorageUnavailable`
        when the database stays away longer than the budget; the mutation is then there whole, or not at all.
        """
        await self._ensure_tables()

        async def whole() -> Rows:
            rows = await self._write(write, budget)
            if landed is not None:
                landed(rows)
            return rows

        return await settled(whole(), budget)

    async def create_tables(self) -> None:
        """Create the tables, or leave them as they are; any number of processes may do so at once."""
        await self.transaction("create_tables", lambda connection: create(connection, self._schema))
        self._engines.created.add(self._schema)

    async def transaction(self, verb: str, work: Callable[[Connection], _T], *, writes: bool = True) -> _T:
        """Run *work* on a connection inside one transaction: for schema work, which may be repeated from its start."""
        subject, budget = Subject(verb, writes=writes), self.budget()

        async def in_transaction(connection: AsyncConnection, _driver_connection: object) -> _T:
            if self._on_postgres:
                async with connection.begin():
                    return await connection.run_sync(work)
            # Spoken directly: the driver would begin later, and find its snapshot stale.
            await connection.execute(text("BEGIN IMMEDIATE" if writes else "BEGIN"))
            try:
                result = await connection.run_sync(work)
            except BaseException:
                await connection.execute(text("ROLLBACK"))
                raise
            await connection.execute(text("COMMIT"))
            return result

        async def attempt() -> _T:
            isolation = "READ COMMITTED" if self._on_postgres else None
            return await self._on_connection(subject, budget, in_transaction, isolation=isolation)

        return await settled(self._persist(attempt, budget, subject), budget)

    async def _ensure_tables(self) -> None:
        if self._create_tables and self._schema not in self._engines.created:
            await self.create_tables()

    async def _write(self, write: Write, budget: Budget) -> Rows:
        doubtful: str | None = None

        async def attempt() -> Rows:
            nonlocal doubtful
            if doubtful is not None:
                try:
                    rows = await self._recover(write, doubtful, budget)
                except _Passing as failure:
                    failure.in_doubt = True  # whatever kept us from finding out, the lost try is still in doubt
                    raise
                except SessionError as error:
                    error.args = (f"{error}{IN_DOUBT}",)
                    raise
                if rows:
                    return rows
                doubtful = None
            operation_id = str(uuid4())
            try:
                return await self._attempt(write.attempt(operation_id), budget)
            except _Passing as failure:
                doubtful = operation_id if failure.in_doubt and write.fence is not None else None
                raise

        return await self._persist(attempt, budget, write.subject)

    async def _recover(self, write: Write, operation_id: str, budget: Budget) -> Rows:
        """Return the rows of a try whose answer was lost, if it took effect; afterwards it never can."""
        assert write.fence is not None, "only PostgreSQL can lose an answer"
        assert write.outcome is not None, "what can be in doubt can be asked about"
        fence, outcome = write.fence(operation_id), write.outcome(operation_id)

        async def on_one_connection(_connection: AsyncConnection, driver_connection: Any) -> Rows:
            # With several hosts, another connection of the pool may lead to a standby, which has not seen it all yet.
            await self._driver.run(driver_connection, fence)
            return await self._driver.run(driver_connection, outcome)

        return await self._on_connection(fence.subject, budget, on_one_connection)

    async def _persist(self, attempt: Callable[[], Awaitable[_T]], budget: Budget, subject: Subject) -> _T:
        """Make one attempt, then more with growing pauses as long as the failure may pass and the budget lasts."""
        try:
            return await attempt()
        except _Passing as failure:
            first = last = failure
        if not budget.spent:
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(_Passing),
                wait=wait_random_exponential(multiplier=0.05, max=2.0),
                stop=lambda _state: budget.spent,
                sleep=budget.sleep,
                before_sleep=lambda state: _log_retry(subject, state),
                reraise=True,
            )
            try:
                return await retrying(attempt)
            except _Passing as failure:
                last = failure
        raise self._unavailable(subject, first, last) from cause_to_show(last.error)

    async def _attempt(self, command: Command, budget: Budget) -> Rows:
        async def run(_connection: AsyncConnection, driver_connection: Any) -> Rows:
            return await self._driver.run(driver_connection, command)

        return await self._on_connection(command.subject, budget, run)

    async def _on_connection(
        self,
        subject: Subject,
        budget: Budget,
        work: Callable[[AsyncConnection, Any], Awaitable[_T]],
        *,
        isolation: str | None = None,
    ) -> _T:
        """Take a connection, do the work on it and give it back; a connection in an unknown state is thrown away.

        It comes in autocommit, unless another *isolation* is asked for. *work* gets it from SQLAlchemy and as the
        driver has it.
        """
        isolation = isolation or (None if self._engines.owned else "AUTOCOMMIT")
        sent = usable = False
        held: list[Line] = []
        connection: AsyncConnection | None = None
        limit = TimeLimit()
        cancelled_before = cancellations()
        self.require_open()
        try:
            async with asyncio.timeout_at(budget.deadline):
                for line in self._engines.lines(writes=subject.writes):
                    await line.acquire()
                    held.append(line)
                connection = await self._engines.connect()
                if isolation is not None:
                    await connection.execution_options(isolation_level=isolation)
            driver_connection = _driver_connection(connection)
            if not self._driver.is_idle(driver_connection):
                self._engines.suspect()
                raise ConnectionError("it was closed while idle, or somebody left a transaction open on it")
            sent = True
            if self._on_postgres:
                limit.start(driver_connection, budget.until(self._command_timeout))
            result = await work(connection, driver_connection)
            usable = True
            return result
        except Exception as failure:
            error = self._told(failure, sent=sent, in_time=not limit.reached)
            verdict = judge(error, sent=sent)
            usable = sent and verdict is not Verdict.DOUBT and sqlstate_of(error) not in ON_ANOTHER_CONNECTION
            if self._on_postgres and sent and verdict is Verdict.DOUBT:
                self._engines.suspect()
            if cancellations() > cancelled_before:
                raise asyncio.CancelledError from failure  # the driver told its own story on the way out
            if verdict is Verdict.FOREIGN:
                raise
            raise self._failure(subject, error, verdict) from cause_to_show(error)
        finally:
            limit.stop()
            try:
                if connection is not None:
                    await self._give_back(connection, usable=usable)
            finally:
                for line in reversed(held):
                    line.release()

    def _told(self, failure: Exception, *, sent: bool, in_time: bool) -> Exception:
        """Say what a failure was about, where the driver does not: hanging up looks like a lost connection to it."""
        if not in_time:
            return TimeoutError("no answer in time")
        if not sent and isinstance(failure, TimeoutError):
            return TimeoutError("no connection in time: the server does not answer, or the whole pool is in use")
        return failure

    async def _give_back(self, connection: AsyncConnection, *, usable: bool) -> None:
        """Return a connection to its pool: without a pause, unless there is something to end, and then undisturbed."""
        # Its pool is gone, so nobody else would close it. Or it was interrupted, while it was set up (nobody would set
        # its isolation level back) or in the middle of an answer (which the next verb would wait for). Or it is in a
        # transaction still: what the next verb writes would wait for a COMMIT that never comes.
        if (
            connection.invalidated
            or self._closed
            or not usable
            or not self._driver.is_idle(_driver_connection(connection))
        ):
            await discard(connection)
            return
        closing = connection.close()
        await (asyncio.shield(closing) if cancellations() else closing)

    def _failure(self, what: Subject, error: Exception, verdict: Verdict) -> Exception:
        match verdict:
            case Verdict.RETRY | Verdict.DOUBT:
                return _Passing(error, in_doubt=verdict is Verdict.DOUBT)
            case Verdict.OUTDATED:
                return SchemaOutdated(
                    f"{what}: {describe(error)}; run `{UPGRADE_COMMAND}`", sqlstate=sqlstate_of(error)
                )
            case Verdict.CONFIGURATION:
                why = f"{self._place()} does not let us in ({describe(error)})"
                hint = "check the database URL and engine_kwargs"
                return StorageUnavailable(f"{what}: {why}; {hint}", sqlstate=sqlstate_of(error))
            case Verdict.UNPREPARED:
                hint = "behind PgBouncer in transaction mode, open the store with pgbouncer=True"
                return SessionError(f"{what}: {describe(error)}; {hint}", sqlstate=sqlstate_of(error))
            case Verdict.WRONG_LOOP:
                hint = "open the store from a URL, which keeps one pool per loop"
                return SessionError(f"{what}: the engine belongs to another event loop ({describe(error)}); {hint}")
            case _:
                return SessionError(f"{what}: the database refused: {describe(error)}", sqlstate=sqlstate_of(error))

    def _unavailable(self, what: Subject, first: _Passing, last: _Passing) -> StorageUnavailable:
        known = ""
        if what.writes:
            known = IN_DOUBT if last.in_doubt else "; nothing was written"
        why = f"{last}" if str(first) == str(last) else f"first {first}, at last {last}"
        return StorageUnavailable(
            f"{what}: {self._place()} was unavailable for {self._retry_for:g} s ({why}){known}",
            sqlstate=sqlstate_of(last.error) or sqlstate_of(first.error),
        )

    def _place(self) -> str:
        """Where the database is, without user or password."""
        url = self._engines.engine.url
        hosts = url.query.get("host") or (f"{url.host}:{url.port or 5432}" if url.host else "")
        place = hosts if isinstance(hosts, str) else ", ".join(hosts)
        return f"{url.get_backend_name()} {place}{'/' if place else ''}{url.database or ''}".strip()


def _driver_connection(connection: AsyncConnection) -> Any:
    """Return the connection as its driver made it."""
    assert connection.sync_connection is not None
    return connection.sync_connection.connection.driver_connection


def _log_retry(what: Subject, state: RetryCallState) -> None:
    assert state.outcome is not None
    assert state.next_action is not None
    logger.warning("%s: %s; trying again in %.2f s", what, state.outcome.exception(), state.next_action.sleep)


def _positive(name: str, seconds: float) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ValueError(f"{name} must be a positive number of seconds, not {shown(seconds)}")
    return float(min(seconds, MAX_SECONDS))
