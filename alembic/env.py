"""How the revisions run: in our schema, with a version table of our own, each in a transaction of its own.

`agents_pg_session.upgrading` says how they run on a database that is in use. An application's own Alembic history in
the same database is never touched.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.schema import CreateSchema

from agents_pg_session.errors import SessionError
from agents_pg_session.schema import LOCK, create_schema
from agents_pg_session.tables import VERSION_TABLE, metadata_for
from agents_pg_session.upgrading import Steps, Target, run, settings_from

try:
    settings = settings_from(context.get_x_argument(as_dictionary=True) | context.config.attributes, os.environ)
except ValueError as error:
    raise CommandError(str(error)) from error
on_postgres = settings.backend == "postgresql"
options: dict[str, Any] = {
    "target_metadata": metadata_for(settings.schema),
    "version_table": VERSION_TABLE,
    "version_table_schema": settings.schema,
    "include_schemas": on_postgres,
    "include_name": lambda name, kind, _parents: kind != "schema" or name == settings.schema,
    "transactional_ddl": True,
    # SQLite has one writer at a time anyway: there, all is one transaction.
    "transaction_per_migration": on_postgres,
    "lock_limit": round(settings.lock_timeout * 1000),
}

# Fails at once: whoever waited inside a statement would keep an index of the other upgrade from being finished.
ALONE = f"""DO $$ BEGIN IF NOT pg_try_advisory_lock({LOCK}) THEN
    RAISE EXCEPTION 'another upgrade of this database is at work; run this script again when it has ended';
END IF; END $$"""


def run_offline() -> None:
    """Print the SQL instead of running it: a script for psql, or for a DBA to read."""
    # Nothing is bound, so a percent sign in a name stays single: only `paramstyle` "format" would double it.
    context.configure(
        dialect_name=settings.backend, dialect_opts={"paramstyle": "named"}, literal_binds=True, **options
    )
    if on_postgres:
        context.execute(text(ALONE))
        context.execute(text(f"SET lock_timeout = '{options['lock_limit']}ms'"))
        # What a role has it for is an application's statements; an upgrade may take long.
        context.execute(text("SET statement_timeout = 0"))
        context.execute(CreateSchema(str(settings.schema), if_not_exists=True))
    with context.begin_transaction():
        context.run_migrations()
    if on_postgres:
        context.execute(text("RESET lock_timeout"))
        context.execute(text("RESET statement_timeout"))
        context.execute(text(f"SELECT pg_advisory_unlock({LOCK})"))


def migrate(connection: Connection, steps: Steps) -> None:
    """Take the steps that are left, on a connection of `run`'s."""
    context.configure(connection=connection, fn=steps, **options)
    if target.changes:
        create_schema(connection, settings.schema)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    # Configured without a database at hand, the environment tells what the command wants of it.
    context.configure(dialect_name=settings.backend, **options)
    wanted = context.get_context().opts
    target = Target(context.script, not wanted.get("dont_mutate", False), wanted["fn"], migrate)
    try:
        asyncio.run(run(settings, target))
    except (SessionError, ValueError) as error:
        raise CommandError(str(error)) from error
