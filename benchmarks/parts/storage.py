"""What a turn leaves behind: bytes, WAL, HOT updates, and bloat after many appends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count

import asyncpg

from benchmarks.contenders import FULL, LANGGRAPH, PLAIN, SDK, Contender, Ports
from benchmarks.contenders.langgraph import LangGraph
from benchmarks.contenders.ours import FullRecord, Plain
from benchmarks.contenders.sdk import SDKSQLAlchemy
from benchmarks.figures import Figure
from benchmarks.workload import USUAL, fresh_id
from benchmarks.world import World

__all__ = ["HOT_STEPS", "HOT_TURNS", "bloat", "storage", "wal_of"]

HOT_STEPS = "HOT updates, appends that start no turn"
HOT_TURNS = "HOT updates, appends that start a turn"

_WORKERS = 8
_TURNS_PER_SESSION = 10

_SIZES = """
SELECT relname, pg_total_relation_size(oid) AS bytes FROM pg_class
 WHERE relkind = 'r' AND relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
   AND relname NOT LIKE '%version%' AND relname NOT LIKE '%migration%'
"""
_HOT = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = 'agents' AND relname = 'sessions'"

_STATE = """
SELECT pg_relation_size(relid) AS heap, pg_indexes_size(relid) AS indexes, n_dead_tup AS dead,
       autovacuum_count AS vacuums, n_tup_upd AS updates, n_tup_hot_upd AS hot
  FROM pg_stat_user_tables WHERE schemaname = 'agents' AND relname = $1
"""

_numbers = count(1)


async def storage(world: World) -> None:
    openers: dict[str, Callable[[Ports, str, str], Awaitable[Contender]]] = {
        FULL: FullRecord.open,
        PLAIN: Plain.open,
        SDK: partial(SDKSQLAlchemy.open, keep=True),
        LANGGRAPH: partial(LangGraph.open, window=None),
    }
    for name, opener in openers.items():
        url = await world.new_database("stored")
        contender = await opener(world.ports, "stored", name)
        await _weigh(world, name, contender, url)
        await contender.close()
    await _hot(world)


async def _weigh(world: World, name: str, contender: Contender, url: str) -> None:
    """Append turns to sessions of ten turns each, and weigh the tables and the log."""
    turns = world.pace.turns_stored
    await _append(contender, _TURNS_PER_SESSION)
    before = await _sizes(url)
    await world.settle()
    wal = await wal_of(world, lambda: _append(contender, turns))
    after = await _sizes(url)
    grown = {table: after[table] - before[table] for table in after}
    items = 4 * turns
    world.results.add([
        Figure("storage", "WAL per turn", name, wal / turns, "bytes", count=turns),
        Figure("storage", "bytes per item, all tables", name, sum(grown.values()) / items, "bytes", count=items),
        *(
            Figure("storage", f"bytes per item in {table}", name, each / items, "bytes", count=items)
            for table, each in sorted(grown.items())
            if each
        ),
    ])  # fmt: skip


async def _append(contender: Contender, turns: int) -> None:
    """Append turns, to sessions of ten turns each, from several workers."""
    sessions = [fresh_id() for _ in range(-(-turns // _TURNS_PER_SESSION))]
    work = [session_id for _ in range(_TURNS_PER_SESSION) for session_id in sessions][:turns]

    async def worker(mine: Sequence[str]) -> None:
        for session_id in mine:
            await contender.append(session_id, USUAL.turn(next(_numbers)))

    # A session's turns stay with one worker, in order.
    owner = {session_id: number % _WORKERS for number, session_id in enumerate(sessions)}
    await asyncio.gather(*(worker([each for each in work if owner[each] == number]) for number in range(_WORKERS)))


async def wal_of(world: World, work: Callable[[], Awaitable[object]]) -> float:
    """Return how many bytes of log the server wrote meanwhile."""
    connection = await asyncpg.connect(world.server.url)
    before = await connection.fetchval("SELECT pg_current_wal_lsn()")
    await work()
    written = await connection.fetchval("SELECT pg_current_wal_lsn() - $1::pg_lsn", before)
    await connection.close()
    return float(written)


async def _sizes(url: str) -> dict[str, int]:
    connection = await asyncpg.connect(url)
    await connection.execute("VACUUM")
    rows = await connection.fetch(_SIZES)
    await connection.close()
    return {row["relname"]: row["bytes"] for row in rows}


async def _hot(world: World) -> None:
    """Count how many updates of `sessions` were HOT: first of steps within a turn, then of whole turns."""
    url = await world.new_database("hot")
    sessions = [fresh_id() for _ in range(max(20, world.pace.turns_stored // 5))]

    async def append(step: bool, rounds: int) -> tuple[int, int]:
        """Return what the server counted: its processes tell when their connections end."""
        contender = await FullRecord.open(replace(world.ports, pool_size=_WORKERS), "hot", FULL)
        before = await _updates(url)
        for _ in range(rounds):
            for session_id in sessions:
                items = USUAL.step(next(_numbers)) if step else USUAL.turn(next(_numbers))
                await contender.append(session_id, items)
        await contender.close()
        return await _updates_since(url, before, rounds * len(sessions))

    created = await FullRecord.open(world.ports, "hot", FULL)
    for session_id in sessions:
        await created.append(session_id, USUAL.turn(next(_numbers)))
    await created.close()
    for what, step in ((HOT_STEPS, True), (HOT_TURNS, False)):
        updates, hot = await append(step, rounds=4)
        world.results.add([Figure("storage", what, FULL, 100 * hot / updates, "%", count=updates)])


async def _updates(url: str) -> tuple[int, int]:
    connection = await asyncpg.connect(url)
    row = await connection.fetchrow(_HOT)
    await connection.close()
    return (row[0], row[1]) if row else (0, 0)


async def _updates_since(url: str, before: tuple[int, int], expected: int) -> tuple[int, int]:
    """Return the difference once all of it has arrived in the server's statistics."""
    async with asyncio.timeout(60):
        while (now := await _updates(url))[0] - before[0] < expected:
            await asyncio.sleep(0.1)
    return now[0] - before[0], now[1] - before[1]


async def bloat(world: World) -> None:
    """A million appends to a thousand sessions, with autovacuum on: only `make bench-scale` has the time."""
    appends = world.pace.appends
    if not appends:
        world.results.remarks.append("Bloat after 10⁶ appends is measured by `make bench-scale` only.")
        return
    url = await world.new_database("bloat")
    contender = await FullRecord.open(world.ports, "bloat", FULL)
    sessions = [fresh_id() for _ in range(1_000)]
    for session_id in sessions:
        await contender.append(session_id, USUAL.turn(1))
    left = iter(range(appends))
    chosen = random.Random(1)

    async def worker() -> None:
        for number in left:
            items = USUAL.turn(number) if number % 4 == 0 else USUAL.step(number)
            await contender.append(chosen.choice(sessions), items)

    await asyncio.gather(*(worker() for _ in range(16)))
    await contender.close()
    connection = await asyncpg.connect(url)
    for table in ("sessions", "items"):
        row = await connection.fetchrow(_STATE, table)
        assert row is not None
        swollen = row["heap"], row["indexes"]
        await connection.execute(f"VACUUM FULL agents.{table}")
        rebuilt = await connection.fetchrow(_STATE, table)
        assert rebuilt is not None
        world.results.add([
            Figure("bloat", f"heap of {table} against a rebuilt one", FULL, swollen[0] / rebuilt["heap"], "×"),
            Figure("bloat", f"indexes of {table} against rebuilt ones", FULL, swollen[1] / rebuilt["indexes"], "×"),
            Figure("bloat", f"dead rows in {table}", FULL, float(row["dead"]), "rows", count=appends),
            Figure("bloat", f"autovacuums of {table}", FULL, float(row["vacuums"]), "times", count=appends),
        ])  # fmt: skip
        if row["updates"]:
            hot = 100 * row["hot"] / row["updates"]
            world.results.add([Figure("bloat", f"HOT updates of {table}", FULL, hot, "%", count=row["updates"])])
    await connection.close()
