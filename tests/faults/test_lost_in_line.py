"""A try that is lost while it stands in line: its caller finds out what became of it, behind whoever came in between.

The append's connection is cut while it waits for the session's row, or its time is up there. The server knows nothing
of that, so the append goes on late. Meanwhile another writer lines up, and then the fence that asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest
from sqlalchemy import make_url

from agents_pg_session import PGSession, SessionStore, StorageUnavailable
from agents_pg_session.testing.proxy import ANSWER, Proxy
from tests.items import assistant, call, output, user
from tests.postgres.races.lines import FAILED, ROW, dsn_of, known, until_waiting, watching
from tests.tally import Tally

Verb = Callable[[PGSession], Awaitable[object]]
HISTORY = [user("1"), call("c1"), output("c1"), call("c2"), assistant("2")]

VERBS: dict[str, Verb] = {
    "append": lambda session: session.add_items([user("3"), output("c2", FAILED), call("c3")]),
    "pop": lambda session: session.pop_item(),
    "clear": lambda session: session.clear_session(),
    "replace": lambda session: session._atomic_replace_items([user("short")]),
    "save": lambda session: session.snapshots.save("summary", "x"),
    "record": lambda session: session.events.record("note"),
    "end": lambda session: session.end(),
    "restore": lambda session: session.restore(1),
    "delete": lambda session: session.delete(),
}
#: Those that differ most, where time is short.
SAMPLE = ("pop", "delete", "clear")
HOWS = ("answer lost", "cut in line")


@pytest.fixture(params=["asyncpg", "psycopg"])
async def direct(request: pytest.FixtureRequest, postgres_url: str) -> AsyncIterator[SessionStore]:
    """A store that reaches the database without the proxy."""
    url = make_url(postgres_url).set(drivername=f"postgresql+{request.param}")
    async with SessionStore.open(url) as store:
        yield store
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def prepared(store: SessionStore, session_id: str) -> PGSession:
    session = store.session(session_id)
    await session.add_items(HISTORY[:2])
    await session._atomic_replace_items([user("short")])
    await session.add_items(HISTORY)
    return session


@pytest.mark.parametrize("how", HOWS)
async def test_a_lost_append_asks_behind_another_writer(
    direct: SessionStore,
    proxied_url: str,
    proxy: Proxy,
    observer: asyncpg.Connection,
    new_id: Callable[[], str],
    tally: Tally,
    thorough: bool,
    how: str,
) -> None:
    """Append, another writer, fence, in this order: the append is there once, as if both had come undisturbed."""
    for between in VERBS if thorough else SAMPLE:
        await lose_an_append(direct, proxied_url, proxy, observer, new_id, between, how)
        tally.add("Lost in line", tries=1, acknowledged=2, lost=0, doubled=0)


async def lose_an_append(
    direct: SessionStore,
    proxied_url: str,
    proxy: Proxy,
    observer: asyncpg.Connection,
    new_id: Callable[[], str],
    between: str,
    how: str,
) -> None:
    """Line an append, another writer and the append's fence up, and compare with the two one after the other."""
    faults = proxy.faults
    outcomes = []
    for first, second in (("append", between), (between, "append")):
        twin = await prepared(direct, new_id())
        await VERBS[first](twin)
        await VERBS[second](twin)
        outcomes.append(await known(observer, twin.session_id))
    await prepared(direct, session_id := new_id())
    url = make_url(proxied_url).set(drivername=direct.engine.url.drivername)
    async with (
        SessionStore.open(url, retry_for=60, command_timeout=60, engine_kwargs={"pool_size": 1}) as lossy,
        watching(dsn_of(direct.session(session_id))) as watcher,
    ):
        session = lossy.session(session_id)
        await VERBS["append"](lossy.session(new_id()))  # so that the connection knows the statement
        lock = observer.transaction()
        await lock.start()
        await observer.execute(ROW, session_id)
        proxy.fault = ANSWER if how == "answer lost" else None
        appending = asyncio.ensure_future(VERBS["append"](session))
        await until_waiting(watcher)
        meanwhile = asyncio.ensure_future(VERBS[between](direct.session(session_id)))
        await until_waiting(watcher, 2)
        if how == "cut in line":
            proxy.cut_all()
            await until_waiting(watcher, 3)
        await lock.rollback()
        await asyncio.gather(appending, meanwhile)
        assert lossy.engine.pool.checkedout() == 0  # type: ignore[attr-defined]

    assert proxy.faults - faults == (how == "answer lost")
    left = await known(observer, session_id)
    # What a delete took cannot be told from what never was: the append is made again, behind it.
    assert left == outcomes[between == "delete"], between


async def test_a_verb_whose_time_is_up_in_line_takes_effect_once(
    direct: SessionStore, observer: asyncpg.Connection, new_id: Callable[[], str], tally: Tally, thorough: bool
) -> None:
    """Parked for longer than `command_timeout`, hung up and asked about, again and again; then all of it goes on."""
    for verb in VERBS if thorough else SAMPLE[:1]:
        await keep_waiting(direct, observer, new_id, verb)
        tally.add("Lost in line", tries=1, acknowledged=1, lost=0, doubled=0)


async def keep_waiting(
    direct: SessionStore, observer: asyncpg.Connection, new_id: Callable[[], str], verb: str
) -> None:
    """Park a verb until it has lost its patience twice, let it go, and compare with the same in peace."""
    twin = await prepared(direct, new_id())
    answer = await VERBS[verb](twin)
    await prepared(direct, session_id := new_id())
    async with (
        SessionStore.open(direct.engine.url, retry_for=60, command_timeout=0.2) as impatient,
        watching(dsn_of(twin)) as watcher,
    ):
        session = impatient.session(session_id)
        lock = observer.transaction()
        await lock.start()
        await observer.execute(ROW, session_id)
        working = asyncio.ensure_future(VERBS[verb](session))
        await until_waiting(watcher, 3)
        await lock.rollback()
        assert getattr(await working, "kind", answer) == getattr(answer, "kind", answer)
        assert impatient.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        while await watcher.fetchval(OTHERS_AT_WORK):
            await asyncio.sleep(0.005)

    assert await known(observer, session_id) == await known(observer, twin.session_id)


OTHERS_AT_WORK = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'
"""


async def test_an_append_that_was_given_up_in_line_is_there_once_or_not_at_all(
    direct: SessionStore, observer: asyncpg.Connection, new_id: Callable[[], str]
) -> None:
    """Parked for longer than the whole budget: the caller is told of the doubt, and what goes on late is one append."""
    session_id = new_id()
    await direct.session(session_id).add_items([user("1")])
    async with (
        SessionStore.open(direct.engine.url, retry_for=0.5, command_timeout=0.2) as impatient,
        watching(dsn_of(direct.session(session_id))) as watcher,
    ):
        lock = observer.transaction()
        await lock.start()
        await observer.execute(ROW, session_id)
        with pytest.raises(StorageUnavailable, match="taken effect once, whole, or not at all"):
            await impatient.session(session_id).add_items([user("2"), user("3")])
        await lock.rollback()
        while await watcher.fetchval(OTHERS_AT_WORK):
            await asyncio.sleep(0.005)

    assert await direct.session(session_id).get_items() in ([user("1")], [user("1"), user("2"), user("3")])


@pytest.mark.parametrize("setting", ["lock_timeout", "statement_timeout"])
async def test_a_verb_that_the_server_gives_up_in_line_is_tried_again(
    direct: SessionStore, observer: asyncpg.Connection, new_id: Callable[[], str], thorough: bool, setting: str
) -> None:
    """The database's own timeout ends the wait, which has no effect: the verb lines up again until it is its turn."""
    for verb in ("append", "pop", "clear", "replace", "save")[: None if thorough else 1]:
        await keep_sending_away(direct, observer, new_id, setting, verb)


async def keep_sending_away(
    direct: SessionStore, observer: asyncpg.Connection, new_id: Callable[[], str], setting: str, verb: str
) -> None:
    """Park a verb until the server has ended its wait once, let it go, and compare with the same in peace."""
    twin = await prepared(direct, new_id())
    await VERBS[verb](twin)
    await prepared(direct, session_id := new_id())
    arguments: dict[str, object] = {"options": f"-c {setting}=100"}
    if direct.engine.dialect.driver == "asyncpg":
        arguments = {"server_settings": {setting: "100"}}
    async with SessionStore.open(
        direct.engine.url, retry_for=60, engine_kwargs={"connect_args": arguments, "pool_size": 1}
    ) as hurried:
        lock = observer.transaction()
        await lock.start()
        await observer.execute(ROW, session_id)
        working = asyncio.ensure_future(VERBS[verb](hurried.session(session_id)))
        async with watching(dsn_of(twin)) as watcher:
            for waits in (True, False, True):  # it waits, is sent away, and waits again
                while await watcher.fetchval(AT_THE_LOCK) != waits:
                    await asyncio.sleep(0.002)
        await lock.rollback()
        await working

    assert await known(observer, session_id) == await known(observer, twin.session_id)


AT_THE_LOCK = """
SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
