"""Everybody may start at once: processes that upgrade, processes that create, sessions that write first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from agents_pg_session import PGSession
from agents_pg_session.migrations import upgrade
from agents_pg_session.testing.pgbouncer import PgBouncer
from tests.items import user
from tests.migrations.actions import ROOT, check, complaints, environment, execute
from tests.migrations.catalog import difference, of_postgres, of_sqlite
from tests.programs import FORKED, Python

UPGRADES = ["upgrade"] * 10
MIXED = ["upgrade", "create"] * 5


@pytest.mark.parametrize("actions", [UPGRADES, MIXED], ids=["upgrade", "upgrade and create"])
def test_ten_processes_set_up_one_postgres_schema(
    python: Python, empty: str, postgres_url: str, actions: list[str]
) -> None:
    """Ten processes at once all succeed, and make one schema."""
    crowd = python("-m", "tests.migrations.crowd", empty, *actions, cwd=ROOT, env=environment())

    assert (crowd.returncode, crowd.stdout, complaints(crowd.stderr)) == (0, "", [])
    assert difference(asyncio.run(of_postgres(empty)), asyncio.run(of_postgres(postgres_url))) == {}


def test_ten_processes_set_up_one_sqlite_file(python: Python, tmp_path: Path, sqlite_template: Path) -> None:
    """The same on a SQLite file that does not exist yet."""
    path = tmp_path / "new.db"
    crowd = python("-m", "tests.migrations.crowd", f"sqlite:///{path}", *MIXED, cwd=ROOT, env=environment())

    assert (crowd.returncode, crowd.stdout, complaints(crowd.stderr)) == (0, "", [])
    assert difference(of_sqlite(path), of_sqlite(sqlite_template)) == {}


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("kind", ["plain", "tracking"])
async def test_upgrades_at_once_through_a_pooler(
    empty: str, postgres_url: str, pgbouncer: Callable[[str], PgBouncer], kind: str, driver: str
) -> None:
    """Behind PgBouncer in transaction mode too, one upgrades while the others wait, and nothing is left held there."""
    bouncer = pgbouncer(kind)
    pooled = make_url(bouncer.url(str(make_url(empty).database), f"postgresql+{driver}"))
    url = pooled if bouncer.tracks_statements else pooled.update_query_dict({"pgbouncer": "true"})
    here = url.render_as_string(hide_password=False)
    processes = [FORKED.Process(target=upgrade, args=(here,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join)

    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert difference(await of_postgres(empty), await of_postgres(postgres_url)) == {}
    assert await execute(empty, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


@pytest.fixture(params=["sqlite", "asyncpg", "psycopg"])
def empty_backend(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with nothing in it."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'new.db'}"
    url = make_url(request.getfixturevalue("empty")).set(drivername=f"postgresql+{request.param}")
    return url.render_as_string(hide_password=False)


@pytest.fixture
async def engine(empty_backend: str) -> AsyncIterator[AsyncEngine]:
    """An application's own engine on the empty database."""
    engine = create_async_engine(empty_backend)
    yield engine
    await engine.dispose()


async def test_25_first_writers_lose_nothing(empty_backend: str) -> None:
    """25 handles that each create the tables and append first: every item is there."""
    sessions = [PGSession.from_url("s", url=empty_backend, create_tables=True) for _ in range(25)]
    await asyncio.gather(*(session.add_items([user(f"{n}")]) for n, session in enumerate(sessions)))

    stored = await sessions[0].get_items()
    assert sorted(str(item["content"]) for item in stored) == sorted(str(n) for n in range(25))  # type: ignore[typeddict-item]
    await check(empty_backend)
    for session in sessions:
        await session.close()


async def test_25_first_writers_on_an_applications_engine_lose_nothing(engine: AsyncEngine) -> None:
    """The same with an engine of the application's, as the SDK's own session takes it."""
    sessions = [PGSession("s", engine=engine, create_tables=True) for _ in range(25)]
    await asyncio.gather(*(session.add_items([user("a"), user("b")]) for session in sessions))

    assert await sessions[0].get_items() == [user("a"), user("b")] * 25


async def test_25_sessions_write_first_at_once(empty_backend: str) -> None:
    """25 different conversations on an empty database each keep their own item."""
    sessions = [PGSession.from_url(f"s{n}", url=empty_backend, create_tables=True) for n in range(25)]
    await asyncio.gather(*(session.add_items([user(session.session_id)]) for session in sessions))

    assert [await session.get_items() for session in sessions] == [[user(session.session_id)] for session in sessions]
    for session in sessions:
        await session.close()
