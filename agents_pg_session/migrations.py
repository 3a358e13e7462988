"""Upgrades from Python, and Alembic's own command line over the revisions this package carries.

    AGENTS_PG_URL=postgresql://… python -m agents_pg_session.migrations upgrade head
    python -m agents_pg_session.migrations -x url=postgresql://… -x schema=chat current
    python -m agents_pg_session.migrations -x lock_timeout=1 -x retry_for=600 upgrade head
    python -m agents_pg_session.migrations upgrade head --sql > upgrade.sql

The same as `alembic …` in a checkout, where nothing but the installed package is at hand; and what
`agents-pg-session db …` calls. The functions are for programs without a running event loop: in one, call them with
`asyncio.to_thread`.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Sequence
from io import StringIO

from alembic import command
from alembic.config import CommandLine, Config
from alembic.util import CommandError
from sqlalchemy.pool import NullPool

from agents_pg_session.engine import create_engine
from agents_pg_session.errors import SessionError
from agents_pg_session.schema import ALEMBIC_COMMAND, checked_schema, current_revision, script_location
from agents_pg_session.upgrading import LOCK_TIMEOUT, RETRY_FOR, settings_from, translated

__all__ = ["current", "downgrade", "main", "stamp", "upgrade"]

logger = logging.getLogger("agents_pg_session.migrations")


def upgrade(
    url: str,
    *,
    schema: str = "agents",
    revision: str = "head",
    lock_timeout: float = LOCK_TIMEOUT,
    retry_for: float = RETRY_FOR,
    sql: bool = False,
) -> str | None:
    """Bring the tables to *revision*, while the application goes on working.

    Any number of processes may call this at once: one upgrades, the others wait and find it done. A step waits for its
    locks *lock_timeout* seconds at most, and the application's writers behind it; it is tried again with growing pauses
    for *retry_for* seconds. An upgrade that was interrupted goes on where it stopped. With *sql*, nothing is run: the
    script for psql is returned. What happens is told to the logger `agents_pg_session.migrations`.

    Raises `StorageUnavailable` when the database cannot be reached or a lock was not to be had, which names its holder;
    `SchemaOutdated` on a database of a newer package; `ValueError` for a URL or a revision that cannot be.
    """
    return _run(
        lambda config: command.upgrade(config, revision, sql=sql), url, schema, lock_timeout, retry_for, printed=sql
    )


def downgrade(
    url: str,
    *,
    schema: str = "agents",
    revision: str,
    lock_timeout: float = LOCK_TIMEOUT,
    retry_for: float = RETRY_FOR,
    sql: bool = False,
) -> str | None:
    """Take the tables back to *revision* ("base" is nothing at all): what was added since is dropped, with its data.

    Otherwise as `upgrade`. With *sql*, *revision* is where from and where to: "0003:0002".
    """
    return _run(
        lambda config: command.downgrade(config, revision, sql=sql), url, schema, lock_timeout, retry_for, printed=sql
    )


def stamp(url: str, *, schema: str = "agents", revision: str = "head") -> None:
    """Write down that the tables are at *revision*, and change nothing else."""
    _run(lambda config: command.stamp(config, revision), url, schema, LOCK_TIMEOUT, RETRY_FOR)


def current(url: str, schema: str = "agents") -> str | None:
    """Return the revision the tables are at; None where there are none, or nobody wrote it down."""
    settings = settings_from({"url": url, "schema": checked_schema(schema)}, {})

    async def look() -> str | None:
        engine = create_engine(settings.url, engine_kwargs={"poolclass": NullPool})
        try:
            async with engine.connect() as connection:
                return await connection.run_sync(current_revision, settings.schema)
        finally:
            await engine.dispose()

    with translated():
        return asyncio.run(look())


def _run(
    do: Callable[[Config], None], url: str, schema: str, lock_timeout: float, retry_for: float, *, printed: bool = False
) -> str | None:
    """Run a command of Alembic; what it raises are errors of ours."""
    given = {"url": url, "schema": schema, "lock_timeout": lock_timeout, "retry_for": retry_for}
    output = StringIO()
    config = Config(stdout=output, output_buffer=output, attributes=given)
    config.set_main_option("script_location", _location())
    try:
        do(config)
    except CommandError as error:
        if isinstance(error.__cause__, SessionError | ValueError):
            raise error.__cause__ from None
        raise ValueError(str(error)) from None
    return output.getvalue() if printed else None


def _location() -> str:
    return str(script_location()).replace("%", "%%")


def main(arguments: Sequence[str]) -> None:
    """Run one Alembic command; every command and option of `alembic` is there, except `-c`.

    What an upgrade does goes to the standard error, a line per step.
    """
    command_line = CommandLine(prog=ALEMBIC_COMMAND)
    options = command_line.parser.parse_args(arguments)
    if not hasattr(options, "cmd"):
        command_line.parser.error("too few arguments")
    config = Config(cmd_opts=options)
    config.set_main_option("script_location", _location())
    handler, level = logging.StreamHandler(sys.stderr), logger.level
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        command_line.run_cmd(config, options)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


if __name__ == "__main__":
    main(sys.argv[1:])
