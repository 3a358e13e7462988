"""What keeps the record dies at the worst moment: a verb leaves what it leaves undisturbed, or nothing at all.

Each verb is run twice, on two sessions that were prepared alike: once in peace, and once with its statement cut.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from agents import RunHooks, Runner, Usage
from sqlalchemy import URL, event

from agents_pg_session import (
    PGSession,
    SessionConflict,
    SessionError,
    SessionNotFound,
    SessionStore,
    StorageUnavailable,
)
from agents_pg_session.testing.proxy import ANSWER, BEFORE, SENT, STALL, Fault, Proxy
from tests.acceptance.agents_for_tests import QUIET, calls, says, scripted
from tests.items import assistant, call, output, user

FAULTS = [pytest.param(BEFORE, id="before"), pytest.param(SENT, id="sent"), pytest.param(ANSWER, id="answer")]
FAILED = "An error occurred while running the tool. Please try again."
HISTORY = [user("1"), call("c1"), output("c1"), call("c2"), assistant("2")]

#: Makes the next statement the one that is cut; does nothing in peace.
Arm = Callable[[], None]
Verb = Callable[[PGSession, Arm], Awaitable[object]]

#: All that is known of a session, but for times and random ids, beside which it must be the same.
EVERYTHING = """
SELECT json_build_object(
    'session', (SELECT to_jsonb(s) - '{session_id,created_at,updated_at,active_at,ended_at,forked_at,forked_from,
                                       fenced_ids,lease_id,lease_until}'::text[]
                       || jsonb_build_object('leased', lease_id IS NOT NULL, 'over', ended_at IS NOT NULL)
                  FROM agents.sessions s WHERE session_id = $1),
    'items', (SELECT json_agg(to_jsonb(i) - '{session_id,run_id,append_id,created_at}'::text[] ORDER BY position)
                FROM agents.items i WHERE session_id = $1),
    'tool_runs', (SELECT json_agg(to_jsonb(t) - '{session_id,run_id,created_at,started_at,finished_at}'::text[]
                                  ORDER BY call_position)
                    FROM agents.tool_runs t WHERE session_id = $1),
    'runs', (SELECT json_agg(to_jsonb(r) - '{session_id,run_id,trace_id,started_at,last_seen_at,finished_at,
                                             model_seconds,usage_details}'::text[] ORDER BY started_at)
               FROM agents.runs r WHERE session_id = $1),
    'events', (SELECT json_agg(to_jsonb(e) - '{session_id,run_id,operation_id,created_at,payload}'::text[]
                               || jsonb_build_object('payload', CASE json_typeof(payload)
                                      WHEN 'object' THEN to_jsonb(payload) - '{append_id,append_ids,from}'::text[]
                                      ELSE to_jsonb(payload) END) ORDER BY event_id)
                 FROM agents.events e WHERE session_id = $1),
    'snapshots', (SELECT json_agg(json_build_array(kind, version, through_position, label, claimed_by IS NOT NULL)
                                  ORDER BY kind, version)
                    FROM agents.snapshots n WHERE session_id = $1))
"""


class Cutting(RunHooks[None]):
    """A user's own hooks: cut the append that tells of the first answer of the model."""

    def __init__(self, arm: Arm) -> None:
        self._arm = arm
        self._armed = False

    async def on_llm_end(self, *_: Any) -> None:
        if not self._armed:
            self._armed = True
            self._arm()


async def append(session: PGSession, arm: Arm) -> None:
    arm()
    await session.add_items([user("3"), call("c3"), output("c3", FAILED), call("c4")])


async def late_output(session: PGSession, arm: Arm) -> None:
    arm()
    await session.add_items([output("c2", FAILED), user("4")])


async def append_of_a_run(session: PGSession, arm: Arm) -> None:
    agent = scripted([calls("weather", "r1", city="Rome"), calls("broken", "r2", city="X")], says("done"))
    await Runner.run(agent, "hi", session=session, hooks=session.hooks(wrap=Cutting(arm)), run_config=QUIET)


async def recording_of_a_failure(session: PGSession, arm: Arm) -> None:
    with contextlib.suppress(Exception):
        async with session.recording() as run:
            try:
                await Runner.run(
                    scripted(calls("fatal", "r1", city="X")), "hi", session=session, hooks=run.hooks, run_config=QUIET
                )
            finally:
                arm()


async def recording_of_more_tokens(session: PGSession, arm: Arm) -> None:
    """The run's end was told; what is left are figures, without an event."""
    async with session.recording() as run:
        result = await Runner.run(scripted(says("hi")), "hi", session=session, hooks=run.hooks, run_config=QUIET)
        result.context_wrapper.usage.add(Usage(requests=1, input_tokens=7, output_tokens=3, total_tokens=10))
        arm()


async def save(session: PGSession, arm: Arm) -> int:
    await session.snapshots.save("summary", "one")
    arm()
    return await session.snapshots.save("summary", "two", label="second")


async def record(session: PGSession, arm: Arm) -> object:
    arm()
    event = await session.events.record("escalated", {"why": "angry"}, agent="Support")
    return event.event_id, event.payload


async def paused(session: PGSession) -> None:
    agent = scripted(calls("refund", "r1", amount=5))
    result = await Runner.run(agent, "refund", session=session, hooks=session.hooks(), run_config=QUIET)
    await session.pause(result)


async def pause(session: PGSession, arm: Arm) -> int:
    agent = scripted(calls("refund", "r1", amount=5))
    result = await Runner.run(agent, "refund", session=session, hooks=session.hooks(), run_config=QUIET)
    arm()
    return await session.pause(result)


async def resume(session: PGSession, arm: Arm) -> list[str | None]:
    await paused(session)
    arm()
    state = await session.resume(scripted())
    return [each.call_id for each in state.get_interruptions()]


async def end(session: PGSession, arm: Arm) -> None:
    arm()
    await session.end("closed")


async def fork(session: PGSession, arm: Arm) -> object:
    await session.snapshots.save("summary", "one")
    arm()
    copy = await session.fork(f"{session.session_id} copy")
    info = await copy.info()
    return await copy.get_items(), info.item_count, info.tool_run_count, info.event_count


async def replace(session: PGSession, arm: Arm) -> bool:
    arm()
    return await session._atomic_replace_items([user("short"), assistant("2")])


async def compact(session: PGSession, arm: Arm) -> bool:
    snapshot = await session._get_compaction_snapshot(10)
    assert snapshot is not None
    arm()
    return await snapshot.replace_suffix(1, [assistant("short")])


async def restore(session: PGSession, arm: Arm) -> None:
    await session._atomic_replace_items([user("short")])
    await session.add_items([user("more")])
    arm()
    await session.restore(1)


async def run_alone(session: PGSession, arm: Arm) -> None:
    arm()
    async with session.exclusive(wait=0):
        await session.add_items([user("alone")])


async def leave_alone(session: PGSession, arm: Arm) -> None:
    async with session.exclusive(wait=0):
        arm()


async def pop_output(session: PGSession, arm: Arm) -> object:
    await session.add_items([output("c2", FAILED)])
    arm()
    return await session.pop_item()


async def delete(session: PGSession, arm: Arm) -> bool:
    # The first statement of a delete only reads, the second one erases: both are cut in turn.
    await session.snapshots.save("summary", "one")
    arm()
    return await session.delete()


VERBS: dict[str, Verb] = {
    verb.__name__.replace("_", " "): verb
    for verb in (
        append, late_output, append_of_a_run, recording_of_a_failure, recording_of_more_tokens, save, record, pause,
        resume, end, fork, replace, compact, restore, run_alone, leave_alone, pop_output, delete,
    )
}  # fmt: skip


def in_peace() -> None:
    """Nothing is cut."""


@pytest.fixture
def session(store: SessionStore, new_id: Callable[[], str]) -> PGSession:
    return store.session(new_id())


@pytest.fixture
def twin(store: SessionStore, new_id: Callable[[], str]) -> PGSession:
    """A session to which the same happens, in peace. It comes first, so that the connection knows the statements."""
    return store.session(new_id())


async def known(observer: asyncpg.Connection, session: PGSession) -> object:
    return await observer.fetchval(EVERYTHING, session.session_id)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("verb", VERBS)
async def test_a_cut_verb_takes_effect_once(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection, proxy: Proxy, verb: str, fault: Fault
) -> None:
    """Cut before the statement, after it was sent, or before its answer: it leaves what it leaves in peace."""

    def cut() -> None:
        proxy.fault = fault

    for each in (twin, session):
        await each.add_items(HISTORY)
    expected = await VERBS[verb](twin, in_peace)
    answer = await VERBS[verb](session, cut)

    assert proxy.faults == 1
    assert answer == expected
    assert await known(observer, session) == await known(observer, twin)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_delete_that_is_cut_while_it_erases(
    session: PGSession, observer: asyncpg.Connection, proxy: Proxy, fault: Fault
) -> None:
    """A delete looks for the session first; the statement that erases it may be cut too."""
    await session.add_items(HISTORY)

    def cut(*_: object) -> None:
        proxy.fault = fault

    event.listen(session.engine.sync_engine, "after_cursor_execute", cut, once=True)
    assert await session.delete()

    assert proxy.faults == 1
    assert (
        await observer.fetchval("SELECT count(*) FROM agents.sessions WHERE session_id = $1", session.session_id) == 0
    )
    assert not await session.delete()


ON_NOTHING: dict[str, Callable[[PGSession], Awaitable[object]]] = {
    "pop": lambda session: session.pop_item(),
    "clear": lambda session: session.clear_session(),
    "replace": lambda session: session._atomic_replace_items([user("1")]),
    "restore": lambda session: session.restore(1),
    "resume": lambda session: session.resume(scripted()),
    "end": lambda session: session.end(),
    "delete": lambda session: session.delete(),
}


@pytest.mark.parametrize("verb", ON_NOTHING)
async def test_a_cut_verb_on_a_session_that_is_not_there_makes_none(
    session: PGSession, twin: PGSession, proxy: Proxy, verb: str
) -> None:
    """What has nothing to change changes nothing, says so as in peace, and leaves no session behind."""
    said: list[object] = []
    for each in (twin, session):
        proxy.fault = ANSWER if each is session else None
        try:
            said.append(await ON_NOTHING[verb](each))
        except SessionError as error:
            said.append(type(error))

    assert proxy.faults == 1
    assert said[0] == said[1]
    with pytest.raises(SessionNotFound):
        await session.info()


@pytest.mark.parametrize("verb", VERBS)
async def test_who_is_cancelled_leaves_nothing_behind(
    url: URL, new_id: Callable[[], str], observer: asyncpg.Connection, proxy: Proxy, verb: str
) -> None:
    """Cancelled while its statement is under way: the verb settles, no connection stays out, and no lock."""
    async with SessionStore.open(url) as store:
        session = store.session(new_id())
        await session.add_items(HISTORY)

        def stall() -> None:
            proxy.fault = STALL

        working = asyncio.ensure_future(VERBS[verb](session, stall))
        while proxy.faults == 0:
            await asyncio.sleep(0.001)
        working.cancel()
        await asyncio.sleep(0)
        proxy.heal()
        with contextlib.suppress(asyncio.CancelledError):
            await working

        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await session.add_items([user("and on")])
        assert (await session.get_items())[-1:] == [user("and on")]
        row = await observer.fetchrow(
            "SELECT item_count, (SELECT count(*) FROM agents.items WHERE session_id = $1), tool_run_count,"
            " (SELECT count(*) FROM agents.tool_runs WHERE session_id = $1), last_event_id,"
            " (SELECT count(*) FROM agents.events WHERE session_id = $1), lease_id IS NULL"
            " FROM agents.sessions WHERE session_id = $1",
            session.session_id,
        )
        assert row is not None
        values = list(row.values())
        assert values[0:6:2] == values[1:6:2]
        assert values[6], "the lease was given back"


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
    async with SessionStore.open(url, retry_for=1) as store:
        sessions = {name: store.session(new_id()) for name in AWAY}
        for session in sessions.values():
            await session.add_items(HISTORY)
        proxy.refusing = True
        proxy.cut_all()
        async with asyncio.timeout(15):
            verbs = (AWAY[name](session) for name, session in sessions.items())
            answers = await asyncio.gather(*verbs, return_exceptions=True)
            lists = await asyncio.gather(
                store.sessions(), store.tool_runs(), store.waiting(), store.usage(by="day"), return_exceptions=True
            )
        proxy.refusing = False

        kinds = {name: type(answer) for name, answer in zip(sessions, answers, strict=True)}
        assert kinds == dict.fromkeys(AWAY, StorageUnavailable)
        assert [type(each) for each in lists] == [StorageUnavailable] * 4
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


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("verb", [replace, compact])
async def test_a_compaction_whose_process_dies_leaves_the_old_history_or_the_new_one(
    url: URL, new_id: Callable[[], str], observer: asyncpg.Connection, proxy: Proxy, verb: Verb, fault: Fault
) -> None:
    """Its connection is cut and nobody comes again: all of the replacement is there with what it replaced, or none."""
    # The twin goes first, on the same connection: the fault must hit the verb, not its preparing or the handshake.
    async with SessionStore.open(url, retry_for=1, engine_kwargs={"pool_size": 1}) as store:
        for each in (store.session(new_id()), session := store.session(new_id())):
            await each.add_items(HISTORY)
            if each is session:
                break
            await verb(each, in_peace)
            new = await known(observer, each)
        old = await known(observer, session)

        def die() -> None:
            proxy.fault = fault
            proxy.refusing = True

        with pytest.raises(StorageUnavailable):
            await verb(session, die)
        proxy.refusing = False

        # A statement that was sent when its connection died may or may not have reached the server.
        left = {BEFORE: [old], SENT: [old, new], ANSWER: [new]}
        assert await known(observer, session) in left[fault]


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
