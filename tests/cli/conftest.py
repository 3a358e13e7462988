"""The command line in this process, and databases for it: the day of a small shop to look at, and empty ones."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agents_pg_session import SessionStore
from agents_pg_session.cli.app import app
from tests.acceptance.test_ops_sql import live_a_day


@dataclass(frozen=True)
class Answer:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document it printed."""
        assert self.code == 0, self.err
        [line] = self.out.splitlines()
        return json.loads(line)


@dataclass(frozen=True)
class Cli:
    """Runs commands in this process: `cli("sessions", "list")`, at *width* columns, on the database at *url*."""

    url: str | None = None

    def __call__(self, *arguments: str, width: int | None = 100, **environment: str) -> Answer:
        there = {"AGENTS_PG_URL": self.url, "NO_COLOR": "1", "COLUMNS": None if width is None else str(width)}
        result = CliRunner().invoke(app, list(arguments), env={**there, **environment}, catch_exceptions=False)
        return Answer(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def cli() -> Cli:
    """The command line without a database."""
    return Cli()


@pytest.fixture(scope="session", params=["sqlite", "asyncpg"])
def shop(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Path,
    migrated_database: Callable[[], str],
) -> Cli:
    """The command line on a database where a shop has lived its day, as tests/acceptance/test_ops_sql.py tells it; to
    be read only."""
    if request.param == "sqlite":
        url = f"sqlite:///{shutil.copy(sqlite_template, tmp_path_factory.mktemp('shop') / 'shop.db')}"
    else:
        url = migrated_database()

    async def open_shop() -> None:
        async with SessionStore.open(url) as store:
            await live_a_day(store)

    asyncio.run(open_shop())
    return Cli(url)


@pytest.fixture(params=["sqlite", "asyncpg"])
def desk(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> Cli:
    """The command line on a database that a test may write to: a file of its own, or the one that tests share."""
    if request.param == "sqlite":
        return Cli(f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'desk.db')}")
    return Cli(request.getfixturevalue("postgres_url"))


@pytest.fixture
def file(tmp_path: Path, sqlite_template: Path) -> Cli:
    """The command line on a SQLite file of its own."""
    return Cli(f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'file.db')}")


@pytest.fixture
def tenant(new_id: Callable[[], str]) -> str:
    """A tenant nobody else has."""
    return new_id()
