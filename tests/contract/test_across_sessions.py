"""What the store answers across sessions; that it never tells of another tenant is shown in tests/hostile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from agents import RunContextWrapper, Runner, Usage

from agents_pg_session import InvalidItem, Page, PGSession, SessionConflict, SessionInfo, SessionStore
from tests.acceptance.agents_for_tests import QUIET, calls, says, scripted
from tests.items import assistant, call, output, user

FAILED = "An error occurred while running the tool. Please try again."


@pytest.fixture
def tenant(new_id: Callable[[], str]) -> str:
    """A tenant of this test alone: the databases are shared."""
    return f"tenant-{new_id()}"


async def begun(store: SessionStore, name: str, tenant: str, **labels: Any) -> PGSession:
    """Begin a session; by a clock that counts milliseconds, each begins later than the one before."""
    session = store.session(name, tenant=tenant, **labels)
    await session.add_items([user("Hi")])
    await asyncio.sleep(0.002)
    return session


async def spent(session: PGSession, tokens: int) -> None:
    """Append something as a run that used so much."""
    wrapper = RunContextWrapper[Any](context=None)
    await session.get_items(wrapper=wrapper)
    wrapper.usage.add(Usage(requests=1, input_tokens=tokens, output_tokens=1, total_tokens=tokens + 1))
    await session.add_items([user("Hi")], wrapper=wrapper)


def names(page: Page[SessionInfo]) -> list[str]:
    return [info.session_id for info in page]


# -- sessions


async def test_sessions_come_by_their_last_turn(store: SessionStore, tenant: str) -> None:
    """The one whose last turn began last is first; what else is appended moves none of them."""
    one, two, three = [await begun(store, name, tenant) for name in ("1", "2", "3")]
    await one.add_items([assistant("Hello")])
    await three.pop_item()
    before = await store.sessions(tenant=tenant)
    await two.add_items([user("Again")])

    after = await store.sessions(tenant=tenant)
    assert names(before) == ["3", "2", "1"]
    assert names(after) == ["2", "3", "1"]
    assert after[0] == await two.info()
    assert [info.active_at for info in after] == sorted((info.active_at for info in after), reverse=True)


async def test_sessions_are_found_by_their_columns(store: SessionStore, tenant: str) -> None:
    """By user, agent and status, alone and together; what nobody is called finds nothing."""
    await begun(store, "1", tenant, user_id="ada", agent="Support")
    await begun(store, "2", tenant, user_id="ada", agent="Sales")
    three = await begun(store, "3", tenant, user_id="bob", agent="Support")
    await three.end("resolved")

    async def found(**filters: str) -> list[str]:
        return names(await store.sessions(tenant=tenant, **filters))  # type: ignore[arg-type]

    assert await found(user_id="ada") == ["2", "1"]
    assert await found(agent="Support") == ["3", "1"]
    assert await found(status="resolved") == ["3"]
    assert await found(status="active", agent="Support", user_id="ada") == ["1"]
    assert await found(user_id="ADA") == await found(agent="' OR '1'='1") == await found(status="") == []


METADATA: dict[str, Any] = {
    "plan": "pro",
    "n": 1,
    "f": 1.5,
    "big": 2**70,
    "yes": True,
    "no": False,
    "nil": None,
    "tags": ["a", "b", [1, 2], {"k": "v", "l": 1}, None, True],
    "o": {"x": {"y": [1, {"k": "v"}]}, "e": {}},
    "empty": [],
    "é'\"$.[0]": "q",
    "": "nameless",
}


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"plan": "pro"},
        {"n": 1},
        {"n": 1.0},
        {"f": 1.5},
        {"big": 2**70},
        {"yes": True},
        {"no": False},
        {"nil": None},
        {"tags": ["b"]},
        {"tags": []},
        {"tags": ["b", "a", "a"]},
        {"tags": [[2]]},
        {"tags": [{"k": "v"}]},
        {"tags": [{}]},
        {"tags": [None]},
        {"tags": [True]},
        {"o": {}},
        {"o": {"x": {"y": [{"k": "v"}, 1]}}},
        {"o": {"x": {"y": [{}]}}},
        {"empty": []},
        {"é'\"$.[0]": "q"},
        {"": "nameless"},
        {"plan": "pro", "tags": ["a", [1]], "yes": True},
        METADATA,
    ],
    ids=lambda wanted: str(wanted)[:40],
)
async def test_sessions_whose_metadata_contains(store: SessionStore, tenant: str, wanted: dict[str, Any]) -> None:
    """Containment is jsonb's: objects by keys, lists by elements in any order, nested, numbers by value."""
    await begun(store, "1", tenant, metadata=METADATA)

    assert names(await store.sessions(tenant=tenant, metadata=wanted)) == ["1"]


@pytest.mark.parametrize(
    "wanted",
    [
        {"plan": "PRO"},
        {"plan": "pr"},
        {"plan": None},
        {"plan": ["pro"]},
        {"n": "1"},
        {"n": 2},
        {"n": True},
        {"big": 2**70 - 2**40},
        {"yes": 1},
        {"yes": "true"},
        {"yes": False},
        {"no": None},
        {"nil": False},
        {"nil": "null"},
        {"missing": None},
        {"tags": "a"},
        {"tags": ["c"]},
        {"tags": [1]},
        {"tags": [[3]]},
        {"tags": [{"k": "v", "l": 2}]},
        {"tags": [False]},
        {"tags": {}},
        {"tags": {"0": "a"}},
        {"o": []},
        {"o": {"y": 1}},
        {"o": {"x": {"y": [2]}}},
        {"empty": [None]},
        {"é'\"$": "q"},
        {"plan": "pro", "n": 2},
    ],
    ids=str,
)
async def test_sessions_whose_metadata_does_not_contain(
    store: SessionStore, tenant: str, wanted: dict[str, Any]
) -> None:
    """A value of another type is another value, and all that is asked for must be there."""
    await begun(store, "1", tenant, metadata=METADATA)

    assert names(await store.sessions(tenant=tenant, metadata=wanted)) == []


@pytest.mark.parametrize("wanted", [{"a": "\0"}, {"\ud800": 1}, {"a": float("nan")}, ["a"], "a"], ids=repr)
async def test_metadata_no_session_can_have_is_refused(store: SessionStore, wanted: Any) -> None:
    """What jsonb does not hold cannot be asked for either."""
    with pytest.raises(InvalidItem, match="metadata"):
        await store.sessions(metadata=wanted)


@pytest.mark.parametrize("limit", [1, 2, 3, 50])
async def test_pages_of_sessions_lose_and_repeat_nothing(store: SessionStore, tenant: str, limit: int) -> None:
    """Of one tenant or of all: page after page, each session once, also those that share a name or a moment."""
    tenants = [tenant, f"{tenant}-2"]
    handles = [store.session(str(number), tenant=whose, user_id=tenant) for number in range(4) for whose in tenants]
    await asyncio.gather(*(handle.add_items([user("Hi")]) for handle in handles))

    async def walked(**options: Any) -> list[SessionInfo]:
        page = await store.sessions(user_id=tenant, limit=limit, **options)
        found = list(page)
        while page.more:
            page = await store.sessions(user_id=tenant, limit=limit, after=page.cursor, **options)
            found += page
        return found

    one, both = await walked(tenant=tenant), await walked(all_tenants=True)
    assert sorted(info.session_id for info in one) == ["0", "1", "2", "3"]
    assert {info.tenant for info in one} == {tenant}
    assert sorted((info.tenant, info.session_id) for info in both) == sorted(
        (handle.tenant, handle.session_id) for handle in handles
    )
    keys = [(info.active_at, info.session_id, info.tenant) for info in both]
    assert keys == sorted(keys, reverse=True)


# -- tool runs


async def test_tool_runs_across_sessions(store: SessionStore, tenant: str) -> None:
    """Newest first, by status and tool, over pages; each says whose it is."""
    for number in range(3):
        session = store.session(str(number), tenant=tenant)
        await session.add_items([call("c1", "lookup"), output("c1"), call("c2", "find"), output("c2", FAILED)])
        await session.add_items([call("c3", "lookup")])

    async def found(**filters: Any) -> list[tuple[str, str | None]]:
        page = await store.tool_runs(tenant=tenant, limit=2, **filters)
        tools = list(page)
        while page.more:
            page = await store.tool_runs(tenant=tenant, limit=2, after=page.cursor, **filters)
            tools += page
        assert len(tools) == len({(tool.session_id, tool.position) for tool in tools})
        assert {tool.tenant for tool in tools} <= {tenant}
        return [(tool.session_id, tool.call_id) for tool in tools]

    whole = await store.tool_runs(tenant=tenant)
    keys = [(tool.created_at, tool.session_id, tool.position) for tool in whole]
    assert keys == sorted(keys, reverse=True)
    assert await found() == [(tool.session_id, tool.call_id) for tool in whole]
    assert len(whole) == 9
    assert sorted(await found(status="failed")) == [("0", "c2"), ("1", "c2"), ("2", "c2")]
    assert sorted(await found(status="running")) == [("0", "c3"), ("1", "c3"), ("2", "c3")]
    assert sorted(await found(status="succeeded", tool_name="lookup")) == [("0", "c1"), ("1", "c1"), ("2", "c1")]
    assert await found(status="rejected") == await found(tool_name="nothing") == []
    with pytest.raises(ValueError, match="status must be"):
        await store.tool_runs(status="done")


async def test_tool_runs_since(store: SessionStore, tenant: str) -> None:
    """Since a moment, its own included, or since so long ago by the database's clock."""
    await store.session("1", tenant=tenant).add_items([call("c1")])
    await asyncio.sleep(0.002)
    await store.session("2", tenant=tenant).add_items([call("c2")])
    newest = (await store.tool_runs(tenant=tenant))[0].created_at
    elsewhere = newest.astimezone(datetime.now().astimezone().tzinfo)

    async def found(since: datetime | timedelta) -> list[str | None]:
        return [tool.call_id for tool in await store.tool_runs(tenant=tenant, since=since)]

    assert await found(newest) == await found(elsewhere) == ["c2"]
    assert await found(newest - timedelta(days=1)) == await found(timedelta(days=1)) == ["c2", "c1"]
    assert await found(newest + timedelta(days=1)) == []


@pytest.mark.parametrize("since", [datetime(2026, 1, 1), "yesterday", 5, timedelta(days=-1), timedelta(days=10**6)])  # noqa: DTZ001
async def test_a_moment_has_a_time_zone(store: SessionStore, since: Any) -> None:
    """A time that could mean several moments is refused, and so is what is no time."""
    with pytest.raises(ValueError, match="since must"):
        await store.tool_runs(since=since)
    with pytest.raises(ValueError, match="since must"):
        await store.usage(by="day", since=since)


# -- waiting


async def test_who_waits_for_an_approval(store: SessionStore, tenant: str) -> None:
    """Recorded or paused, each waiting session tells which tools with which arguments; answered ones do not."""
    recorded, paused, done = [
        store.session(name, tenant=tenant, user_id=name) for name in ("recorded", "paused", "done")
    ]
    asked = [calls("refund", "c1", amount=1), calls("refund", "c2", amount=2)]
    for session in (recorded, paused, done):
        agent = scripted([calls("weather", "c0", city="Rome")], asked, says("Done"))
        async with session.recording() as run:
            result = await Runner.run(agent, "Refund", session=session, hooks=run.hooks, run_config=QUIET)
        await asyncio.sleep(0.002)
        if session is recorded:
            continue
        await session.pause(result)
        if session is done:
            agent = scripted(says("Done"))
            state = await session.resume(agent)
            for request in state.get_interruptions():
                state.approve(request)
            await Runner.run(agent, state, session=session, run_config=QUIET)

    waiting = await store.waiting(tenant=tenant)
    first = await store.waiting(tenant=tenant, limit=1)
    second = await store.waiting(tenant=tenant, limit=1, after=first.cursor)
    assert [each.session_id for each in waiting] == ["paused", "recorded"]
    assert [*first, *second] == list(waiting)
    assert (first.more, second.more) == (True, False)
    assert [(each.version, each.user_id) for each in waiting] == [(1, "paused"), (None, "recorded")]
    for each in waiting:
        assert [(asked.tool_name, asked.call_id, asked.arguments, asked.agent) for asked in each.approvals] == [
            ("refund", "c1", {"amount": 1}, "Assistant"),
            ("refund", "c2", {"amount": 2}, "Assistant"),
        ]


async def test_a_claimed_run_still_waits(store: SessionStore, tenant: str) -> None:
    """Until the worker that claimed it appends something, the inbox shows it, and until when it is claimed."""
    session = store.session("1", tenant=tenant)
    result = await Runner.run(scripted(calls("refund", "c1", amount=1)), "Refund", session=session, run_config=QUIET)
    await session.pause(result)
    [before] = await store.waiting(tenant=tenant)
    await session.resume(scripted(says("Done")))

    [after] = await store.waiting(tenant=tenant)
    assert before.claimed_until is None
    assert after.claimed_until is not None
    assert (after.version, after.approvals, after.paused_at) == (before.version, before.approvals, before.paused_at)
    with pytest.raises(SessionConflict):
        await store.session("1", tenant=tenant).resume(scripted(says("Done")))


async def test_a_new_question_ends_the_waiting(store: SessionStore, tenant: str) -> None:
    """Whoever says something else instead of answering goes on; nobody waits any more."""
    session = store.session("1", tenant=tenant)
    result = await Runner.run(scripted(calls("refund", "c1", amount=1)), "Refund", session=session, run_config=QUIET)
    await session.pause(result)
    await session.add_items([user("Never mind")])

    assert len(await store.waiting(tenant=tenant)) == 0


# -- usage


async def test_usage_by_whom(store: SessionStore, tenant: str) -> None:
    """Sums of runs by agent, user, tenant and day; sessions that name none are told as None."""
    await spent(store.session("1", tenant=tenant, user_id="ada"), 1)
    await spent(store.session("2", tenant=tenant, user_id="ada"), 10)
    await spent(store.session("3", tenant=tenant, user_id="bob"), 100)
    await spent(store.session("4", tenant=tenant), 1000)
    run_session = store.session("5", tenant=tenant, user_id="bob")
    await Runner.run(scripted(says("Hello")), "Hi", session=run_session, run_config=QUIET)
    [run] = await run_session.runs.list()
    [day] = {run.started_at.date().isoformat()}

    async def told(by: Any) -> dict[str | None, tuple[int, int, int]]:
        rows = await store.usage(by=by, tenant=tenant)
        return {row.of: (row.runs, row.input_tokens, row.total_tokens) for row in rows}

    assert await told("user") == {"ada": (2, 11, 13), "bob": (2, 110, 116), None: (1, 1000, 1001)}
    assert await told("agent") == {"Assistant": (1, 10, 15), None: (4, 1111, 1115)}
    assert await told("tenant") == {tenant: (5, 1121, 1130)}
    by_day = await told("day")
    assert [sum(figures) for figures in zip(*by_day.values(), strict=True)] == [5, 1121, 1130]
    assert day in by_day


async def test_usage_in_a_time(store: SessionStore, tenant: str) -> None:
    """From a moment on, its own included, and up to another, its own left out."""
    for number in (1, 2, 3):
        await spent(store.session(str(number), tenant=tenant), 10**number)
        await asyncio.sleep(0.002)
    started = [(await store.session(str(number), tenant=tenant).runs.list())[0].started_at for number in (1, 2, 3)]

    async def told(**times: Any) -> int:
        return sum(row.input_tokens for row in await store.usage(by="tenant", tenant=tenant, **times))

    assert await told() == await told(since=timedelta(days=1)) == 1110
    assert await told(since=started[1]) == 1100
    assert await told(until=started[1]) == 10
    assert await told(since=started[1], until=started[2]) == 100
    assert await told(since=datetime.now(UTC) + timedelta(days=1)) == 0


async def test_usage_by_what(store: SessionStore) -> None:
    """There are four ways to add it up; anything else raises."""
    with pytest.raises(ValueError, match="by must be"):
        await store.usage(by="session")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="until must"):
        await store.usage(by="day", until=datetime(2026, 1, 1))  # noqa: DTZ001


# -- one tenant


async def occupied(store: SessionStore, tenant: str) -> PGSession:
    """A session with some of everything, waiting for an approval."""
    session = store.session("shared name", tenant=tenant, user_id="ada", metadata={"plan": "pro"})
    agent = scripted(calls("broken", "c1", city="Rome"), calls("refund", "c2", amount=1))
    await session.pause(await Runner.run(agent, f"I am {tenant}", session=session, run_config=QUIET))
    return session


async def test_all_tenants_have_to_be_asked_for_by_name(store: SessionStore, tenant: str) -> None:
    """`all_tenants=True` answers for all of them; together with a tenant it is a mistake."""
    others = f"{tenant}-2"
    for each in (tenant, others):
        await occupied(store, each)

    async def whose(list_: Callable[..., Any], **filters: Any) -> set[str]:
        page = await list_(all_tenants=True, limit=1000, **filters)
        return {record.tenant for record in page} & {tenant, others}

    assert await whose(store.sessions) == {tenant, others}
    assert await whose(store.sessions, user_id="ada", status="waiting", metadata={"plan": "pro"}) == {tenant, others}
    assert await whose(store.tool_runs, status="failed", tool_name="broken") == {tenant, others}
    assert await whose(store.waiting) == {tenant, others}
    told = {row.of: row.runs for row in await store.usage(by="tenant", all_tenants=True)}
    assert (told[tenant], told[others]) == (1, 1)
    for verb in (store.sessions, store.tool_runs, store.waiting):
        with pytest.raises(ValueError, match="exclude each other"):
            await verb(tenant=tenant, all_tenants=True)
    with pytest.raises(ValueError, match="exclude each other"):
        await store.usage(by="day", tenant=tenant, all_tenants=True)


async def test_without_a_tenant_it_is_the_nameless_one(store: SessionStore, tenant: str) -> None:
    """A store asked without a tenant answers for sessions opened without one."""
    await occupied(store, tenant)
    session = store.session(tenant, user_id=tenant)
    await session.add_items([user("Hi"), call("c1", tenant)])

    assert names(await store.sessions(user_id=tenant)) == [tenant]
    assert [tool.session_id for tool in await store.tool_runs(tool_name=tenant)] == [tenant]
    assert {each.tenant for each in await store.waiting(limit=1000)} <= {""}
    for bad in ("a\0", "x" * 513, 5):
        with pytest.raises(ValueError, match="tenant must"):
            await store.sessions(tenant=bad)  # type: ignore[arg-type]
