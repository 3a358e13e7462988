"""A primary with a synchronous standby: the primary dies, the standby takes over, and what was acknowledged is there.

The store is given both hosts in one URL. With and without `target_session_attrs=read-write`, which asks for the primary
at once; without it, a connection may lead to the standby, where every write is refused and tried again.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack

import asyncpg
import pytest

from agents_pg_session import SessionStore, StorageUnavailable
from agents_pg_session.testing.proxy import ANSWER, Proxy
from agents_pg_session.testing.server import Server
from tests.faults.load import Load
from tests.faults.servers import migrated_server
from tests.items import user
from tests.sampling import in_turn
from tests.tally import Tally

Pair = tuple[Server, Server]

WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'agents_pg_session'"
ENDS = {"cancel": "SELECT pg_cancel_backend($1)", "terminate": "SELECT pg_terminate_backend($1)"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function is test_what_was_acknowledged_is_on_the_new_primary:
        in_turn(metafunc, "driver", "", {"": ()}, fixture=False)
    elif metafunc.function is test_an_append_that_waits_for_the_standby_is_there_once:
        cases = {how: (how,) for how in ("cancel", "terminate", "time is up")}
        in_turn(metafunc, "driver", "how", cases, fixture=False)
    elif metafunc.function is test_a_lost_answer_is_asked_for_where_it_was_lost:
        in_turn(metafunc, "driver", "", {"": ()}, fixture=False)


@pytest.fixture(scope="module")
def new_pair() -> Iterator[Callable[[], Pair]]:
    """A function that returns a primary with the package's tables, and a new synchronous standby of it.

    The primary is the survivor of the pair before: so each test begins where an operator would stand after a failover.
    """
    servers = [migrated_server()]

    def next_pair() -> Pair:
        while len(servers) > 1:  # whoever takes writes goes on: the newest, if it was promoted
            promoted = servers[-1].running and servers[-1].sql("SELECT pg_is_in_recovery()") == "f"
            servers.pop(0 if promoted else -1).stop()
        servers.append(servers[0].standby(f"standby_{secrets.token_hex(4)}"))
        return servers[0], servers[1]

    yield next_pair
    for server in servers:
        server.stop()


@pytest.fixture
def pair(new_pair: Callable[[], Pair]) -> Pair:
    return new_pair()


def hosts(*ports: int, driver: str = "asyncpg", attrs: str = "", user: str = "postgres") -> str:
    """Return a URL with several hosts."""
    several = "&".join(f"host=127.0.0.1:{port}" for port in ports)
    wanted = f"&target_session_attrs={attrs}" if attrs else ""
    return f"postgresql+{driver}://{user}@/postgres?{several}{wanted}"


@pytest.mark.timeout(600)
async def test_what_was_acknowledged_is_on_the_new_primary(
    new_pair: Callable[[], Pair],
    driver: str,
    new_id: Callable[[], str],
    thorough: bool,
    tally: Tally,
) -> None:
    """The primary is killed and the standby promoted under 32 writers: every acknowledged write is on the new primary
    once and whole, one in doubt once or not at all, and the writers go on by themselves."""
    for wanted in ("", "read-write") * 5 if thorough else ("",):
        primary, standby = await asyncio.to_thread(new_pair)
        url = hosts(primary.port, standby.port, driver=driver, attrs=wanted)
        async with AsyncExitStack() as stack:
            pool = {"pool_size": 5}
            opened = [SessionStore.open(url, retry_for=budget, engine_kwargs=pool) for budget in (60, 60, 0.3)]
            stores = [await stack.enter_async_context(store) for store in opened]
            async with Load(stores, [new_id() for _ in range(6)]) as load:
                await load.further(random.randint(30, 90))
                await asyncio.to_thread(primary.crash)
                await asyncio.sleep(random.uniform(0, 0.3))
                await asyncio.to_thread(standby.promote)
                await load.further(50)
            left = sum(store.engine.pool.checkedout() for store in stores)  # type: ignore[attr-defined]
        recount = await load.recount(standby.url)

        tally.add("Failover", failovers=1, gaps_ms=round(load.gap * 1000), **recount.numbers)
        assert recount.faults == []
        assert left == 0, "a connection was left checked out"


async def test_a_standby_never_swallows_a_write(pair: Pair, new_id: Callable[[], str]) -> None:
    """Who only reaches a standby is told so, and nothing is there afterwards; an append that is still trying when the
    standby is promoted lands there, once."""
    _, standby = pair
    name = new_id()
    async with (
        SessionStore.open(standby.url, retry_for=0.5) as impatient,
        SessionStore.open(standby.url, retry_for=60) as patient,
    ):
        with pytest.raises(StorageUnavailable, match="25006"):
            await impatient.session(name).add_items([user("refused")])
        appending = asyncio.create_task(patient.session(name).add_items([user("waits")]))
        await asyncio.to_thread(standby.promote)
        await appending

        assert await impatient.session(name).get_items() == [user("waits")]


async def test_writes_find_the_primary_behind_a_standby(pair: Pair, new_id: Callable[[], str]) -> None:
    """With the standby first in the URL, `target_session_attrs=read-write` finds the primary; without it, an append
    says that it reached a read-only server, and nothing is there."""
    primary, standby = pair
    async with (
        SessionStore.open(hosts(standby.port, primary.port, attrs="read-write")) as asking,
        SessionStore.open(hosts(standby.port, primary.port), retry_for=0.5) as not_asking,
    ):
        session = asking.session(new_id())
        await session.add_items([user("1")])
        with pytest.raises(StorageUnavailable, match="25006"):
            await not_asking.session(session.session_id).add_items([user("2")])

        assert await session.get_items() == [user("1")]


async def test_an_old_primary_that_comes_back_acknowledges_nothing(pair: Pair, new_id: Callable[[], str]) -> None:
    """A primary that died and was replaced restarts by itself, and nobody fences it off: having lost its synchronous
    standby it acknowledges no write, so none is acknowledged that the new primary does not have."""
    primary, standby = pair
    await asyncio.to_thread(primary.crash)
    await asyncio.to_thread(standby.promote)
    await asyncio.to_thread(primary.start)
    url = hosts(primary.port, standby.port, attrs="read-write")
    async with SessionStore.open(url, retry_for=1, command_timeout=0.4) as store:
        session = store.session(new_id())
        with pytest.raises(StorageUnavailable, match="once, whole, or not at all"):
            await session.add_items([user("where?")])
    async with SessionStore.open(standby.url) as store:
        assert await store.session(session.session_id).get_items() == []


async def test_an_append_that_waits_for_the_standby_is_there_once(
    pair: Pair, driver: str, how: str, new_id: Callable[[], str]
) -> None:
    """The standby is away, so an append has committed here and waits for it there: whether the wait is cancelled, the
    connection ended, or our time for one try is up, the append is there once when the standby is back, on both."""
    primary, standby = pair
    url = hosts(primary.port, driver=driver)
    observer = await asyncpg.connect(primary.url)
    async with SessionStore.open(url, retry_for=60, command_timeout=1 if how == "time is up" else 30) as store:
        session = store.session(new_id())
        await session.add_items([user("before")])
        await asyncio.to_thread(standby.crash)
        appending = asyncio.create_task(session.add_items([user("once")]))
        while (waiting := await observer.fetchval(WAITING)) is None:
            await asyncio.sleep(0.01)
        if how == "time is up":
            while await observer.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == 0:
                await asyncio.sleep(0.01)  # the fence waits for the lost try, which has not let go of its row
        else:
            await observer.execute(ENDS[how], waiting)
        await asyncio.to_thread(standby.start)
        await appending

        assert await session.get_items() == [user("before"), user("once")]
    await observer.close()
    await asyncio.to_thread(primary.crash)
    await asyncio.to_thread(standby.promote)
    async with SessionStore.open(standby.url) as store:
        assert await store.session(session.session_id).get_items() == [user("before"), user("once")]


@pytest.mark.timeout(600)
async def test_a_lost_answer_is_asked_for_where_it_was_lost(
    pair: Pair, driver: str, new_id: Callable[[], str], thorough: bool, tally: Tally
) -> None:
    """A pool holds connections to the primary and to a standby that is behind, and answers of the primary get lost:
    the standby is never taken at its word that a write is not there, so nothing is written twice."""
    primary, standby = pair
    losses = 200 if thorough else 10
    app = f"app_{driver}"
    primary.sql(f"CREATE ROLE {app} LOGIN CONNECTION LIMIT 3")  # a fourth connection goes to the next host
    primary.sql(f"GRANT USAGE ON SCHEMA agents TO {app}")
    primary.sql(f"GRANT ALL ON ALL TABLES IN SCHEMA agents TO {app}")
    names = [new_id() for _ in range(2)]
    async with Proxy(primary.port) as proxy:
        url = hosts(proxy.port, standby.port, driver=driver, user=app)
        pool = {"pool_size": 4, "pool_use_lifo": False}  # each verb on another connection than the one before
        async with SessionStore.open(url, retry_for=10, engine_kwargs=pool) as store:
            async with Load([store], names, writers=6) as load:
                await load.further(10)
                standby.sql("SELECT pg_wal_replay_pause()")
                for _ in range(losses):
                    proxy.fault = ANSWER
                    await load.further(2)
                proxy.fault = None
            assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    recount = await load.recount(primary.url)

    tally.add("Answers lost beside a standby", lost_answers=proxy.faults, **recount.numbers)
    assert proxy.faults > 0
    assert recount.faults == []
