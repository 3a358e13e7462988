"""`agents-pg-session db …`: the tables, their revision, and who may do what."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from agents_pg_session import SchemaOutdated, migrations
from agents_pg_session import grants as roles
from agents_pg_session.cli.desk import Desk, Schema, Url, agreed, named_url, on_store, there, with_paper
from agents_pg_session.cli.options import Yes
from agents_pg_session.cli.paper import Paper
from agents_pg_session.schema import newest_revision
from agents_pg_session.upgrading import LOCK_TIMEOUT, RETRY_FOR

__all__ = ["commands"]

commands = typer.Typer(help="Create, upgrade and check the tables; print SQL for a DBA.", no_args_is_help=True)

LockTimeout = Annotated[
    float, typer.Option(help="Seconds a step waits for its locks, and writers behind it.", min=0.01, metavar="S")
]
RetryFor = Annotated[float, typer.Option(help="Seconds a step is tried again for.", min=0, metavar="S")]


@commands.command()
@with_paper
def upgrade(
    paper: Paper,
    revision: Annotated[str, typer.Argument(help="Up to which revision.", metavar="[REVISION]")] = "head",
    lock_timeout: LockTimeout = LOCK_TIMEOUT,
    retry_for: RetryFor = RETRY_FOR,
    url: Url = None,
    schema: Schema = "agents",
) -> None:
    """Create the tables, or bring them to the newest revision, while the application goes on working.

    Any number of processes may do so at once; an upgrade that was interrupted goes on where it stopped.
    """
    place = named_url(url)
    with _steps_told(paper):
        migrations.upgrade(place, schema=schema, revision=revision, lock_timeout=lock_timeout, retry_for=retry_for)
    _tell(paper, migrations.current(place, schema))


@commands.command()
@with_paper
def downgrade(
    paper: Paper,
    revision: Annotated[
        str,
        typer.Argument(help='Back to which revision; "base" drops everything.', metavar="REVISION", show_default=False),
    ],
    yes: Yes = False,
    lock_timeout: LockTimeout = LOCK_TIMEOUT,
    retry_for: RetryFor = RETRY_FOR,
    url: Url = None,
    schema: Schema = "agents",
) -> None:
    """Take the tables back to an older revision: what was added since is dropped, with its data."""
    place = there(named_url(url))
    agreed(f"Take the tables back to revision {revision}? What came with later ones is dropped, with its data.", yes)
    with _steps_told(paper):
        migrations.downgrade(place, schema=schema, revision=revision, lock_timeout=lock_timeout, retry_for=retry_for)
    _tell(paper, migrations.current(place, schema))


@commands.command()
@with_paper
def current(paper: Paper, url: Url = None, schema: Schema = "agents") -> None:
    """Say which revision the tables are at, and which is the newest this version knows."""
    _tell(paper, migrations.current(named_url(url), schema))


@commands.command()
@on_store
async def check(desk: Desk) -> None:
    """Compare the database with this version: exit code 1 where it does not fit, with what to run; 3 out of reach."""
    try:
        found = await desk.store.check()
    except SchemaOutdated as error:
        if desk.paper.as_json:
            desk.paper.json({"fits": False, "message": str(error)})
        raise
    if desk.paper.as_json:
        return desk.paper.json(
            {"fits": True, "server": found.server, "schema": found.schema, "revision": found.revision}
        )
    where = f", schema {found.schema}" if found.schema is not None else ""
    return desk.paper.print(f"{found.server}{where}: revision {found.revision}, as this version needs it")


@commands.command()
@with_paper
def sql(
    paper: Paper,
    revision: Annotated[str, typer.Argument(help="Up to which revision.", metavar="[REVISION]")] = "head",
    since: Annotated[
        str | None,
        typer.Option(
            "--from", help="From which revision; without it, from nothing.", metavar="REVISION", show_default=False
        ),
    ] = None,
    lock_timeout: LockTimeout = LOCK_TIMEOUT,
    url: Url = None,
    schema: Schema = "agents",
) -> None:
    """Print the SQL of an upgrade, for a DBA to read and psql to run; nothing is run and nothing is asked.

    Of the URL only the kind of database is taken: without one it is PostgreSQL's SQL.
    """
    steps = revision if since is None else f"{since}:{revision}"
    _print_sql(paper, migrations.upgrade(
        url or "postgresql://localhost", schema=schema, revision=steps, lock_timeout=lock_timeout, sql=True
    ) or "")  # fmt: skip


@commands.command()
@with_paper
def grants(
    paper: Paper,
    runtime: Annotated[
        str,
        typer.Option(help="The role of the application: reads and writes rows.", metavar="ROLE", show_default=False),
    ],
    migrator: Annotated[
        str | None, typer.Option(help="The role that upgrades: owns the tables.", metavar="ROLE", show_default=False)
    ] = None,
    read_only: Annotated[
        str | None, typer.Option(help="The role of a person with psql.", metavar="ROLE", show_default=False)
    ] = None,
    schema: Schema = "agents",
) -> None:
    """Print the SQL that gives each role its rights and no others; nothing is run."""
    _print_sql(paper, roles.grants(schema, runtime, migrator, read_only))


def _tell(paper: Paper, revision: str | None) -> None:
    newest = newest_revision()
    if paper.as_json:
        return paper.json({"revision": revision, "newest": newest})
    if revision is None:
        return paper.print(f"no revision; the newest this version knows is {newest}")
    return paper.print(f"revision {revision}" + (", the newest" if revision == newest else f"; the newest is {newest}"))


def _print_sql(paper: Paper, text: str) -> None:
    if paper.as_json:
        return paper.json({"sql": text})
    sys.stdout.write(text)
    return None


@contextmanager
def _steps_told(paper: Paper) -> Iterator[None]:
    """Tell what an upgrade does, step by step, on standard error."""
    logger = logging.getLogger(migrations.__name__)
    handler, level = _ToPaper(paper), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _ToPaper(logging.Handler):
    def __init__(self, paper: Paper) -> None:
        super().__init__(logging.INFO)
        self._paper = paper

    def emit(self, record: logging.LogRecord) -> None:
        self._paper.note(record.getMessage())
