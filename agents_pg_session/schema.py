"""Creating the tables, and knowing which revision a database is at.

Synchronous functions over one SQLAlchemy connection inside a transaction: `Database` runs them, and so does Alembic's
environment. `create` arrives where `alembic upgrade head` arrives and stamps that revision, so upgrades carry on from
it.
"""

from __future__ import annotations

from collections.abc import Sized
from functools import cache
from pathlib import Path

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.schema import CreateSchema

from agents_pg_session.errors import SchemaOutdated
from agents_pg_session.statements import quoted_prefix
from agents_pg_session.tables import (
    SUPPORT_VIEW,
    TABLES,
    VERSION_TABLE,
    VIEWS,
    metadata_for,
    storage_statements,
    view_statements,
)

__all__ = [
    "ALEMBIC_COMMAND",
    "LOCK",
    "UPGRADE_COMMAND",
    "checked_schema",
    "create",
    "create_schema",
    "lock",
    "newest_revision",
    "require_current",
    "script_location",
]

#: What errors tell people to run: the command line of the extra `cli`.
UPGRADE_COMMAND = "agents-pg-session db upgrade"

#: Alembic's own command line over our revisions, which every installation has.
ALEMBIC_COMMAND = "python -m agents_pg_session.migrations"

_RUN_THE_UPGRADE = f"run `{UPGRADE_COMMAND}` (without the extra cli: `{ALEMBIC_COMMAND} upgrade head`)"

#: The advisory lock of everything that changes the schema, for the length of a transaction (works behind poolers).
#: The number is arbitrary and stays: two versions of this package must wait for each other. Nobody may wait for it
#: inside a statement without an end, which would hold a snapshot: who has the lock may be building an index, and that
#: waits for everybody with a snapshot.
LOCK = 5_211_970_824_016_338_977

#: Milliseconds that one try to get it may wait.
_LOCK_TRY = 100


def checked_schema(name: str) -> str:
    """Return *name* if PostgreSQL takes it as it is; raise `ValueError` where it would cut it or refuse it."""
    if not isinstance(name, str) or not _is_text(name) or not 1 <= len(name.encode()) <= 63:
        raise ValueError("schema must be a name of 1 to 63 bytes without NUL: PostgreSQL would cut it or refuse it")
    return name


def script_location() -> Path:
    """Return the folder with the revisions: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "_alembic"
    return installed if installed.is_dir() else package.parent / "alembic"


@cache
def newest_revision() -> str:
    """Return the revision this version of the package was written for."""
    head = ScriptDirectory(str(script_location())).get_current_head()
    assert head is not None, "the revisions are part of this package"
    return head


def lock(connection: Connection) -> None:
    """Keep everybody else from changing the schema until this transaction ends; SQLite has its own lock for that.

    While somebody else is at it, the server says 55P03 (lock not available): end the transaction, and come again.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TRY}ms'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        connection.execute(text("SET LOCAL lock_timeout TO DEFAULT"))


def create_schema(connection: Connection, schema: str | None) -> None:
    """Create the PostgreSQL schema if it is missing; a role that may not create any can use one that is there."""
    if schema is not None and not inspect(connection).has_schema(schema):
        connection.execute(CreateSchema(schema, if_not_exists=True))


def create(connection: Connection, schema: str | None) -> None:
    """Create what is missing, all of it or nothing, and stamp the newest revision.

    Where the database is already there, this only looks, so a role without any right to create will do. Raises
    `SchemaOutdated` where it is at a revision that this version cannot work on: then only an upgrade gives a schema
    anybody knows. One that is under way is waited for.
    """
    if current_revision(connection, schema) in (None, *_known_revisions() - {newest_revision()}):
        lock(connection)
    if current_revision(connection, schema) is not None or _present_tables(connection, schema):
        require_current(connection, schema)
        return
    create_schema(connection, schema)
    metadata_for(schema).create_all(connection)
    prefix = quoted_prefix(schema)
    storage = storage_statements(prefix) if connection.dialect.name == "postgresql" else []
    for statement in [*storage, *view_statements(prefix, connection.dialect.name).values()]:
        connection.execute(text(statement))
    _context(connection, schema).stamp(ScriptDirectory(str(script_location())), "head")


def require_current(connection: Connection, schema: str | None) -> str:
    """Return the revision of the database if this version of the package can work on it and everything is there.

    That is its newest revision, or a newer one that says that it serves this version still: so processes of the release
    before go on while a rolling deploy replaces them. Else raise `SchemaOutdated`, saying what is not.
    """
    revision, newest = current_revision(connection, schema), newest_revision()
    missing = _missing(connection, schema)
    if revision is None:
        raise SchemaOutdated(_without_revision(missing, _present_tables(connection, schema), schema))
    if revision in _known_revisions() - {newest}:
        raise SchemaOutdated(f"the database is at revision {revision}, this version needs {newest}; {_RUN_THE_UPGRADE}")
    if revision != newest and not _is_served(connection, schema):
        raise SchemaOutdated(
            f"the database is at revision {revision}, which this version does not know (its newest is {newest}) and "
            "which does not serve it any more; upgrade the package agents-pg-session"
        )
    if missing:
        raise SchemaOutdated(
            f"{_named(missing, schema)} {_is(missing)} missing, although the database is at revision {revision}, which "
            "has them: an upgrade would not bring back what somebody dropped; restore a backup, or take the statements "
            f"that are lacking from `{ALEMBIC_COMMAND} upgrade head --sql`"
        )
    return revision


def _without_revision(missing: list[str], present: set[str], schema: str | None) -> str:
    """Say what to do about a database whose revision nobody wrote down."""
    if not missing:
        return (
            f"{_named([VERSION_TABLE], schema)} is missing, so the revision of the tables is unknown; if this version "
            f"of the package made them, run `{ALEMBIC_COMMAND} stamp head`"
        )
    if present:
        return (
            f"{_named(sorted(present), schema)} {_is(present)} there without a revision, but "
            f"{_named(missing, schema)} {_is(missing)} missing, so this package did not make them; choose another "
            "schema or database"
        )
    return f"{_named(missing, schema)} {_is(missing)} missing; {_RUN_THE_UPGRADE}"


def _is_served(connection: Connection, schema: str | None) -> bool:
    """Return whether a revision that is not known here says that the code of this version works on it."""
    if SUPPORT_VIEW not in inspect(connection).get_view_names(schema):
        return False
    # The oldest revision whose code works on this schema; one that is known here is not newer than this code.
    oldest = connection.scalar(text(f"SELECT oldest_revision FROM {quoted_prefix(schema)}{SUPPORT_VIEW}"))
    return oldest in _known_revisions()


def current_revision(connection: Connection, schema: str | None) -> str | None:
    """Return the revision the database is at; None where there is none."""
    return _context(connection, schema).get_current_revision()


def _context(connection: Connection, schema: str | None) -> MigrationContext:
    options = {"version_table": VERSION_TABLE, "version_table_schema": schema}
    return MigrationContext.configure(connection, opts=options)


def _present_tables(connection: Connection, schema: str | None) -> set[str]:
    return set(inspect(connection).get_table_names(schema)) & set(TABLES)


def _missing(connection: Connection, schema: str | None) -> list[str]:
    tables, views = _present_tables(connection, schema), set(inspect(connection).get_view_names(schema))
    return [name for name in (*TABLES, *VIEWS) if name not in tables | views]


@cache
def _known_revisions() -> frozenset[str]:
    return frozenset(script.revision for script in ScriptDirectory(str(script_location())).walk_revisions())


def _is_text(name: str) -> bool:
    """Neither NUL nor a lone surrogate, which has no UTF-8."""
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in name)


def _named(names: list[str], schema: str | None) -> str:
    return ", ".join(names if schema is None else (f"{schema}.{name}" for name in names))


def _is(things: Sized) -> str:
    return "is" if len(things) == 1 else "are"
