"""More callers than connections: everybody is served, in turn, and who does something else meanwhile holds nothing.

Fairness is counted, not timed: how many calls of others ended while one waited for its own. Served in turn, those are
the ones that came before (each caller makes one call at a time, so at most one per caller), and those that others made
on the pool's other connections while its own was under way.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import asyncpg
import pytest
from agents import Agent, Runner, RunResult
from agents.testing import ScriptedModel
from sqlalchemy import URL, make_url

from agents_pg_session import PGSession, SessionStore, StorageUnavailable
from agents_pg_session.projection import Item
from agents_pg_session.testing.proxy import Proxy
from tests.acceptance.agents_for_tests import QUIET, calls, says, scripted
from tests.items import user
from tests.tally import Tally

T = TypeVar("T")
HARNESS = "Pool exhaustion"


class Line:
    """Counts, for each call, the calls of others that ended while it waited."""

    def __init__(self) -> None:
        self.ended = 0
        self.most = 0

    async def __call__(self, call: Awaitable[T]) -> T:
        before = self.ended
        answer = await call
        self.most = max(self.most, self.ended - before)
        self.ended += 1
        return answer


class InLine(PGSession):
    """A session whose calls are counted."""

    line: Line

    async def get_items(self, limit: int | None = None, *, wrapper: Any = None) -> list[Item]:
        return await self.line(super().get_items(limit, wrapper=wrapper))

    async def add_items(self, items: list[Item], *, wrapper: Any = None) -> None:
        await self.line(super().add_items(items, wrapper=wrapper))


@pytest.fixture(params=["asyncpg", "psycopg"])
def direct_url(request: pytest.FixtureRequest, postgres_url: str) -> URL:
    """The test database, over both drivers."""
    return make_url(postgres_url).set(drivername=f"postgresql+{request.param}")


async def test_500_runs_on_5_connections_are_served_in_turn(
    postgres_url: str, new_id: Callable[[], str], tally: Tally, thorough: bool
) -> None:
    """500 runs at once (in the suite 200) on a pool of 5 all finish, and no call of theirs is overtaken by those that
    came later."""
    runs, turns, line = (500, 3, Line()) if thorough else (200, 1, Line())
    async with SessionStore.open(postgres_url, engine_kwargs={"pool_size": 5}, retry_for=300) as store:

        async def converse() -> list[Item]:
            session = InLine(new_id(), engine=store._database)
            session.line = line
            for turn in range(turns):
                agent = scripted(calls("weather", f"c{turn}", city="Rome"), says("sunny"))
                await Runner.run(agent, f"question {turn}", session=session, run_config=QUIET)
            return await session.get_items()

        histories = await asyncio.gather(*(converse() for _ in range(runs)))

        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        assert store.engine.pool.size() == 5  # type: ignore[attr-defined]
    assert {len(each) for each in histories} == {4 * turns}
    assert line.ended == runs * (4 * turns + 1)
    assert line.most <= runs + 100  # 2272 of 2500 with 500 runs, before there was a line
    tally.add(HARNESS, runs=runs, calls=line.ended, overtaken_at_most=line.most)


@pytest.mark.parametrize("borrowed", [False, True])
async def test_a_caller_that_never_pauses_starves_nobody(
    direct_url: URL, new_id: Callable[[], str], borrowed: bool
) -> None:
    """Callers that ask again at once, for ever, do not keep a connection among themselves: a newcomer gets its turn."""
    async with SessionStore.open(direct_url, engine_kwargs={"pool_size": 2}) as own:
        store = SessionStore(engine=own.engine) if borrowed else own
        line, done = Line(), False

        async def ask_for_ever(session: PGSession) -> None:
            while not done and line.ended < 2000:  # 2000 is for ever: who waits that long would wait till the end
                await line(session.get_items(limit=1))

        # Both connections know the statement: what ends while one of them learns it has overtaken nobody.
        await asyncio.gather(*(store.session(new_id()).add_items([user("warm")]) for _ in range(8)))
        greedy = [asyncio.ensure_future(ask_for_ever(store.session(new_id()))) for _ in range(8)]
        await until(lambda: line.ended > 20)
        await asyncio.gather(*(line(store.session(new_id()).add_items([user("hi")])) for _ in range(4)))
        done = True
        await asyncio.gather(*greedy)

        assert line.most <= 8 + 4 + 100  # all 2000 before there was a line
        assert own.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


class FreezingProxy(Proxy):
    """Also keeps newcomers waiting while it is frozen: they are connected, and nobody answers."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self._thawed = asyncio.Event()
        self._thawed.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._thawed.wait()
        await super()._accept(reader, writer)

    def freeze(self) -> None:
        self._thawed.clear()
        self.stall_all()

    def thaw(self) -> None:
        self._thawed.set()
        self.heal()


@pytest.fixture
async def freezing(postgres_url: str) -> AsyncIterator[FreezingProxy]:
    async with FreezingProxy(make_url(postgres_url).port or 5432) as proxy:
        yield proxy


async def test_500_callers_of_a_frozen_database(
    direct_url: URL,
    freezing: FreezingProxy,
    observer: asyncpg.Connection,
    new_id: Callable[[], str],
    tally: Tally,
    thorough: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A database that swallows everything: all 500 callers (fewer in the suite) get `StorageUnavailable` when their
    budget is spent, nothing stays checked out, and what was said to be unwritten never appears.
    """
    caplog.set_level("ERROR", "agents_pg_session")
    callers = 500 if thorough else 200 if direct_url.drivername == "postgresql+asyncpg" else 50
    url = direct_url.set(port=freezing.port).update_query_dict({"application_name": (name := new_id())})
    async with SessionStore.open(url, engine_kwargs={"pool_size": 5}, retry_for=1, command_timeout=0.7) as store:
        sessions = [store.session(new_id()) for _ in range(callers)]
        patient = SessionStore(engine=store.engine, retry_for=60)
        await asyncio.gather(*(patient.session(each.session_id).add_items([user("before")]) for each in sessions))
        freezing.freeze()
        async with asyncio.timeout(60):
            answers = await asyncio.gather(
                *(each.add_items([user("x"), user("y")]) for each in sessions), return_exceptions=True
            )
        await until(lambda: store.engine.pool.checkedout() == 0)  # type: ignore[attr-defined]
        assert [type(each) for each in answers] == [StorageUnavailable] * callers
        in_doubt = ["once, whole, or not at all" in str(each) for each in answers]
        assert all(doubt or "nothing was written" in str(each) for each, doubt in zip(answers, in_doubt, strict=True))
        assert any(in_doubt)

        freezing.thaw()
        # What the proxy held back arrives now, on connections whose client has hung up: wait until the server is done.
        sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
        async with asyncio.timeout(60):
            while await observer.fetchval(sql, name) > store.engine.pool.checkedin():  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
        await asyncio.gather(*(patient.session(each.session_id).add_items([user("after")]) for each in sessions))
        histories = await asyncio.gather(*(patient.session(each.session_id).get_items() for each in sessions))
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    without, late = [user("before"), user("after")], [user("before"), user("x"), user("y"), user("after")]
    for history, doubt in zip(histories, in_doubt, strict=True):
        assert history == without or (doubt and history == late)
    tally.add(
        HARNESS, frozen_callers=callers, in_doubt=sum(in_doubt), of_these_arrived_late=histories.count(late), lost=0
    )


class Gate:
    """Where somebody is slow until told to go on."""

    def __init__(self) -> None:
        self.reached, self._open = asyncio.Event(), asyncio.Event()

    async def wait(self) -> None:
        self.reached.set()
        await self._open.wait()

    def open(self) -> None:
        self._open.set()


class SlowModel(ScriptedModel):
    """A model that takes its time."""

    gate: Gate

    async def get_response(self, *arguments: Any, **named: Any) -> Any:
        await self.gate.wait()
        return await super().get_response(*arguments, **named)


async def during_the_model(session: PGSession, gate: Gate) -> None:
    model = SlowModel([[says("done")]])
    model.gate = gate
    await Runner.run(Agent(name="Slow", model=model), "hi", session=session, run_config=QUIET)


async def inside_recording(session: PGSession, gate: Gate) -> None:
    async with session.recording() as run:
        await Runner.run(scripted(says("done")), "hi", session=session, hooks=run.hooks, run_config=QUIET)
        await gate.wait()


async def inside_exclusive(session: PGSession, gate: Gate) -> None:
    async with session.exclusive():
        await session.add_items([user("hi")])
        await gate.wait()
        await session.add_items([user("bye")])


async def between_pause_and_resume(session: PGSession, gate: Gate) -> None:
    agent = scripted(calls("refund", "r1", amount=5), says("done"))
    await session.pause(await paused(agent, session))
    await gate.wait()
    await session.resume(agent)


async def between_resume_and_run(session: PGSession, gate: Gate) -> None:
    agent = scripted(calls("refund", "r1", amount=5), says("done"))
    await session.pause(await paused(agent, session))
    state = await session.resume(agent)
    await gate.wait()
    state.approve(state.get_interruptions()[0])
    await Runner.run(agent, state, session=session, run_config=QUIET)


async def while_summarising(session: PGSession, gate: Gate) -> None:
    await session.add_items([user("hi"), user("you")])

    async def write(_items: list[Item]) -> str:
        await gate.wait()
        return "greetings"

    assert await session.summarize(write) == 1


SLOW = (
    during_the_model,
    inside_recording,
    inside_exclusive,
    between_pause_and_resume,
    between_resume_and_run,
    while_summarising,
)


@pytest.mark.parametrize("slow", SLOW, ids=lambda each: each.__name__)
async def test_a_slow_caller_holds_no_connection(
    postgres_url: str, new_id: Callable[[], str], slow: Callable[[PGSession, Gate], Awaitable[None]]
) -> None:
    """Who is slow between two calls (a model, a person, user code) leaves the only connection of the pool to others."""
    gate = Gate()
    async with SessionStore.open(postgres_url, engine_kwargs={"pool_size": 1}) as store:
        waiting = asyncio.ensure_future(slow(store.session(new_id()), gate))
        async with asyncio.timeout(30):
            await gate.reached.wait()
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        other = store.session(new_id())
        await Runner.run(scripted(says("hello")), "hi", session=other, run_config=QUIET)
        assert len(await other.get_items()) == 2
        gate.open()
        await waiting

        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def paused(agent: Agent[None], session: PGSession) -> RunResult:
    """Run until somebody has to approve."""
    result = await Runner.run(agent, "pay me back", session=session, run_config=QUIET)
    assert Counter(type(each).__name__ for each in result.interruptions) == {"ToolApprovalItem": 1}
    return result


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)
