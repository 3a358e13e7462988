"""An upgrade of the schema and verbs at the same moment: who is first is finished first, and nobody fails.

The upgrade is Alembic's, from revision 0001 to the newest, in a database of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest
from sqlalchemy import make_url

from agents_pg_session import PGSession, SessionStore
from agents_pg_session.migrations import main as migrate
from agents_pg_session.schema import newest_revision
from tests.items import assistant, call, output, user
from tests.postgres.races.lines import ROW, until_waiting, watching


@pytest.fixture
def old_url(new_database: Callable[[], str]) -> str:
    """A database at the first revision."""
    url = new_database()
    migrate(["-x", f"url={url}", "upgrade", "0001"])
    return url


@pytest.fixture(params=["asyncpg", "psycopg"])
async def store(request: pytest.FixtureRequest, old_url: str) -> AsyncIterator[SessionStore]:
    """A store whose only connection has prepared its statements over the old tables."""
    url = make_url(old_url).set(drivername=f"postgresql+{request.param}")
    async with SessionStore.open(url, engine_kwargs={"pool_size": 1}, retry_for=60, command_timeout=60) as store:
        for _ in range(7):  # psycopg prepares what it has run five times
            await store.session("old").add_items([user("before")])
            await store.session("old").pop_item()
        yield store
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.fixture
async def session(store: SessionStore) -> PGSession:
    return store.session("old")


@pytest.fixture
async def holder(old_url: str) -> AsyncIterator[asyncpg.Connection]:
    async with watching(old_url) as connection:
        yield connection


@pytest.fixture
async def watcher(old_url: str) -> AsyncIterator[asyncpg.Connection]:
    async with watching(old_url) as connection:
        yield connection


def upgrading(url: str) -> asyncio.Future[None]:
    return asyncio.ensure_future(asyncio.to_thread(migrate, ["-x", f"url={url}", "upgrade", "head"]))


async def use_all(session: PGSession) -> None:
    """Do what needs the columns of the newest revision."""
    await session.add_items([call("c1"), output("c1"), assistant("ok")])
    await session.snapshots.save("summary", "short")
    await session.events.record("note")
    async with session.exclusive(wait=0):
        await session.add_items([user("alone")])
    assert len(await session.tool_runs.list()) == 1


async def test_an_upgrade_waits_for_the_append_under_way(
    old_url: str, store: SessionStore, session: PGSession, holder: asyncpg.Connection, watcher: asyncpg.Connection
) -> None:
    """Append first: it is stored on the old columns, then the upgrade goes on, then verbs need the new ones."""
    await session.add_items([user("1")])
    lock = holder.transaction()
    await lock.start()
    await holder.execute(ROW, "old")
    appending = asyncio.ensure_future(session.add_items([user("2")]))
    await until_waiting(watcher)
    upgrade = upgrading(old_url)
    await until_waiting(watcher, 2)
    assert not upgrade.done()
    await lock.rollback()
    await appending
    await upgrade

    assert await session.get_items() == [user("1"), user("2")]
    await use_all(session)
    assert (await store.check()).revision == newest_revision()


async def test_an_append_waits_for_the_upgrade_under_way(
    old_url: str, store: SessionStore, session: PGSession, holder: asyncpg.Connection, watcher: asyncpg.Connection
) -> None:
    """Upgrade first: an append and a read that came in the middle of it wait, and then find the new columns."""
    await session.add_items([user("1")])
    lock = holder.transaction()
    await lock.start()
    # The upgrade has the sessions' table by the time it comes to the snapshots.
    await holder.execute("LOCK TABLE agents.snapshots IN ACCESS SHARE MODE")
    upgrade = upgrading(old_url)
    await until_waiting(watcher)
    async with SessionStore.open(old_url, command_timeout=60, retry_for=60) as another:
        brings_a_call = asyncio.ensure_future(another.session("old").add_items([call("c0")]))
        await until_waiting(watcher, 2)
        appending = asyncio.ensure_future(session.add_items([user("2")]))
        await until_waiting(watcher, 3)
        await lock.rollback()
        await asyncio.gather(upgrade, appending, brings_a_call)

    items = await session.get_items()
    assert items[0] == user("1")
    assert sorted(map(str, items[1:])) == sorted(map(str, [user("2"), call("c0")]))
    [run] = await session.tool_runs.list()
    assert run.created_at is not None
    assert (await store.check()).revision == newest_revision()


async def test_who_waits_behind_a_waiting_upgrade_is_served_after_it(
    old_url: str, session: PGSession, holder: asyncpg.Connection, watcher: asyncpg.Connection
) -> None:
    """A long report keeps the upgrade waiting, and that keeps appends waiting, which the report alone would not."""
    lock = holder.transaction()
    await lock.start()
    await holder.fetchval("SELECT count(*) FROM agents.sessions")
    await session.add_items([user("1")])
    upgrade = upgrading(old_url)
    await until_waiting(watcher)
    appending = asyncio.ensure_future(session.add_items([user("2")]))
    await until_waiting(watcher, 2)
    await lock.rollback()
    await asyncio.gather(upgrade, appending)

    assert await session.get_items() == [user("1"), user("2")]


async def test_a_plan_whose_result_type_changed_is_made_anew(
    old_url: str, session: PGSession, holder: asyncpg.Connection
) -> None:
    """A column got another type under a prepared statement (`cached plan must not change result type`): tried again."""
    await asyncio.to_thread(migrate, ["-x", f"url={old_url}", "upgrade", "head"])
    for number in range(7):
        await session.add_items([user(str(number))])
    await holder.execute("ALTER TABLE agents.sessions ALTER last_position TYPE integer")
    await session.add_items([user("7")])

    assert await session.get_items() == [user(str(number)) for number in range(8)]
