"""Two writers at the same moment, brought about on purpose: each verb sees what the one before it did.

A third connection holds the session's row; the verbs line up behind it in the order of the test, then it lets go.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import asyncpg
import pytest
from agents import Runner

from agents_pg_session import PGSession, SessionConflict, SessionNotFound, SessionStore, SnapshotNotFound
from tests.acceptance.agents_for_tests import QUIET, calls, says, scripted
from tests.items import assistant, call, output, user

T = TypeVar("T")
FAILED = "An error occurred while running the tool. Please try again."

#: Claims a paused run, says so, and waits to be killed.
WORKER = """
import asyncio, sys
from agents_pg_session import PGSession, SessionConflict
from tests.acceptance.agents_for_tests import scripted

async def main(url: str, name: str) -> None:
    async with PGSession.from_url(name, url=url) as session:
        sys.stdin.readline()
        try:
            await session.resume(scripted())
        except SessionConflict:
            print("lost", flush=True)
        else:
            print("won", flush=True)
            sys.stdin.readline()

asyncio.run(main(*sys.argv[1:]))
"""

#: Every counter of a session beside what the tables hold.
RECOUNT = """
SELECT s.item_count, (SELECT count(*) FROM agents.items i WHERE i.session_id = s.session_id),
       s.message_count, (SELECT count(*) FROM agents.items i WHERE i.session_id = s.session_id AND i.type = 'message'),
       s.tool_run_count, (SELECT count(*) FROM agents.tool_runs t WHERE t.session_id = s.session_id),
       s.tool_error_count,
       (SELECT count(*) FROM agents.tool_runs t WHERE t.session_id = s.session_id AND t.status = 'failed'),
       s.last_event_id, (SELECT count(*) FROM agents.events e WHERE e.session_id = s.session_id)
  FROM agents.sessions s WHERE s.session_id = $1
"""


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[SessionStore]:
    async with SessionStore.open(postgres_url) as store:
        yield store
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.fixture
async def other(postgres_url: str) -> AsyncIterator[SessionStore]:
    """The store of another process."""
    async with SessionStore.open(postgres_url) as store:
        yield store


@pytest.fixture
def session(store: SessionStore, new_id: Callable[[], str]) -> PGSession:
    return store.session(new_id())


@pytest.fixture
def twin(other: SessionStore, session: PGSession) -> PGSession:
    """The same session in another process."""
    return other.session(session.session_id)


async def in_line(observer: asyncpg.Connection, session: PGSession, *verbs: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Line *verbs* up behind the lock of the session's row, let them go, and return what each answered or raised."""
    watcher = await asyncpg.connect(dsn_of(session))
    lock = observer.transaction()
    await lock.start()
    await observer.execute("SELECT FROM agents.sessions WHERE session_id = $1 FOR UPDATE", session.session_id)
    waiting = []
    for count, verb in enumerate(verbs, start=1):
        waiting.append(asyncio.ensure_future(verb()))
        await until_waiting(watcher, count)
    await lock.commit()
    await watcher.close()
    return list(await asyncio.gather(*waiting, return_exceptions=True))


async def until_waiting(watcher: asyncpg.Connection, count: int) -> None:
    """Return when *count* connections of this database wait for a lock."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    while await watcher.fetchval(sql) < count:
        await asyncio.sleep(0.005)


def dsn_of(session: PGSession) -> str:
    return session.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


async def counters_hold(observer: asyncpg.Connection, session: PGSession) -> bool:
    """Say whether the counters of a session equal a recount."""
    row = await observer.fetchrow(RECOUNT, session.session_id)
    assert row is not None
    values = list(row.values())
    return values[::2] == values[1::2]


async def paused(session: PGSession) -> None:
    """Leave a run that waits for an approval."""
    result = await Runner.run(scripted(calls("refund", "r1", amount=5)), "refund", session=session, run_config=QUIET)
    await session.pause(result)


async def test_an_output_that_waited_finds_a_call_that_came_meanwhile(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """The output of a call is stored right behind it, by a statement that began before the call was there."""
    await session.add_items([user("hi")])
    await in_line(
        observer,
        session,
        lambda: session.add_items([call("c1"), call("c2")]),
        lambda: twin.add_items([output("c1"), output("c2", FAILED)]),
    )

    newest, oldest = await session.tool_runs.list()
    assert (oldest.status, oldest.position, oldest.output_position) == ("succeeded", 2, 4)
    assert (newest.status, newest.position, newest.output_position) == ("failed", 3, 5)
    assert await counters_hold(observer, session)


async def test_two_outputs_of_one_call_are_not_both_its_answer(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """The first output answers the call; the second, which waited behind it, finds none that still runs."""
    await session.add_items([call("c1")])
    await in_line(
        observer,
        session,
        lambda: session.add_items([output("c1", FAILED)]),
        lambda: twin.add_items([output("c1")]),
    )

    [run] = await session.tool_runs.list()
    assert (run.status, run.output_position) == ("failed", 2)
    assert await counters_hold(observer, session)


async def test_an_output_behind_the_pop_of_its_call_answers_nothing(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """A pop took the call and its tool run; the failed output that waited behind it is an item and no error."""
    await session.add_items([user("hi"), call("c1")])
    await in_line(observer, session, session.pop_item, lambda: twin.add_items([output("c1", FAILED)]))

    assert list(await session.tool_runs.list()) == []
    assert await session.get_items() == [user("hi"), output("c1", FAILED)]
    assert await counters_hold(observer, session)


async def test_a_pop_behind_an_output_takes_that_output(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """The pop's snapshot showed a running call; it takes the output that came first, and the call runs again."""
    await session.add_items([user("hi"), call("c1")])
    _, popped = await in_line(observer, session, lambda: session.add_items([output("c1", FAILED)]), twin.pop_item)

    [run] = await session.tool_runs.list()
    assert popped == output("c1", FAILED)
    assert (run.status, run.output_position, run.error) == ("running", None, None)
    assert await counters_hold(observer, session)


async def test_an_output_behind_a_delete_begins_anew(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """The session was erased while a failed output waited: the new one counts no error of a tool run it has not."""
    await session.add_items([user("hi"), call("c1")])
    await in_line(observer, session, session.delete, lambda: twin.add_items([output("c1", FAILED)]))

    assert await session.get_items() == [output("c1", FAILED)]
    assert list(await session.tool_runs.list()) == []
    assert await counters_hold(observer, session)


async def test_versions_begin_anew_behind_a_delete(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """The session was erased while a save waited: its snapshot is version 1 of the new session."""
    await session.snapshots.save("summary", "old")
    _, version = await in_line(observer, session, session.delete, lambda: twin.snapshots.save("summary", "new"))

    assert version == 1
    assert await counters_hold(observer, session)


async def test_saves_at_once_are_versions_in_a_row(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """No version is handed out twice, none is left out, and none is overwritten."""
    await session.add_items([user("hi")])
    versions = await in_line(
        observer,
        session,
        *(lambda number=number: (session, twin)[number % 2].snapshots.save("summary", number) for number in range(6)),
    )

    assert sorted(versions) == [1, 2, 3, 4, 5, 6]
    saved = await session.snapshots.list("summary")
    assert {each.version: each.content for each in saved} == {versions[n]: n for n in range(6)}
    assert await counters_hold(observer, session)


async def test_a_save_knows_what_was_appended_before_it(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """A snapshot that says how far it has seen says so of the moment it took effect."""
    await session.add_items([user("1")])
    await in_line(
        observer,
        session,
        lambda: session.add_items([user("2")]),
        lambda: twin.snapshots.save("note", "x"),
    )

    latest = await session.snapshots.latest("note")
    assert latest is not None
    assert latest.through == 2


async def test_of_twenty_workers_one_resumes_the_run(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """Twenty tasks over two stores claim one paused run at once: one has it, nineteen are told so."""
    await paused(session)
    workers = await in_line(
        observer,
        session,
        *(lambda number=number: (session, twin)[number % 2].resume(scripted()) for number in range(20)),
    )

    conflicts = [each for each in workers if isinstance(each, SessionConflict)]
    assert len(conflicts) == 19
    assert {str(each).partition(": ")[2] for each in conflicts} == {"another worker has resumed its paused run"}
    claims = [each for each in await session.events.list() if each.kind == "snapshot_claimed"]
    assert len(claims) == 1


async def test_of_three_processes_one_resumes_the_run_and_the_next_one_after_it_was_killed(
    session: PGSession, postgres_url: str, observer: asyncpg.Connection
) -> None:
    """A worker that is killed keeps its claim until that expires, by the database's clock; then the next one has it."""
    await paused(session)
    workers = [await started(postgres_url, session) for _ in range(3)]
    said = await asyncio.gather(*(line_of(worker) for worker in workers))
    assert sorted(said) == ["lost", "lost", "won"]
    winner = workers[said.index("won")]
    winner.kill()
    await winner.wait()
    with pytest.raises(SessionConflict, match="another worker"):
        await session.resume(scripted())
    await observer.execute(
        "UPDATE agents.snapshots SET claimed_until = now() WHERE session_id = $1", session.session_id
    )
    state = await session.resume(scripted())

    assert [each.call_id for each in state.get_interruptions()] == ["r1"]
    with pytest.raises(SessionConflict, match="another worker"):
        await session.resume(scripted())
    for worker in workers:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()


async def started(url: str, session: PGSession) -> asyncio.subprocess.Process:
    """A worker in a process of its own, about to claim the session's paused run."""
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, url, session.session_id, stdin=pipe, stdout=pipe
    )


async def line_of(worker: asyncio.subprocess.Process) -> str:
    """Let a worker go on, and return what it says."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(b"\n")
    await worker.stdin.drain()
    return (await worker.stdout.readline()).decode().strip()


async def test_a_claim_that_expired_is_had_by_the_next(session: PGSession, twin: PGSession) -> None:
    """`claim_for` seconds without an append, and another worker may resume; not a moment earlier."""
    await paused(session)
    await session.resume(scripted(), claim_for=0.5)
    first = await session.snapshots.latest("run_state")
    while True:
        with contextlib.suppress(SessionConflict):
            await twin.resume(scripted())
            break
        await asyncio.sleep(0.05)
    second = await session.snapshots.latest("run_state")

    assert first is not None
    assert second is not None
    assert first.claimed_until is not None
    assert second.claimed_until is not None
    claims = [each.created_at for each in await session.events.list(kind="snapshot_claimed")]
    assert claims[1] >= first.claimed_until


async def test_a_resume_behind_an_append_is_refused(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """The session went on while the claim waited: the state is not resumed where it did not stop."""
    await paused(session)
    _, refused = await in_line(
        observer, session, lambda: session.add_items([user("never mind")]), lambda: twin.resume(scripted())
    )

    assert isinstance(refused, SessionConflict)
    assert "has gone on" in str(refused)


async def test_the_slower_of_two_who_resumed_appends_nothing(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """A claim ran out, another worker took over and finished: the first one's append raises."""
    await paused(session)
    slow, fast = scripted(says("slow")), scripted(says("fast"))
    first = await session.resume(slow)
    sql = "UPDATE agents.snapshots SET claimed_until = now() WHERE session_id = $1"
    await observer.execute(sql, session.session_id)
    second = await twin.resume(fast)
    for state in (first, second):
        for each in state.get_interruptions():
            state.approve(each)
    await Runner.run(fast, second, session=twin, run_config=QUIET)
    after = await twin.get_items()
    with pytest.raises(SessionConflict, match="another writer came first"):
        await Runner.run(slow, first, session=session, run_config=QUIET)

    assert await twin.get_items() == after


async def test_a_fork_is_a_moment_of_its_source(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection, new_id: Callable[[], str]
) -> None:
    """Forks taken while calls and outputs arrive: each is whole, and its counters equal a recount."""
    await session.add_items([user("hi")])

    async def talk() -> None:
        for number in range(10):
            await session.add_items([call(f"c{number}"), assistant("hm")])
            await session.add_items([output(f"c{number}", FAILED), user("and?")])

    talking = asyncio.ensure_future(talk())
    forks = []
    while not talking.done():
        forks.append(await twin.fork(new_id()))
    await talking

    for fork in forks:
        items = await fork.get_items()
        assert items == (await session.get_items())[: len(items)]
        assert len(items) % 2 == 1, "an append is there whole or not at all"
        assert await counters_hold(observer, fork)


async def test_two_forks_into_one_id(session: PGSession, twin: PGSession, new_id: Callable[[], str]) -> None:
    """One of them is there, the others are told that the id is taken."""
    await session.add_items([user("hi")])
    name = new_id()
    forks = await asyncio.gather(*(each.fork(name) for each in (session, twin) * 4), return_exceptions=True)

    assert len([each for each in forks if isinstance(each, PGSession)]) == 1
    assert len([each for each in forks if isinstance(each, SessionConflict)]) == 7


@pytest.mark.parametrize("meanwhile", ["append", "pop", "clear", "replace"])
async def test_who_expects_no_change_is_told_of_one_it_waited_behind(
    store: SessionStore, twin: PGSession, observer: asyncpg.Connection, meanwhile: str
) -> None:
    """`expect="unchanged"`: the change came between its read and its append, while it waited. Nothing is appended."""
    await twin.add_items([user("1"), user("2")])
    expecting = store.session(twin.session_id, expect="unchanged")
    changes: dict[str, Callable[[], Awaitable[object]]] = {
        "append": lambda: twin.add_items([user("3")]),
        "pop": twin.pop_item,
        "clear": twin.clear_session,
        "replace": lambda: twin._atomic_replace_items([user("instead")]),
    }
    await expecting.get_items()
    _, refused = await in_line(observer, twin, changes[meanwhile], lambda: expecting.add_items([user("late")]))

    assert isinstance(refused, SessionConflict)
    assert user("late") not in await twin.get_items()
    await expecting.get_items()
    await expecting.add_items([user("now")])
    assert (await twin.get_items())[-1:] == [user("now")]


async def test_an_event_is_no_change_to_who_expects_none(
    store: SessionStore, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """Only the conversation counts: an event or a snapshot written meanwhile refuses no append."""
    await twin.add_items([call("c1")])
    expecting = store.session(twin.session_id, expect="unchanged")
    await expecting.get_items()
    answers = await in_line(
        observer,
        twin,
        lambda: twin.events.record("escalated"),
        lambda: twin.snapshots.save("note", "x"),
        lambda: expecting.add_items([output("c1")]),
    )

    assert not any(isinstance(each, BaseException) for each in answers)
    assert await twin.get_items() == [call("c1"), output("c1")]


async def test_of_two_who_want_to_run_alone_one_does(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """Both ask for the lease while its row is busy: one has it, the other one is told so."""
    await session.add_items([user("hi")])
    leases = [each.exclusive(wait=0) for each in (session, twin) * 3]
    entered = await in_line(observer, session, *(lease.__aenter__ for lease in leases))

    held = [lease for lease, answer in zip(leases, entered, strict=True) if not isinstance(answer, BaseException)]
    assert len(held) == 1
    assert len([each for each in entered if isinstance(each, SessionConflict)]) == 5
    await held[0].__aexit__(None, None, None)
    async with twin.exclusive(wait=0):
        pass


async def test_blocks_that_run_alone_never_overlap(session: PGSession, twin: PGSession) -> None:
    """Ten tasks in two processes read, think and append: each sees what the one before it appended."""

    async def count(handle: PGSession) -> None:
        async with handle.exclusive(wait=60):
            items = await handle.get_items()
            await asyncio.sleep(0)
            await handle.add_items([user(str(len(items)))])

    # A lease is known to its handle, so each task has one of its own.
    await asyncio.gather(*(count(own(each)) for each in (session, twin) * 5))

    assert await session.get_items() == [user(str(number)) for number in range(10)]


def own(session: PGSession) -> PGSession:
    return PGSession(session.session_id, engine=session.engine)


async def test_an_append_of_who_lost_the_lease_is_refused_behind_the_one_who_has_it(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """A holder that stood still for too long waits behind the new holder's append, and is refused."""
    await session.add_items([user("1")])
    stale = session.exclusive(wait=0)
    await stale.__aenter__()
    sql = "UPDATE agents.sessions SET lease_until = now() - interval '1 s' WHERE session_id = $1"
    await observer.execute(sql, session.session_id)
    async with twin.exclusive(wait=0):
        _, refused = await in_line(
            observer, session, lambda: twin.add_items([user("2")]), lambda: session.add_items([user("no")])
        )
    await stale.__aexit__(None, None, None)

    assert isinstance(refused, SessionConflict)
    assert "the lease ran out" in str(refused)
    assert await session.get_items() == [user("1"), user("2")]


async def test_a_reader_after_a_cursor_misses_no_event(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """Eight writers record events, some commit late; a reader that follows its cursor sees 1, 2, 3 … without a gap."""
    await session.events.record("first")

    async def write(number: int) -> None:
        for part in range(10):
            await (session, twin)[number % 2].events.record("note", f"{number}.{part}")

    watcher = await asyncpg.connect(dsn_of(session))
    late = observer.transaction()
    await late.start()
    await observer.execute(
        "UPDATE agents.sessions SET last_event_id = last_event_id + 1 WHERE session_id = $1", session.session_id
    )
    writers = [asyncio.ensure_future(write(number)) for number in range(8)]
    await until_waiting(watcher, 8)
    page = await session.events.list()
    seen = [each.event_id for each in page]
    assert seen == [1], "the writer that came first has not committed"
    await observer.execute(
        "INSERT INTO agents.events (tenant_id, session_id, event_id, kind) VALUES ('', $1, 2, 'late')",
        session.session_id,
    )
    await late.commit()
    while len(seen) < 82:
        page = await twin.events.list(after=page.cursor, limit=7)
        seen.extend(each.event_id for each in page)
    await asyncio.gather(*writers)
    await watcher.close()

    assert seen == list(range(1, 83))
    payloads = [each.payload for each in await session.events.list(kind="note")]
    assert sorted(map(str, payloads)) == sorted(f"{number}.{part}" for number in range(8) for part in range(10))


async def test_a_compaction_behind_an_append_replaces_nothing(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """What was compacted is not what stands there any more: the replacement is refused, the append is kept."""
    await session.add_items([user("1"), assistant("2")])
    snapshot = await session._get_compaction_snapshot(10)
    assert snapshot is not None
    _, replaced = await in_line(
        observer, session, lambda: twin.add_items([user("3")]), lambda: snapshot.replace_suffix(0, [user("short")])
    )

    assert replaced is False
    assert await session.get_items() == [user("1"), assistant("2"), user("3")]
    assert list(await session.snapshots.list("history")) == []


async def test_an_append_behind_a_compaction_stands_after_it(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """The other order: the history is replaced, and the append that waited follows what replaced it."""
    await session.add_items([user("1"), assistant("2")])
    snapshot = await session._get_compaction_snapshot(10)
    assert snapshot is not None
    replaced, _ = await in_line(
        observer, session, lambda: snapshot.replace_suffix(0, [user("short")]), lambda: twin.add_items([user("3")])
    )

    assert replaced is True
    assert await session.get_items() == [user("short"), user("3")]
    assert await counters_hold(observer, session)


async def test_a_replacement_of_everything_behind_an_append_keeps_it_as_history(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """Replacing the whole history takes what came before it too, and remembers it."""
    await session.add_items([user("1")])
    await in_line(
        observer,
        session,
        lambda: twin.add_items([user("2")]),
        lambda: session._atomic_replace_items([user("short")]),
    )

    assert await session.get_items() == [user("short")]
    history = await session.snapshots.get("history", 1)
    assert history.content == [user("1"), user("2")]
    await session.restore(1)
    assert await session.get_items() == [user("1"), user("2")]
    assert await counters_hold(observer, session)


async def test_of_two_compactions_of_one_history_one_takes_effect(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """Both compacted the same items: the second one finds that they are gone."""
    await session.add_items([user("1"), assistant("2")])
    snapshots = [await each._get_compaction_snapshot(10) for each in (session, twin)]
    replaced = await in_line(
        observer, session, *(lambda each=each: each.replace_suffix(0, [user("short")]) for each in snapshots)
    )

    assert replaced == [True, False]
    assert await session.get_items() == [user("short")]


async def test_a_restore_behind_a_clear_is_refused(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """What replaced the history was cleared while the restore waited: it is not there whole, so nothing comes back."""
    await session.add_items([user("1"), user("2")])
    await session._atomic_replace_items([user("short")])
    _, refused = await in_line(observer, session, twin.clear_session, lambda: session.restore(1))

    assert isinstance(refused, SessionConflict)
    assert await session.get_items() == []
    assert await counters_hold(observer, session)


async def test_an_append_revives_a_session_that_was_ended_before_it(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """The row says what happened last: ended and then appended to is active."""
    await session.add_items([user("1")])
    await in_line(observer, session, session.end, lambda: twin.add_items([user("2")]))

    info = await session.info()
    assert (info.status, info.ended_at) == ("active", None)


async def alone(session: PGSession) -> None:
    async with session.exclusive(wait=0):
        pass


Verb = Callable[[PGSession], Awaitable[object]]
names = itertools.count()
VERBS: dict[str, Verb] = {
    "append": lambda session: session.add_items([user("hi"), call("c1"), output("c1"), assistant("ok")]),
    "call": lambda session: session.add_items([call("c2")]),
    "output": lambda session: session.add_items([output("c2", FAILED)]),
    "pop": lambda session: session.pop_item(),
    "clear": lambda session: session.clear_session(),
    "save": lambda session: session.snapshots.save("summary", {}),
    "record": lambda session: session.events.record("note", {"a": 1}),
    "claim": lambda session: session.resume(scripted()),
    "end": lambda session: session.end(),
    "fork": lambda session: session.fork(f"{session.session_id} {next(names)}"),
    "replace": lambda session: session._atomic_replace_items([user("short"), assistant("ok")]),
    "restore": lambda session: session.restore(1),
    "lease": lambda session: alone(own(session)),
    "delete": lambda session: session.delete(),
}
#: What a verb may say when another one came first.
EXPECTED = (SessionConflict, SessionNotFound, SnapshotNotFound)


@pytest.mark.parametrize("one", VERBS)
async def test_no_two_verbs_wait_for_each_other(
    one: str,
    postgres_url: str,
    new_id: Callable[[], str],
    observer: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every pair of verbs, three times each at once: one lock order, so no deadlock, and the counters are right."""
    before = await deadlocks(observer)
    async with SessionStore.open(postgres_url) as left, SessionStore.open(postgres_url) as right:
        for another in itertools.islice(VERBS, list(VERBS).index(one), None):
            session = left.session(new_id())
            await session.add_items([user("1"), call("c1"), output("c1"), call("c2")])
            await session._atomic_replace_items([user("2")])
            await session.add_items([call("c2"), call("c2"), call("c2")])
            await paused(session)
            twins = (session, right.session(session.session_id))
            answers = await asyncio.gather(
                *(VERBS[verb](twin) for verb in (one, another) for twin in (*twins, session)), return_exceptions=True
            )

            wrong = [each for each in answers if isinstance(each, BaseException) and not isinstance(each, EXPECTED)]
            assert wrong == [], another
            assert await is_gone(observer, session) or await counters_hold(observer, session), another
    while await observer.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'agents_pg_session'"):
        await asyncio.sleep(0.01)  # a backend counts its deadlocks when it ends, at the latest

    assert await deadlocks(observer) == before
    assert [record for record in caplog.records if record.name == "agents_pg_session"] == []


async def deadlocks(observer: asyncpg.Connection) -> int:
    count: int = await observer.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return count


async def is_gone(observer: asyncpg.Connection, session: PGSession) -> bool:
    found = await observer.fetchval("SELECT count(*) FROM agents.sessions WHERE session_id = $1", session.session_id)
    return bool(found == 0)
