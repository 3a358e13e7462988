"""An upgrade that was interrupted in the middle of an index goes on where it stopped."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url

from agents_pg_session import SessionError
from agents_pg_session.migrations import current, downgrade, upgrade
from agents_pg_session.schema import LOCK, newest_revision
from tests.migrations.actions import create_tables, execute, execute_sqlite
from tests.migrations.catalog import difference, of_postgres, of_sqlite
from tests.programs import FORKED

#: Who builds or drops an index right now, and waits for another transaction to end.
BUILDING = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE '%INDEX CONCURRENTLY%' AND wait_event = 'virtualxid'
    """
INVALID = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"


@pytest.fixture(scope="module")
def template(new_database: Callable[..., str]) -> str:
    url = new_database()
    upgrade(url, revision="0002")
    return url


@pytest.fixture
def before_indexes(template: str, new_database: Callable[..., str]) -> str:
    """A database at the revision before the indexes."""
    return new_database(like=make_url(template).database)


@pytest.fixture
async def reader(before_indexes: str) -> AsyncIterator[asyncpg.Connection]:
    """Somebody with an old snapshot: no index can be finished before they end."""
    connection = await asyncpg.connect(before_indexes, server_settings={"application_name": "monthly report"})
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    await connection.fetch("SELECT count(*) FROM agents.events")
    yield connection
    await connection.close()


async def until_building(url: str) -> int:
    """Wait until an index is being built and waits; return whose pid that is."""
    async with asyncio.timeout(60):
        while not (rows := await execute(url, BUILDING)):
            await asyncio.sleep(0.02)
    pid: int = rows[0][0]
    return pid


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_build_that_was_ended_by_the_server_is_done_again(
    before_indexes: str, postgres_url: str, reader: asyncpg.Connection, driver: str
) -> None:
    """`pg_terminate_backend` leaves an invalid index behind: the next run drops it and builds all of them."""
    url = make_url(before_indexes).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)
    upgrading = asyncio.create_task(asyncio.to_thread(upgrade, url))
    pid = await until_building(before_indexes)
    await execute(before_indexes, f"SELECT pg_terminate_backend({pid})")
    with pytest.raises(SessionError) as failure:
        await upgrading
    left = await execute(before_indexes, INVALID)
    await reader.close()
    await asyncio.to_thread(upgrade, url)

    assert "\n" not in str(failure.value)
    assert str(failure.value).startswith("the database said no: ")
    assert left == [("agents.ix_sessions_active",)]
    assert difference(await of_postgres(before_indexes), await of_postgres(postgres_url)) == {}


async def test_a_build_whose_client_was_killed_is_waited_for(
    before_indexes: str, postgres_url: str, reader: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """After SIGKILL the server goes on building: the next run says so, waits, and keeps what was built."""
    caplog.set_level("INFO", "agents_pg_session.migrations")
    process = FORKED.Process(target=upgrade, args=(before_indexes,))
    process.start()
    pid = await until_building(before_indexes)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    await asyncio.to_thread(process.join)
    left = await execute(before_indexes, INVALID)
    again = asyncio.create_task(asyncio.to_thread(upgrade, before_indexes))
    async with asyncio.timeout(60):
        while f"index ix_sessions_active is still being built by pid {pid}" not in caplog.text:
            await asyncio.sleep(0.02)
    await reader.close()
    await again

    assert left == [("agents.ix_sessions_active",)]
    assert "index ix_sessions_active is there already" in caplog.messages
    assert difference(await of_postgres(before_indexes), await of_postgres(postgres_url)) == {}


async def test_a_downgrade_that_was_ended_by_the_server_is_done_again(before_indexes: str, postgres_url: str) -> None:
    """An index that was being dropped when the connection ended is dropped by the next run."""
    await asyncio.to_thread(upgrade, before_indexes)
    reader = await asyncpg.connect(before_indexes)
    await reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    await reader.fetch("SELECT count(*) FROM agents.sessions")
    back = asyncio.create_task(asyncio.to_thread(downgrade, before_indexes, revision="0002"))
    await execute(before_indexes, f"SELECT pg_terminate_backend({await until_building(before_indexes)})")
    with pytest.raises(SessionError):
        await back
    await reader.close()
    await asyncio.to_thread(downgrade, before_indexes, revision="0002")
    indexes = await execute(before_indexes, "SELECT 1 FROM pg_class WHERE relname = 'ix_sessions_metadata'")
    await asyncio.to_thread(upgrade, before_indexes)

    assert indexes == []
    assert difference(await of_postgres(before_indexes), await of_postgres(postgres_url)) == {}


async def test_a_build_says_what_it_waits_for(
    before_indexes: str, reader: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """An index that waits for an old transaction names it, so that somebody can end it."""
    caplog.set_level("INFO", "agents_pg_session.migrations")
    upgrading = asyncio.create_task(asyncio.to_thread(upgrade, before_indexes))
    await until_building(before_indexes)
    async with asyncio.timeout(60):
        while f"waiting for pid {reader.get_server_pid()} (monthly report, role" not in caplog.text:
            await asyncio.sleep(0.02)
    await reader.close()
    await upgrading

    assert "building index ix_sessions_active on sessions" in caplog.messages


async def test_creating_tables_beside_an_upgrade_waits_for_its_end(
    before_indexes: str, reader: asyncpg.Connection
) -> None:
    """`create_tables` comes again and again while an index is built: neither keeps the other from ending."""
    upgrading = asyncio.create_task(asyncio.to_thread(upgrade, before_indexes))
    await until_building(before_indexes)
    creating = asyncio.create_task(create_tables(before_indexes))
    async with asyncio.timeout(60):
        while not await execute(before_indexes, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
            await asyncio.sleep(0.005)
    await reader.close()
    await asyncio.gather(upgrading, creating)

    assert await asyncio.to_thread(current, before_indexes) == newest_revision()


async def test_an_upgrade_waits_for_whoever_creates_tables(empty: str, caplog: pytest.LogCaptureFixture) -> None:
    """While another process is in the middle of `create_tables`, the upgrade says so and comes after it."""
    caplog.set_level("INFO", "agents_pg_session.migrations")
    other = await asyncpg.connect(empty)
    creating = other.transaction()
    await creating.start()
    await other.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
    upgrading = asyncio.create_task(asyncio.to_thread(upgrade, empty))
    async with asyncio.timeout(60):
        while "another upgrade of this database is at work" not in caplog.text:
            await asyncio.sleep(0.02)
    assert await execute(empty, "SELECT to_regclass('agents.sessions')") == [(None,)]
    await creating.rollback()
    await other.close()
    await upgrading

    assert await asyncio.to_thread(current, empty) == newest_revision()


async def test_indexes_that_are_there_and_valid_are_kept(before_indexes: str, postgres_url: str) -> None:
    """A database that has the indexes already keeps them, each the same one as before."""
    await asyncio.to_thread(upgrade, before_indexes)
    indexes = "SELECT oid FROM pg_class WHERE relkind = 'i' AND relnamespace = 'agents'::regnamespace ORDER BY oid"
    before = await execute(before_indexes, indexes)
    await execute(
        before_indexes,
        "UPDATE agents.agents_pg_session_version SET version_num = '0002'",
        "DROP VIEW agents.agents_pg_session_support",
    )
    await asyncio.to_thread(upgrade, before_indexes)

    assert await execute(before_indexes, indexes) == before
    assert difference(await of_postgres(before_indexes), await of_postgres(postgres_url)) == {}


def test_indexes_that_are_there_are_kept_on_sqlite(sqlite_file: Path) -> None:
    """The same on SQLite."""
    before = of_sqlite(sqlite_file)
    execute_sqlite(
        sqlite_file, "UPDATE agents_pg_session_version SET version_num = '0002'; DROP VIEW agents_pg_session_support"
    )
    upgrade(f"sqlite:///{sqlite_file}")

    assert difference(of_sqlite(sqlite_file), before) == {}


@pytest.mark.parametrize(
    "other",
    [
        "CREATE INDEX ix_sessions_active ON agents.sessions (tenant_id)",
        "CREATE INDEX ix_sessions_active ON agents.items (tenant_id)",
        "CREATE UNIQUE INDEX ix_sessions_active ON agents.sessions (tenant_id, active_at, session_id)",
        "CREATE INDEX ix_tool_runs_troubled ON agents.tool_runs (tenant_id, status, created_at, session_id,"
        " call_position) WHERE status = 'failed'",
        "CREATE INDEX ix_sessions_metadata ON agents.sessions USING gin (metadata)",
    ],
)
async def test_another_index_under_the_same_name_is_not_taken_for_ours(before_indexes: str, other: str) -> None:
    """An index that is not the one the revision builds is left alone, and named with what to do."""
    await execute(before_indexes, other)

    name = other.split(" ON ")[0].split()[-1]
    with pytest.raises(SessionError, match=f"^an index {name} is there, but it is another one .* rename or drop it"):
        await asyncio.to_thread(upgrade, before_indexes)
    assert await asyncio.to_thread(current, before_indexes) == "0002"
