"""Many writers on one session: dense positions, whole batches, one order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
from sqlalchemy import text

from agents_pg_session import PGSession, SessionStore
from agents_pg_session.statements import Key
from agents_pg_session.statements.postgres import PostgresStatements
from tests.items import user
from tests.programs import FORKED

T = TypeVar("T")
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'agents_pg_session'"


def write(url: str, name: str, process: str) -> None:
    """What each of the two processes does."""

    async def main() -> None:
        handles = [PGSession.from_url(name, url=url, retry_for=60) for _ in range(5)]

        async def task(number: int) -> None:
            for place, handle in enumerate(handles):
                await handle.add_items([user(f"{process}.{number}.{place}.{part}") for part in range(4)])

        await asyncio.gather(*map(task, range(40)))
        for handle in handles:
            await handle.close()

    asyncio.run(main())


async def test_40_tasks_on_5_handles_in_2_processes(
    postgres_url: str, new_id: Callable[[], str], observer: asyncpg.Connection
) -> None:
    """400 batches of 4: positions 1 to 1600, no batch torn, none twice, and reads in the order of the commits."""
    name = new_id()
    writers = [FORKED.Process(target=write, args=(postgres_url, name, process)) for process in ("left", "right")]
    for writer in writers:
        writer.start()
    async with SessionStore.open(postgres_url) as store:
        session = store.session(name)
        seen: list[object] = []
        while any(writer.is_alive() for writer in writers):
            items = await session.get_items()
            assert items[: len(seen)] == seen, "a read must be a prefix of every later read"
            seen = list(items)
            await asyncio.sleep(0.02)
        items = await session.get_items()

    assert [writer.exitcode for writer in writers] == [0, 0]
    rows = await observer.fetch("SELECT position, append_id FROM agents.items WHERE session_id = $1 ORDER BY 1", name)
    assert [row["position"] for row in rows] == list(range(1, 1601))
    batches = [rows[start : start + 4] for start in range(0, 1600, 4)]
    assert all(len({row["append_id"] for row in batch}) == 1 for batch in batches)
    labels = [str(each["content"]).rsplit(".", 1) for each in items]  # type: ignore[typeddict-item]
    assert all(part == str(index % 4) for index, (_, part) in enumerate(labels))
    assert len({label for label, _ in labels}) == 400


async def test_an_append_waits_for_the_one_before_it(
    postgres_url: str, new_id: Callable[[], str], observer: asyncpg.Connection
) -> None:
    """Positions follow the lock, not the clock: who holds the session's row comes first."""
    name = new_id()
    async with SessionStore.open(postgres_url) as store:
        session = store.session(name)
        await session.add_items([user("1")])
        lock = observer.transaction()
        await lock.start()
        await observer.execute("SELECT FROM agents.sessions WHERE session_id = $1 FOR UPDATE", name)
        waiting = asyncio.ensure_future(session.add_items([user("2")]))
        await until_somebody_waits(postgres_url)
        assert await session.get_items() == [user("1")]
        await lock.commit()
        await waiting

        assert await session.get_items() == [user("1"), user("2")]


async def test_a_pop_that_waited_takes_what_is_newest_now(
    postgres_url: str, new_id: Callable[[], str], observer: asyncpg.Connection
) -> None:
    """A pop that waited behind an append takes that append's item, not the one its snapshot showed."""
    name = new_id()
    async with SessionStore.open(postgres_url) as store, SessionStore.open(postgres_url) as other:
        session = store.session(name)
        await session.add_items([user("old")])
        popping = await parked(observer, postgres_url, name, session.pop_item, other.session(name))

        assert await popping == user("appended meanwhile")
        assert await session.get_items() == [user("old")]


async def test_a_clear_that_waited_clears_all_before_it(
    postgres_url: str, new_id: Callable[[], str], observer: asyncpg.Connection
) -> None:
    """A clear that waited behind an append clears that append too: one boundary."""
    name = new_id()
    async with SessionStore.open(postgres_url) as store, SessionStore.open(postgres_url) as other:
        session = store.session(name)
        await session.add_items([user("old")])
        await (await parked(observer, postgres_url, name, session.clear_session, other.session(name)))

        assert await session.get_items() == []


async def test_a_vanished_client_does_not_keep_the_lock(
    postgres_url: str, new_id: Callable[[], str], observer: asyncpg.Connection
) -> None:
    """A pop that takes the lock first tells the server to end it, should its second statement never come."""
    async with SessionStore.open(postgres_url) as store:
        session = store.session(new_id())
        await session.add_items([user("1")])
        write = PostgresStatements("agents").pop(Key("", session.session_id), patient=True)
        lock = write.attempt(str(uuid4())).steps[0]
        async with store.engine.connect() as connection:
            await connection.execution_options(isolation_level="READ COMMITTED")
            await connection.execute(lock.clause, lock.values)
            timeout = (await connection.execute(text("SHOW idle_in_transaction_session_timeout"))).scalar_one()

    assert timeout == "5s"
    assert await observer.fetchval("SHOW idle_in_transaction_session_timeout") == "0"


async def parked(
    observer: asyncpg.Connection, url: str, name: str, verb: Callable[[], Coroutine[Any, Any, T]], other: PGSession
) -> asyncio.Future[T]:
    """Start *verb* while an append that came before it holds the session's row, then let both go on."""
    lock = observer.transaction()
    await lock.start()
    await observer.execute("SELECT FROM agents.sessions WHERE session_id = $1 FOR UPDATE", name)
    appending = asyncio.ensure_future(other.add_items([user("appended meanwhile")]))
    await until_somebody_waits(url)
    waiting = asyncio.ensure_future(verb())
    await until_somebody_waits(url, count=2)
    await lock.commit()
    await appending
    return waiting


async def until_somebody_waits(url: str, count: int = 1) -> None:
    """Return when *count* connections of this database wait for a lock."""
    connection = await asyncpg.connect(url)
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    while await connection.fetchval(sql) < count:
        await asyncio.sleep(0.01)
    await connection.close()


def test_a_thousand_handles_never_need_more_than_one_pool(postgres_url: str, new_id: Callable[[], str]) -> None:
    """1,000 × `from_url`, append, drop: the server never sees more connections than one pool may have."""
    name, most = new_id(), 0

    async def main() -> None:
        nonlocal most
        watcher = await asyncpg.connect(postgres_url)
        sql = f"{CONNECTIONS} AND datname = current_database()"
        for start in range(0, 1000, 50):
            await asyncio.gather(
                *(
                    PGSession.from_url(name, url=postgres_url).add_items([user(str(number))])
                    for number in range(start, start + 50)
                )
            )
            most = max(most, await watcher.fetchval(sql))
        await watcher.close()
        assert len(await PGSession.from_url(name, url=postgres_url).get_items()) == 1000

    asyncio.run(main())
    assert 1 <= most <= 15


def test_the_connections_end_with_their_loop(postgres_url: str, new_id: Callable[[], str]) -> None:
    """Ten event loops, one after the other: none leaves a connection behind."""

    async def append() -> None:
        await PGSession.from_url("loops", url=postgres_url).add_items([user("hi")])

    async def count() -> int:
        watcher = await asyncpg.connect(postgres_url)
        sql = CONNECTIONS
        number: int = await watcher.fetchval(sql)
        await watcher.close()
        return number

    for _ in range(10):
        asyncio.run(append())

    assert asyncio.run(count()) == 0
