"""Shared fixtures: a real PostgreSQL, and one store per backend.

`backend` is the contract suite's axis: SQLite in a file, PostgreSQL over asyncpg, PostgreSQL over psycopg.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import make_url

from agents_pg_session import PGSession, SessionStore
from agents_pg_session.migrations import main as migrate
from agents_pg_session.testing.server import Server, find_binaries
from tests.tally import Tally

SERVER_URL = pytest.StashKey[str]()
SERVER = pytest.StashKey[Server]()
VERSION = pytest.StashKey[str]()
TALLY = pytest.StashKey[Tally]()
BACKENDS = ("sqlite", "asyncpg", "psycopg")

# Nothing here is about time: a slow machine is no failure.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="every point, every crash, every case: `make faults`")


def pytest_configure(config: pytest.Config) -> None:
    """Start PostgreSQL before the first test, so that the header can say which one it is."""
    config.stash[TALLY] = Tally()
    if config.option.collectonly:
        return
    if url := os.environ.get("AGENTS_PG_TEST_URL"):
        config.stash[SERVER_URL] = url
        return
    if (binaries := find_binaries()) is not None:
        server = config.stash[SERVER] = Server(binaries)
        server.start()
        config.stash[SERVER_URL] = server.url


def pytest_report_header(config: pytest.Config) -> str:
    url = config.stash.get(SERVER_URL, None)
    if url is None:
        return "PostgreSQL: none found; see agents_pg_session/testing/server.py for where it is looked for"
    where = make_url(url).render_as_string(hide_password=True)
    config.stash[VERSION] = str(asyncio.run(_ask(url, "SHOW server_version")))
    origin = "AGENTS_PG_TEST_URL" if SERVER not in config.stash else f"started from {config.stash[SERVER].binaries}"
    return f"PostgreSQL {config.stash[VERSION]} at {where} ({origin})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what the harnesses counted."""
    packages = ("openai-agents", "sqlalchemy", "asyncpg", "psycopg")
    versions = [f"PostgreSQL {config.stash.get(VERSION, '?')}", *(f"{name} {version(name)}" for name in packages)]
    for number, line in enumerate(config.stash[TALLY].lines(", ".join(versions))):
        if number == 0:
            terminalreporter.section("what the harnesses counted")
        terminalreporter.write_line(line)


def pytest_unconfigure(config: pytest.Config) -> None:
    if SERVER in config.stash:
        config.stash[SERVER].stop()


async def _ask(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def thorough(pytestconfig: pytest.Config) -> bool:
    """Whether the harnesses try everything (`make faults`) or a sample that fits into the suite."""
    return bool(pytestconfig.option.thorough)


@pytest.fixture(scope="session")
def tally(pytestconfig: pytest.Config) -> Tally:
    """Where the harnesses count what they tried."""
    return pytestconfig.stash[TALLY]


@pytest.fixture(scope="session")
def server_url(pytestconfig: pytest.Config) -> str:
    """The server's maintenance database."""
    url = pytestconfig.stash.get(SERVER_URL, None)
    assert url is not None, "no PostgreSQL was found; agents_pg_session.testing.server says where it looks"
    return url


@pytest.fixture(scope="session")
def binaries(pytestconfig: pytest.Config) -> Path:
    """A folder with PostgreSQL's own programs, psql among them."""
    folder = pytestconfig.stash[SERVER].binaries if SERVER in pytestconfig.stash else find_binaries()
    assert folder is not None, "no PostgreSQL was found; agents_pg_session.testing.server says where it looks"
    return folder


@pytest.fixture(scope="session")
def new_database(server_url: str) -> Iterator[Callable[[], str]]:
    """A function that creates an empty database and returns its URL; all are dropped at the end."""
    names: list[str] = []

    def create() -> str:
        name = f"agents_test_{secrets.token_hex(6)}"
        asyncio.run(_ask(server_url, f"CREATE DATABASE {name}"))
        names.append(name)
        return make_url(server_url).set(database=name).render_as_string(hide_password=False)

    yield create
    for name in names:
        asyncio.run(_ask(server_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def postgres_url(new_database: Callable[[], str]) -> str:
    """A database at the newest revision, migrated by Alembic."""
    url = new_database()
    migrate(["-x", f"url={url}", "upgrade", "head"])
    return url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file at the newest revision, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate(["-x", f"url=sqlite:///{path}", "upgrade", "head"])
    return path


@dataclass(frozen=True)
class Backend:
    """One of the databases the contract suite runs on, at the newest revision."""

    name: str
    url: str


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    name: str = request.param
    if name == "sqlite":
        path = tmp_path / "sessions.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        return Backend(name, f"sqlite+aiosqlite:///{path}")
    url = make_url(request.getfixturevalue("postgres_url")).set(drivername=f"postgresql+{name}")
    return Backend(name, url.render_as_string(hide_password=False))


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[SessionStore]:
    """A store on the backend; after the test nothing may be left checked out of its pool."""
    async with SessionStore.open(backend.url) as store:
        yield store
        assert store.engine.pool.checkedout() == 0, "a connection was left checked out"  # type: ignore[attr-defined]


@pytest.fixture
def new_id() -> Callable[[], str]:
    """A function that returns a session id nobody has used."""
    return lambda: f"session-{secrets.token_hex(8)}"


@pytest.fixture
def session(store: SessionStore, new_id: Callable[[], str]) -> PGSession:
    """A handle on a conversation that does not exist yet."""
    return store.session(new_id())
