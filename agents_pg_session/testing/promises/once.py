"""Exactly once, whatever happens to the connection or to the server."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from itertools import count

from agents.memory import Session

from agents_pg_session.testing.promises.cuts import cut_everywhere
from agents_pg_session.testing.promises.registry import keeps, promise
from agents_pg_session.testing.promises.trial import Item, Trial, until, user


@promise("exactly once", needs="proxy")
async def a_cut_append_is_whole(trial: Trial) -> None:
    """Wherever its connection is cut: an acknowledged append is there exactly once, a failed one once or not at all.

    Whole in each case.
    """
    for cut in await cut_everywhere(trial, "append"):
        added = cut.after[len(cut.before) :]
        keeps(cut.after[: len(cut.before)] == cut.before, cut.saw("the history before it changed"))
        keeps(added in ([], cut.batch), cut.saw(f"{len(added)} items of 2 are there"))
        keeps(bool(added) or not cut.acknowledged, cut.saw("nothing is there"))


@promise("exactly once", needs="proxy")
async def a_cut_pop_takes_one(trial: Trial) -> None:
    """Wherever its connection is cut: a pop that returns took exactly what it returns; one that fails, at most that."""
    for cut in await cut_everywhere(trial, "pop"):
        rest = cut.before[:-1]
        keeps(cut.after in (rest, cut.before), cut.saw(f"{len(cut.before) - len(cut.after)} items are gone"))
        keeps(not cut.acknowledged or cut.after == rest, cut.saw("the item it returned is still there"))
        keeps(not cut.acknowledged or cut.result == cut.before[-1], cut.saw("it returned another item"))


@promise("exactly once", needs="proxy")
async def a_cut_clear_clears_all_or_nothing(trial: Trial) -> None:
    """Wherever its connection is cut: a clear that returns left nothing; one that fails, everything or nothing."""
    for cut in await cut_everywhere(trial, "clear"):
        keeps(cut.after in ([], cut.before), cut.saw("part of the history is left"))
        keeps(not cut.acknowledged or cut.after == [], cut.saw("the history is still there"))


@promise("exactly once", needs="proxy")
async def a_lost_connection_fails_no_append(trial: Trial) -> None:
    """Wherever its connection is cut, an append takes effect, once, and nobody is troubled."""
    for cut in await cut_everywhere(trial, "append"):
        keeps(cut.acknowledged, cut.saw("the caller has to deal with it"))
        keeps(cut.after == cut.before + cut.batch, cut.saw("it is not there exactly once"))


@promise("exactly once", needs="proxy")
async def a_lost_connection_fails_no_pop(trial: Trial) -> None:
    """Wherever its connection is cut, a pop returns the item it took, takes one only, and nobody is troubled."""
    for cut in await cut_everywhere(trial, "pop"):
        keeps(cut.acknowledged, cut.saw("the caller has to deal with it"))
        keeps(cut.result == cut.before[-1] and cut.after == cut.before[:-1], cut.saw("it did not take exactly one"))


@promise("exactly once", needs="proxy")
async def a_lost_connection_fails_no_clear(trial: Trial) -> None:
    """Wherever its connection is cut, a clear takes effect, and nobody is troubled."""
    for cut in await cut_everywhere(trial, "clear"):
        keeps(cut.acknowledged, cut.saw("the caller has to deal with it"))
        keeps(cut.after == [], cut.saw("the history is still there"))


@promise("exactly once", needs="server", races=True)
async def a_crash_loses_nothing_acknowledged(trial: Trial) -> None:
    """The server's first process is killed under 8 writers, twice.

    What was acknowledged is there exactly once, and what was not is there once or not at all, whole.
    """
    server, url = await trial.own_server()
    names = [trial.new_id() for _ in range(4)]
    writers = [await trial.open(name, url) for name in names * 2]
    acknowledged: set[str] = set()
    enough = asyncio.Event()

    async def write(number: int, session: Session) -> None:
        for batch in count():
            if enough.is_set():
                return
            label = f"{number}.{batch}"
            try:
                await session.add_items([user(f"{label}.first"), user(f"{label}.last")])
                acknowledged.add(label)
            except Exception:
                await asyncio.sleep(0.05)

    async def more_than(number: int) -> bool:
        return len(acknowledged) > number

    writing = asyncio.gather(*(write(number, session) for number, session in enumerate(writers)))
    try:
        for _ in range(2):
            so_far = len(acknowledged)
            keeps(await until(lambda so_far=so_far: more_than(so_far + 40), 30), "nobody can write any more")  # type: ignore[misc]
            await asyncio.to_thread(server.crash)
            await asyncio.to_thread(server.start)
    finally:
        enough.set()
        await writing

    batches: Counter[str] = Counter()
    for name in names:
        items = await read_at_last(await trial.open(name, url))
        texts = [str(each["content"]) for each in items]  # type: ignore[typeddict-item]
        labels = [text.rpartition(".")[0] for text in texts]
        keeps(texts == [f"{label}.{part}" for label in labels[::2] for part in ("first", "last")], "a batch is torn")
        batches.update(labels[::2])
    lost = acknowledged - batches.keys()
    keeps(not lost, f"{len(lost)} of {len(acknowledged)} acknowledged appends are lost")
    keeps(not batches or max(batches.values()) == 1, "an append is there twice")


async def read_at_last(session: Session) -> list[Item]:
    """Return the history, from a session whose connections may all be dead."""
    for _ in range(20):
        with suppress(Exception):
            return await session.get_items()
    return await session.get_items()
