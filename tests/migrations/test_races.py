"""Everybody may start at once: processes that upgrade, processes that create, sessions that write first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from agents_pg_session import PGSession
from tests.items import user
from tests.migrations.actions import ROOT, check, environment
from tests.migrations.catalog import difference, of_postgres, of_sqlite
from tests.programs import Python

UPGRADES = ["upgrade"] * 10
MIXED = ["upgrade", "create"] * 5


@pytest.mark.parametrize("actions", [UPGRADES, MIXED], ids=["upgrade", "upgrade and create"])
def test_ten_processes_set_up_one_postgres_schema(
    python: Python, empty: str, postgres_url: str, actions: list[str]
) -> None:
    """Ten processes at once all succeed, and make one schema."""
    crowd = python("-m", "tests.migrations.crowd", empty, *actions, cwd=ROOT, env=environment())

    assert (crowd.returncode, crowd.stdout, crowd.stderr) == (0, "", "")
    assert difference(asyncio.run(of_postgres(empty)), asyncio.run(of_postgres(postgres_url))) == {}


def test_ten_processes_set_up_one_sqlite_file(python: Python, tmp_path: Path, sqlite_template: Path) -> None:
    """The same on a SQLite file that does not exist yet."""
    path = tmp_path / "new.db"
    crowd = python("-m", "tests.migrations.crowd", f"sqlite:///{path}", *MIXED, cwd=ROOT, env=environment())

    assert (crowd.returncode, crowd.stdout, crowd.stderr) == (0, "", "")
    assert difference(of_sqlite(path), of_sqlite(sqlite_template)) == {}


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
