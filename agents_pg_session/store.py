"""`SessionStore`: one per process; owns the connection pools and opens sessions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from agents_pg_session.database import COMMAND_TIMEOUT, RETRY_FOR, Database
from agents_pg_session.labels import checked_filters, checked_flag, checked_id, metadata_text
from agents_pg_session.ledgers.mapping import session_info, sums, tool_run, waiting_run
from agents_pg_session.ledgers.tool_runs import checked_status
from agents_pg_session.paging import checked_limit, page, read_cursor
from agents_pg_session.pools import BorrowedEngine, OwnEngines
from agents_pg_session.purging import Progress, Purge, rule_of
from agents_pg_session.records import Page, PoolUse, Purged, SessionInfo, StoreCheck, ToolRun, UsageOf, WaitingRun
from agents_pg_session.session import PGSession
from agents_pg_session.tenants import Tenant
from agents_pg_session.texts import shown
from agents_pg_session.windows import Window

if TYPE_CHECKING:
    from agents.memory import SessionSettings
    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["SessionStore"]

#: What the cursors of lists across sessions hold: of one tenant, and of all.
_SESSION_KEYS = ("active_at", "session_id", "tenant")
_SESSION_KEY = ((datetime, str), (datetime, str, str))
_TOOL_RUN_KEY = ((datetime, str, int), (datetime, str, int, str))

#: How far back a list can be asked for: a hundred years.
_LONG_AGO = timedelta(days=36525)

_Moment = TypeVar("_Moment", datetime | None, datetime | timedelta | None)


class SessionStore:
    """Where sessions are kept. Make one when the process starts, and a handle from it per request.

    `SessionStore.open(url)` makes and closes its own pools, one per event loop, so the same store works in a web
    server, in threads, in notebooks and under `Runner.run_sync`. `SessionStore(engine=engine)` uses yours and never
    disposes it.

    *schema* is the PostgreSQL schema of the tables. *retry_for* is how many seconds a call may take while the
    database is away, before it raises `StorageUnavailable`.

    With *verify*, nothing is sent before the tables are known to fit this version: `async with` looks before its block
    begins, without it the first call does, and each raises what `check` raises. Where it failed, the next call looks
    again; a store that an `async with` could not enter is closed.
    """

    def __init__(
        self,
        *,
        engine: AsyncEngine,
        schema: str = "agents",
        verify: bool = False,
        retry_for: float = RETRY_FOR,
        command_timeout: float = COMMAND_TIMEOUT,
    ) -> None:
        self._database = Database(
            BorrowedEngine(engine),
            schema=schema,
            verify=checked_flag("verify", verify),
            retry_for=retry_for,
            command_timeout=command_timeout,
        )

    @classmethod
    def open(
        cls,
        url: str | URL,
        *,
        schema: str = "agents",
        verify: bool = False,
        retry_for: float = RETRY_FOR,
        command_timeout: float = COMMAND_TIMEOUT,
        pgbouncer: bool = False,
        engine_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return a store over *url*; use it with `async with`, or call `close()` at the end.

        No connection is made yet. With *verify*, `async with` refuses a schema that does not fit this version.
        *pgbouncer* switches prepared statements off, for a pooler in transaction mode.
        *engine_kwargs* go to `create_async_engine` and override our settings one by one.
        Raises `ValueError` for a URL that cannot work, naming what to write.
        """
        engines = OwnEngines(url, engine_kwargs=engine_kwargs, pgbouncer=pgbouncer)
        store = cls.__new__(cls)
        store._database = Database(
            engines,
            schema=schema,
            verify=checked_flag("verify", verify),
            retry_for=retry_for,
            command_timeout=command_timeout,
        )
        return store

    @property
    def engine(self) -> AsyncEngine:
        """The engine this store uses: yours, or the one of the running event loop."""
        return self._database.engine

    def session(
        self,
        session_id: str,
        *,
        tenant: Tenant = "",
        agent: str | None = None,
        user_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expires_after: timedelta | None = None,
        window: Window | None = None,
        expect: Literal["unchanged"] | None = None,
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> PGSession:
        """Return a handle on one conversation; no database is asked, so make one per request.

        *agent*, *user_id* and *metadata* are written to the session's row with the next append, in the same statement.
        With *expires_after* each append moves the session's end to that long after it. *tenant* may be told by the run:
        `tenant=lambda run: run.context.org_id`. See `PGSession` for the rest.
        """
        self._database.require_open()
        return PGSession(
            session_id,
            engine=self._database,
            tenant=tenant,
            session_settings=session_settings,
            agent=agent,
            user_id=user_id,
            metadata=metadata,
            expires_after=expires_after,
            window=window,
            expect=expect,
        )

    # -- across sessions

    async def sessions(
        self,
        *,
        tenant: str = "",
        all_tenants: bool = False,
        user_id: str | None = None,
        agent: str | None = None,
        status: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> Page[SessionInfo]:
        """Return the sessions of a tenant, the one whose last turn began last first.

        *metadata* is what a session's metadata must contain, as jsonb's `@>` has it. *after* is the `cursor` of a page
        before. Raises `ValueError` for a cursor of another list.
        """
        of = _list_of("sessions", all_tenants)
        filters = checked_filters(user_id=user_id, agent=agent, status=status)
        contained = None if metadata is None else metadata_text(metadata)
        limit, place = checked_limit(limit), read_cursor(of, after, *_SESSION_KEY[all_tenants])
        whose = self._whose(tenant, all_tenants)
        rows = await self._database.read(self._database.reads.sessions(whose, filters, contained, place, limit))
        records = [session_info(row) for row in rows]
        keys = _SESSION_KEYS[: 3 if all_tenants else 2]
        return page(of, records, limit, lambda record: [getattr(record, key) for key in keys], after)

    async def tool_runs(
        self,
        *,
        tenant: str = "",
        all_tenants: bool = False,
        status: str | None = None,
        tool_name: str | None = None,
        since: datetime | timedelta | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> Page[ToolRun]:
        """Return the tool runs of a tenant's sessions, newest first: `tool_runs(status="failed", since=timedelta(1))`.

        A timedelta reaches back from the database's present.
        """
        of = _list_of("tool_runs", all_tenants)
        times, named = _checked_moment("since", since), checked_filters(tool_name=tool_name)["tool_name"]
        limit, place = checked_limit(limit), read_cursor(of, after, *_TOOL_RUN_KEY[all_tenants])
        whose = self._whose(tenant, all_tenants)
        command = self._database.reads.all_tool_runs(whose, checked_status(status), named, times, place, limit)
        records = [tool_run(row) for row in await self._database.read(command)]
        keys = ("created_at", "session_id", "position", "tenant")[: 4 if all_tenants else 3]
        return page(of, records, limit, lambda record: [getattr(record, key) for key in keys], after)

    async def waiting(
        self, *, tenant: str = "", all_tenants: bool = False, limit: int = 50, after: str | None = None
    ) -> Page[WaitingRun]:
        """Return the sessions whose run waits for an approval, with the tools and arguments it asks for."""
        of = _list_of("waiting", all_tenants)
        limit, place = checked_limit(limit), read_cursor(of, after, *_SESSION_KEY[all_tenants])
        rows = await self._database.read(self._database.reads.waiting(self._whose(tenant, all_tenants), place, limit))
        keys = _SESSION_KEYS[: 3 if all_tenants else 2]
        records = [waiting_run(row) for row in rows]
        return page(of, records, limit, lambda record: [getattr(record, key) for key in keys], after)

    async def usage(
        self,
        *,
        by: Literal["agent", "user", "tenant", "day"],
        tenant: str = "",
        all_tenants: bool = False,
        since: datetime | timedelta | None = None,
        until: datetime | None = None,
    ) -> list[UsageOf]:
        """Return what runs that began in that time cost in tokens, by agent, user, tenant or day (UTC)."""
        if by not in ("agent", "user", "tenant", "day"):
            raise ValueError(f'by must be "agent", "user", "tenant" or "day", not {shown(by)}')
        times = _checked_moment("since", since), _checked_moment("until", until)
        if isinstance(until, timedelta):
            raise ValueError("until must be a datetime: a timedelta reaches back from the present, as since does")
        command = self._database.reads.usage_by(by, self._whose(tenant, all_tenants), times[0], times[1])
        return [UsageOf(**asdict(sums(row)), of=row.of) for row in await self._database.read(command)]

    # -- retention

    async def purge(
        self,
        *,
        older_than: timedelta | None = None,
        status: str | None = None,
        expired: bool = True,
        tenant: str = "",
        all_tenants: bool = False,
        dry_run: bool = False,
        batch: int = 100,
        progress: Progress | None = None,
    ) -> Purged:
        """Remove sessions whose time is over, whole, with everything about them, and return what that was.

        These are the ones that have expired, and those of a *status* that nothing was written to for *older_than*. Only
        a *status* takes them whatever their age; only an age takes every status but "waiting", which has to be named.
        A session that somebody runs alone now is kept. With *dry_run* nothing is removed, only counted.

        Each statement removes at most *batch* sessions, fewer if they are long, and waits for nobody. So a purge may be
        cancelled or crash at any point: what is gone is gone, the next one finds the rest. *progress* is called with
        what was done so far, and once at the start with `total`. Two purges at once remove each session once; what a
        try removed whose answer was lost is not counted.
        """
        rule = rule_of(self._whose(tenant, all_tenants), older_than=older_than, status=status, expired=expired)
        return await Purge(self._database, rule, batch=batch, dry_run=dry_run).run(progress)

    def _whose(self, tenant: str, all_tenants: bool) -> str | None:
        """Return the tenant that is asked about; None for all of them, which has to be said by name."""
        self._database.require_open()
        if checked_flag("all_tenants", all_tenants) and tenant:
            raise ValueError("tenant and all_tenants exclude each other")
        return None if all_tenants else checked_id("tenant", tenant)

    # -- the database

    async def create_tables(self) -> None:
        """Create the tables if they are missing, and stamp the revision; any number of processes may do so at once.

        For development and tests: in production, run the migrations. Raises `SchemaOutdated` where tables of another
        revision are there already.
        """
        self._database.require_open()
        await self._database.create_tables()

    async def check(self) -> StoreCheck:
        """Return what is there, if the database answers and its schema fits this version: for readiness probes.

        Raises `StorageUnavailable` when the database cannot be reached, `SchemaOutdated` when tables or views are
        missing, behind or newer than this version; the message says what to run.
        """
        self._database.require_open()
        [row] = await self._database.read(self._database.sql.ping())
        schema, revision = self._database.schema, await self._database.require_current()
        product = "SQLite" if schema is None else "PostgreSQL"
        return StoreCheck(server=f"{product} {row.version.split()[0]}", schema=schema, revision=revision)

    def pool(self) -> PoolUse:
        """Return what the store's connections are doing now, of all event loops together, without asking the database.

        With a borrowed engine, connections that the application uses itself are counted too; its callers that wait for
        one are not. Raises `SessionClosed` after `close`.
        """
        return self._database.pool()

    async def close(self) -> None:
        """Close the pools this store made; a borrowed engine is left alone. Calling it again does nothing."""
        await self._database.close()

    async def __aenter__(self) -> Self:
        try:
            await self._database.prepare()
        except BaseException:
            await self.close()  # without a block, nothing else ever would
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _list_of(name: str, all_tenants: bool) -> str:
    """Return what a cursor calls its list: one of all tenants sorts otherwise."""
    return f"{name} of all tenants" if checked_flag("all_tenants", all_tenants) else name


def _checked_moment(name: str, value: _Moment) -> _Moment:
    """Return a time that says which zone it is in, or a duration; raise `ValueError` for anything else."""
    if isinstance(value, datetime) and value.utcoffset() is None:
        raise ValueError(f"{name} must be an aware datetime, with a time zone: datetime.now(timezone.utc)")
    if value is not None and not isinstance(value, datetime | timedelta):
        raise ValueError(f"{name} must be a datetime or a timedelta, not {type(value).__name__}")
    if isinstance(value, timedelta) and not timedelta(0) <= value <= _LONG_AGO:
        raise ValueError(f"{name} must reach back at most {_LONG_AGO.days} days, not {value}")
    if isinstance(value, datetime) and not 1 < value.year < 9999:
        raise ValueError(f"{name} must be a date people lived at, not {value}")
    return value
