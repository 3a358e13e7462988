"""What the record costs on the wire: nothing beside the appends, and one round trip for what is asked of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from agents import RunContextWrapper, Runner, UserError
from sqlalchemy import make_url

from agents_pg_session import PGSession, SessionStore
from agents_pg_session.projection import Item
from agents_pg_session.testing.proxy import Proxy
from tests.acceptance.agents_for_tests import QUIET, calls, says, scripted
from tests.items import assistant, call, output, user
from tests.sampling import DRIVERS, in_turn


class Counting(PGSession):
    """A session that knows how often it was appended to and read."""

    appends = 0
    reads = 0

    async def add_items(self, items: list[Item], *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        self.appends += bool(items)
        await super().add_items(items, wrapper=wrapper)

    async def get_items(self, limit: int | None = None, *, wrapper: RunContextWrapper[Any] | None = None) -> list[Item]:
        self.reads += 1
        return await super().get_items(limit, wrapper=wrapper)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function is test_a_verb_of_the_record_is_one_round_trip:
        in_turn(metafunc, "store", "name", {name: (name,) for name in VERBS})
    elif "store" in metafunc.fixturenames:
        metafunc.parametrize("store", DRIVERS, indirect=True)


@pytest.fixture
async def store(request: pytest.FixtureRequest, proxied_url: str) -> AsyncIterator[SessionStore]:
    """A store with a single connection, behind the proxy."""
    url = make_url(proxied_url).set(drivername=f"postgresql+{request.param}")
    async with SessionStore.open(url, engine_kwargs={"pool_size": 1}) as store:
        yield store


def times_until_warm(store: SessionStore) -> range:
    """How often a statement is used until the driver has prepared it: psycopg does so at its sixth use."""
    return range(7 if store.engine.driver == "psycopg" else 2)


def counting(store: SessionStore, session_id: str) -> Counting:
    return Counting(session_id, engine=store.engine)


async def two_tools(session: PGSession, hooks: Any) -> None:
    agent = scripted(calls("weather", "r1", city="Rome"), calls("broken", "r2", city="X"), says("done"))
    await Runner.run(agent, "hi", session=session, hooks=hooks, run_config=QUIET)


async def with_hooks(session: PGSession) -> None:
    await two_tools(session, session.hooks())


async def with_recording(session: PGSession) -> None:
    async with session.recording() as run:
        await two_tools(session, run.hooks)


async def without_hooks(session: PGSession) -> None:
    await two_tools(session, None)


async def failing(session: PGSession) -> None:
    """The run ends with an exception, which only the block around it hears of."""
    with contextlib.suppress(UserError):
        async with session.recording() as run:
            agent = scripted(calls("fatal", "r1", city="X"))
            await Runner.run(agent, "hi", session=session, hooks=run.hooks, run_config=QUIET)


async def waiting(session: PGSession) -> None:
    """The run ends where it asks for an approval."""
    async with session.recording() as run:
        agent = scripted(calls("refund", "r1", amount=5))
        await Runner.run(agent, "hi", session=session, hooks=run.hooks, run_config=QUIET)


RUNS: dict[str, tuple[Callable[[PGSession], Awaitable[None]], int]] = {
    "a run": (without_hooks, 0),
    "a run with hooks": (with_hooks, 0),
    "a recorded run that completes": (with_recording, 0),  # its end is told by its own last append
    "a recorded run that fails": (failing, 1),
    "a recorded run that is paused": (waiting, 1),
}


@pytest.mark.parametrize("name", RUNS)
async def test_a_run_costs_one_read_and_its_appends(
    store: SessionStore, proxy: Proxy, new_id: Callable[[], str], name: str
) -> None:
    """Two tool calls, their times and errors, tokens and events: 1 to read, 1 per append, and at most 1 to end."""
    run, ends = RUNS[name]
    for _ in times_until_warm(store):
        await run(counting(store, new_id()))
    session = counting(store, new_id())
    before = proxy.round_trips

    await run(session)

    cost = proxy.round_trips - before
    assert session.reads == 1
    assert cost == 1 + session.appends + ends
    [record] = await session.runs.list()
    expected = {
        "a run": "running",
        "a recorded run that fails": "failed",
        "a recorded run that is paused": "interrupted",
    }
    assert record.status == expected.get(name, "completed")


async def prepared(store: SessionStore, session_id: str) -> PGSession:
    """A session with something of everything, whose paused run nobody has claimed."""
    session = store.session(session_id)
    agent = scripted(calls("refund", "r1", amount=5))
    await session.snapshots.save("summary", "one")
    await session.add_items([user("hi"), assistant("ok"), call("c1")])
    result = await Runner.run(agent, "refund", session=session, hooks=session.hooks(), run_config=QUIET)
    await session.pause(result)
    return session


VERBS: dict[str, tuple[Callable[[SessionStore, PGSession], Awaitable[object]], int]] = {
    "append": (lambda _, session: session.add_items([user("a"), call("x"), output("x"), assistant("b")]), 1),
    "append of a late output": (lambda _, session: session.add_items([output("c1")]), 1),
    "append of outputs and calls": (lambda _, session: session.add_items([output("c1"), call("x"), output("x")]), 1),
    "pop": (lambda _, session: session.pop_item(), 1),
    "save": (lambda _, session: session.snapshots.save("summary", "two"), 1),
    "record": (lambda _, session: session.events.record("note", {"a": 1}), 1),
    "resume": (lambda _, session: session.resume(scripted()), 1),
    "end": (lambda _, session: session.end(), 1),
    "fork": (lambda _, session: session.fork(f"{session.session_id} copy"), 1),
    "replace": (lambda _, session: session._atomic_replace_items([user("short")]), 1),
    "delete": (lambda _, session: session.delete(), 2),
    "info": (lambda _, session: session.info(), 1),
    "turns": (lambda _, session: session.turns(), 1),
    "usage": (lambda _, session: session.usage(), 1),
    "find": (lambda _, session: session.find("hi"), 1),
    "runs": (lambda _, session: session.runs.list(status="interrupted"), 1),
    "latest run": (lambda _, session: session.runs.latest(), 1),
    "tool runs": (lambda _, session: session.tool_runs.list(), 1),
    "events": (lambda _, session: session.events.list(), 1),
    "latest event": (lambda _, session: session.events.latest(), 1),
    "snapshots": (lambda _, session: session.snapshots.list(), 1),
    "latest snapshot": (lambda _, session: session.snapshots.latest("summary"), 1),
    "one snapshot": (lambda _, session: session.snapshots.get("summary", 1), 1),
    "sessions": (lambda store, _: store.sessions(status="active"), 1),
    "sessions of all tenants": (lambda store, _: store.sessions(all_tenants=True), 1),
    "failed tool runs": (lambda store, _: store.tool_runs(status="failed"), 1),
    "waiting": (lambda store, _: store.waiting(), 1),
    "usage by day": (lambda store, _: store.usage(by="day"), 1),
}


async def test_a_verb_of_the_record_is_one_round_trip(
    store: SessionStore, proxy: Proxy, new_id: Callable[[], str], name: str
) -> None:
    """Warm, and with nobody in between, each costs one; a delete looks for the session first, and costs two."""
    verb, cost = VERBS[name]
    for _ in times_until_warm(store):
        await verb(store, await prepared(store, new_id()))
    session = await prepared(store, new_id())
    before = proxy.round_trips

    await verb(store, session)

    assert proxy.round_trips - before == cost


async def test_a_pause_is_one_round_trip(store: SessionStore, proxy: Proxy, new_id: Callable[[], str]) -> None:
    """The state, the session's status, the run's and the approvals asked for: one statement."""
    for _ in times_until_warm(store):
        await prepared(store, new_id())
    session = store.session(new_id())
    agent = scripted(calls("refund", "r1", amount=5))
    result = await Runner.run(agent, "refund", session=session, hooks=session.hooks(), run_config=QUIET)
    before = proxy.round_trips

    await session.pause(result)

    assert proxy.round_trips - before == 1


async def test_a_restore_is_one_round_trip(store: SessionStore, proxy: Proxy, new_id: Callable[[], str]) -> None:
    """Bringing history back costs what replacing it costs."""
    for _ in (*times_until_warm(store), 1):
        session = await prepared(store, new_id())
        await session._atomic_replace_items([user("short")])
        before = proxy.round_trips
        await session.restore(1)

    assert proxy.round_trips - before == 1


async def test_running_alone_costs_two(store: SessionStore, proxy: Proxy, new_id: Callable[[], str]) -> None:
    """One to take the lease, one to give it back; the appends within are guarded by it for nothing."""
    session = store.session(new_id())
    for _ in (*times_until_warm(store), 1):
        before = proxy.round_trips
        async with session.exclusive(wait=0):
            await session.add_items([user("hi")])

    assert proxy.round_trips - before == 3


async def test_expecting_no_change_costs_nothing(store: SessionStore, proxy: Proxy, new_id: Callable[[], str]) -> None:
    """`expect="unchanged"` rides along with the read and the append."""
    session = store.session(new_id(), expect="unchanged")
    for _ in (*times_until_warm(store), 1):
        before = proxy.round_trips
        await session.get_items()
        await session.add_items([user("hi")])

    assert proxy.round_trips - before == 2
