"""The words revisions are written in: where our tables lie, and indexes that are built while the application writes.

A revision says `create_index("ix_items_role", "items", "tenant_id, role")` and no more. On PostgreSQL that builds the
index CONCURRENTLY, outside of any transaction, and may be repeated however the last build ended. These words are part
of every revision there is: what one means may get better, but never other.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from alembic import op
from alembic.runtime.migration import MigrationContext

from agents_pg_session.errors import SessionError
from agents_pg_session.tables import VERSION_TABLE

__all__ = ["create_index", "drop_index", "execute", "in_schema", "on_postgres", "schema"]

#: Where upgrades say what they do; `agents_pg_session.upgrading` too.
logger = logging.getLogger("agents_pg_session.migrations")

#: Seconds between two looks at an index that somebody else is building.
_PAUSE = 0.5


def schema() -> str | None:
    """Return the schema of our tables, which is that of our version table; None on SQLite.

    Marked as one name, or Alembic would take it apart at a dot. Raises `SessionError` in an environment of others: in
    their version table nobody could tell our revision from theirs, and the tables would lie among their own.
    """
    if op.get_context().version_table != VERSION_TABLE:
        raise SessionError(
            "the revisions of agents-pg-session run with a version table of their own, so they cannot be a branch of "
            "another history; take them out of version_locations, and run `agents-pg-session db upgrade` beside yours"
        )
    name = op.get_context().version_table_schema
    return None if name is None else sa.quoted_name(name, quote=True)


def on_postgres() -> bool:
    return op.get_context().dialect.name == "postgresql"


def in_schema(template: str) -> str:
    """Return SQL with the quoted schema and a dot, or nothing, where it says `{schema}`: for `sqlalchemy.text`."""
    name = schema()
    # A colon is escaped, because `text` would otherwise read a name behind it as a value.
    prefix = "" if name is None else '"{}".'.format(name.replace('"', '""').replace(":", "\\:"))
    return template.replace("{schema}", prefix)


def execute(template: str) -> None:
    """Run one statement, `{schema}` before each name."""
    op.execute(sa.text(in_schema(template)))


def create_index(name: str, table: str, columns: str, *, using: str = "btree", where: str | None = None) -> None:
    """Build an index while the application goes on writing, or keep the one that is there and can be used.

    One that an interrupted build left invalid is dropped and built again; one that such a build is still at, because
    only its client died, is waited for. Raises `SessionError` where another index has the name. SQLite, and PostgreSQL
    inside a transaction that is not Alembic's, build it in their transaction.
    """
    condition = "" if where is None else f" WHERE {where}"
    if not on_postgres():
        execute(f"CREATE INDEX IF NOT EXISTS {name} ON {table} ({columns}){condition}")
        return
    definition = f"{using} ({columns}){condition}"
    with _outside_of_transactions() as concurrently:
        if op.get_context().as_sql:
            # A script cannot look first: what an interrupted run of it left behind goes in any case.
            execute(f"DROP INDEX {concurrently}IF EXISTS {{schema}}{name}")
        elif not _is_free(name, table, definition, concurrently):
            return
        _tell("building index %s on %s", name, table)
        execute(f"CREATE INDEX {concurrently}{name} ON {{schema}}{table} USING {definition}")


def drop_index(name: str) -> None:
    """Drop an index while the application goes on writing; one that is gone already is no error."""
    if not on_postgres():
        execute(f"DROP INDEX IF EXISTS {name}")
        return
    with _outside_of_transactions() as concurrently:
        _tell("dropping index %s", name)
        execute(f"DROP INDEX {concurrently}IF EXISTS {{schema}}{name}")


@contextmanager
def _outside_of_transactions() -> Iterator[str]:
    """Leave the revision's transaction for a statement that may not run in one; gives the word that it needs.

    An application that runs our revisions inside a transaction of its own keeps it: then there is no such word.
    """
    context: MigrationContext = op.get_context()
    if context._in_external_transaction:
        yield ""
        return
    with context.autocommit_block():
        if not context.as_sql:
            yield "CONCURRENTLY "
            return
        # It waits for other transactions, and would leave an invalid index if it had to stop waiting.
        execute("SET lock_timeout = 0")
        yield "CONCURRENTLY "
        execute("RESET lock_timeout" if (limit := lock_limit(context)) is None else f"SET lock_timeout = '{limit}ms'")


def lock_limit(context: MigrationContext) -> int | None:
    """Return how many milliseconds a printed script may wait for its locks; None where nobody said."""
    limit: int | None = context.opts.get("lock_limit")
    return limit


_INDEX = """
    -- What has the name of an index: can it be used, who is building it right now, and what is it?
    SELECT i.indisvalid AND i.indisready AS usable, t.relname AS of_table, i.indisunique AS is_unique,
           pg_get_indexdef(i.indexrelid) AS definition,
           (SELECT p.pid FROM pg_stat_progress_create_index p
             WHERE p.index_relid = i.indexrelid AND p.pid <> pg_backend_pid() LIMIT 1) AS builder
      FROM pg_index i
      JOIN pg_class c ON c.oid = i.indexrelid
      JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_class t ON t.oid = i.indrelid
     WHERE n.nspname = coalesce(CAST(:schema AS text), current_schema()) AND c.relname = :name
    """


def _is_free(name: str, table: str, definition: str, concurrently: str) -> bool:
    """Make the name free for an index, and return whether there is one to build."""
    there = _index(name)
    if there is not None and there.builder is not None:
        logger.warning("index %s is still being built by pid %s: an upgrade was interrupted, its build was not; "
                       "waiting until that has ended", name, there.builder)  # fmt: skip
        while there is not None and there.builder is not None:
            op.get_bind().execute(sa.text("SELECT pg_sleep(:seconds)"), {"seconds": _PAUSE})
            there = _index(name)
    if there is None:
        return True
    if not there.usable:
        _tell("dropping index %s, which an interrupted build left invalid", name)
        execute(f"DROP INDEX {concurrently}IF EXISTS {{schema}}{name}")
        return True
    if there.of_table != table or there.is_unique or _words(_method_and_more(there.definition)) != _words(definition):
        raise SessionError(
            f"an index {name} is there, but it is another one than this revision builds ({there.definition}); "
            "rename or drop it, then run the upgrade again"
        )
    _tell("index %s is there already", name)
    return False


def _index(name: str) -> Any:
    return op.get_bind().execute(sa.text(_INDEX), {"schema": schema(), "name": name}).one_or_none()


def _method_and_more(definition: str) -> str:
    """Take `btree (a, b) WHERE …` out of `CREATE INDEX name ON table USING btree (a, b) WHERE …`."""
    return definition.rpartition(" USING ")[2]


def _words(definition: str) -> str:
    """The same for what we write and for what the server makes of it: without casts to text, brackets and spaces."""
    return re.sub(r"::text|[\s()]", "", definition)


def _tell(message: str, *values: object) -> None:
    if not op.get_context().as_sql:
        logger.info(message, *values)
