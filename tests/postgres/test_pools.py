"""Pools, seen from the server: none outlives those who could use it."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from agents_pg_session import PGSession, SessionStore
from agents_pg_session import pools as pools_module
from tests.items import user
from tests.programs import FORKED


async def connections(url: str) -> int:
    """Count the connections this package has to the server."""
    watcher = await asyncpg.connect(url)
    sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'agents_pg_session'"
    count: int = await watcher.fetchval(sql)
    await watcher.close()
    return count


def append_in_threads(url: str, name: str, done: Connection) -> None:
    """Six threads, one after the other, each with a loop of its own that nobody closes."""
    store = SessionStore.open(url)

    def work() -> None:
        loop = asyncio.new_event_loop()
        for _ in range(2):
            loop.run_until_complete(store.session(name).add_items([user("hi")]))
            loop.run_until_complete(loop.shutdown_asyncgens())

    for _ in range(6):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    gc.collect()
    done.send("done")
    done.recv()


async def test_threads_that_ended_leave_no_pool(postgres_url: str, new_id: Callable[[], str]) -> None:
    """A thread whose loop was never closed (as `Runner.run_sync` leaves it) does not keep its pool for ever."""
    before, (here, there) = await connections(postgres_url), FORKED.Pipe()
    process = FORKED.Process(target=append_in_threads, args=(postgres_url, new_id(), there))
    process.start()
    assert await asyncio.to_thread(here.recv) == "done"

    assert await connections(postgres_url) - before <= 1
    here.send("go on")
    process.join(30)
    assert process.exitcode == 0
    here.close()
    there.close()


async def test_closing_with_verbs_under_way_leaves_no_connection(postgres_url: str, new_id: Callable[[], str]) -> None:
    """A pool closed while its connections are out: each is closed when it comes back."""
    store = SessionStore.open(postgres_url)
    session = store.session(new_id())
    await session.add_items([user("hi")])
    work = [asyncio.ensure_future(session.add_items([user("hi")])) for _ in range(40)]
    await asyncio.sleep(0.02)
    await store.close()
    await asyncio.gather(*work, return_exceptions=True)
    await asyncio.sleep(0.1)

    assert await connections(postgres_url) == 0


def test_closing_does_not_wait_for_a_loop_that_has_no_time(
    postgres_url: str, new_id: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that is busy in another thread cannot hold up `close`."""
    monkeypatch.setattr(pools_module, "CLOSE_TIMEOUT", 0.2)
    store, name, ready, done = SessionStore.open(postgres_url), new_id(), threading.Event(), threading.Event()

    async def busy() -> None:
        await store.session(name).add_items([user("hi")])
        ready.set()
        done.wait(30)

    thread = threading.Thread(target=asyncio.run, args=(busy(),))
    thread.start()
    ready.wait(30)
    before = time.monotonic()
    asyncio.run(store.close())

    assert time.monotonic() - before < 10
    done.set()
    thread.join()


def append_in_child(store: SessionStore, name: str, loop: asyncio.AbstractEventLoop) -> None:
    """What a forked worker does with what it inherited."""
    loop.run_until_complete(store.session(name).add_items([user("child")] * 3))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_makes_its_own_connections(postgres_url: str, new_id: Callable[[], str]) -> None:
    """A worker forked after use never speaks on a socket of its parent."""
    loop, store, name = asyncio.new_event_loop(), SessionStore.open(postgres_url), new_id()
    loop.run_until_complete(store.session(name).add_items([user("parent")]))
    children = [
        multiprocessing.get_context("fork").Process(target=append_in_child, args=(store, name, loop)) for _ in range(3)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    loop.run_until_complete(store.session(name).add_items([user("parent")]))
    items = loop.run_until_complete(store.session(name).get_items())
    loop.run_until_complete(store.close())
    loop.close()

    assert [child.exitcode for child in children] == [0, 0, 0]
    assert (items.count(user("parent")), items.count(user("child"))) == (2, 9)


async def test_an_engine_with_a_json_codec_of_its_own(postgres_url: str, new_id: Callable[[], str]) -> None:
    """Applications teach asyncpg to encode JSON: our text stays text."""
    engine = create_async_engine(postgres_url.replace("postgresql://", "postgresql+asyncpg://"))

    @event.listens_for(engine.sync_engine, "connect")
    def teach(connection: Any, _record: object) -> None:
        for kind in ("json", "jsonb"):
            connection.run_async(
                lambda driver, kind=kind: driver.set_type_codec(kind, encoder=repr, decoder=repr, schema="pg_catalog")
            )

    session = PGSession(new_id(), engine=engine, metadata={"plan": "pro"})
    await session.add_items([user("hi")])

    assert await session.get_items() == [user("hi")]
    assert await session.pop_item() == user("hi")
    await engine.dispose()


async def test_a_role_that_may_not_create(new_database_url: str, new_id: Callable[[], str]) -> None:
    """Where everything is there, `create_tables=True` only looks: a runtime role without CREATE will do."""
    role = f"runtime_{new_id().replace('-', '_')}"
    async with SessionStore.open(new_database_url) as owner:
        await owner.create_tables()
    admin = await asyncpg.connect(new_database_url)
    await admin.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA agents TO {role}")
    await admin.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA agents TO {role}")
    url = new_database_url.replace("postgres@", f"{role}@")
    async with PGSession.from_url(new_id(), url=url, create_tables=True) as session:
        await session.add_items([user("hi")])

        assert await session.get_items() == [user("hi")]
    await admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    await admin.close()
