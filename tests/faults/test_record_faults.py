"""What keeps the record dies at the worst moment: the record says so, and the history is the old one or the new one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from agents import Runner
from sqlalchemy import URL

from agents_pg_session import (
    PGSession,
    SessionConflict,
    SessionStore,
    StorageUnavailable,
)
from agents_pg_session.testing.proxy import ANSWER, BEFORE, SENT, Fault, Proxy
from tests.acceptance.agents_for_tests import QUIET, calls, scripted
from tests.faults.verbs import HISTORY, VERBS, Verb, in_peace, known, paused
from tests.items import assistant, user
from tests.sampling import in_turn

FAULTS = {"before": BEFORE, "sent": SENT, "answer": ANSWER}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function is test_a_compaction_whose_process_dies_leaves_the_old_history_or_the_new_one:
        cases = {f"{verb}-{name}": (VERBS[verb], FAULTS[name]) for verb in ("replace", "compact") for name in FAULTS}
        in_turn(metafunc, "url_in_turn", "verb fault", cases)


@pytest.fixture
def session(store: SessionStore, new_id: Callable[[], str]) -> PGSession:
    return store.session(new_id())


@pytest.fixture
def twin(store: SessionStore, new_id: Callable[[], str]) -> PGSession:
    """A session to which the same happens, in peace. It comes first, so that the connection knows the statements."""
    return store.session(new_id())


AWAY: dict[str, Callable[[PGSession], Awaitable[object]]] = {
    "record": lambda session: session.events.record("note"),
    "save": lambda session: session.snapshots.save("summary", "x"),
    "resume": lambda session: session.resume(scripted()),
    "end": lambda session: session.end(),
    "fork": lambda session: session.fork(f"{session.session_id} copy"),
    "replace": lambda session: session._atomic_replace_items([]),
    "restore": lambda session: session.restore(1),
    "run alone": lambda session: session.exclusive(wait=0).__aenter__(),
    "delete": lambda session: session.delete(),
    "info": lambda session: session.info(),
    "turns": lambda session: session.turns(),
    "usage": lambda session: session.usage(),
    "find": lambda session: session.find("x"),
    "runs": lambda session: session.runs.list(),
    "tool runs": lambda session: session.tool_runs.list(),
    "events": lambda session: session.events.list(),
    "snapshots": lambda session: session.snapshots.list(),
}


async def test_every_verb_says_that_the_database_is_away(url: URL, new_id: Callable[[], str], proxy: Proxy) -> None:
    """All of them at once, with the database gone: each raises `StorageUnavailable` when its budget is spent."""
    async with SessionStore.open(url, retry_for=0.5) as store:
        sessions = {name: store.session(new_id()) for name in AWAY}
        for session in sessions.values():
            await session.add_items(HISTORY)
        proxy.refusing = True
        proxy.cut_all()
        lists = {"sessions": store.sessions(), "tool runs of all": store.tool_runs()}
        more = {"waiting": store.waiting(), "usage of all": store.usage(by="day")}
        calls = {name: AWAY[name](session) for name, session in sessions.items()} | lists | more
        async with asyncio.timeout(15):
            answers = await asyncio.gather(*calls.values(), return_exceptions=True)
        proxy.refusing = False

        kinds = {name: type(answer) for name, answer in zip(calls, answers, strict=True)}
        assert kinds == dict.fromkeys(calls, StorageUnavailable)
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert [await session.get_items() for session in sessions.values()] == [HISTORY] * len(sessions)


async def test_a_recording_that_cannot_be_written(url: URL, new_id: Callable[[], str], proxy: Proxy) -> None:
    """The exit raises `StorageUnavailable`, but never instead of what the block raised."""
    async with SessionStore.open(url, retry_for=0.3) as store:
        session = store.session(new_id())
        agent = scripted(calls("refund", "r1", amount=5))

        async def recorded(error: Exception | None) -> None:
            async with session.recording() as run:
                await Runner.run(agent, "refund", session=session, hooks=run.hooks, run_config=QUIET)
                proxy.refusing = True
                proxy.cut_all()
                if error is not None:
                    raise error

        with pytest.raises(StorageUnavailable):
            await recorded(None)
        proxy.refusing = False
        await session.clear_session()
        agent = scripted(calls("refund", "r1", amount=5))
        with pytest.raises(KeyError, match="mine"):
            await recorded(KeyError("mine"))
        proxy.refusing = False

        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_a_compaction_whose_process_dies_leaves_the_old_history_or_the_new_one(
    url_in_turn: URL, new_id: Callable[[], str], observer: asyncpg.Connection, proxy: Proxy, verb: Verb, fault: Fault
) -> None:
    """Its connection is cut and nobody comes again: all of the replacement is there with what it replaced, or none."""
    # The twin goes first, on the same connection: the fault must hit the verb, not its preparing or the handshake.
    async with SessionStore.open(url_in_turn, retry_for=0.5, engine_kwargs={"pool_size": 1}) as store:
        twin, session = store.session(new_id()), store.session(new_id())
        await verb(twin, in_peace)
        new = await known(observer, twin)

        def die() -> None:
            proxy.fault = fault
            proxy.refusing = True

        with pytest.raises(StorageUnavailable):
            await verb(session, die)
        proxy.refusing = False

        # A statement that was sent when its connection died may or may not have reached the server.
        replaced = await known(observer, session) == new
        assert replaced or (await session.get_items() == HISTORY and not await session.snapshots.latest("history"))
        assert replaced in {BEFORE: [False], SENT: [False, True], ANSWER: [True]}[fault]


async def test_a_compaction_is_killed_while_it_waits(
    postgres_url: str, new_id: Callable[[], str], observer: asyncpg.Connection
) -> None:
    """Its backend is ended while it waits behind another writer: the old history stands until it comes again."""
    async with SessionStore.open(postgres_url) as store:
        session = store.session(new_id())
        await session.add_items(HISTORY)
        snapshot = await session._get_compaction_snapshot(10)
        assert snapshot is not None
        lock = observer.transaction()
        await lock.start()
        await observer.execute("SELECT FROM agents.sessions WHERE session_id = $1 FOR UPDATE", session.session_id)
        replacing = asyncio.ensure_future(snapshot.replace_suffix(0, [user("short")]))
        await killed(observer)
        assert await session.get_items() == HISTORY
        await lock.commit()

        assert await replacing is True
        assert await session.get_items() == [user("short")]
        assert [each.content for each in await session.snapshots.list("history")] == [HISTORY]


async def killed(observer: asyncpg.Connection) -> None:
    """End the backend that waits for a lock, as soon as one does."""
    sql = """
        SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
         WHERE datname = current_database() AND wait_event_type = 'Lock'
    """
    while not await observer.fetchval(sql):
        await asyncio.sleep(0.005)


async def test_a_history_is_the_old_one_or_the_new_one_whatever_is_killed(
    postgres_url: str, new_id: Callable[[], str], observer: asyncpg.Connection
) -> None:
    """Replaced and restored again and again while backends are ended: a reader sees one or the other, never a part."""
    short = [user("short"), assistant("er")]
    kill = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'agents_pg_session' AND state = 'active'
    """
    async with SessionStore.open(postgres_url, retry_for=60) as store:
        session, reader = store.session(name := new_id()), store.session(name)
        await session.add_items(HISTORY)

        async def rewrite() -> None:
            for version in range(1, 20, 2):
                await session._atomic_replace_items(short)
                await session.restore(version)

        rewriting = asyncio.ensure_future(rewrite())
        kills = 0
        while not rewriting.done():
            if kills < 5:
                kills += len(await observer.fetch(kill))
            assert await reader.get_items() in (HISTORY, short)
        await rewriting

        assert await session.get_items() == HISTORY
        assert [each.version for each in await session.snapshots.list("history")] == list(range(20, 0, -1))


async def test_a_worker_cut_off_in_its_claim_has_it(session: PGSession, twin: PGSession, proxy: Proxy) -> None:
    """The answer of the claim was lost: its own retry finds it, and another worker is refused."""
    await paused(session)
    await paused(twin)
    await twin.resume(scripted())
    proxy.fault = ANSWER
    state = await session.resume(scripted())

    assert proxy.faults == 1
    assert len(state.get_interruptions()) == 1
    with pytest.raises(SessionConflict, match="another worker"):
        await session.resume(scripted())


async def test_who_is_cancelled_while_it_claims_is_told_nothing_else(
    postgres_url: str, new_id: Callable[[], str], observer: asyncpg.Connection
) -> None:
    """The claim may have been lost and cannot be given back: the caller is cancelled, not told of the database."""
    async with SessionStore.open(postgres_url, retry_for=0.5, command_timeout=0.2) as store:
        session = store.session(new_id())
        await paused(session)
        async with observer.transaction():
            await observer.execute("SELECT FROM agents.sessions WHERE session_id = $1 FOR UPDATE", session.session_id)
            claiming = asyncio.ensure_future(session.resume(scripted()))
            await asyncio.sleep(0.1)
            claiming.cancel()
            with pytest.raises(asyncio.CancelledError):
                await claiming

        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
