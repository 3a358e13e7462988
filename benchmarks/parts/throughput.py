"""Turns per second: many sessions at once, many writers on one session, and turns with large outputs."""

from __future__ import annotations

import asyncio
import gc
import time
from itertools import count

from benchmarks.contenders import FULL, LANGGRAPH, PLAIN, RAW_FULL, REDIS_ALWAYS, SDK, Contender, opened
from benchmarks.figures import Figure, median, percentile
from benchmarks.workload import HEAVY, READ, USUAL, Profile, fresh_id
from benchmarks.world import World, rotated

__all__ = ["WRITERS", "Load", "contended", "heavy", "measure", "throughput"]

WRITERS = 16

_numbers = count(1)


class Load:
    """One contender under load: *workers* that do turn after turn, each on a session of its own or all on one."""

    def __init__(self, contender: Contender, workers: int, profile: Profile, *, shared: bool = False) -> None:
        self._contender = contender
        self._profile = profile
        self._sessions = [fresh_id()] * workers if shared else [fresh_id() for _ in range(workers)]
        self.rates: list[float] = []
        self.times: list[float] = []  #: ms per turn

    async def fill(self, warming: float) -> None:
        """Give every session as many items as a turn reads, and work for a while: that warms every connection."""
        for session_id in dict.fromkeys(self._sessions):
            turns = [item for number in range(READ // 4 + 1) for item in self._profile.turn(number)]
            await self._contender.append(session_id, turns)
        await self.run(warming)
        self.rates.clear()
        self.times.clear()

    async def run(self, seconds: float) -> None:
        """Work for a while, and note the rate and how long each turn took."""
        gc.collect()
        began = time.perf_counter()
        done = await asyncio.gather(*(self._work(session_id, began + seconds) for session_id in self._sessions))
        self.rates.append(sum(done) / (time.perf_counter() - began))

    async def _work(self, session_id: str, until: float) -> int:
        turns = 0
        while (now := time.perf_counter()) < until or not turns:
            await self._contender.turn(session_id, self._profile.turn(next(_numbers)))
            self.times.append((time.perf_counter() - now) * 1000)
            turns += 1
        return turns


async def throughput(world: World) -> None:
    """All contenders, at each number of sessions."""
    async with opened(world.ports) as contenders:
        for sessions in world.pace.sessions:
            loads = {name: Load(each, sessions, USUAL) for name, each in contenders.items()}
            await measure(world, "throughput", loads, sessions)


async def contended(world: World) -> None:
    """Writers that share one session; LangGraph's would overwrite each other's turns, so it is not asked."""
    names = (FULL, PLAIN, RAW_FULL, SDK, REDIS_ALWAYS)
    async with opened(world.ports, *names) as contenders:
        loads = {name: Load(each, WRITERS, USUAL, shared=True) for name, each in contenders.items()}
        await measure(world, "one session", loads, WRITERS)


async def heavy(world: World) -> None:
    """Turns with 50 kB tool outputs, in several sessions at once."""
    names = (FULL, PLAIN, RAW_FULL, SDK, REDIS_ALWAYS, LANGGRAPH)
    async with opened(world.ports, *names) as contenders:
        loads = {name: Load(each, world.pace.heavy, HEAVY) for name, each in contenders.items()}
        await measure(world, "heavy", loads, world.pace.heavy)


async def measure(world: World, part: str, loads: dict[str, Load], at: int) -> None:
    """Run all loads in rounds, each round in another order, and note rates and times."""
    for load in loads.values():
        await load.fill(world.pace.warming)
    await world.settle()
    for number in range(world.pace.rounds):
        for name in rotated(list(loads), number):
            await loads[name].run(world.pace.seconds)
    for name, load in loads.items():
        times = load.times
        p95, p99 = percentile(times, 0.95), percentile(times, 0.99)
        world.results.add([
            Figure(part, "turns", name, median(load.rates), "turns/s", at, count=len(load.rates)),
            Figure(part, "turn", name, median(times), "ms", at, p95, p99, len(times)),
        ])  # fmt: skip
