"""How long a session is: its newest items, all of them, and one more turn."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import cast

import asyncpg

from benchmarks.contenders import FULL, LANGGRAPH, RAW, REDIS, SDK, Contender, opened
from benchmarks.contenders.langgraph import LangGraph
from benchmarks.contenders.raw import Raw
from benchmarks.figures import Figure, median, summary
from benchmarks.parts.decoders import DECODERS, exact
from benchmarks.parts.rows import long_session, long_session_of_sdk
from benchmarks.workload import READ, USUAL
from benchmarks.world import World, clocked, rotated

__all__ = ["LIMIT", "WHOLE", "history"]

WHOLE = "whole history"
LIMIT = "raw asyncpg and the fastest exact decoder"

#: Beyond it LangGraph, which writes all messages with each turn, takes seconds per turn.
_LANGGRAPH_LENGTH = 10_000

_numbers = count(1)

Verb = Callable[[], Awaitable[object]]


async def history(world: World) -> None:
    untrimmed = partial(LangGraph.open, database="langgraph", name=LANGGRAPH, window=None)
    async with opened(world.ports, FULL, RAW, SDK, REDIS, others={LANGGRAPH: untrimmed}) as contenders:
        for length in world.pace.lengths:
            session_id = f"of {length} items, {next(_numbers)}"
            able = {name: each for name, each in contenders.items() if name != LANGGRAPH or length <= _LANGGRAPH_LENGTH}
            await _fill(world, able, session_id, length)
            await world.settle()
            await _measure(world, able, session_id, length)
    world.results.remarks.append(f"LangGraph's history was measured up to {_LANGGRAPH_LENGTH:,} items.")


async def _fill(world: World, contenders: Mapping[str, Contender], session_id: str, length: int) -> None:
    """Fill on the server where that is possible: nobody waits for a hundred thousand appends."""
    for database, fill in (("full", long_session), ("raw", long_session), ("sdk", long_session_of_sdk)):
        connection = await asyncpg.connect(world.ports.url(database))
        await fill(connection, session_id, length)
        await connection.close()
    for name in (REDIS, LANGGRAPH):
        if name not in contenders:
            continue
        items = [item for number in range(-(-length // 4)) for item in USUAL.turn(number)][:length]
        await contenders[name].append(session_id, items)


async def _measure(world: World, contenders: Mapping[str, Contender], session_id: str, length: int) -> None:
    limit = await _fastest(world, cast("Raw", contenders[RAW]), session_id, length)

    def append(contender: Contender) -> Verb:
        items = USUAL.turn(next(_numbers))
        return lambda: contender.append(session_id, items)

    kinds: dict[str, Callable[[Contender], Verb]] = {
        "latest 50": lambda contender: lambda: contender.latest(session_id, READ),
        WHOLE: lambda contender: lambda: contender.latest(session_id, None),
        "append": append,
    }
    for what, verb_of in kinds.items():
        makers: dict[str, Callable[[], Verb]] = {
            name: partial(verb_of, contender) for name, contender in contenders.items()
        }
        if what == WHOLE:
            makers[LIMIT] = lambda: limit
        samples: dict[str, list[float]] = {name: [] for name in makers}
        rounds = _rounds(world, length if what == WHOLE else length // 10)
        for maker in makers.values():
            await maker()()
        for number in range(rounds):
            for name in rotated(list(makers), number):
                samples[name].append((await clocked(makers[name]()))[0])
        world.results.add(summary("history", what, name, each, "ms", at=length) for name, each in samples.items())


async def _fastest(world: World, raw: Raw, session_id: str, length: int) -> Verb:
    """Return the limit of reading all: the fetch, and the decoder that is fastest of those that are exact."""
    texts = await raw.texts(session_id)
    took: dict[str, float] = {}
    for name, decoder in DECODERS.items():
        decoder(texts)
        tries = [_seconds(lambda decoder=decoder: decoder(texts)) for _ in range(5)]  # type: ignore[misc]
        took[name] = median(tries) * 1000
        note = "exact" if exact(decoder) else "not exact"
        world.results.add([Figure("decoders", "decode", name, took[name], "ms", length, count=len(tries), note=note)])
    fastest = DECODERS[min((name for name in took if exact(DECODERS[name])), key=took.__getitem__)]

    async def whole() -> Sequence[object]:
        return fastest(await raw.texts(session_id))

    return whole


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _rounds(world: World, length: int) -> int:
    """Fewer where each takes long."""
    return max(3, min(world.pace.samples // 2, 200_000 // max(length, 1)))
