"""Callers that are cancelled: what is under way takes effect, and the pool gets everything back.

Many callers at once, and what any session owes to a caller that is cancelled: `agents_pg_session/testing/promises`.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

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


async def test_writers_on_a_file_wait_in_line(
    sqlite_template: Path, tmp_path: Path, new_id: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    """Sixteen tasks write to one SQLite file whose lock nobody waits for: none of them ever finds it locked."""
    shutil.copy(sqlite_template, path := tmp_path / "s.db")
    async with SessionStore.open(f"sqlite:///{path}") as store:
        event.listen(store.engine.sync_engine, "connect", _does_not_wait)
        sessions = [store.session(new_id()) for _ in range(16)]
        with caplog.at_level(logging.WARNING, "agents_pg_session"):
            for _ in range(5):
                await asyncio.gather(*(session.add_items([user("hi")]) for session in sessions))

        assert [len(await session.get_items()) for session in sessions] == [5] * 16
    assert caplog.records == []


def _does_not_wait(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 0")
    cursor.close()
