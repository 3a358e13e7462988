"""What the foreign keys cost an append: the same tables twice, once without them."""

from __future__ import annotations

import asyncpg

from benchmarks.contenders.ours import FullRecord, open_store
from benchmarks.figures import Figure, summary
from benchmarks.parts.storage import wal_of
from benchmarks.parts.throughput import WRITERS, Load, measure
from benchmarks.parts.verbs import Trial
from benchmarks.workload import USUAL, fresh_id
from benchmarks.world import World, clocked, rotated

__all__ = ["WITH", "WITHOUT", "foreign_keys"]

WITH = "with foreign keys"
WITHOUT = "without foreign keys"

_DROP = """
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname)
  FROM pg_constraint WHERE contype = 'f' AND connamespace = 'without'::regnamespace
"""


async def foreign_keys(world: World) -> None:
    url = await world.new_database("keys")
    contenders = {
        WITH: FullRecord(WITH, await open_store(url)),
        WITHOUT: FullRecord(WITHOUT, await open_store(url, schema="without")),
    }
    connection = await asyncpg.connect(url)
    for [statement] in await connection.fetch(_DROP):
        await connection.execute(statement)
    await connection.close()
    await world.settle()
    await _latency(world, contenders)
    loads = {name: Load(contender, WRITERS, USUAL) for name, contender in contenders.items()}
    await measure(world, "foreign keys", loads, WRITERS)
    for name, contender in contenders.items():
        await _wal(world, name, contender)
        await contender.close()


async def _latency(world: World, contenders: dict[str, FullRecord]) -> None:
    trials = {name: Trial(contender) for name, contender in contenders.items()}
    samples: dict[str, list[float]] = {name: [] for name in trials}
    for number in range(max(4, world.pace.samples // 2)):
        for name in rotated(list(trials), number):
            for _ in range(5):
                took, _cpu = await clocked(await trials[name].ready("append"))
                samples[name].append(took)
    world.results.add(summary("foreign keys", "append", name, each[10:], "ms") for name, each in samples.items())


async def _wal(world: World, name: str, contender: FullRecord) -> None:
    """The log of appends to one session: what the keys lock is written there."""
    await world.settle()
    session_id, turns = fresh_id(), max(20, world.pace.samples)

    async def appends() -> None:
        for number in range(turns):
            await contender.append(session_id, USUAL.turn(number))

    await appends()
    wal = await wal_of(world, appends)
    world.results.add([Figure("foreign keys", "WAL per turn", name, wal / turns, "bytes", count=turns)])
