"""The SDK's compaction, `OpenAIResponsesCompactionSession`, over the session: old history or new, never neither."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

from agents.memory import OpenAIResponsesCompactionSession, Session
from agents.memory import session as sdk

from agents_pg_session.testing.promises.cuts import warmed
from agents_pg_session.testing.promises.registry import keeps, promise, unless
from agents_pg_session.testing.promises.trial import Item, Trial, history
from agents_pg_session.testing.proxy import Fault

SHORT = {"id": "cmp_1", "type": "compaction", "encrypted_content": "short"}


class Client:
    """As much of the OpenAI client as compaction uses."""

    def __init__(self) -> None:
        self.responses = self

    async def compact(self, **_: Any) -> object:
        return SimpleNamespace(output=[SHORT], usage=None)


@promise("compaction")
async def it_can_be_compacted(trial: Trial) -> None:
    """The SDK's compaction replaces the history by what the API returned, and the session goes on."""
    session = await trial.open()
    await session.add_items(history(3))
    await compacted(session)
    await session.add_items(history(1, "next "))

    keeps(await session.get_items() == [SHORT, *history(1, "next ")], f"read {await session.get_items()}")


@promise("compaction", needs="proxy")
async def a_compaction_is_never_seen_halfway(trial: Trial) -> None:
    """A process that dies anywhere in a compaction leaves the old history or the new one, and nobody reads another.

    Its connection is cut after each message it sends, and nothing it does afterwards reaches the server.
    """
    unless(not hasattr(sdk, "_CompactionSnapshot"), "this SDK's compaction asks no session: it clears and adds again")
    await died_everywhere(trial, compacted, [cast("Item", SHORT)])


@promise("compaction", needs="proxy")
async def a_replaced_tail_is_never_seen_halfway(trial: Trial) -> None:
    """The same for the replacement of a tail, which the SDK's automatic compaction asks a session for."""
    unless(not hasattr(await trial.open(), "_get_compaction_snapshot"), "it has no _get_compaction_snapshot")
    await died_everywhere(trial, tail_replaced, [history(1)[0], cast("Item", SHORT)])


@promise("compaction")
async def a_snapshot_knows_what_is_there(trial: Trial) -> None:
    """A compaction snapshot holds the newest items and says whether those are all; it replaces a tail as it was."""
    session: Any = await trial.open()
    unless(not hasattr(session, "_get_compaction_snapshot"), "it has no _get_compaction_snapshot")
    await session.add_items(history(4))
    part, whole = await session._get_compaction_snapshot(2), await session._get_compaction_snapshot(4)

    keeps((part.items, part.complete) == (history(4)[2:], False), "of 4 items, it gives 2 otherwise")
    keeps((whole.items, whole.complete) == (history(4), True), "of 4 items, it gives all otherwise")
    keeps(await part.replace_suffix(1, [SHORT]) is True, "it does not replace the tail")
    keeps(await session.get_items() == [*history(3), SHORT], "the tail is not what replaced it")


@promise("compaction")
async def a_changed_tail_is_not_replaced(trial: Trial) -> None:
    """When somebody appended or popped since the snapshot, `replace_suffix` does nothing and says `False`."""
    session: Any = await trial.open()
    unless(not hasattr(session, "_get_compaction_snapshot"), "it has no _get_compaction_snapshot")
    for change in (lambda: session.add_items(history(1, "more ")), session.pop_item):
        await session.clear_session()
        await session.add_items(history(3))
        snapshot = await session._get_compaction_snapshot(3)
        await change()
        before = await session.get_items()

        keeps(await snapshot.replace_suffix(1, [SHORT]) is False, "it says that it replaced a tail that changed")
        keeps(await session.get_items() == before, "it changed the history")


async def compacted(session: Session) -> None:
    wrapped = OpenAIResponsesCompactionSession(session.session_id, session, client=cast("Any", Client()))
    await wrapped.run_compaction({"force": True})


async def tail_replaced(session: Session) -> None:
    snapshot = await cast("Any", session)._get_compaction_snapshot(10)
    await snapshot.replace_suffix(1, [SHORT])


async def died_everywhere(trial: Trial, work: Any, new: list[Item]) -> None:
    """Do *work* in a process that dies after each message it sends, and watch the history meanwhile."""
    proxy, url = await trial.proxied()
    name = trial.new_id()
    session, direct = await trial.open(name, url), await trial.open(name)
    async with trial.observer() as observer:
        for passed in range(200):
            await direct.clear_session()
            old = await warmed(session, direct)
            faults, proxy.fault = proxy.faults, Fault(passed=passed)
            task = asyncio.ensure_future(work(session))
            seen = []
            while proxy.faults == faults and not task.done():
                seen.append(await direct.get_items())
            died = proxy.faults > faults
            if died:
                proxy.refusing, proxy.fault = True, None  # it is dead: nothing it does now reaches the server
                proxy.cut_all()
                await trial.settled(observer)
            seen.append(await direct.get_items())
            proxy.refusing = False  # what it would have done next is not looked at any more
            task.cancel()
            with suppress(Exception, asyncio.CancelledError):
                await task

            wrong = [each for each in seen if each not in (old, new)]
            keeps(not wrong, f"after {passed} messages the history had {len(wrong[0]) if wrong else 0} items")
            if not died:
                break
    proxy.cut_all()
