"""Opening a database of the Agents SDK's, finding its tables, and saying what is there where they are not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Inspector, event, inspect
from sqlalchemy.exc import NoSuchTableError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from agents_pg_session.engine import SQLITE_BUSY_TIMEOUT, create_engine
from agents_pg_session.operations.sdk_kinds import layouts_of
from agents_pg_session.operations.sdk_tables import Layout
from agents_pg_session.statements import clause, quoted_prefix
from agents_pg_session.texts import shown
from agents_pg_session.urls import engine_url

__all__ = ["find_layouts", "source_engine"]

_SESSIONS = frozenset({"session_id", "created_at", "updated_at"})
_MESSAGES = frozenset({"id", "session_id", "message_data", "created_at"})
_STRUCTURE = frozenset({"message_structure", "turn_usage"})

# Tables of the SDK's form in any schema; a role sees those it may use.
_ELSEWHERE = """
SELECT table_schema, table_name FROM information_schema.columns WHERE column_name = 'message_data'
 ORDER BY table_schema, table_name
"""


def source_engine(url: str) -> AsyncEngine:
    """Return an engine to read with; a SQLite file is neither created nor changed by it."""
    parsed, _ = engine_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(url, engine_kwargs={"poolclass": NullPool})
    path = parsed.database or ""
    if not path.startswith("file:") and not os.path.isfile(path):
        raise ValueError(f"there is no SQLite file {path!r}" if path else "--from names no file: sqlite:///sessions.db")
    engine = create_async_engine(parsed, isolation_level="AUTOCOMMIT", hide_parameters=True, poolclass=NullPool)

    @event.listens_for(engine.sync_engine, "connect")
    def only_read(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT}")
        cursor.execute("PRAGMA query_only = ON")
        cursor.close()

    return engine


def find_layouts(connection: Connection, schema: str | None, sessions_table: str, messages_table: str) -> list[Layout]:
    """Return how to read these tables. Raises `ValueError` where they are not the SDK's, naming those that are."""
    postgres = connection.dialect.name == "postgresql"
    schema = schema if postgres else None
    inspector = inspect(connection)
    sessions, messages = _columns(inspector, sessions_table, schema), _columns(inspector, messages_table, schema)
    if not (sessions >= _SESSIONS and messages >= _MESSAGES):
        wrong = [
            _fault(name, found, needed)
            for name, found, needed in (
                (sessions_table, sessions, _SESSIONS),
                (messages_table, messages, _MESSAGES),
            )
            if not found >= needed
        ]
        raise ValueError(f"{' and '.join(wrong)}; {_hint(connection, inspector, schema, sessions | messages)}")
    prefix = quoted_prefix(schema)
    names = {"sessions": prefix + _quoted(sessions_table), "messages": prefix + _quoted(messages_table)}
    structured = not postgres and set(inspector.get_table_names()) >= _STRUCTURE
    return layouts_of(postgres, names, timed=postgres or _is_timed(inspector, messages_table), structured=structured)


def _columns(inspector: Inspector, table: str, schema: str | None) -> frozenset[str]:
    try:
        return frozenset(str(column["name"]) for column in inspector.get_columns(table, schema))
    except NoSuchTableError:
        return frozenset()


def _is_timed(inspector: Inspector, messages_table: str) -> bool:
    """Whether a file's messages are in the order of time: `SQLAlchemySession` makes an index of it.

    `SQLiteSession` makes one of the ids. In a file that both have used the older layout, of ids, is not what
    `SQLAlchemySession` would read.
    """
    return any(
        list(index["column_names"])[:2] == ["session_id", "created_at"]
        for index in inspector.get_indexes(messages_table)
    )


def _fault(name: str, found: frozenset[str], needed: frozenset[str]) -> str:
    if not found:
        return f"there is no table {shown(name)}"
    return f"table {shown(name)} has no {', '.join(sorted(needed - found))}"


def _hint(connection: Connection, inspector: Inspector, schema: str | None, found: frozenset[str]) -> str:
    if "tenant_id" in found:
        return "these are the tables of agents_pg_session itself: `export` and `import` move those"
    looks_right = list(_candidates(connection, inspector, schema))
    if looks_right:
        return f"these look right: {'; '.join(looks_right)}"
    ours = {"sessions", "items", "tool_runs"} <= set(inspector.get_table_names(schema))
    if ours:
        return "the tables here are those of agents_pg_session itself: `export` and `import` move those"
    return "nothing here looks like the SDK's tables: is this the database, and the schema (--from-schema)?"


def _candidates(connection: Connection, inspector: Inspector, schema: str | None) -> Iterator[str]:
    """Yield the options that name tables of the SDK's form."""
    for place, messages in _with_messages(connection, inspector):
        if not _columns(inspector, messages, place) >= _MESSAGES:
            continue
        for key in inspector.get_foreign_keys(messages, place):
            if key["constrained_columns"] == ["session_id"]:
                where = f"--from-schema {place} " if place != (schema or inspector.default_schema_name) else ""
                yield f"{where}--sessions-table {key['referred_table']} --messages-table {messages}"


def _with_messages(connection: Connection, inspector: Inspector) -> list[tuple[str | None, str]]:
    if connection.dialect.name == "postgresql":
        found: list[Any] = list(connection.execute(clause(_ELSEWHERE)).all())
        return [(row.table_schema, row.table_name) for row in found]
    return [(inspector.default_schema_name, name) for name in inspector.get_table_names()]


def _quoted(name: str) -> str:
    return quoted_prefix(name).removesuffix(".")
