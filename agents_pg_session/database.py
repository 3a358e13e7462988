"""One door to the database: every statement goes through here.

What a verb does not have to think about lives in this file, once: retrying what may pass, finding out what became of
a try whose answer was lost, waiting for a mutation to settle when the caller is cancelled, and saying errors in our
words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import Any, NoReturn, TypeVar
from uuid import uuid4

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agents_pg_session.drivers import Rows, driver_of
from agents_pg_session.errors import SessionClosed, SessionConflict, SessionError
from agents_pg_session.failures import STALE_PLAN, Verdict, cause_to_show, describe, judge, sqlstate_of
from agents_pg_session.lines import Line
from agents_pg_session.passages import Pace, Passage, Reach
from agents_pg_session.patience import Budget, TimeLimit, cancellations, checked_patience, settled
from agents_pg_session.pools import Engines, discard
from agents_pg_session.records import PoolUse
from agents_pg_session.retries import IN_DOUBT, Passing, failure_of, persist, unavailable
from agents_pg_session.schema import checked_schema, create, require_current
from agents_pg_session.statements import Command, Statements, Subject, Write
from agents_pg_session.statements.postgres import PostgresStatements
from agents_pg_session.statements.reads import Reads
from agents_pg_session.statements.sqlite import SQLiteStatements
from agents_pg_session.telemetry import Told, telemetry_of
from agents_pg_session.urls import place_of

__all__ = ["COMMAND_TIMEOUT", "RETRY_FOR", "Database"]

#: Seconds a verb may take in all, with waiting for a connection and retrying, before it raises `StorageUnavailable`.
RETRY_FOR = 15.0

#: Seconds one try of a statement may take before its connection is given up and the verb tries again.
COMMAND_TIMEOUT = 10.0

#: What another connection may do, where trying again on this one would not: the server cannot write (a standby, or a
#: primary that was demoted), or this connection has prepared its statements over columns that have changed since.
ON_ANOTHER_CONNECTION = frozenset({"25006", STALE_PLAN})

_T = TypeVar("_T")


class Database:
    """Runs commands: each exactly once, or with an error that says what is known."""

    def __init__(
        self,
        engines: Engines,
        *,
        schema: str = "agents",
        create_tables: bool = False,
        verify: bool = False,
        retry_for: float = RETRY_FOR,
        command_timeout: float = COMMAND_TIMEOUT,
    ) -> None:
        self._engines = engines
        self._on_postgres = engines.engine.dialect.name == "postgresql"
        self._driver = driver_of(engines.engine.dialect)
        self._schema = checked_schema(schema) if self._on_postgres else None
        self.sql: Statements = PostgresStatements(schema) if self._on_postgres else SQLiteStatements()
        self.reads = Reads(self._schema)
        self._telemetry = telemetry_of(engines.engine.sync_engine, self._schema)
        self._create_tables = create_tables
        self._verify = verify
        self._closed = False
        self._retry_for = checked_patience("retry_for", retry_for)
        self._command_timeout = checked_patience("command_timeout", command_timeout)

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

    def pool(self) -> PoolUse:
        """Return what the connections are doing, without asking the database. Raises `SessionClosed` after `close`."""
        self.require_open()
        return self._engines.use()

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
        budget = self.budget()
        await self.prepare(budget)

        async def attempt() -> Rows:
            return await self._attempt(command, budget)

        reading = self._persist(attempt, budget, command.subject)
        # A read cut short on SQLite would leave a cursor behind, and with it a lock, until somebody collects garbage.
        return await (reading if self._on_postgres else settled(reading, budget))

    def budget(self, *, at_most: float | None = None) -> Budget:
        """Return the time for one verb, from now on; a verb that writes twice takes one for both."""
        return Budget(self._retry_for if at_most is None else min(self._retry_for, at_most))

    async def write(
        self,
        write: Write,
        budget: Budget,
        landed: Callable[[Rows], None] | None = None,
        *,
        items: int | None = None,
    ) -> Rows:
        """Run a mutation so that it takes effect exactly once, and return its rows.

        Once it is under way, cancelling the caller waits until it has settled. *landed* is called with the rows of a
        mutation that took effect, also when its caller was cancelled and never gets them. *items* is how many it
        brings, for those who watch. Raises `StorageUnavailable` when the database stays away longer than the budget;
        the mutation is then there whole, or not at all.
        """
        await self.prepare(budget)

        async def whole() -> Rows:
            rows = await self._write(write, budget, items)
            if landed is not None:
                landed(rows)
            return rows

        return await settled(whole(), budget)

    async def prepare(self, budget: Budget | None = None) -> None:
        """Create the tables, or see that they fit this version, if that was asked for and is not known yet."""
        if not (self._create_tables or self._verify) or self._schema in self._engines.created:
            return
        await (self.create_tables(budget) if self._create_tables else self.require_current(budget))

    async def create_tables(self, budget: Budget | None = None) -> None:
        """Create the tables, or leave them as they are; any number of processes may do so at once."""
        await self.transaction("create_tables", lambda connection: create(connection, self._schema), budget=budget)
        self._engines.created.add(self._schema)

    async def require_current(self, budget: Budget | None = None) -> str:
        """Return the revision, if everything is there as this version needs it; else raise `SchemaOutdated`."""
        look = partial(require_current, schema=self._schema)
        revision = await self.transaction("check", look, writes=False, budget=budget)
        self._engines.created.add(self._schema)
        return revision

    async def transaction(
        self,
        verb: str,
        work: Callable[[Connection], _T],
        *,
        writes: bool = True,
        budget: Budget | None = None,
    ) -> _T:
        """Run *work* on a connection inside one transaction: for schema work, which may be repeated from its start."""
        subject, budget = Subject(verb, writes=writes), budget or self.budget()

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

    def conflict(self, verb: str, message: str) -> SessionConflict:
        """Return the error for a caller whose *verb* another writer was faster than; whoever watches hears of it."""
        if self._telemetry is not None:
            self._telemetry.conflict(verb)
        return SessionConflict(message)

    def overtaken(self, what: Subject) -> None:
        """Tell whoever watches that another writer came first, so that the caller asks once more."""
        if self._telemetry is not None:
            self._telemetry.overtaken(what.verb)

    async def passage(self, subject: Subject, work: Callable[[Passage], Awaitable[_T]], *, begin: str) -> _T:
        """Run *work* in one transaction of any length, each of its statements within `command_timeout`.

        *begin* is the statement that begins it. Where a failure may pass, it is repeated from its start, as long as it
        came further than ever in the last `retry_for` seconds. A cancelled caller leaves nothing behind of it.
        """
        budget, reach = self.budget(), Reach(self._retry_for)
        await self.prepare(budget)

        async def attempt() -> _T:
            limit = TimeLimit()

            async def through(_connection: AsyncConnection, driver_connection: Any) -> _T:
                pace = Pace(budget, reach.again(), limit if self._on_postgres else None, self._command_timeout)
                return await Passage(self._driver, driver_connection, pace).whole(work, begin)

            return await self._on_connection(subject, budget, through, limit=limit)

        return await self._persist(attempt, budget, subject)

    async def _write(self, write: Write, budget: Budget, items: int | None) -> Rows:
        doubtful: str | None = None

        async def attempt() -> Rows:
            nonlocal doubtful
            if doubtful is not None:
                try:
                    rows = await self._recover(write, doubtful, budget)
                except Passing as failure:
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
            except Passing as failure:
                doubtful = operation_id if failure.in_doubt and write.fence is not None else None
                raise

        return await self._persist(attempt, budget, write.subject, items)

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

    async def _persist(
        self, attempt: Callable[[], Awaitable[_T]], budget: Budget, subject: Subject, items: int | None = None
    ) -> _T:
        """Make one attempt, and more as long as the failure may pass; whoever watches is told of them as one."""
        if self._telemetry is None:
            return await self._tries(attempt, budget, subject)
        with self._telemetry.told(subject, items) as told:
            answer = await self._tries(attempt, budget, subject, told)
            told.answered(answer)
            return answer

    async def _tries(
        self, attempt: Callable[[], Awaitable[_T]], budget: Budget, subject: Subject, told: Told | None = None
    ) -> _T:
        try:
            return await persist(attempt, budget, subject, told)
        except Passing as failure:
            last = failure
        if told is not None and subject.writes and last.in_doubt:
            told.doubtful()
        raise unavailable(subject, last, self._place, self._retry_for) from cause_to_show(last.error)

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
        limit: TimeLimit | None = None,
    ) -> _T:
        """Take a connection, do the work on it and give it back; a connection in an unknown state is thrown away.

        It comes in autocommit, unless another *isolation* is asked for. *work* gets it from SQLAlchemy and as the
        driver has it.
        """
        isolation = isolation or (None if self._engines.owned else "AUTOCOMMIT")
        sent = usable = False
        held: list[Line] = []
        connection: AsyncConnection | None = None
        limit = limit or TimeLimit()
        cancelled_before, began = cancellations(), perf_counter()
        self.require_open()
        try:
            async with asyncio.timeout_at(budget.deadline):
                for line in self._engines.lines(writes=subject.writes):
                    await line.acquire()
                    held.append(line)
                connection = await self._engines.connect()
                if isolation is not None:
                    await connection.execution_options(isolation_level=isolation)
            if self._telemetry is not None:
                self._telemetry.waited(perf_counter() - began)
            driver_connection = _driver_connection(connection)
            if not self._driver.is_idle(driver_connection):
                self._engines.suspect(why := "it was closed while idle, or somebody left a transaction open on it")
                raise ConnectionError(why)
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
                self._engines.suspect(describe(error))
            if cancellations() > cancelled_before:
                raise asyncio.CancelledError from failure  # the driver told its own story on the way out
            if verdict is Verdict.FOREIGN:
                raise
            raise failure_of(subject, error, verdict, self._place) from cause_to_show(error)
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
            if self._telemetry is not None:
                self._telemetry.waited_in_vain()
            return TimeoutError("no connection in time: the server does not answer, or the whole pool is in use")
        return failure

    @property
    def _place(self) -> str:
        return place_of(self._engines.engine.url)

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


def _driver_connection(connection: AsyncConnection) -> Any:
    """Return the connection as its driver made it."""
    assert connection.sync_connection is not None
    return connection.sync_connection.connection.driver_connection
