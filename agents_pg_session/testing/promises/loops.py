"""Event loops and threads, as `Runner.run_sync`, notebooks and test suites use them."""

from __future__ import annotations

import asyncio

from agents.memory import Session

from agents_pg_session.testing.promises.registry import keeps, promise
from agents_pg_session.testing.promises.trial import Trial, history


@promise("loops")
async def a_handle_outlives_its_event_loop(trial: Trial) -> None:
    """A handle that was used in one `asyncio.run` works in the next one."""
    session = await trial.open()

    async def append() -> int:
        await session.add_items(history(1))
        return len(await session.get_items())

    found = [await trial.in_a_loop_of_its_own(append) for _ in range(3)]

    keeps(found == [1, 2, 3], f"three loops found {found} items")


@promise("loops")
async def one_handle_serves_several_threads(trial: Trial) -> None:
    """Four threads with event loops of their own use one handle at the same time."""
    session = await trial.open()
    await session.get_items()  # the tables are there

    async def append() -> None:
        for _ in range(5):
            await session.add_items(history(2))

    await asyncio.gather(*(trial.in_a_loop_of_its_own(append) for _ in range(4)))
    found = len(await trial.in_a_loop_of_its_own(session.get_items))

    keeps(found == 40, f"{found} of 40 items are there")


@promise("loops")
async def each_thread_may_have_its_handle(trial: Trial) -> None:
    """Four threads with event loops and handles of their own write to one session, and open and close as they like."""
    name, subject = trial.new_id(), trial.subject
    await (await trial.open(name)).get_items()  # the tables are there

    async def append() -> None:
        opened = await subject.opened(name, subject.url)
        session: Session = opened.session
        try:
            for _ in range(5):
                await session.add_items(history(2))
        finally:
            await opened.close()

    await asyncio.gather(*(trial.in_a_loop_of_its_own(append) for _ in range(4)))

    found = len(await (await trial.open(name)).get_items())
    keeps(found == 40, f"{found} of 40 items are there")
