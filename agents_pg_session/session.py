"""`PGSession`: the Agents SDK's session protocol over one conversation in the database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from agents.memory import SessionSettings

from agents_pg_session.database import COMMAND_TIMEOUT, RETRY_FOR, Database
from agents_pg_session.errors import InvalidItem
from agents_pg_session.ledgers.items import Items
from agents_pg_session.pools import BorrowedEngine
from agents_pg_session.projection import Item, encode
from agents_pg_session.sharing import shared_engines
from agents_pg_session.statements import Key, Labels

if TYPE_CHECKING:
    from agents import RunContextWrapper
    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["PGSession"]

#: Bytes of UTF-8 a tenant, a session id, an agent or a user id may have: four of them fit into one index entry.
MAX_ID_BYTES = 512


class PGSession:
    """One conversation, stored in PostgreSQL (or SQLite for local work): pass it as `session=` to `Runner.run`.

    Every method is one statement and, on PostgreSQL, one network round trip. A handle is cheap: make one per request.
    Two handles with the same tenant and session id are the same conversation, in any process.

    *engine* is yours: it is used and never disposed. To have pools made and closed for you, use `SessionStore`, or
    `PGSession.from_url` for a single session.

    *session_id*, *tenant*, *agent* and *user_id* are text of at most 512 bytes without NUL; whatever else they
    contain is safe. *agent*, *user_id* and *metadata* (a JSON object, at most what jsonb takes: no NUL) are written
    to the session's row with the next append. *schema* is the PostgreSQL schema of the tables. *retry_for* is how
    many seconds a call may take while the database is away, before it raises `StorageUnavailable`.

    Raises `ValueError` for ids that cannot be stored.
    """

    session_id: str

    def __init__(
        self,
        session_id: str,
        *,
        engine: AsyncEngine | Database,
        tenant: str = "",
        create_tables: bool = False,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        schema: str = "agents",
        agent: str | None = None,
        user_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        retry_for: float = RETRY_FOR,
        command_timeout: float = COMMAND_TIMEOUT,
    ) -> None:
        self.session_id = _checked_id("session_id", session_id)
        if not session_id:
            raise ValueError("session_id must not be empty")
        if isinstance(engine, Database):  # from a store or a URL
            self._database = engine
        else:
            self._database = Database(
                BorrowedEngine(engine),
                schema=schema,
                create_tables=create_tables,
                retry_for=retry_for,
                command_timeout=command_timeout,
            )
        self._owns_database = False
        self._key = Key(_checked_id("tenant", tenant), session_id)
        self._items = Items(self._database, self._key, _labels(agent, user_id, metadata))
        self.session_settings = session_settings if session_settings is not None else SessionSettings()

    @classmethod
    def from_url(
        cls,
        session_id: str,
        *,
        url: str | URL,
        engine_kwargs: Mapping[str, Any] | None = None,
        tenant: str = "",
        create_tables: bool = False,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        schema: str = "agents",
        agent: str | None = None,
        user_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        retry_for: float = RETRY_FOR,
        command_timeout: float = COMMAND_TIMEOUT,
        pgbouncer: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Open a session from a database URL; handles with the same URL and settings share one pool.

        Call it as often as you like, from any event loop. `close()` (or `async with`) gives the share back; the pool
        closes with its last share, or with its event loop. *engine_kwargs* go to `create_async_engine`. *pgbouncer*
        switches prepared statements off, for a pooler in transaction mode. Anything else goes to the constructor of
        your subclass. Raises `ValueError` for a URL that cannot work, naming what to write.
        """
        engines = shared_engines(url, engine_kwargs=engine_kwargs, pgbouncer=pgbouncer)
        database = Database(
            engines, schema=schema, create_tables=create_tables, retry_for=retry_for, command_timeout=command_timeout
        )
        session = cls(
            session_id,
            engine=database,
            tenant=tenant,
            session_settings=session_settings,
            agent=agent,
            user_id=user_id,
            metadata=metadata,
            **kwargs,
        )
        session._owns_database = True
        return session

    def __repr__(self) -> str:
        tenant = f", tenant={self._key.tenant_id!r}" if self._key.tenant_id else ""
        return f"{type(self).__name__}({self.session_id!r}{tenant})"

    @property
    def tenant(self) -> str:
        """The tenant this handle is confined to."""
        return self._key.tenant_id

    @property
    def session_settings(self) -> SessionSettings | None:
        """The SDK's settings.

        `limit` is how many items `get_items` returns when not told otherwise. Takes a dict too.
        """
        return self._session_settings

    @session_settings.setter
    def session_settings(self, value: SessionSettings | dict[str, Any] | None) -> None:
        if isinstance(value, dict):
            value = SessionSettings(**value)
        if value is not None and not hasattr(value, "limit"):
            raise ValueError(f"session_settings must be SessionSettings or a dict, not {type(value).__name__}")
        self._session_settings = value

    @property
    def engine(self) -> AsyncEngine:
        """The engine this handle uses: yours, or the one of the running event loop."""
        return self._database.engine

    async def get_items(self, limit: int | None = None, *, wrapper: RunContextWrapper[Any] | None = None) -> list[Item]:
        """Return the newest *limit* items, oldest first; without a limit, `session_settings.limit`, else all.

        An empty list always means an empty session: when the database stays away, this raises `StorageUnavailable`.
        Raises `ValueError` for a negative limit.
        """
        self._database.require_open()
        if limit is None and self.session_settings is not None:
            limit = self.session_settings.limit
        if limit is not None and (not isinstance(limit, int) or limit < 0):
            raise ValueError(f"limit must be a whole number, zero or more, not {limit!r}")
        return await self._items.latest(limit)

    async def add_items(self, items: list[Item], *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Append *items*, in order, together or not at all, exactly once: a lost connection is retried safely.

        Nothing to append is no call to the database. Raises `InvalidItem` naming the place of what JSON cannot hold,
        and `StorageUnavailable` when the database stays away.
        """
        self._database.require_open()
        await self._items.append(items)

    async def pop_item(self, *, wrapper: RunContextWrapper[Any] | None = None) -> Item | None:
        """Take out the newest item and return it.

        None when the session is empty. Two callers never get the same one.
        """
        self._database.require_open()
        return await self._items.pop()

    async def clear_session(self, *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Take out all items at one moment. The session's row stays: positions are never handed out twice."""
        self._database.require_open()
        await self._items.clear()

    async def close(self) -> None:
        """Give back what this handle owns. A handle on your engine or from a store owns nothing and stays usable."""
        if self._owns_database:
            await self._database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _checked_id(name: str, value: object) -> str:
    """Return *value* if a key column and the indexes over it can hold it."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, not {type(value).__name__}")
    if "\0" in value:
        raise ValueError(f"{name} must not contain NUL: PostgreSQL cannot store it")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{name} must not contain a lone surrogate: it has no UTF-8") from None
    if size > MAX_ID_BYTES:
        raise ValueError(f"{name} must be at most {MAX_ID_BYTES} bytes of UTF-8, not {size}")
    return value


def _labels(agent: str | None, user_id: str | None, metadata: Mapping[str, Any] | None) -> Labels:
    return Labels(
        agent=None if agent is None else _checked_id("agent", agent),
        user_id=None if user_id is None else _checked_id("user_id", user_id),
        metadata=None if metadata is None else _metadata_text(metadata),
    )


def _metadata_text(metadata: Mapping[str, Any]) -> str:
    """Return the metadata as JSON text that jsonb takes, or raise `ValueError` naming what it does not take."""
    if not isinstance(metadata, Mapping):
        raise InvalidItem(f"metadata must be a dict, not {type(metadata).__name__}")
    text = encode(dict(metadata), place="metadata")
    if not _fits_jsonb(json.loads(text)):
        raise InvalidItem("metadata contains NUL or a lone surrogate, which jsonb cannot hold")
    return text


def _fits_jsonb(value: object) -> bool:
    match value:
        case str():
            return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
        case dict():
            return all(_fits_jsonb(each) for pair in value.items() for each in pair)
        case list():
            return all(map(_fits_jsonb, value))
        case _:
            return True
