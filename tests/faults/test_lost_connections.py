"""A connection dies at the worst moment: the verb is there exactly once each time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from sqlalchemy import URL, make_url

from agents_pg_session import PGSession, SessionStore, StorageUnavailable
from agents_pg_session.projection import Item
from agents_pg_session.testing.proxy import ANSWER, STALL, Proxy
from agents_pg_session.wire import hang_up
from tests.faults.network import healed
from tests.items import user
from tests.sampling import in_turn

HISTORY = [user("1"), user("2")]


@pytest.fixture
async def session(store: SessionStore, new_id: Callable[[], str]) -> PGSession:
    """A session with two items, and a warm connection: what follows is one flush to the server."""
    session = store.session(new_id())
    await session.add_items(HISTORY)
    for _ in range(6):
        await session.add_items([user("warm")])
        await session.get_items()
        await session.pop_item()
    return session


@pytest.mark.parametrize("meanwhile", ["pop", "clear"])
async def test_a_committed_append_is_found_although_it_was_taken_out_since(
    store: SessionStore, session: PGSession, proxy: Proxy, postgres_url: str, meanwhile: str
) -> None:
    """Somebody popped or cleared what the lost try had appended, before the retry looked: it is not appended again."""
    async with SessionStore.open(postgres_url) as elsewhere:
        other = elsewhere.session(session.session_id)
        proxy.fault = ANSWER
        proxy.refusing = True
        appending = asyncio.ensure_future(session.add_items([user("once")]))
        await until(lambda: has(other, [*HISTORY, user("once")]))
        await (other.pop_item() if meanwhile == "pop" else other.clear_session())
        proxy.refusing = False
        await appending

        assert await other.get_items() == (HISTORY if meanwhile == "pop" else [])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function is test_a_try_that_arrives_late_changes_nothing:
        in_turn(metafunc, "url_in_turn", "verb", {verb: (verb,) for verb in ("append", "pop", "clear")})


async def test_a_try_that_arrives_late_changes_nothing(
    url_in_turn: URL, proxy: Proxy, new_id: Callable[[], str], verb: str
) -> None:
    """A statement stuck in the network reaches the server after its verb succeeded another way: the fence stops it."""
    async with SessionStore.open(url_in_turn, command_timeout=0.3, engine_kwargs={"pool_size": 2}) as store:
        session = store.session(new_id())
        await session.add_items([user("1"), user("2"), user("3")])
        await session.pop_item()
        await session.clear_session()
        await session.add_items([user("1"), user("2"), user("3")])
        work: dict[str, Callable[[], Awaitable[object]]] = {
            "append": lambda: session.add_items([user("4")]),
            "pop": session.pop_item,
            "clear": session.clear_session,
        }
        proxy.fault = STALL
        await work[verb]()
        after = await session.get_items()
        await session.add_items([user("later")])
        await healed(proxy, store)

        expected = {"append": 4, "pop": 2, "clear": 0}
        assert proxy.faults == 1
        assert len(after) == expected[verb]
        assert await session.get_items() == [*after, user("later")]


async def test_all_connections_cut_at_once(url: URL, proxy: Proxy, new_id: Callable[[], str]) -> None:
    """Every pooled connection dies while 40 appends are under way: 40 batches are there."""
    async with SessionStore.open(url) as many:
        session = many.session(new_id())
        appends = [asyncio.ensure_future(session.add_items([user(str(n)), user(str(n))])) for n in range(40)]
        for _ in range(4):
            await asyncio.sleep(0.02)
            proxy.cut_all()
        await asyncio.gather(*appends)

        items = await session.get_items()
        assert len(items) == 80
        assert all(items[index] == items[index + 1] for index in range(0, 80, 2))
        assert len({str(each) for each in items}) == 40


async def test_beyond_the_budget_it_says_so(
    url: URL, proxy: Proxy, new_id: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    """The database stays away longer than `retry_for`: `StorageUnavailable`, and no item in any log line."""
    async with SessionStore.open(url, retry_for=0.5) as store:
        session = store.session(new_id())
        await session.add_items([user("1")])
        proxy.refusing = True
        proxy.fault = ANSWER
        with pytest.raises(StorageUnavailable, match=r"unavailable for 0\.5 s .* once, whole, or not at all"):
            await session.add_items([user("secret")])
        told = await asyncio.gather(session.add_items([user("secret")]), session.get_items(), return_exceptions=True)
        proxy.refusing = False

        assert [type(each) for each in told] == [StorageUnavailable] * 2
        assert re.search(r"append on session .*nothing was written", str(told[0]))
        assert "latest on session" in str(told[1])
        assert await session.get_items() == [user("1"), user("secret")]
        assert "trying again" in caplog.text
        assert "secret" not in caplog.text


async def test_a_cancelled_caller_does_not_wait_for_the_whole_budget(
    url: URL, proxy: Proxy, new_id: Callable[[], str]
) -> None:
    """Cancelled while the database is away, an append ends its retrying at once instead of holding up the caller."""
    async with SessionStore.open(url, retry_for=60) as store:
        session = store.session(new_id())
        await session.add_items([user("1")])
        proxy.refusing = True
        proxy.cut_all()
        appending = asyncio.ensure_future(session.add_items([user("2")]))
        await asyncio.sleep(0.3)
        appending.cancel()

        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(5):
                await appending
        proxy.refusing = False
        assert await session.get_items() == [user("1")]


async def test_a_frozen_server_is_given_up_within_the_budget(url: URL, proxy: Proxy, new_id: Callable[[], str]) -> None:
    """A connection that swallows everything does not hold the caller beyond the budget, nor a place in the pool."""
    async with SessionStore.open(url, retry_for=0.5, command_timeout=5) as store:
        session = store.session(new_id())
        await session.add_items([user("1")])
        proxy.fault = STALL
        with pytest.raises(StorageUnavailable, match="no answer in time"):
            async with asyncio.timeout(10):
                await session.get_items()

        assert await session.get_items() == [user("1")]
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_a_refused_recovery_still_says_that_the_append_is_in_doubt(
    proxied_url: str, proxy: Proxy, observer: asyncpg.Connection, new_id: Callable[[], str]
) -> None:
    """The answer was lost, and then the server does not let us in any more.

    The caller must not think nothing was done.
    """
    role = new_id().replace("-", "_")
    await observer.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
    async with SessionStore.open(make_url(proxied_url).set(username=role)) as store:
        session = store.session(new_id())
        await session.add_items([user("1")])
        await observer.execute(f"ALTER ROLE {role} NOLOGIN")
        proxy.fault = ANSWER
        with pytest.raises(StorageUnavailable, match=r"does not let us in .* once, whole, or not at all"):
            await session.add_items([user("2")])
        await observer.execute(f"ALTER ROLE {role} LOGIN")

        assert await session.get_items() == [user("1"), user("2")]
    await observer.execute(f"DROP ROLE {role}")


async def test_a_task_that_was_cancelled_can_still_read(session: PGSession, proxy: Proxy) -> None:
    """Who catches a cancellation and tidies up is retried like anybody else, not cancelled a second time."""

    async def work() -> list[Item]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            proxy.fault = ANSWER
        return await session.get_items()

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    task.cancel()

    assert await task == HISTORY
    assert proxy.faults == 1


async def test_hanging_up_twice_is_nothing(store: SessionStore) -> None:
    """An alarm that rings when the connection is gone already does no harm."""
    async with store.engine.connect() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        hang_up(raw)
        hang_up(raw)
        await connection.invalidate()
        hang_up(raw)

    assert (await store.check()).schema == "agents"


async def test_a_read_can_be_cancelled_while_the_server_is_frozen(
    url: URL, proxy: Proxy, new_id: Callable[[], str]
) -> None:
    """A cancelled read waits for a server that is not there no longer than one try may take."""
    async with SessionStore.open(url, retry_for=60, command_timeout=0.5) as store:
        session = store.session(new_id())
        await session.add_items([user("1")])
        proxy.fault = STALL
        reading = asyncio.ensure_future(session.get_items())
        await asyncio.sleep(0.1)
        reading.cancel()

        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(3):
                await reading
        assert await session.get_items() == [user("1")]
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_what_a_cancelled_read_waited_for_nobody_waits_for(
    url: URL, proxy: Proxy, new_id: Callable[[], str]
) -> None:
    """A read on a frozen connection is cancelled by an impatient caller: the next verb does not get that connection."""
    async with SessionStore.open(url, retry_for=120, command_timeout=6, engine_kwargs={"pool_size": 1}) as store:
        session = store.session(new_id())
        await session.add_items([user("1")])
        proxy.fault = STALL
        reading = asyncio.ensure_future(session.get_items())
        await asyncio.sleep(0.1)
        reading.cancel()

        with pytest.raises(asyncio.CancelledError):
            await reading
        async with asyncio.timeout(5):
            assert await session.get_items() == [user("1")]
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_who_is_cancelled_again_and_again_keeps_no_place_in_the_pool(
    url: URL, proxy: Proxy, new_id: Callable[[], str]
) -> None:
    """A read on a frozen connection is cancelled, and again while that connection is thrown away: its place is free."""
    async with SessionStore.open(url, engine_kwargs={"pool_size": 1, "max_overflow": 0}) as store:
        session = store.session(new_id())
        await session.add_items([user("1")])
        proxy.fault = STALL
        reading = asyncio.ensure_future(session.get_items())
        await asyncio.sleep(0.1)
        while not reading.done():
            reading.cancel()
            await asyncio.sleep(0)

        assert reading.cancelled()
        assert await session.get_items() == [user("1")]
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def has(session: PGSession, items: list[Item]) -> bool:
    return await session.get_items() == items


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.01)
