"""How large the database is: verbs of one session, lists across sessions, and views, with their plans."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import asyncpg

from agents_pg_session import SessionStore
from benchmarks.contenders import FULL
from benchmarks.contenders.ours import FullRecord, open_store
from benchmarks.figures import Figure, summary
from benchmarks.parts.rows import ITEMS_PER_SESSION, analyze, crowd
from benchmarks.parts.verbs import Trial
from benchmarks.workload import READ, USUAL
from benchmarks.world import World, clocked, rotated
from tests.overheard import Heard, overheard

__all__ = ["EMPTY", "LISTS", "PAGE", "VIEWS", "size"]

PAGE = 50

Ask = Callable[[SessionStore], Awaitable[object]]

#: A page of 50, by every documented filter. `n` stands for a session number somewhere in the middle.
LISTS: dict[str, Callable[[SessionStore, int], Awaitable[object]]] = {
    "sessions": lambda store, n: store.sessions(limit=PAGE),
    "sessions of a user": lambda store, n: store.sessions(user_id=f"user-{n // 40}", limit=PAGE),
    "sessions of an agent": lambda store, n: store.sessions(agent="agent-3", limit=PAGE),
    "sessions by status": lambda store, n: store.sessions(status="waiting", limit=PAGE),
    "sessions of a user by status": lambda store, n: store.sessions(
        user_id=f"user-{n // 40}", status="active", limit=PAGE
    ),
    "sessions by common metadata": lambda store, n: store.sessions(metadata={"plan": "pro"}, limit=PAGE),
    "sessions by rare metadata": lambda store, n: store.sessions(metadata={"ticket": n}, limit=PAGE),
    "sessions by common and rare metadata": lambda store, n: store.sessions(
        metadata={"plan": "pro", "ticket": n - n % 2}, limit=PAGE
    ),
    "sessions of all tenants": lambda store, n: store.sessions(all_tenants=True, limit=PAGE),
    "failed tool runs": lambda store, n: store.tool_runs(status="failed", limit=PAGE),
    "failed tool runs since an hour": lambda store, n: store.tool_runs(
        status="failed", since=timedelta(hours=1), limit=PAGE
    ),
    "tool runs of a tool": lambda store, n: store.tool_runs(tool_name="tool-3", limit=PAGE),
    "waiting runs": lambda store, n: store.waiting(limit=PAGE),
}
VIEWS = ("agent_current_state", "session_summary", "agent_task_progress", "tool_run_details")
HOT_VERBS = ("latest 50", "append")
EMPTY = ", in an empty database beside it"


async def size(world: World) -> None:
    """Let one database grow, and ask the same at each size; an empty one beside it is asked in turn."""
    url, empty_url = await world.new_database("size"), await world.new_database("empty")
    store, empty = await open_store(url), await open_store(empty_url)
    contender, connection = FullRecord(FULL, store), await asyncpg.connect(url)
    trials, filled = {"": Trial(contender), EMPTY: Trial(FullRecord(FULL, empty))}, 0
    try:
        for items in world.pace.sizes:
            sessions = items // ITEMS_PER_SESSION
            await crowd(connection, filled + 1, sessions)
            filled = sessions
            await analyze(connection)
            await world.settle()
            await _verbs(world, trials, items)
            await _somewhere(world, contender, items, sessions)
            await _lists(world, store, connection, items, sessions)
    finally:
        await connection.close()
        await store.close()
        await empty.close()


async def _verbs(world: World, trials: dict[str, Trial], items: int) -> None:
    """One session, the same at every size, and one like it with nothing around it."""
    for verb in HOT_VERBS:
        samples: dict[str, list[float]] = {suffix: [] for suffix in trials}
        for number in range(-(-world.pace.samples // 5) + 4):
            for suffix in rotated(list(trials), number):
                for _ in range(5):
                    samples[suffix].append((await clocked(await trials[suffix].ready(verb)))[0])
        world.results.add(
            summary("size", verb + suffix, FULL, each[20:], "ms", at=items) for suffix, each in samples.items()
        )


async def _somewhere(world: World, contender: FullRecord, items: int, sessions: int) -> None:
    """Sessions anywhere in the table: their pages are rarely warm in the processor's caches."""
    chosen = random.Random(1).choices(range(1, sessions + 1), k=2 * world.pace.samples)
    verbs: dict[str, Callable[[str], Awaitable[object]]] = {
        "latest 50, any session": lambda session_id: contender.latest(session_id, READ),
        "append, any session": lambda session_id: contender.append(session_id, USUAL.turn(1)),
    }
    for what, verb in verbs.items():
        samples = [(await clocked(lambda n=n, verb=verb: verb(f"s{n}")))[0] for n in chosen]  # type: ignore[misc]
        world.results.add([summary("size", what, FULL, samples[len(samples) // 2 :], "ms", at=items)])


async def _lists(world: World, store: SessionStore, connection: asyncpg.Connection, items: int, sessions: int) -> None:
    n = sessions // 2
    for what, ask in LISTS.items():
        with overheard(store) as statements:
            await ask(store, n)
        [heard] = statements
        samples = [
            (await clocked(lambda ask=ask: ask(store, n)))[0]  # type: ignore[misc]
            for _ in range(max(5, world.pace.samples // 10))
        ]
        world.results.add([summary("lists", what, FULL, samples, "ms", at=items)])
        world.results.plans.append({"items": items, "what": what, **await _plan(connection, heard)})
    for view in VIEWS:
        sql = f"SELECT * FROM agents.{view} WHERE tenant_id = '' AND session_id = $1"
        samples = [
            (await clocked(lambda sql=sql: connection.fetch(sql, f"s{n}")))[0]  # type: ignore[misc]
            for _ in range(max(5, world.pace.samples // 10))
        ]
        world.results.add([summary("lists", f"view {view}", FULL, samples, "ms", at=items)])
        plan = await _plan(connection, Heard(sql, ("session_id",), (f"s{n}",)))
        world.results.plans.append({"items": items, "what": f"view {view}", **plan})
    bytes_in_all = await connection.fetchval("SELECT pg_database_size(current_database())")
    world.results.add([Figure("size", "database", FULL, float(bytes_in_all), "bytes", items)])


async def _plan(connection: asyncpg.Connection, heard: Heard) -> dict[str, Any]:
    """Return how PostgreSQL answers (the scans, the pages it touches, its own time): planned for these values, and
    planned once for all values, as it may do from the sixth use of a connection's prepared statement on."""
    found: dict[str, Any] = {}
    await connection.execute(f"PREPARE looked_at AS {heard.sql}")
    execute = f"EXECUTE looked_at ({', '.join(map(_literal, heard.values))})"
    for mode, prefix in (("force_custom_plan", ""), ("force_generic_plan", "generic_")):
        await connection.execute(f"SET plan_cache_mode = {mode}")
        [plan] = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {execute}"))
        tree = plan["Plan"]
        found[f"{prefix}scans"] = sorted({_scan(node) for node in _nodes(tree) if "Scan" in node["Node Type"]})
        found[f"{prefix}pages"] = tree["Shared Hit Blocks"] + tree["Shared Read Blocks"]
        found[f"{prefix}ms"] = plan["Execution Time"]
    await connection.execute("DEALLOCATE looked_at")
    await connection.execute("RESET plan_cache_mode")
    return found


def _literal(value: object) -> str:
    match value:
        case None:
            return "NULL"
        case int() | float():
            return str(value)
        case _:
            return "'{}'".format(str(value).replace("'", "''"))


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def _scan(node: dict[str, Any]) -> str:
    place = node.get("Index Name") or node.get("Relation Name") or node.get("CTE Name") or node.get("Function Name")
    return f"{node['Node Type']} on {place}" if place else str(node["Node Type"])
