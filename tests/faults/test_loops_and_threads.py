"""Event loops that come and go, threads with loops of their own, and processes: nobody speaks on somebody else's
connection, and no connection outlives those who could use it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import pickle
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from weakref import ref

import asyncpg
import pytest
from agents import Runner
from sqlalchemy import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from agents_pg_session import PGSession, SessionStore
from agents_pg_session.testing.proxy import Proxy
from tests.acceptance.agents_for_tests import QUIET, says, scripted
from tests.items import assistant, call, output, user
from tests.programs import FORKED, Python
from tests.tally import Tally

HARNESS = "Loops and threads"


# -- threads


async def test_8_threads_on_one_store_while_connections_are_cut(
    url: URL, proxy: Proxy, observer: asyncpg.Connection, new_id: Callable[[], str], tally: Tally, thorough: bool
) -> None:
    """Eight threads, each with a loop of its own, write to shared and own sessions of one store while every connection
    is cut again and again: each append is there once, whole, and each pop gave its item to one caller.
    """
    store, shared = SessionStore.open(url, engine_kwargs={"pool_size": 3}, retry_for=60), new_id()
    parts, own = 10 if thorough else 2, [new_id() for _ in range(8)]

    async def work(thread: int) -> list[object]:
        async def mix(part: int) -> object:
            common, mine = store.session(shared), store.session(own[thread])
            await common.add_items([user(f"{thread}.{part}")] * 2)
            await mine.add_items([user(f"{part}"), call(f"c{part}")])
            await mine.add_items([output(f"c{part}"), assistant("done")])
            await mine.snapshots.save("note", {"part": part})
            async with mine.exclusive(wait=60):
                await mine.events.record("worked", {"part": part})
            return await mine.pop_item()

        return await asyncio.gather(*(mix(part) for part in range(parts)))

    with ThreadPoolExecutor(8) as threads:
        loop = asyncio.get_running_loop()
        working = [loop.run_in_executor(threads, asyncio.run, work(thread)) for thread in range(8)]
        cuts = 0
        while not all(each.done() for each in working) and cuts < (40 if thorough else 8):
            await asyncio.sleep(0.5 if thorough else 0.2)
            proxy.cut_all()
            cuts += 1
        popped = await asyncio.gather(*working)

    items = await store.session(shared).get_items()
    assert sorted(map(str, items[::2])) == sorted(str(user(f"{t}.{p}")) for t in range(8) for p in range(parts))
    assert items[::2] == items[1::2]
    for thread, name in enumerate(own):
        session = store.session(name)
        taken, left = [each for each in popped[thread] if each is not None], await session.get_items()
        told = [user(str(p)) for p in range(parts)] + [assistant("done")] * parts
        told += [call(f"c{p}") for p in range(parts)] + [output(f"c{p}") for p in range(parts)]
        assert sorted(map(str, [*taken, *left])) == sorted(map(str, told))
        assert [each.version for each in await session.snapshots.list("note", limit=1000)] == list(range(parts, 0, -1))
        events = await session.events.list(kind="worked", limit=1000)
        assert sorted(each.payload["part"] for each in events) == list(range(parts))
    await store.close()
    leased = "SELECT count(*) FROM agents.sessions WHERE lease_id IS NOT NULL AND session_id = ANY ($1)"
    assert await observer.fetchval(leased, own) == 0
    tally.add(HARNESS, threads=8, cuts=cuts, acknowledged=8 * parts * 6, lost=0, doubled=0)


# -- loops


def test_loops_that_are_closed_and_replaced(
    postgres_url: str, new_id: Callable[[], str], tally: Tally, thorough: bool
) -> None:
    """`asyncio.run` again and again on one store: neither pools nor connections nor loops pile up."""
    store, name, loops, most = SessionStore.open(postgres_url), new_id(), list[ref[Any]](), 0
    runs = 50 if thorough else 20

    async def append(number: int) -> None:
        nonlocal most
        loops.append(ref(asyncio.get_running_loop()))
        session = store.session(name)
        await asyncio.gather(*(session.add_items([user(f"{number}.{part}")]) for part in range(3)))
        async with store.engine.connect() as connection:
            most = max(most, (await connection.exec_driver_sql(CONNECTIONS)).scalar_one())

    for number in range(runs):
        asyncio.run(append(number))
    gc.collect()

    assert most <= 3 + 1  # this loop's, and one that the server has not buried yet
    assert sum(each() is not None for each in loops) <= 1
    assert asyncio.run(settled_at(postgres_url, 0)) == 0
    assert len(asyncio.run(read_and_close(store, name))) == 3 * runs
    tally.add(HARNESS, loops=runs)


def test_run_sync_in_threads_that_end(postgres_url: str, new_id: Callable[[], str]) -> None:
    """`Runner.run_sync` in one thread after the other, on one store: each finds what was said before it."""
    store, name = SessionStore.open(postgres_url), new_id()

    async def tidy_up() -> None:
        await store.engine.dispose()

    def ask(number: int) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            for part in "ab":
                agent = scripted(says(f"re {number}{part}"))
                Runner.run_sync(agent, f"{number}{part}", session=store.session(name), run_config=QUIET)
        finally:
            loop.run_until_complete(tidy_up())
            loop.close()
            asyncio.set_event_loop(None)

    for number in range(5):
        with ThreadPoolExecutor(1) as thread:
            thread.submit(ask, number).result()

    history = asyncio.run(read_and_close(store, name))
    assert [each["content"] for each in history[::2]] == [f"{number}{part}" for number in range(5) for part in "ab"]
    assert asyncio.run(settled_at(postgres_url, 0)) == 0


# -- processes

REFUSED = "SessionError: this engine's pool belongs to the process this one was forked from"

FORK = """
import asyncio, json, os, sys, warnings
from sqlalchemy.ext.asyncio import create_async_engine
from agents_pg_session import PGSession, SessionStore

warnings.simplefilter("ignore", DeprecationWarning)  # some Pythons warn of any fork
name = sys.argv[1]
item = lambda text: {"role": "user", "content": text}

async def backends():
    # The server's processes behind our pool, and our ends of their sockets.
    pids = []
    async with session.engine.connect() as one, session.engine.connect() as two:
        for each in (one, two):
            row = (await each.exec_driver_sql("SELECT pg_backend_pid(), inet_client_port()")).one()
            pids.append(list(row))
    return sorted(pids)

async def child():
    told = {}
    try:
        await session.add_items([item("child")])
    except Exception as error:
        told["error"] = f"{type(error).__name__}: {error}"
        await session.engine.dispose(close=False)
        await session.add_items([item("child")])
    told["backends"] = await backends()
    told["sees"] = len(await session.get_items())
    return told

def forked(run):
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            told = run()
        except BaseException as error:
            told = {"crash": repr(error)}
        os.write(writer, json.dumps(told).encode())
        os._exit(0)
    os.close(writer)
    return reader

def answer(reader):
    with os.fdopen(reader, "rb") as pipe:
        told = json.loads(pipe.read())
    os.wait()
    return told

async def parent():
    await session.add_items([item("before")])
    before = await backends()
    busy = [asyncio.ensure_future(session.add_items([item("meanwhile")])) for _ in range(10)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    reader = forked(lambda: asyncio.run(child()))
    await asyncio.gather(*busy)
    told = await asyncio.to_thread(answer, reader)
    return {"before": before, "child": told, "after": await backends()}

def tell(handle):
    global session
    session, loop = handle, asyncio.new_event_loop()
    told = loop.run_until_complete(parent())
    # Now the loop stands still, and the child runs this very loop.
    told["same_loop"] = answer(forked(lambda: loop.run_until_complete(child())))
    told["last"] = loop.run_until_complete(backends())
    told["items"] = [each["content"] for each in loop.run_until_complete(session.get_items())]
    loop.run_until_complete(session.engine.dispose())
    loop.close()
    return told

pool = {"pool_size": 2, "max_overflow": 0}
told = []
for number, url in enumerate(sys.argv[2:]):
    told.append(tell(PGSession.from_url(f"{name}-{number}-own", url=url, engine_kwargs=pool)))
    told.append(tell(PGSession(f"{name}-{number}-borrowed", engine=create_async_engine(url, **pool))))
print(json.dumps(told))
"""


def test_a_fork_while_the_loop_runs(python: Python, postgres_url: str, new_id: Callable[[], str], tally: Tally) -> None:
    """Forked while appends are under way, a child never speaks on a socket of its parent, in a new loop or the old one:
    on our engine it makes connections of its own; on a borrowed one it gets a `SessionError` that says what to do, and
    after that works.
    """
    urls = [
        make_url(postgres_url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)
        for driver in ("asyncpg", "psycopg")
    ]
    for number, told in enumerate(json.loads(ran(python, FORK, new_id(), *urls))):
        borrowed = number % 2 == 1
        assert told["before"] == told["after"] == told["last"], "the parent's connections are intact"
        for child in (told["child"], told["same_loop"]):
            assert "crash" not in child, child
            assert child.get("error", "").startswith(REFUSED if borrowed else "")
            assert ("error" in child) == borrowed
            assert not {pid for pid, _ in child["backends"]} & {pid for pid, _ in told["before"]}
            assert not {port for _, port in child["backends"]} & {port for _, port in told["before"]}
        assert sorted(told["items"]) == ["before", "child", "child", *["meanwhile"] * 10]
        tally.add(HARNESS, forks=2, shared_sockets=0)


OTHER_FORKS = """
import asyncio, os, sys, warnings
from sqlalchemy.ext.asyncio import create_async_engine
from agents_pg_session import PGSession, SessionStore

warnings.simplefilter("ignore", DeprecationWarning)
url, name, sqlite_url = sys.argv[1:]
item = {"role": "user", "content": "hi"}

# A server that loads the application, then forks its workers.
engine = create_async_engine(url)
stores = [SessionStore(engine=engine), SessionStore.open(url)]

async def serve():
    for store in stores:
        await store.session(name).add_items([item])
    await engine.dispose()
    await stores[1].close()

for _ in range(2):
    if os.fork() == 0:
        asyncio.run(serve())
        os._exit(0)
print([os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)], flush=True)

# SQLite, used before the fork: the connections' threads are not in the child.
engine = create_async_engine(sqlite_url)
session = PGSession("s", engine=engine, create_tables=True)
loop = asyncio.new_event_loop()
loop.run_until_complete(session.add_items([item]))
if os.fork() == 0:
    try:
        asyncio.run(session.get_items())
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    os._exit(0)
os.wait()
loop.run_until_complete(engine.dispose())
loop.close()
"""


def test_workers_forked_before_and_after_the_first_use(
    python: Python, postgres_url: str, new_id: Callable[[], str], tmp_path: Path
) -> None:
    """A server may make its store or engine and then fork: nothing was connected yet. A SQLite engine that was in use
    is refused in a child instead of waiting for ever for a thread that is not there.
    """
    url = make_url(postgres_url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
    codes, refusal = ran(
        python, OTHER_FORKS, url, name := new_id(), f"sqlite+aiosqlite:///{tmp_path / 's.db'}"
    ).splitlines()

    assert codes == "[0, 0]"
    assert asyncio.run(read_and_close(SessionStore.open(postgres_url), name)) == [user("hi")] * 4
    assert refusal.startswith(REFUSED)


def append_by_url(url: str, name: str, number: int) -> None:
    """What a spawned worker does with a URL, which is all it was given."""

    async def append() -> None:
        async with PGSession.from_url(name, url=url) as session:
            await session.add_items([user(str(number))] * 3)

    asyncio.run(append())


def test_a_spawned_worker_needs_a_url(postgres_url: str, new_id: Callable[[], str], thorough: bool) -> None:
    """What goes to another process is the URL and the session id: there it opens connections of its own."""
    name, count = new_id(), 4 if thorough else 2
    start = multiprocessing.get_context("spawn").Process if thorough else FORKED.Process
    workers = [start(target=append_by_url, args=(postgres_url, name, number)) for number in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)

    assert [worker.exitcode for worker in workers] == [0] * count
    items = asyncio.run(read_and_close(SessionStore.open(postgres_url), name))
    assert sorted(map(str, items)) == sorted(str(user(str(number))) for number in range(count) for _ in range(3))


@pytest.mark.parametrize("kind", ["store", "session", "borrowed"])
async def test_a_handle_cannot_be_pickled(postgres_url: str, kind: str) -> None:
    """Connections do not travel: pickling a store or a handle raises a TypeError that says what to send instead."""
    engine = create_async_engine(make_url(postgres_url).set(drivername="postgresql+asyncpg"))
    async with SessionStore.open(postgres_url) as store:
        thing = {"store": store, "session": store.session("s"), "borrowed": PGSession("s", engine=engine)}[kind]
        with pytest.raises(TypeError, match="send the database's URL and the session id"):
            pickle.dumps(thing)


# -- what they share

CONNECTIONS = """
SELECT count(*) FROM pg_stat_activity
 WHERE application_name = 'agents_pg_session' AND datname = current_database()
"""


async def settled_at(url: str, expected: int) -> int:
    """Return how many connections of ours the server has, once it has buried those that were closed."""
    watcher = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(10):
            while (count := await watcher.fetchval(CONNECTIONS)) > expected:
                await asyncio.sleep(0.01)
        return int(count)
    finally:
        await watcher.close()


async def read_and_close(store: SessionStore, name: str) -> list[Any]:
    async with store:
        return list(await store.session(name).get_items())


def ran(python: Python, script: str, *arguments: str) -> str:
    """Run a script in a process of its own and return what it printed."""
    command = ("-W", "error::ResourceWarning", "-c", textwrap.dedent(script), *arguments)
    done = python(*command, cwd=Path.cwd(), env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr, done.stderr
    return done.stdout
