"""How the revisions run: one transaction behind one lock, in our schema, with a version table of our own.

Any number of processes may start `upgrade head` at once: the first does it, the others wait and find it done. An
application's own Alembic history in the same database is never touched.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import asyncpg
from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateSchema

from agents_pg_session.engine import create_engine
from agents_pg_session.failures import describe
from agents_pg_session.schema import LOCK, checked_schema, create_schema, lock
from agents_pg_session.tables import VERSION_TABLE, metadata_for
from agents_pg_session.urls import engine_url

arguments = context.get_x_argument(as_dictionary=True)
url = arguments.get("url") or os.environ.get("AGENTS_PG_URL") or ""
if not url:
    raise CommandError("no database: set AGENTS_PG_URL, or add -x url=postgresql://… behind `alembic`")
try:
    backend = engine_url(url)[0].get_backend_name()
    schema = checked_schema(arguments.get("schema") or os.environ.get("AGENTS_PG_SCHEMA") or "agents")
except ValueError as error:
    raise CommandError(str(error)) from None
options: dict[str, Any] = {
    "target_metadata": metadata_for(schema if backend == "postgresql" else None),
    "version_table": VERSION_TABLE,
    "version_table_schema": schema if backend == "postgresql" else None,
    "include_schemas": backend == "postgresql",
    "include_name": lambda name, kind, _parents: kind != "schema" or name == schema,
}


def run_offline() -> None:
    """Print the SQL instead of running it: a script for psql, or for a DBA to read."""
    # Nothing is bound, so a percent sign in a name stays single: only `paramstyle` "format" would double it.
    dialect_opts = {"paramstyle": "named"}
    context.configure(
        dialect_name=backend, dialect_opts=dialect_opts, literal_binds=True, transactional_ddl=True, **options
    )
    with context.begin_transaction():
        if backend == "postgresql":
            context.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
            context.execute(CreateSchema(schema, if_not_exists=True))
        context.run_migrations()


def run_on(connection: Connection) -> None:
    """Run the revisions on a connection, inside its transaction."""
    if backend == "sqlite":
        # The driver would begin a transaction at the first INSERT only, after the tables: begin it before them.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    lock(connection)
    create_schema(connection, schema if backend == "postgresql" else None)
    context.configure(connection=connection, transactional_ddl=True, **options)
    with context.begin_transaction():
        context.run_migrations()


async def run_online() -> None:
    """Connect with the URL as people have it, and run."""
    isolation = "READ COMMITTED" if backend == "postgresql" else "AUTOCOMMIT"
    engine = create_engine(url, engine_kwargs={"poolclass": NullPool}, isolation_level=isolation)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(run_on)
            if backend == "sqlite":
                await connection.exec_driver_sql("COMMIT")
    except (OSError, DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        # One line instead of a traceback through three libraries; `--raiseerr` shows that.
        raise CommandError(f"the database said no: {describe(error)}") from error
    finally:
        await engine.dispose()


if context.is_offline_mode():
    run_offline()
else:
    asyncio.run(run_online())
