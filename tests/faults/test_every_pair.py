"""Every two verbs at once, in both orders of arrival: the outcome is that of one after the other.

For each pair the serial outcomes are computed by really running the two one after the other, on twin sessions. Then
they are lined up behind a lock that the test holds, in a known order, and let go. What both answered, and all that is
known of the session afterwards (items, tool runs, runs, events, snapshots, every counter; not the values of ids and
times, but which ids are the same), has to be one of the serial outcomes. So has the copy that a fork leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import asyncpg
import pytest
from sqlalchemy import make_url

from agents_pg_session import SessionStore
from tests.postgres.races.lines import known, lined_up, watching
from tests.postgres.races.verbs import ASKED, FENCED, MOMENTS, NOTHING, TALK, attempted, pairs_at, staged, verb_of
from tests.sampling import in_turn
from tests.tally import Tally

#: The schedules that matter most: these are in every run of the suite.
NAMED = [
    (TALK, "append", "append"),
    (TALK, "append", "clear"),
    (TALK, "append", "delete"),
    (TALK, "append", "fork"),
    (TALK, "append", "restore"),
    (TALK, "append", "replace"),
    (TALK, "append", "compact"),
    (TALK, "append", "end"),
    (TALK, "append", "expire now"),
    (TALK, "append", "summarise"),
    (TALK, "append", "append if unchanged"),
    (TALK, "append if unchanged", "append if unchanged"),
    (TALK, "pop", "pop"),
    (TALK, "pop", "append"),
    (TALK, "pop", "clear"),
    (TALK, "output", "call"),
    (TALK, "output", "output"),
    (TALK, "save", "save"),
    (TALK, "record", "record"),
    (TALK, "lease", "lease"),
    (TALK, "lease", "expire now"),
    (TALK, "resume", "resume"),
    (TALK, "delete", "delete"),
    (TALK, "delete", "fork"),
    (ASKED, "pause", "resume"),
    (NOTHING, "append", "append"),
    (NOTHING, "append", "fork in"),
    (FENCED, "append", "delete"),
]

#: Holds the session's row, and the places of those that are not there: whoever would make one of them waits.
PARK = (
    "SELECT FROM agents.sessions WHERE session_id = $1 FOR UPDATE",
    "INSERT INTO agents.sessions (tenant_id, session_id) VALUES ('', $1) ON CONFLICT DO NOTHING",
    "INSERT INTO agents.sessions (tenant_id, session_id) VALUES ('', $1 || ' copy') ON CONFLICT DO NOTHING",
)


#: What each of two verbs told, and what is known of the session afterwards.
Outcome = tuple[dict[str, object], object]


@dataclass
class Arena:
    """Two processes' stores, a connection that holds locks, and one that looks on."""

    left: SessionStore
    right: SessionStore
    holder: asyncpg.Connection
    watcher: asyncpg.Connection
    new_id: Callable[[], str]

    async def serial(self, moment: str, first: str, second: str) -> Outcome:
        """Run two verbs one after the other."""
        async with staged(moment, self.new_id(), self.left, self.right, self.watcher) as stage:
            answers = [
                await attempted(verb_of(moment, first)(stage, stage.one)),
                await attempted(verb_of(moment, second)(stage, stage.other)),
            ]
            return {first: answers[0], f"{second} ": answers[1]}, await self.left_behind(stage.session_id)

    async def within(self, moment: str, second: str) -> Outcome:
        """Run a verb while the model writes a summary of what it was given before."""
        async with staged(moment, self.new_id(), self.left, self.right, self.watcher) as stage:
            answers: list[object] = []

            async def meanwhile() -> None:
                answers.append(await attempted(verb_of(moment, second)(stage, stage.other)))

            stage.one.meanwhile = meanwhile
            answer = await attempted(verb_of(moment, "summarise")(stage, stage.one))
            return {"summarise": answer, f"{second} ": [*answers, None][0]}, await self.left_behind(stage.session_id)

    async def lined_up(self, moment: str, first: str, second: str) -> Outcome:
        """Line two verbs up behind the session's row, let them go, and wait for both."""
        async with staged(moment, self.new_id(), self.left, self.right, self.watcher) as stage:
            lock = self.holder.transaction()
            await lock.start()
            for sql in PARK:
                await self.holder.execute(sql, stage.session_id)
            waiting = await lined_up(
                self.watcher,
                [
                    lambda: attempted(verb_of(moment, first)(stage, stage.one)),
                    lambda: attempted(verb_of(moment, second)(stage, stage.other)),
                ],
            )
            await lock.rollback()
            answers = await asyncio.gather(*waiting)
            return {first: answers[0], f"{second} ": answers[1]}, await self.left_behind(stage.session_id)

    async def left_behind(self, session_id: str) -> object:
        return await known(self.watcher, session_id, f"{session_id} copy")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function is test_a_schedule_that_matters:
        in_turn(metafunc, "arena", "moment one other", {"-".join(each): each for each in NAMED})
    elif metafunc.function is test_every_pair_of_verbs:
        in_turn(metafunc, "arena", "moment", {moment: (moment,) for moment in MOMENTS})


@pytest.fixture
async def arena(request: pytest.FixtureRequest, postgres_url: str, new_id: Callable[[], str]) -> AsyncIterator[Arena]:
    url = make_url(postgres_url).set(drivername=f"postgresql+{request.param}")
    async with (
        SessionStore.open(url) as left,
        SessionStore.open(url) as right,
        watching(postgres_url) as holder,
        watching(postgres_url) as watcher,
    ):
        yield Arena(left, right, holder, watcher, new_id)
        assert left.engine.pool.checkedout() == right.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def check(arena: Arena, moment: str, one: str, other: str, tally: Tally) -> None:
    """Assert of both orders of arrival that the outcome is a serial one."""
    orders = {(one, other), (other, one)}
    serial = {order: comparable(await arena.serial(moment, *order)) for order in orders}
    # A summary is written by a model, which takes its time: whatever happens meanwhile is a third order.
    within = [comparable(await arena.within(moment, second)) for first, second in {*orders} if first == "summarise"]
    for order in orders:
        outcome = comparable(await arena.lined_up(moment, *order))
        in_order = outcome == serial[order]
        tally.add("Every pair", pairs=1, in_order_of_arrival=in_order, not_serial=0)
        assert in_order or outcome in serial.values() or outcome in within, f"{moment}: {' || '.join(order)}"
        # Whoever is first in line comes first; a fork reads its source without a lock, a summary before it.
        unlocked = {"fork", "summarise", "give back"} & {*order}
        assert in_order or unlocked or moment in (NOTHING, FENCED), f"{moment}: {' || '.join(order)} changed places"


def comparable(outcome: Outcome) -> object:
    """Return what both told and what is left; of two that did the same, either may have told either."""
    answers, left = outcome
    return sorted([name.strip(), repr(answer)] for name, answer in answers.items()), left


async def test_a_schedule_that_matters(arena: Arena, tally: Tally, moment: str, one: str, other: str) -> None:
    """Two verbs at once, in both orders of arrival: both answers and all that is left are those of a serial order."""
    await check(arena, moment, one, other, tally)


@pytest.mark.timeout(600)
async def test_every_pair_of_verbs(arena: Arena, tally: Tally, thorough: bool, moment: str) -> None:
    """Every two verbs at every moment of a session, the same; a sample of them where time is short."""
    pairs = pairs_at(moment)
    for one, other in pairs if thorough else pairs[1::1000]:
        await check(arena, moment, one, other, tally)
