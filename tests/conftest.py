"""Shared fixtures: a real PostgreSQL, and one store per backend.

`backend` is the contract suite's axis: SQLite in a file, PostgreSQL over asyncpg, PostgreSQL over psycopg.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Dialect, Engine, event, make_url

from agents_pg_session import PGSession, SessionStore
from agents_pg_session.migrations import main as migrate
from agents_pg_session.testing.pgbouncer import PgBouncer, find_pgbouncer
from agents_pg_session.testing.server import Server, find_binaries
from agents_pg_session.urls import WITHOUT_PREPARED_STATEMENTS
from tests import programs
from tests.debian import on_debian
from tests.tally import Tally

SERVER_URL = pytest.StashKey[str]()
SERVER = pytest.StashKey[Server]()
TALLY = pytest.StashKey[Tally]()
BACKENDS = ("sqlite", "asyncpg", "psycopg")
POOLED = tuple(f"{driver}-pgbouncer-{kind}" for driver in ("asyncpg", "psycopg") for kind in ("plain", "tracking"))

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


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep the garbage collector away from what stays until the end: half a million objects of other packages.

    The Python that programs are forked from begins to import, while others are tested.
    """
    settings(database=None)(given(st.none())(lambda _: None))()  # hypothesis checks who refers to its random numbers
    gc.collect()
    gc.freeze()
    if any("python" in getattr(item, "fixturenames", ()) for item in session.items):
        programs.prepare()


def pytest_report_header(config: pytest.Config) -> str:
    url = config.stash.get(SERVER_URL, None)
    if url is None:
        return "PostgreSQL: none found; see agents_pg_session/testing/server.py for where it is looked for"
    where = make_url(url).render_as_string(hide_password=True)
    origin = "AGENTS_PG_TEST_URL" if SERVER not in config.stash else f"started from {config.stash[SERVER].binaries}"
    return f"PostgreSQL {asyncio.run(_ask(url, 'SHOW server_version'))} at {where} ({origin})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what the harnesses counted."""
    if not config.stash[TALLY]:
        return
    packages = ("openai-agents", "sqlalchemy", "asyncpg", "psycopg")
    url = config.stash.get(SERVER_URL, None)
    server = "no PostgreSQL" if url is None else f"PostgreSQL {asyncio.run(_ask(url, 'SHOW server_version'))}"
    versions = [server, *(f"{name} {version(name)}" for name in packages)]
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
def python(thorough: bool) -> programs.Python:
    """How a test runs a Python program in a process of its own: an interpreter that begins anew takes two seconds."""
    return programs.anew if thorough else programs.forked


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
def new_database(server_url: str, pytestconfig: pytest.Config) -> Iterator[Callable[[], str]]:
    """A function that creates an empty database and returns its URL; all are dropped at the end."""
    names: list[str] = []

    def create(like: str = "template1") -> str:
        name = f"agents_test_{secrets.token_hex(6)}"
        asyncio.run(_ask(server_url, f"CREATE DATABASE {name} TEMPLATE {like}"))
        names.append(name)
        return make_url(server_url).set(database=name).render_as_string(hide_password=False)

    yield create
    if SERVER in pytestconfig.stash:
        return  # all of the server is thrown away
    for name in names:
        asyncio.run(_ask(server_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def migrated_database(new_database: Callable[..., str]) -> Callable[[], str]:
    """A function that returns the URL of a database of its own, at the newest revision: a copy of one that was migrated
    by Alembic.
    """
    template = new_database()
    migrate(["-x", f"url={template}", "upgrade", "head"])
    name = make_url(template).database
    return lambda: new_database(like=name)


@pytest.fixture(scope="session")
def postgres_url(migrated_database: Callable[[], str]) -> str:
    """The database that most tests share, at the newest revision."""
    return migrated_database()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file at the newest revision, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate(["-x", f"url=sqlite:///{path}", "upgrade", "head"])
    return path


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on every backend, unless it or its file names its own; thoroughly, the contract on PgBouncer too."""
    named = {mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")}
    own = hasattr(metafunc.module, "pytest_generate_tests")
    if "backend" in metafunc.fixturenames and "backend" not in named and not own:
        pooled = metafunc.config.option.thorough and metafunc.definition.path.parent.name == "contract"
        metafunc.parametrize("backend", BACKENDS + POOLED if pooled else BACKENDS, indirect=True)


@pytest.fixture(scope="module")
def pgbouncer(server_url: str) -> Iterator[Callable[[str], PgBouncer]]:
    """A function that returns a running PgBouncer: `plain`, or one `tracking` prepared statements.

    It ends with the module: other tests count the connections of ours that are left at the server, and its are among
    them.
    """
    running: dict[str, PgBouncer] = {}

    def start(kind: str) -> PgBouncer:
        if kind not in running:
            # Each transaction on another connection of the server, also where a test does one after the other.
            settings = {"server_round_robin": "1", "min_pool_size": "3"}
            bouncer = running[kind] = PgBouncer(pgbouncer_program(kind), server_url, settings=settings)
            bouncer.start()
        return running[kind]

    yield start
    for bouncer in running.values():
        bouncer.stop()


def pgbouncer_program(kind: str) -> Path:
    """Return a PgBouncer, or skip the test where there cannot be one: elsewhere than on Debian, which `make` knows."""
    program = find_pgbouncer(tracks_statements=kind == "tracking")
    if program is None and not on_debian():
        pytest.skip(f"no PgBouncer {'1.21 or newer' if kind == 'tracking' else 'before 1.21'}: install one on the PATH")
    assert program is not None, "PgBouncer was not fetched: run `python -m tests.fetch_pgbouncer`, as the Makefile does"
    return program


@dataclass(frozen=True)
class Backend:
    """One of the databases the contract suite runs on, at the newest revision."""

    name: str
    url: str


@pytest.fixture
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    name: str = request.param
    driver, _, kind = name.partition("-pgbouncer-")
    if name == "sqlite":
        path = tmp_path / "sessions.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield Backend(name, f"sqlite+aiosqlite:///{path}")
        return
    url = make_url(request.getfixturevalue("postgres_url")).set(drivername=f"postgresql+{driver}")
    if kind:
        bouncer: PgBouncer = request.getfixturevalue("pgbouncer")(kind)
        url = make_url(bouncer.url(str(url.database), url.drivername))
        url = url if bouncer.tracks_statements else url.update_query_dict({"pgbouncer": "true"})
    with _applications_engines_know_the_switch():
        yield Backend(name, url.render_as_string(hide_password=False))


@contextmanager
def _applications_engines_know_the_switch() -> Iterator[None]:
    """An application's own engine has to be told in its `connect_args` what `pgbouncer=true` in a URL tells ours."""

    def connect(dialect: Dialect, _record: object, _args: object, arguments: dict[str, object]) -> None:
        if arguments.pop("pgbouncer", None):
            arguments.update(WITHOUT_PREPARED_STATEMENTS[f"postgresql+{dialect.driver.removesuffix('_async')}"])

    event.listen(Engine, "do_connect", connect)
    yield
    event.remove(Engine, "do_connect", connect)


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
