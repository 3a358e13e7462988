"""A caller that is cancelled: what it began settles before it hears of it, and nothing of the pool stays in use."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

from agents_pg_session.testing.promises.cuts import CALLS, warmed
from agents_pg_session.testing.promises.registry import keeps, promise
from agents_pg_session.testing.promises.trial import Item, Trial, happened, history, ticks
from agents_pg_session.testing.proxy import Fault

MUTATIONS = ("append", "pop", "clear")

#: Seconds in which not one of many calls ended: they wait for what will not come.
_STILL = 2.0


@promise("cancellation", races=True)
async def a_cancelled_call_settles(trial: Trial) -> None:
    """A mutation that is cancelled, early or late, raises `CancelledError` when it has happened whole or not at all.

    From then on the history does not change any more.
    """
    await cancelled_early_and_late(trial, times=1)


@promise("cancellation", races=True)
async def a_call_cancelled_twice_settles(trial: Trial) -> None:
    """The same when the caller is cancelled a second time while it waits."""
    await cancelled_early_and_late(trial, times=2)


@promise("cancellation", needs="proxy")
async def a_cancelled_call_settles_on_a_slow_network(trial: Trial) -> None:
    """The same when what was cancelled is on its way: its connection pauses after each message, and then goes on."""
    for verb in MUTATIONS:
        proxy, url = await trial.proxied()
        name = trial.new_id()
        session, direct = await trial.open(name, url), await trial.open(name)
        for fault in stalls(everywhere=verb == "append"):
            before, batch = await warmed(session, direct), history(1, "new ")
            faults, proxy.fault = proxy.faults, fault
            task = asyncio.ensure_future(CALLS[verb](session, batch))
            await happened(proxy, faults, task)
            task.cancel()
            await asyncio.wait({task}, timeout=0.05)  # who returns now says that all is settled
            at_once = await direct.get_items() if task.done() else None
            stalled, proxy.fault = proxy.faults > faults, None
            proxy.heal()
            await asyncio.gather(task, return_exceptions=True)
            at_once = await direct.get_items() if at_once is None else at_once
            async with trial.observer() as observer:
                await trial.settled(observer)
            keeps(at_once in (before, done(verb, before, batch)), f"{verb}: half of it happened")
            keeps(await direct.get_items() == at_once, f"{verb}: the history changed after CancelledError")
            if not stalled:
                break
        proxy.cut_all()


@promise("cancellation", races=True)
async def cancelled_calls_leave_nothing_in_use(trial: Trial) -> None:
    """After 50 calls that were cancelled, early and late, 20 calls at once still finish."""
    session = await trial.open()
    await session.add_items(history(3))
    for number in range(50):
        verb = ("read", "append", "pop")[number % 3]
        task = asyncio.ensure_future(CALLS[verb](session, history(1)))
        await ticks(number // 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    calls = [asyncio.ensure_future(CALLS[("read", "append")[number % 2]](session, history(1))) for number in range(20)]
    waiting = set(calls)
    while waiting:  # as long as somebody is served, whoever waits will be
        served, waiting = await asyncio.wait(waiting, timeout=_STILL, return_when=asyncio.FIRST_COMPLETED)
        if not served:
            break
    for each in waiting:
        each.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)

    keeps(not waiting, f"{len(waiting)} of 20 calls wait for ever")
    errors = [each for each in results if isinstance(each, BaseException)]
    keeps(not errors, f"{len(errors)} of 20 calls failed: {errors[:1]}")


async def cancelled_early_and_late(trial: Trial, times: int) -> None:
    name = trial.new_id()
    session, other = await trial.open(name), await trial.open(name)
    before, batch = history(3), history(2, "new ")
    for verb in MUTATIONS:
        for pause in (0, 1, 2, 4, 7, 11, 16, 22, 40):
            await other.clear_session()
            await other.add_items(before)
            task = asyncio.ensure_future(CALLS[verb](session, batch))
            await ticks(pause)
            for _ in range(times):
                task.cancel()
                await ticks(1)
            told = (await asyncio.gather(task, return_exceptions=True))[0]
            at_once = await other.get_items()
            await asyncio.sleep(0.02)
            later = await other.get_items()

            where = f"{verb} cancelled after {pause} turns of the loop"
            failed = isinstance(told, BaseException) and not isinstance(told, asyncio.CancelledError)
            keeps(not failed, f"{where}: {type(told).__name__} instead of CancelledError")
            keeps(at_once in (before, done(verb, before, batch)), f"{where}: half of it happened")
            keeps(later == at_once, f"{where}: the history changed after CancelledError")


def done(verb: str, before: list[Item], batch: list[Item]) -> list[Item]:
    """Return the history after *verb*."""
    return {"append": before + batch, "pop": before[:-1], "clear": []}[verb]


def stalls(*, everywhere: bool) -> Sequence[Fault]:
    """Return where to pause: after each message of the client, or where it matters most."""
    if everywhere:
        return [Fault("stall", passed=passed) for passed in range(60)]
    server: Literal["server"] = "server"
    return [Fault("stall"), Fault("stall", passed=None), Fault("stall", side=server)]
