"""The session's row always says what the tables hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from agents_pg_session import PGSession, SessionStore
from agents_pg_session.projection import Item
from tests.items import assistant, call, item, output, user

ITEMS = st.sampled_from(
    [
        user("u"),
        assistant("a"),
        call("c"),
        output("c"),
        item(role="system", content="s"),
        item(__enc__=1),
        item(type="x\0"),
    ]
)
STEPS = st.lists(st.one_of(st.lists(ITEMS, max_size=6), st.just("pop"), st.just("clear")), max_size=14)


async def test_turns_count_user_inputs(session: PGSession, store: SessionStore) -> None:
    """A turn is one user input and all that answers it; neighbouring input messages are one input."""
    await session.add_items([item(role="system", content="be kind"), user("first"), user("still first")])
    await session.add_items([call("c1"), output("c1"), assistant("answer")])
    await session.add_items([user("second")])

    assert await turns_of(store, session) == [1, 1, 1, 1, 1, 1, 2]
    assert (await row_of(store, session))["turn_count"] == 2


async def test_items_before_any_user_input_have_turn_zero(session: PGSession, store: SessionStore) -> None:
    """What no user asked for belongs to no turn."""
    await session.add_items([item(role="system", content="be kind")])
    await session.add_items([assistant("hello")])

    assert await turns_of(store, session) == [0, 0]


async def test_popping_a_question_gives_its_turn_back(session: PGSession, store: SessionStore) -> None:
    """Edit and regenerate: after the popped question the next one is the same turn again."""
    await session.add_items([user("first"), assistant("a"), user("second")])
    await session.pop_item()
    await session.add_items([user("second, better")])

    assert await turns_of(store, session) == [1, 1, 2]
    assert (await row_of(store, session))["turn_count"] == 2


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_counters_equal_a_recount(
    steps: list[list[Item] | str], store: SessionStore, new_id: Callable[[], str]
) -> None:
    """Whatever was appended, popped and cleared: the counters are what counting the rows gives."""
    session = store.session(new_id(), tenant="t")
    expected: list[Item] = []
    popped = cleared = 0
    for step in steps:
        if step == "pop":
            popped += bool(expected)
            assert await session.pop_item() == (expected.pop() if expected else None)
        elif step == "clear":
            await session.clear_session()
            expected.clear()
            cleared += 1
        elif isinstance(step, list):
            await session.add_items(step)
            expected.extend(step)
    written = any(isinstance(step, list) and step for step in steps)

    assert await session.get_items() == expected
    if written:
        row = await row_of(store, session)
        turns = await turns_of(store, session)
        assert row["item_count"] == len(expected)
        assert row["message_count"] == sum("role" in each for each in expected)
        assert row["turn_count"] == max(turns, default=0)
        assert row["last_event_id"] == row["events"] >= popped


async def row_of(store: SessionStore, session: PGSession) -> dict[str, Any]:
    prefix = "" if store.engine.dialect.name == "sqlite" else "agents."
    events = f"(SELECT count(*) FROM {prefix}events e WHERE e.session_id = s.session_id) AS events"
    async with store.engine.connect() as connection:
        sql = text(f"SELECT s.*, {events} FROM {prefix}sessions s WHERE session_id = :id")
        return dict((await connection.execute(sql, {"id": session.session_id})).mappings().one())


async def turns_of(store: SessionStore, session: PGSession) -> list[int]:
    prefix = "" if store.engine.dialect.name == "sqlite" else "agents."
    async with store.engine.connect() as connection:
        sql = text(f"SELECT turn FROM {prefix}items WHERE session_id = :id ORDER BY position")
        return list((await connection.execute(sql, {"id": session.session_id})).scalars())
