"""What goes in comes out: any JSON value, any session id, any tenant; and where our limits are.

Single hard values (NUL, surrogates, numbers, key order) stand in `agents_pg_session/testing/promises/fidelity.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents_pg_session import InvalidItem, PGSession, SessionStore
from agents_pg_session.projection import MAX_DEPTH, Item
from tests.items import item, user

# A high surrogate right before a low one is the same text as the character they encode, and JSON cannot tell them
# apart.
TEXT = st.text(st.characters(), max_size=20).map(lambda text: json.loads(json.dumps(text)))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**40), 10**40), st.floats(allow_nan=False, allow_infinity=False), TEXT
)
VALUES = st.recursive(
    SCALARS, lambda each: st.one_of(st.lists(each, max_size=4), st.dictionaries(TEXT, each, max_size=4)), max_leaves=12
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=5)
IDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=100)
PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PROPERTY
@given(objects=st.lists(OBJECTS, min_size=1, max_size=4))
async def test_any_json_comes_back_equal(
    objects: list[dict[str, Any]], store: SessionStore, new_id: Callable[[], str]
) -> None:
    """Value for value and key for key, in the same order, whichever way it is read."""
    session = store.session(new_id())
    items: list[Item] = [item(**each) for each in objects]
    await session.add_items(items)

    read = await session.get_items()
    assert exactly(read) == exactly(items)
    assert exactly(await session.get_items(limit=1)) == exactly(items[-1:])
    assert exactly(await session.pop_item()) == exactly(items[-1])


@PROPERTY
@given(session_id=IDS, tenant=IDS, agent=IDS, user_id=IDS)
async def test_any_id_is_safe(session_id: str, tenant: str, agent: str, user_id: str, store: SessionStore) -> None:
    """Ids are values, never SQL: quotes, emoji, backslashes and statements in them are just names."""
    session = store.session(session_id, tenant=tenant, agent=agent, user_id=user_id)
    await session.clear_session()
    await session.add_items([user("here")])

    assert await session.get_items() == [user("here")]
    assert await session.pop_item() == user("here")


async def test_an_item_of_20_megabytes(session: PGSession) -> None:
    """A tool output may be as large as it is."""
    large = item(type="function_call_output", call_id="c", output="ü\n" * 7_000_000)
    await session.add_items([large])

    assert await session.get_items() == [large]
    assert await session.pop_item() == large


async def test_nesting_to_the_limit(session: PGSession) -> None:
    """Items may be nested to the documented depth, and are refused beyond it, not truncated."""
    deepest = item(value=nested(MAX_DEPTH - 1))
    await session.add_items([deepest])

    assert await session.get_items() == [deepest]
    with pytest.raises(InvalidItem, match=f"nested deeper than {MAX_DEPTH} levels"):
        await session.add_items([item(value=nested(MAX_DEPTH))])


async def test_a_refused_batch_writes_nothing(session: PGSession) -> None:
    """One item that cannot be stored refuses its whole batch, and says where the fault is."""
    bad = item(type="function_call_output", output=[{"score": math.nan}])

    with pytest.raises(InvalidItem, match=r'items\[2\]\["output"\]\[0\]\["score"\] is NaN'):
        await session.add_items([user("1"), user("2"), bad])
    assert await session.get_items() == []


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def exactly(value: object) -> str:
    """Equality that tells -0.0 from 0.0, 1 from 1.0 and one order of keys from another."""
    return json.dumps(value)
