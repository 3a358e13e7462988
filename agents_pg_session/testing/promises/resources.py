"""Connections: few, given back, and enough for everybody."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from agents_pg_session.testing.promises.registry import keeps, promise, unless
from agents_pg_session.testing.promises.trial import Trial, history, until

#: Twice what SQLAlchemy's pool holds by default (5, and 10 when busy).
MOST = 30


@promise("resources", needs="postgres")
async def handles_share_connections(trial: Trial) -> None:
    """200 handles that were opened and used, as requests do, hold no more than 30 connections."""
    async with trial.observer() as observer:
        before = await trial.connections(observer)
        for number in range(200):
            await (await trial.open()).get_items()
            if number % 10 == 0 or number == 199:
                held = await trial.connections(observer) - before
                keeps(held <= MOST, f"{held} connections for {number + 1} handles")


@promise("resources", needs="postgres")
async def closing_gives_connections_back(trial: Trial) -> None:
    """When the last handle is closed, so are its connections."""
    async with trial.observer() as observer:
        before = await trial.connections(observer)
        handles = [await trial.open() for _ in range(3)]
        unless(not trial.can_close(handles[0]), "it has no close()")
        for handle in handles:
            await handle.add_items(history(1))
        for handle in handles:
            await trial.close(handle)

        async def gone() -> bool:
            return await trial.connections(observer) <= before

        keeps(await until(gone, 10), f"{await trial.connections(observer) - before} connections are left")


@promise("resources")
async def closing_is_final(trial: Trial) -> None:
    """`close()` may be called again; afterwards each call raises `RuntimeError`, `add_items([])` too."""
    session: Any = await trial.open()
    unless(not hasattr(session, "close"), "it has no close()")
    await session.add_items(history(1))
    await session.close()
    await session.close()
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "get_items()": session.get_items,
        "add_items([…])": lambda: session.add_items(history(1)),
        "add_items([])": lambda: session.add_items([]),
        "pop_item()": session.pop_item,
        "clear_session()": session.clear_session,
    }

    for name, call in calls.items():
        try:
            await call()
            raised: Exception | None = None
        except Exception as error:
            raised = error
        what = "nothing" if raised is None else type(raised).__name__
        keeps(isinstance(raised, RuntimeError), f"{name} raised {what} instead of RuntimeError")


@promise("resources")
async def closing_ends_only_its_own(trial: Trial) -> None:
    """Closing one handle takes nothing from another one."""
    name = trial.new_id()
    one, other = await trial.open(name), await trial.open(name)
    unless(not trial.can_close(one), "it has no close()")
    await one.add_items(history(2))
    await other.get_items()
    await trial.close(one)

    keeps(await other.get_items() == history(2), "the other handle reads something else")
    await other.add_items(history(1))


@promise("resources", races=True)
async def a_hundred_callers_get_their_turn(trial: Trial) -> None:
    """100 calls at once on one handle all finish."""
    session = await trial.open()
    calls: list[Awaitable[object]] = []
    for number in range(50):
        calls += [session.add_items(history(1, f"{number}.")), session.get_items()]
    await asyncio.gather(*calls)

    keeps((found := len(await session.get_items())) == 50, f"{found} of 50 items are there")
