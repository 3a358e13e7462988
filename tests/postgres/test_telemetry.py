"""What whoever operates the application sees when the network or the database misbehaves."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import asyncpg
import pytest
from opentelemetry.trace import StatusCode

from agents_pg_session import PGSession, PoolUse, SessionStore, StorageUnavailable
from agents_pg_session.testing.proxy import ANSWER, Proxy
from tests.items import user
from tests.watching import Watch, watching


@pytest.fixture
def watch() -> Iterator[Watch]:
    """An SDK that hears of every store opened in the test."""
    with watching() as watch:
        yield watch


@pytest.fixture
async def store(watch: Watch, proxied_url: str) -> AsyncIterator[SessionStore]:
    """A watched store behind the proxy, with one connection."""
    async with SessionStore.open(proxied_url, engine_kwargs={"pool_size": 1}) as store:
        yield store


@pytest.fixture
async def session(store: SessionStore, new_id: Callable[[], str]) -> PGSession:
    """A session with an item, over a connection that is warm."""
    session = store.session(new_id())
    await session.add_items([user("1")])
    return session


async def test_a_lost_connection_is_seen(
    watch: Watch, session: PGSession, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """An append whose answer was lost succeeds: its span tells of the retry and its doubt, a counter counts it, and
    the log tells once of the connection, and once of what healed."""
    proxy.fault = ANSWER
    with caplog.at_level(logging.INFO, "agents_pg_session"):
        await session.add_items([user("2")])

    span = watch.spans("append")[-1]
    [event] = span.events
    assert span.status.status_code is StatusCode.UNSET
    assert (event.name, (event.attributes or {})["agents_pg_session.in_doubt"]) == ("agents_pg_session.retry", True)
    cause = (event.attributes or {})["error.type"]
    assert watch.series("agents_pg_session.retries")[0][0]["error.type"] == cause
    assert watch.metric("agents_pg_session.retries", db__operation__name="append") == 1
    told = [(record.name.rpartition(".")[2], record.levelname) for record in caplog.records]
    assert told == [("connections", "INFO"), ("connections", "INFO"), ("retries", "INFO")]
    assert "was lost" in caplog.messages[0]
    assert "done at try 2" in caplog.messages[2]


async def test_an_outage_is_one_warning_for_each_call(
    watch: Watch, store: SessionStore, session: PGSession, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """While the database is away a call says so once, however often it tries; what nobody could find out is on its span
    as in doubt."""
    store._database._retry_for = 0.6
    proxy.fault, proxy.refusing = ANSWER, True
    with caplog.at_level(logging.DEBUG, "agents_pg_session"), pytest.raises(StorageUnavailable):
        await session.add_items([user("2")])
    proxy.refusing = False

    [span] = [span for span in watch.spans("append") if span.status.status_code is StatusCode.ERROR]
    tried = [record for record in caplog.records if record.name == "agents_pg_session.retries"]
    assert (span.attributes or {})["error.type"] == "StorageUnavailable"
    assert (span.attributes or {})["agents_pg_session.in_doubt"] is True
    assert len(tried) == len(span.events) == watch.metric("agents_pg_session.retries") > 2
    assert [record.levelname for record in tried].count("WARNING") == 1
    assert await session.get_items() in ([user("1")], [user("1"), user("2")])


async def test_a_refusal_is_counted_by_its_code(
    watch: Watch, postgres_url: str, new_id: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    """A try the server refused is a retry by its SQLSTATE: here a lock that was not to be had (55P03)."""
    impatient = {"connect_args": {"server_settings": {"lock_timeout": "20"}}}
    async with SessionStore.open(postgres_url, engine_kwargs=impatient) as store:
        session = store.session(new_id())
        await session.add_items([user("1")])
        other = await asyncpg.connect(postgres_url)
        async with other.transaction():
            await other.execute("SELECT FROM agents.sessions WHERE session_id = $1 FOR UPDATE", session.session_id)
            append = asyncio.ensure_future(session.add_items([user("2")]))
            async with asyncio.timeout(20):
                while "trying again in" not in caplog.text:
                    await asyncio.sleep(0.005)
        await append
        await other.close()

    assert watch.metric("agents_pg_session.retries", error__type="55P03", db__operation__name="append") >= 2
    assert {(event.attributes or {})["agents_pg_session.in_doubt"] for event in watch.spans("append")[-1].events} == {
        False
    }


async def test_being_overtaken_is_counted(watch: Watch, postgres_url: str, new_id: Callable[[], str]) -> None:
    """A pop among busy writers asks again, behind them: that is counted too, without a session in the labels."""
    async with SessionStore.open(postgres_url) as store:
        session = store.session(new_id())
        await session.add_items([user(str(number)) for number in range(40)])
        async with asyncio.timeout(60):
            while not watch.metric("agents_pg_session.retries"):
                await asyncio.gather(
                    *(session.pop_item() for _ in range(5)), *(session.add_items([user("x")]) for _ in range(5))
                )

    [(labels, _)] = watch.series("agents_pg_session.retries")
    assert (labels["db.operation.name"], labels["error.type"]) == ("pop", "overtaken")
    assert "agents_pg_session.session_id" not in labels


async def test_a_cancelled_caller_s_failure_is_told(
    session: PGSession, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits any more for what failed after its caller was cancelled: a warning says so, without an item."""
    proxy.fault, proxy.refusing = ANSWER, True
    with caplog.at_level(logging.DEBUG, "agents_pg_session"):
        append = asyncio.ensure_future(session.add_items([user("hidden")]))
        async with asyncio.timeout(20):
            while "trying again in" not in caplog.text:
                await asyncio.sleep(0.005)
        append.cancel()
        await asyncio.wait([append])
    proxy.refusing = False

    told = [record for record in caplog.records if record.name == "agents_pg_session.cancellations"]
    assert [record.levelname for record in told] == ["DEBUG", "WARNING"]
    assert "append on session" in told[-1].getMessage()
    assert "hidden" not in caplog.text


async def test_the_pools_of_all_loops_add_up(watch: Watch, postgres_url: str, new_id: Callable[[], str]) -> None:
    """A store used in two event loops has two pools: `pool()` and the metrics tell of both together."""
    store = SessionStore.open(postgres_url, engine_kwargs={"pool_size": 3})
    done, over = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        await store.session(new_id()).add_items([user("hi")])
        done.set()
        await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    thread.start()
    await store.session(new_id()).add_items([user("hi")])
    await asyncio.to_thread(done.wait)
    both = store.pool()
    measured = [watch.metric("db.client.connection.max"), watch.metric("db.client.connection.count")]
    over.set()
    await asyncio.to_thread(thread.join)
    here = store.pool()
    await store.close()

    assert both == PoolUse(size=2, in_use=0, idle=2, waiting=0, limit=6, pools=2)
    assert measured == [6, 2]
    assert here == PoolUse(size=1, in_use=0, idle=1, waiting=0, limit=3, pools=1)
