"""Callers that are cancelled: what is under way takes effect, and the pool gets everything back.

Many callers at once, and what any session owes to a caller that is cancelled: `agents_pg_session/testing/promises`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from agents_pg_session import PGSession, SessionStore
from tests.items import user


@pytest.mark.parametrize("verb", ["append", "pop", "clear"])
@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancelled_mutation_settles_first(
    store: SessionStore, session: PGSession, verb: str, times: int
) -> None:
    """Once under way, a mutation takes effect although its caller is cancelled, once or twice; nothing leaks."""
    await session.add_items([user("1"), user("2")])
    work: dict[str, Callable[[], Awaitable[object]]] = {
        "append": lambda: session.add_items([user("3")]),
        "pop": session.pop_item,
        "clear": session.clear_session,
    }
    task = asyncio.ensure_future(work[verb]())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        await task
    expected = {"append": [user("1"), user("2"), user("3")], "pop": [user("1")], "clear": []}
    assert await session.get_items() == expected[verb]
    assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_a_cancelled_read_leaves_nothing_checked_out(store: SessionStore, session: PGSession) -> None:
    """Reads may be cancelled at any moment; the store goes on as before."""
    await session.add_items([user("1")])
    for pauses in range(12):
        task = asyncio.ensure_future(session.get_items())
        for _ in range(pauses):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    assert await session.get_items() == [user("1")]
    assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
