"""A read is the truth or an error, and never takes for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from agents_pg_session.testing.promises.cuts import CALLS, cut_everywhere, warmed
from agents_pg_session.testing.promises.registry import keeps, promise
from agents_pg_session.testing.promises.trial import Trial, history, until

#: Seconds within which a caller learns that its database is not there.
BOUND = 40.0


@promise("truth", needs="proxy")
async def a_cut_read_is_true_or_an_error(trial: Trial) -> None:
    """Wherever its connection is cut, a read returns the whole history or raises: never a part, never nothing."""
    for cut in await cut_everywhere(trial, "read"):
        keeps(not cut.acknowledged or cut.result == cut.before, cut.saw(f"it returned {cut.result!r:.40}"))


@promise("truth", needs="proxy")
async def a_lost_connection_fails_no_read(trial: Trial) -> None:
    """Wherever its connection is cut, a read is read again, and nobody is troubled."""
    for cut in await cut_everywhere(trial, "read"):
        keeps(cut.acknowledged, cut.saw("the caller has to deal with it"))


@promise("truth", needs="proxy")
async def a_connection_that_died_idle_fails_nothing(trial: Trial) -> None:
    """When a load balancer or a restart has ended the idle connections, the next call works.

    Whichever it is: append, read, pop or clear.
    """
    proxy, url = await trial.proxied()
    name = trial.new_id()
    session, direct = await trial.open(name, url), await trial.open(name)

    async def none_open() -> bool:
        return proxy.open == 0

    for verb, call in CALLS.items():
        await warmed(session, direct)
        proxy.cut_all()
        await until(none_open, 5)
        try:
            await call(session, history(1))
            failed = ""
        except Exception as error:
            failed = type(error).__name__

        keeps(not failed, f"{verb} raised {failed}")


@promise("truth", needs="proxy")
async def a_database_that_is_away_is_an_error(trial: Trial) -> None:
    """While no connection comes about, every call raises within 40 s, and never is it an empty history."""
    proxy, url = await trial.proxied()
    name = trial.new_id()
    session, direct = await trial.open(name, url), await trial.open(name)
    await warmed(session, direct)
    proxy.refusing = True
    proxy.cut_all()
    outcomes = await asyncio.gather(*(outcome(call(session, history(1))) for call in CALLS.values()))
    proxy.refusing = False

    for verb, what in zip(CALLS, outcomes, strict=True):
        keeps(isinstance(what, Exception), f"{verb} returned {what!r:.60}")
        keeps(not isinstance(what, TimeoutExceeded), f"{verb} took more than {BOUND:.0f} s")
    after = await direct.get_items()
    keeps(after == history(2), f"the history changed: {len(after)} items instead of 2")
    keeps(await warmed(session, direct) == await session.get_items(), "it does not recover")


@promise("truth", needs="proxy")
async def a_frozen_connection_holds_nobody_for_ever(trial: Trial) -> None:
    """When the network swallows everything and says nothing, a call returns the truth or raises within 40 s."""
    proxy, url = await trial.proxied()
    name = trial.new_id()
    session, direct = await trial.open(name, url), await trial.open(name)
    items = await warmed(session, direct)
    proxy.stall_all()
    read = asyncio.ensure_future(outcome(session.get_items()))
    try:
        told = await read
    finally:
        proxy.cut_all()

    keeps(not isinstance(told, TimeoutExceeded), f"get_items took more than {BOUND:.0f} s")
    keeps(isinstance(told, Exception) or told == items, f"get_items returned {told!r:.60}")


class TimeoutExceeded(Exception):
    """The kit's patience ended first."""


async def outcome(call: Awaitable[Any]) -> Any:
    """Return what a call returned or raised; `TimeoutExceeded` if it did neither in time."""
    task = asyncio.ensure_future(call)
    done, _ = await asyncio.wait({task}, timeout=BOUND)
    if not done:
        task.cancel()
        return TimeoutExceeded()
    return task.exception() or task.result()
