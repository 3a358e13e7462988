"""Many callers at once, and callers that are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from agents_pg_session import PGSession, SessionStore
from tests.items import user


async def test_25_first_writers_lose_nothing(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Handles that race to create one session all get their items in, each batch together."""
    name = new_id()
    batches = [[user(f"{writer}.{number}") for number in range(3)] for writer in range(25)]

    await asyncio.gather(*(store.session(name).add_items(batch) for batch in batches))

    items = await store.session(name).get_items()
    found = [items[start : start + 3] for start in range(0, len(items), 3)]
    assert sorted(found, key=str) == sorted(batches, key=str)


async def test_every_item_is_popped_once(session: PGSession) -> None:
    """Ten callers popping at once get ten different items."""
    await session.add_items([user(str(number)) for number in range(10)])

    popped = await asyncio.gather(*(session.pop_item() for _ in range(14)))

    assert sorted(str(each) for each in popped if each) == sorted(str(user(str(number))) for number in range(10))
    assert popped.count(None) == 4


async def test_pops_among_appends_take_what_is_newest(session: PGSession) -> None:
    """Appends and pops at once: everything is either in the history or was popped, never both, never neither."""
    batches = [[user(f"{writer}.{number}") for number in range(2)] for writer in range(12)]

    results = await asyncio.gather(
        *(session.add_items(batch) for batch in batches), *(session.pop_item() for _ in range(12))
    )

    popped = [each for each in results if each is not None]
    left = await session.get_items()
    assert sorted(map(str, popped + left)) == sorted(str(each) for batch in batches for each in batch)


async def test_a_clear_is_one_boundary(session: PGSession) -> None:
    """Appends around a clear are there whole or gone whole."""
    batches = [[user(f"{writer}.{number}") for number in range(3)] for writer in range(12)]

    await asyncio.gather(
        *(session.add_items(batch) for batch in batches[:6]),
        session.clear_session(),
        *(session.add_items(batch) for batch in batches[6:]),
    )

    items = await session.get_items()
    assert len(items) % 3 == 0
    assert all(items[start : start + 3] in batches for start in range(0, len(items), 3))


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
