"""The most that appends could gain by travelling together: one statement for all that wait, against one each.

Over raw asyncpg first, with nothing of the library's Python around: what does not pay there cannot pay in the library.
Then in the library, roughly: what is left of it there.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import cast

import asyncpg

from benchmarks.contenders import Contender
from benchmarks.contenders.ours import FullRecord
from benchmarks.contenders.together import Alone, InLibrary, Together
from benchmarks.figures import Figure
from benchmarks.parts.throughput import Load, measure
from benchmarks.workload import USUAL
from benchmarks.world import World

__all__ = ["ALONE", "APPENDS", "IN_LIBRARY", "LIBRARY", "TOGETHER", "TURNS", "together"]

ALONE = "raw asyncpg, a statement for each append"
TOGETHER = "raw asyncpg, one statement for all that wait"
LIBRARY = "PGSession, a statement for each append"
IN_LIBRARY = "PGSession, one statement for all that wait"
TURNS = "together"
APPENDS = "together, appends only"

_SESSIONS = (1, 16, 64)


class _Appends(Load):
    """The same load; without the read before each append, if so told. Counts groups only once it is warm."""

    def __init__(self, contender: Contender, workers: int, *, read: bool) -> None:
        super().__init__(contender, workers, USUAL)
        self.contender = contender
        self._read = read

    async def fill(self, warming: float) -> None:
        await super().fill(warming)
        if isinstance(self.contender, Together | InLibrary):
            self.contender.line.sizes.clear()

    async def _work(self, session_id: str, until: float) -> int:
        if self._read:
            return await super()._work(session_id, until)
        done = 0
        while (now := time.perf_counter()) < until or not done:
            await self.contender.append(session_id, USUAL.turn(done))
            self.times.append((time.perf_counter() - now) * 1000)
            done += 1
        return done


async def together(world: World) -> None:
    raw: dict[str, Alone] = {}
    for name, kind in ((ALONE, Alone), (TOGETHER, Together)):
        await world.new_database(kind.__name__)
        raw[name] = cast("Alone", await kind.open(world.ports, kind.__name__, name, full=True))
    await _check(world, raw)
    contenders: dict[str, Contender] = {**raw}
    for name, library in ((LIBRARY, FullRecord), (IN_LIBRARY, InLibrary)):
        await world.new_database(library.__name__)
        contenders[name] = await library.open(world.ports, library.__name__, name)
    # Shorter rounds, more of them: what the machine does meanwhile hits all alike.
    finer = replace(world, pace=replace(world.pace, rounds=2 * world.pace.rounds, seconds=world.pace.seconds / 2))
    for sessions in _SESSIONS:
        for part, read in ((TURNS, True), (APPENDS, False)):
            if read or sessions in (_SESSIONS[0], _SESSIONS[-1]):
                loads = {name: _Appends(each, sessions, read=read) for name, each in contenders.items()}
                await measure(finer, part, cast("dict[str, Load]", loads), sessions)
                _ratios(world, part, sessions, contenders)
    for each in contenders.values():
        await each.close()


def _ratios(world: World, part: str, sessions: int, contenders: dict[str, Contender]) -> None:
    for beside, name in ((ALONE, TOGETHER), (LIBRARY, IN_LIBRARY)):
        sizes = cast("Together | InLibrary", contenders[name]).line.sizes
        note = f"{sum(sizes) / len(sizes):.1f}"
        for what in ("turns", "turn"):
            each, grouped = (world.results.value(part, what, key, sessions) or 0.0 for key in (beside, name))
            world.results.add([Figure(part, f"{what}, ratio", name, grouped / each, "×", sessions, note=note)])


# -- the check: both ways leave the same rows

_ROWS = (
    """SELECT session_id, agent, user_id, metadata, status, last_position, last_event_id, item_count, message_count,
              turn_count, tool_run_count, tool_error_count, input_tokens, output_tokens FROM agents.sessions""",
    """SELECT session_id, position, i.turn, r.turn AS of_run, type, role, call_id,
              count(*) OVER (PARTITION BY session_id, append_id) AS of_append
         FROM agents.items i JOIN agents.runs r USING (session_id, run_id)""",
    "SELECT session_id, CAST(item AS text) FROM agents.items",
    """SELECT t.session_id, t.call_position, t.output_position, t.call_id, c.type, o.type, c.turn, o.turn, r.turn,
              t.call_id = c.call_id AND t.call_id = o.call_id AND t.run_id = c.run_id, tool_name, t.status, t.agent,
              CAST(arguments AS text), t.finished_at >= t.started_at
         FROM agents.tool_runs t JOIN agents.runs r USING (session_id, run_id)
         JOIN agents.items c ON (c.session_id, c.position) = (t.session_id, t.call_position)
         JOIN agents.items o ON (o.session_id, o.position) = (t.session_id, t.output_position)""",
    """SELECT session_id, turn, status, agent, requests, input_tokens, total_tokens, model_seconds IS NULL,
              CAST(usage_details AS text) IS NULL, finished_at >= started_at FROM agents.runs""",
    """SELECT session_id, event_id, kind, r.turn, e.agent, CAST(payload AS text),
              (SELECT count(DISTINCT append_id) FROM agents.items i
                WHERE i.session_id = e.session_id AND append_id = operation_id) AS appends
         FROM agents.events e JOIN agents.runs r USING (session_id, run_id)""",
)
_CHECKED = "SELECT * FROM ({}) AS each WHERE session_id LIKE 'check-%'"


async def _check(world: World, contenders: dict[str, Alone]) -> None:
    """Append the same both ways: many sessions at once, several to each, and one append that cannot be stored."""
    found = []
    for contender in contenders.values():
        work = [(f"check-{number % 24:02d}", USUAL.turn(number)) for number in range(96)]
        work.insert(50, ("check\0", USUAL.turn(0)))
        done = await asyncio.gather(*(contender.append(*each) for each in work), return_exceptions=True)
        failed = [(work[place][0], type(each)) for place, each in enumerate(done) if each is not None]
        connection = await asyncpg.connect(world.ports.url(type(contender).__name__))
        rows = [sorted(map(repr, map(tuple, await connection.fetch(_CHECKED.format(sql))))) for sql in _ROWS]
        wrong = await connection.fetchval(
            """SELECT count(*) FROM agents.sessions s WHERE last_position <> item_count OR item_count <> (
                  SELECT count(*) FROM agents.items i WHERE i.session_id = s.session_id AND position <= item_count)"""
        )
        await connection.close()
        found.append((rows, failed, wrong, list(map(len, rows))))
        if isinstance(contender, Together) and max(contender.line.sizes) < 2:
            raise AssertionError("nothing travelled together")
    if found[0] != found[1] or found[0][2] or len(found[0][1]) != 1:
        raise AssertionError(f"not the same rows: {[each[1:] for each in found]}")
