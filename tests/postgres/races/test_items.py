"""The conversation, changed by two at once: each verb sees what the one before it did."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from agents_pg_session import PGSession, SessionConflict, SessionStore
from tests.items import assistant, call, output, user
from tests.postgres.races.lines import (
    FAILED,
    counters_hold,
    in_line,
)


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


async def test_who_expects_no_change_begins_no_session_anew_behind_a_delete(
    store: SessionStore, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """The session was erased while an append waited that expected it as it was: nothing is appended."""
    await twin.add_items([user("1")])
    expecting = store.session(twin.session_id, expect="unchanged")
    await expecting.get_items()
    _, refused = await in_line(observer, twin, twin.delete, lambda: expecting.add_items([user("late")]))

    assert isinstance(refused, SessionConflict)
    assert await twin.get_items() == []


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


async def test_an_append_revives_a_session_that_was_ended_before_it(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """The row says what happened last: ended and then appended to is active."""
    await session.add_items([user("1")])
    await in_line(observer, session, session.end, lambda: twin.add_items([user("2")]))

    info = await session.info()
    assert (info.status, info.ended_at) == ("active", None)
