"""Per verb: round trips, latency with and without delay on the network, and the client's CPU."""

from __future__ import annotations

from contextlib import AsyncExitStack
from statistics import mean

from agents_pg_session.testing.proxy import Proxy
from benchmarks.contenders import RAW, RAW_FULL, Ports, opened
from benchmarks.delay import Delay, delayed
from benchmarks.figures import Figure, summary
from benchmarks.parts.verbs import HEAVY_TURN, VERBS, Trial
from benchmarks.world import World, clocked, rotated

__all__ = ["latency", "round_trips"]

#: Uses of a verb before it counts: psycopg prepares a statement at its sixth.
_WARM = 8


async def round_trips(world: World) -> None:
    """Count them between client and server."""
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(world.server.port))
        delays = {
            policy: await stack.enter_async_context(Delay(port).listening())
            for policy, port in world.ports.redis.items()
        }
        ports = Ports(proxy.port, {policy: each.port for policy, each in delays.items()}, pool_size=1)
        contenders = await stack.enter_async_context(opened(ports, without=(RAW, RAW_FULL)))

        def counted() -> int:
            return proxy.round_trips + sum(each.round_trips for each in delays.values())

        for name, contender in contenders.items():
            trial = Trial(contender)
            for verb in VERBS[:-1]:
                trips: list[int] = []
                try:
                    for _ in range(_WARM + 5):
                        work = await trial.ready(verb)
                        before = counted()
                        await work()
                        trips.append(counted() - before)
                except NotImplementedError:
                    continue
                counts = trips[_WARM:]
                world.results.add([Figure("round trips", verb, name, mean(counts), "round trips", count=len(counts))])


async def latency(world: World) -> None:
    """Time every verb, one caller at a time, at each delay."""
    for delay in world.pace.delays:
        async with AsyncExitStack() as stack:
            redis = {
                policy: await stack.enter_async_context(delayed(port, delay))
                for policy, port in world.ports.redis.items()
            }
            ports = Ports(await stack.enter_async_context(delayed(world.server.port, delay)), redis)
            contenders = await stack.enter_async_context(opened(ports))
            trials = {name: Trial(contender) for name, contender in contenders.items()}
            for verb in VERBS if not delay else VERBS[:-1]:
                await _timed(world, trials, verb, delay)


async def _timed(world: World, trials: dict[str, Trial], verb: str, delay: float) -> None:
    """Time one verb of all contenders, in blocks, each block in another order."""
    able = dict(trials)
    for name, trial in trials.items():
        try:
            for _ in range(min(_WARM, world.pace.samples) if not delay else min(4, world.pace.delayed_samples)):
                await (await trial.ready(verb))()
        except NotImplementedError:
            del able[name]
    wanted = world.pace.samples if not delay else max(2, round(world.pace.delayed_samples / delay))
    if verb == HEAVY_TURN:
        wanted = -(-wanted // 5)
    block = min(5, wanted)
    times: dict[str, list[float]] = {name: [] for name in able}
    busy: dict[str, list[float]] = {name: [] for name in able}
    for number in range(-(-wanted // block)):
        for name in rotated(list(able), number):
            for _ in range(block):
                took, cpu = await clocked(await able[name].ready(verb))
                times[name].append(took)
                busy[name].append(cpu)
    for name in able:
        world.results.add([summary("latency", verb, name, times[name], "ms", at=delay)])
        if not delay:
            world.results.add([summary("client CPU", verb, name, busy[name], "ms")])
