"""`SessionStore`: one per process; owns the connection pools and opens sessions."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from agents_pg_session.database import COMMAND_TIMEOUT, RETRY_FOR, Database
from agents_pg_session.pools import BorrowedEngine, OwnEngines
from agents_pg_session.records import StoreCheck
from agents_pg_session.schema import require_current
from agents_pg_session.session import PGSession

if TYPE_CHECKING:
    from agents.memory import SessionSettings
    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["SessionStore"]


class SessionStore:
    """Where sessions are kept. Make one when the process starts, and a handle from it per request.

    `SessionStore.open(url)` makes and closes its own pools, one per event loop, so the same store works in a web
    server, in threads, in notebooks and under `Runner.run_sync`. `SessionStore(engine=engine)` uses yours and never
    disposes it.

    *schema* is the PostgreSQL schema of the tables. *retry_for* is how many seconds a call may take while the
    database is away, before it raises `StorageUnavailable`.
    """

    def __init__(
        self,
        *,
        engine: AsyncEngine,
        schema: str = "agents",
        retry_for: float = RETRY_FOR,
        command_timeout: float = COMMAND_TIMEOUT,
    ) -> None:
        self._database = Database(
            BorrowedEngine(engine), schema=schema, retry_for=retry_for, command_timeout=command_timeout
        )

    @classmethod
    def open(
        cls,
        url: str | URL,
        *,
        schema: str = "agents",
        retry_for: float = RETRY_FOR,
        command_timeout: float = COMMAND_TIMEOUT,
        pgbouncer: bool = False,
        engine_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return a store over *url*; use it with `async with`, or call `close()` at the end.

        No connection is made yet. *pgbouncer* switches prepared statements off, for a pooler in transaction mode.
        *engine_kwargs* go to `create_async_engine` and override our settings one by one.
        Raises `ValueError` for a URL that cannot work, naming what to write.
        """
        engines = OwnEngines(url, engine_kwargs=engine_kwargs, pgbouncer=pgbouncer)
        store = cls.__new__(cls)
        store._database = Database(engines, schema=schema, retry_for=retry_for, command_timeout=command_timeout)
        return store

    @property
    def engine(self) -> AsyncEngine:
        """The engine this store uses: yours, or the one of the running event loop."""
        return self._database.engine

    def session(
        self,
        session_id: str,
        *,
        tenant: str = "",
        agent: str | None = None,
        user_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> PGSession:
        """Return a handle on one conversation; no database is asked, so make one per request.

        *agent*, *user_id* and *metadata* are written to the session's row with the next append, in the same statement.
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
        )

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
        schema = self._database.schema
        revision = await self._database.transaction(
            "check", lambda connection: require_current(connection, schema), writes=False
        )
        product = "SQLite" if schema is None else "PostgreSQL"
        return StoreCheck(server=f"{product} {row.version.split()[0]}", schema=schema, revision=revision)

    async def close(self) -> None:
        """Close the pools this store made; a borrowed engine is left alone. Calling it again does nothing."""
        await self._database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
