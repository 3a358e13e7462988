"""Paused runs and leases, wanted by several at once: one has them, at every moment."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import chain
from multiprocessing.connection import Connection

import asyncpg
import pytest
from agents import Runner
from agents.exceptions import UserError

from agents_pg_session import PGSession, SessionConflict
from tests.acceptance.agents_for_tests import QUIET, calls, says, scripted
from tests.items import output, user
from tests.postgres.races.lines import (
    in_line,
    is_gone,
    own,
    paused,
)
from tests.programs import FORKED


def work(url: str, name: str, told: Connection) -> None:
    """Claim a paused run when told to, say so, and wait to be killed."""

    async def main() -> None:
        async with PGSession.from_url(name, url=url) as session:
            told.recv()
            try:
                await session.resume(scripted())
            except SessionConflict:
                told.send("lost")
            else:
                told.send("won")
                told.recv()

    asyncio.run(main())


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
    pipes = [FORKED.Pipe() for _ in range(3)]
    workers = [FORKED.Process(target=work, args=(postgres_url, session.session_id, there)) for _, there in pipes]
    for worker in workers:
        worker.start()
    for here, _ in pipes:
        here.send("go")
    said = await asyncio.gather(*(asyncio.to_thread(here.recv) for here, _ in pipes))
    assert sorted(said) == ["lost", "lost", "won"]
    winner = workers[said.index("won")]
    winner.kill()
    winner.join(30)
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
        worker.kill()
        worker.join(30)
    for end in chain.from_iterable(pipes):
        end.close()


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


async def test_who_runs_alone_begins_no_session_anew_behind_a_delete(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """The session, and the lease with it, was erased while the holder's append waited: nothing is appended."""
    await session.add_items([user("1")])
    lease = session.exclusive(wait=0)
    await lease.__aenter__()
    _, refused = await in_line(observer, session, twin.delete, lambda: session.add_items([user("2")]))
    await lease.__aexit__(None, None, None)

    assert isinstance(refused, SessionConflict)
    assert await is_gone(observer, session)


async def test_who_resumed_a_run_begins_no_session_anew_behind_a_delete(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """The session was erased while the resumed run's output waited: the output of a call that is gone is refused."""
    await paused(session)
    await session.resume(scripted())
    _, refused = await in_line(observer, session, twin.delete, lambda: session.add_items([output("r1")]))

    assert isinstance(refused, SessionConflict)
    assert await is_gone(observer, session)


async def test_last_words_behind_a_delete_begin_no_session_anew(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """A run's end waited while its session was erased: what is gone stays gone."""
    recording = session.recording()
    run = await recording.__aenter__()
    with pytest.raises(UserError):
        await Runner.run(
            scripted(calls("fatal", "f1", city="X")), "hi", session=session, hooks=run.hooks, run_config=QUIET
        )
    error = ValueError("no station")
    await in_line(observer, session, twin.delete, lambda: recording.__aexit__(ValueError, error, None))

    assert await is_gone(observer, session)
