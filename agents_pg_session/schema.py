"""Creating the tables, and knowing which revision a database is at.

Synchronous functions over one SQLAlchemy connection inside a transaction: `Database` runs them, and so does Alembic's
environment. `create` arrives where `alembic upgrade head` arrives and stamps that revision, so upgrades carry on from
it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.schema import CreateSchema

from agents_pg_session.errors import SchemaOutdated
from agents_pg_session.statements import quoted_prefix
from agents_pg_session.tables import TABLES, VERSION_TABLE, VIEWS, metadata_for, storage_statements, view_statements

__all__ = [
    "UPGRADE_COMMAND",
    "checked_schema",
    "create",
    "create_schema",
    "lock",
    "newest_revision",
    "require_current",
    "script_location",
]

#: What errors tell people to run; `agents_pg_session.migrations` is Alembic's own command line over our revisions.
UPGRADE_COMMAND = "python -m agents_pg_session.migrations upgrade head"

#: The advisory lock of everything that changes the schema, for the length of its transaction (works behind poolers).
#: The number is arbitrary and stays: two versions of this package must wait for each other.
LOCK = 5_211_970_824_016_338_977


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
    """Wait for everybody else who is changing the schema. SQLite has its own lock for that."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})


def create_schema(connection: Connection, schema: str | None) -> None:
    """Create the PostgreSQL schema if it is missing; a role that may not create any can use one that is there."""
    if schema is not None and not inspect(connection).has_schema(schema):
        connection.execute(CreateSchema(schema, if_not_exists=True))


def create(connection: Connection, schema: str | None) -> None:
    """Create what is missing, all of it or nothing, and stamp the newest revision.

    Where the database is already there, this only looks, so a role without any right to create will do. Raises
    `SchemaOutdated` where it is at another revision: then only an upgrade gives a schema anybody knows.
    """
    if current_revision(connection, schema) is not None:
        require_current(connection, schema)
        return
    lock(connection)
    create_schema(connection, schema)
    if current_revision(connection, schema) is not None or _present_tables(connection, schema):
        require_current(connection, schema)
        return
    metadata_for(schema).create_all(connection)
    prefix = quoted_prefix(schema)
    storage = storage_statements(prefix) if connection.dialect.name == "postgresql" else []
    for statement in [*storage, *view_statements(prefix, connection.dialect.name).values()]:
        connection.execute(text(statement))
    _context(connection, schema).stamp(ScriptDirectory(str(script_location())), "head")


def require_current(connection: Connection, schema: str | None) -> str:
    """Return the revision if it is the newest and everything is there.

    Else raise `SchemaOutdated`, saying what is not.
    """
    revision, newest = current_revision(connection, schema), newest_revision()
    present = _present_tables(connection, schema)
    missing = [_named(name, schema) for name in TABLES if name not in present]
    missing += [_named(name, schema) for name in VIEWS if name not in inspect(connection).get_view_names(schema)]
    if revision == newest and not missing:
        return revision
    if revision is None and not missing:
        raise SchemaOutdated(
            f"{_named(VERSION_TABLE, schema)} is missing, so the revision of the tables is unknown; if this version of "
            f"the package made them, run `{UPGRADE_COMMAND.replace('upgrade', 'stamp')}`"
        )
    if revision is None and present:
        strangers = [_named(name, schema) for name in sorted(present)]
        raise SchemaOutdated(
            f"{', '.join(strangers)} {_is(strangers)} there without a revision, but {', '.join(missing)} "
            f"{_is(missing)} missing, so this package did not make them; choose another schema or database"
        )
    if missing and revision is None:
        raise SchemaOutdated(f"{', '.join(missing)} {_is(missing)} missing; run `{UPGRADE_COMMAND}`")
    if missing and revision == newest:
        raise SchemaOutdated(
            f"{', '.join(missing)} {_is(missing)} missing, although the database is at the newest revision: an upgrade "
            f"would not bring back what somebody dropped; restore a backup, or take the statements that are lacking "
            f"from `{UPGRADE_COMMAND} --sql`"
        )
    if revision not in _known_revisions():
        raise SchemaOutdated(
            f"the database is at revision {revision}, which this version does not know (its newest is {newest}); "
            "upgrade the package agents-pg-session"
        )
    raise SchemaOutdated(
        f"the database is at revision {revision}, this version needs {newest}; run `{UPGRADE_COMMAND}`"
    )


def current_revision(connection: Connection, schema: str | None) -> str | None:
    """Return the revision the database is at; None where there is none."""
    return _context(connection, schema).get_current_revision()


def _context(connection: Connection, schema: str | None) -> MigrationContext:
    options = {"version_table": VERSION_TABLE, "version_table_schema": schema}
    return MigrationContext.configure(connection, opts=options)


def _present_tables(connection: Connection, schema: str | None) -> set[str]:
    return set(inspect(connection).get_table_names(schema)) & set(TABLES)


def _known_revisions() -> set[str]:
    return {script.revision for script in ScriptDirectory(str(script_location())).walk_revisions()}


def _is_text(name: str) -> bool:
    """Neither NUL nor a lone surrogate, which has no UTF-8."""
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in name)


def _named(name: str, schema: str | None) -> str:
    return name if schema is None else f"{schema}.{name}"


def _is(things: list[str]) -> str:
    return "is" if len(things) == 1 else "are"
