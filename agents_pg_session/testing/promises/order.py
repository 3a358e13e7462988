"""Many callers at once: one order, whole batches, nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable

from agents.memory import Session

from agents_pg_session.testing.promises.registry import keeps, promise
from agents_pg_session.testing.promises.trial import Item, Trial, happened, history, ticks, until, user
from agents_pg_session.testing.proxy import Fault


@promise("order", races=True)
async def first_writers_lose_nothing(trial: Trial) -> None:
    """25 appends that race to begin a session all get their items in, each batch together and in order."""
    handles, batches = await several(trial, 5), [history(3, f"{writer}.") for writer in range(25)]
    await asyncio.gather(*(handles[number % 5].add_items(batch) for number, batch in enumerate(batches)))

    whole(await handles[0].get_items(), batches)


@promise("order", races=True)
async def no_read_sees_part_of_a_batch(trial: Trial) -> None:
    """While others append, every read finds whole batches, each together and in order."""
    handles, batches = await several(trial, 5), [history(4, f"{writer}.") for writer in range(24)]

    for read in await reads_meanwhile(handles[0], writing(handles[1:], batches)):
        found = [read[start : start + 4] for start in range(0, len(read), 4)]
        keeps(all(batch in batches for batch in found), "a read found part of a batch, or a batch torn apart")


@promise("order", races=True)
async def what_was_read_stays(trial: Trial) -> None:
    """A history that was once read only grows at its end: no later read puts something before what was there."""
    for _ in range(3):
        handles, batches = await several(trial, 8), [history(1, f"{writer}.") for writer in range(24)]
        before: list[Item] = []
        for read in await reads_meanwhile(handles[0], writing(handles[1:], batches)):
            keeps(read[: len(before)] == before, f"an item appeared before the {len(before)} that were there already")
            before = read


@promise("order", needs="proxy")
async def a_slow_writer_does_not_rewrite_the_past(trial: Trial) -> None:
    """A writer whose connection pauses anywhere in its append comes after those who finished meanwhile.

    Its connection is stopped after each message it sends, another writer appends, and the history is read before and
    after the slow one goes on.
    """
    proxy, url = await trial.proxied()
    name = trial.new_id()
    slow, quick = await trial.open(name, url), await trial.open(name)
    await quick.add_items(history(1))
    await slow.add_items(history(1))
    observer = await trial.looking_on()
    for passed in range(60):
        proxy.fault, faults = Fault("stall", passed=passed), proxy.faults
        append = asyncio.ensure_future(slow.add_items([user(f"slow {passed}")]))
        try:
            await happened(proxy, faults, append)
            overtaking = asyncio.ensure_future(quick.add_items([user(f"quick {passed}")]))
            # It may have to wait for the slow one's lock, at the server or, for all we know, elsewhere.
            await until(lambda behind=overtaking: trial.over_or_locked(behind, observer), 0.25)  # type: ignore[misc]
            seen = await quick.get_items() if overtaking.done() else []
        finally:
            stalled = proxy.faults > faults
            proxy.fault = None
            proxy.heal()
            await asyncio.wait({append, overtaking})
        append.result()
        overtaking.result()
        after = await quick.get_items()

        keeps(after[: len(seen)] == seen, f"after {passed} messages: it came before an item that had been read")
        if not stalled:
            break
    proxy.cut_all()  # with them goes the stall that did not happen


@promise("order", races=True)
async def reads_agree(trial: Trial) -> None:
    """After many appends at once, two reads, limited reads and pops tell the same order."""
    handles, batches = await several(trial, 5), [history(2, f"{writer}.") for writer in range(15)]
    await writing(handles, batches)
    items = await handles[0].get_items()

    keeps(await handles[1].get_items() == items, "two reads differ")
    for limit in (1, 2, 7, 29):
        keeps(await handles[2].get_items(limit=limit) == items[-limit:], f"limit={limit} differs from the whole")
    keeps([await handles[3].pop_item() for _ in range(5)] == items[:-6:-1], "pops take another order")


@promise("order", races=True)
async def every_item_is_popped_once(trial: Trial) -> None:
    """14 callers popping 10 items at once get 10 different ones, and four get `None`."""
    handles = await several(trial, 5)
    await handles[0].add_items(history(10))
    popped = await asyncio.gather(*(handles[number % 5].pop_item() for number in range(14)))

    same([each for each in popped if each is not None], history(10), "popped")
    keeps(await handles[0].get_items() == [], "an item is left")


@promise("order", races=True)
async def pops_among_appends_lose_nothing(trial: Trial) -> None:
    """Appends and pops at once: every item is in the history or was popped by one caller, never both, never neither."""
    handles, batches = await several(trial, 5), [history(2, f"{writer}.") for writer in range(12)]
    appends = writing(handles[:3], batches)
    _, *popped = await asyncio.gather(appends, *(handles[3 + number % 2].pop_item() for number in range(12)))

    left = await handles[0].get_items()
    same([each for each in popped if isinstance(each, dict)] + left, [each for batch in batches for each in batch], "")


@promise("order", races=True)
async def a_clear_is_one_boundary(trial: Trial) -> None:
    """Appends around a clear are there whole, or gone whole."""
    handles, batches = await several(trial, 5), [history(3, f"{writer}.") for writer in range(12)]
    await asyncio.gather(writing(handles[:2], batches[:6]), clear_soon(handles[4]), writing(handles[2:4], batches[6:]))

    items = await handles[0].get_items()
    found = [items[start : start + 3] for start in range(0, len(items), 3)]
    keeps(all(batch in batches for batch in found), "a batch is there in part")


async def several(trial: Trial, count: int) -> list[Session]:
    """Open *count* handles on one new session."""
    name = trial.new_id()
    return [await trial.open(name) for _ in range(count)]


async def writing(handles: list[Session], batches: list[list[Item]]) -> None:
    """Append all batches at once, dealt out to the handles."""
    pairs = ((handles[number % len(handles)], batch) for number, batch in enumerate(batches))
    await asyncio.gather(*(handle.add_items(batch) for handle, batch in pairs))


async def clear_soon(session: Session) -> None:
    await ticks(20)
    await session.clear_session()


async def reads_meanwhile(session: Session, work: object) -> list[list[Item]]:
    """Return what was read while *work* was done, and once afterwards."""
    task, reads = asyncio.ensure_future(work), []  # type: ignore[call-overload]
    while not task.done():
        reads.append(await session.get_items())
        await asyncio.sleep(0.001)
    await task
    return [*reads, await session.get_items()]


def whole(items: list[Item], batches: list[list[Item]]) -> None:
    """All batches are there, each once, together and in order."""
    size = len(batches[0])
    found = [items[start : start + size] for start in range(0, len(items), size)]
    same(items, [each for batch in batches for each in batch], "stored")
    keeps(all(batch in batches for batch in found), "a batch was torn apart")


def same(found: Iterable[Item], expected: Iterable[Item], did: str, key: Callable[[object], str] = str) -> None:
    """The same items, each as often, in any order."""
    got, wanted = Counter(map(key, found)), Counter(map(key, expected))
    lost, more = (wanted - got).total(), (got - wanted).total()
    keeps(not lost and not more, f"{lost} items lost, {more} too many {did}".strip())
