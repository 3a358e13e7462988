"""The engine: a pool tuned for short statements, with the reason for each setting beside it.

Every setting can be overridden through `engine_kwargs`, which are the keyword arguments of SQLAlchemy's
`create_async_engine`; `connect_args` in it are merged with ours, one by one.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Mapping
from typing import Any

from sqlalchemy import event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, Pool

from agents_pg_session.texts import described, shown
from agents_pg_session.urls import WITHOUT_PREPARED_STATEMENTS, engine_url
from agents_pg_session.wire import connect_in_turn, connect_or_let_go

__all__ = ["checked_settings", "create_engine", "memory_keeper", "named_memory_url"]

APPLICATION_NAME = "agents_pg_session"

POOL: Mapping[str, Any] = {
    # A verb holds a connection for under a millisecond: fifteen serve thousands of sessions.
    "pool_size": 15,
    # Connections beyond the pool would be closed after one use: connecting costs more than waiting for a turn.
    "max_overflow": 0,
    # The connection used last is the warmest, and what a quiet hour does not need ages and is recycled.
    "pool_use_lifo": True,
    # A ping costs a round trip each time; a verb that finds its connection dead is retried safely instead.
    "pool_pre_ping": False,
    # Half an hour: before load balancers forget idle connections, and so that a failover back is noticed.
    "pool_recycle": 1800,
    # Statements are prepared once per connection, by the drivers' own caches (100 over asyncpg; psycopg, from the sixth
    # use on). That is plenty: the text of a statement never depends on the size of a batch, so a handful serves all.
}

#: Seconds to wait for a server to accept a connection, for each host of the URL.
CONNECT_TIMEOUT = 5.0

#: Milliseconds one SQLite writer waits for another.
SQLITE_BUSY_TIMEOUT = 5000


def create_engine(
    url: str | URL,
    *,
    engine_kwargs: Mapping[str, Any] | None = None,
    pgbouncer: bool = False,
    isolation_level: str = "AUTOCOMMIT",
) -> AsyncEngine:
    """Return a new engine for *url*: no connection is made yet.

    A verb is one statement, so connections come in autocommit: no BEGIN and no COMMIT around it. *pgbouncer* switches
    prepared statements off, for a pooler in transaction mode that does not track them.
    Raises `ValueError` for a URL that cannot work, naming what to write.
    """
    parsed, url_arguments = engine_url(url)
    overrides = checked_settings("engine_kwargs", engine_kwargs)
    if "isolation_level" in {**overrides, **checked_settings("execution_options", overrides.get("execution_options"))}:
        raise ValueError("engine_kwargs cannot set an isolation_level: each call is one statement in autocommit")
    is_sqlite = parsed.get_backend_name() == "sqlite"
    connect_args = {} if is_sqlite else _postgres_arguments(parsed.drivername)
    connect_args |= WITHOUT_PREPARED_STATEMENTS[parsed.drivername] if pgbouncer and not is_sqlite else {}
    connect_args = _merged(
        _merged(connect_args, url_arguments), checked_settings("connect_args", overrides.pop("connect_args", None))
    )

    pool_class = overrides.get("poolclass")
    if pool_class is not None and not (isinstance(pool_class, type) and issubclass(pool_class, Pool)):
        raise ValueError(f"poolclass in engine_kwargs must be a pool of SQLAlchemy, not {shown(pool_class)}")
    for name in ("pool_size", "max_overflow"):
        if not isinstance(overrides.get(name, 0), int):
            raise ValueError(f"{name} in engine_kwargs must be a whole number, not {shown(overrides[name])}")
    queued = pool_class is None or issubclass(pool_class, AsyncAdaptedQueuePool)
    settings: dict[str, Any] = dict(POOL) if queued and not _is_private_memory(parsed) else {}
    settings["isolation_level"] = isolation_level
    if parsed.drivername == "postgresql+psycopg":
        settings["use_native_hstore"] = False  # we have no hstore: asking the server for it costs a connection 2 trips
    settings["hide_parameters"] = True  # an error or a log line never shows an item
    try:
        engine = create_async_engine(parsed, connect_args=connect_args, **(settings | overrides))
    except (ArgumentError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"the database URL or engine_kwargs cannot be used: {described(error)[:300]}") from None
    if is_sqlite:
        event.listen(engine.sync_engine, "connect", _tune_sqlite)
    return engine


def checked_settings(name: str, value: object) -> dict[str, Any]:
    """Return named settings as a dict of their own; raise `ValueError` for anything else."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} must be a dict of names and values, not {shown(value)}")
    return dict(value)


def _postgres_arguments(drivername: str) -> dict[str, Any]:
    """What we ask of a driver. Nothing here is refused by PgBouncer at connect (it passes application_name)."""
    if drivername == "postgresql+psycopg":
        return {
            "application_name": APPLICATION_NAME,
            "connect_timeout": int(CONNECT_TIMEOUT),
            "async_creator_fn": connect_or_let_go,
        }
    return {
        "timeout": CONNECT_TIMEOUT,
        "max_cached_statement_lifetime": 0,  # as long as their connection: a handful of texts serves all
        "server_settings": {"application_name": APPLICATION_NAME},
        "async_creator_fn": connect_in_turn,
    }


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**base, **more}
    if "server_settings" in base and "server_settings" in more:
        merged["server_settings"] = {
            **base["server_settings"],
            **checked_settings("server_settings", more["server_settings"]),
        }
    return merged


def _tune_sqlite(connection: Any, _record: object) -> None:
    """Readers that do not wait for the writer, writers that wait for each other, and foreign keys that count."""
    cursor = connection.cursor()
    try:
        # First: the switch to WAL itself may have to wait.
        cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA foreign_keys = ON")
    finally:
        cursor.close()


def _is_private_memory(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def named_memory_url(url: str | URL) -> URL | None:
    """Return the URL of a new database in memory that all connections of this process share, if *url* asks for memory.

    A plain `:memory:` database belongs to one connection, so each event loop would see another one.
    """
    parsed = make_url(url) if isinstance(url, URL) else engine_url(url)[0]
    if not _is_private_memory(parsed):
        return None
    return make_url(f"sqlite+aiosqlite:///file:/agents-{uuid.uuid4().hex}?vfs=memdb&uri=true")


def memory_keeper(url: URL) -> sqlite3.Connection:
    """Open the connection that keeps a database in memory alive while the pools of all loops come and go."""
    return sqlite3.connect(f"{url.database}?vfs=memdb", uri=True, check_same_thread=False)
