"""Whole sessions out of one database and into another: nothing is lost on the way, and nothing arrives by halves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from agents import RunContextWrapper, Runner, Usage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from agents_pg_session import PGSession, SessionConflict, SessionNotFound, SessionStore
from agents_pg_session.operations import pages
from tests.acceptance.agents_for_tests import QUIET, calls, says, scripted
from tests.items import assistant, call, item, output, user
from tests.operations.archives import erase, exported, imported, lines_of

Stores = dict[str, SessionStore]

WEIRD = [
    item(role="user", content="a\0b \ud800 ü \u2028", numbers=[10**40, 1e300, -0.0, 5e-324], deep=[[[{}]]]),
    item(__enc__=1, payload='"},"item":{"x":1}'),
    item(type="x\0", item={"item": {"item": 1}}, metadata={"content": [], "metadata": None}),
]


async def a_paused_run(session: PGSession) -> None:
    """A run with tools, a failure and hooks, and one that waits for an approval."""
    agent = scripted([calls("weather", "c1", city="Rome"), calls("broken", "c2", city="Bern")], says("Sunny"))
    async with session.recording() as run:
        await Runner.run(agent, "Weather?", session=session, hooks=run.hooks, run_config=QUIET)
    agent = scripted(calls("refund", "c3", amount=5))
    paused = await Runner.run(agent, "Refund", session=session, run_config=QUIET)
    await session.pause(paused)


PAIRS = pytest.mark.parametrize(
    ("source", "target"), [("sqlite", "asyncpg"), ("asyncpg", "sqlite"), ("psycopg", "sqlite"), ("sqlite", "psycopg")]
)


@PAIRS
async def test_export_import_export_gives_the_same_bytes(stores: Stores, tenant: str, source: str, target: str) -> None:
    """Everything a session can have goes through the other database and back, byte for byte, microseconds too."""
    session = stores[source].session("one", tenant=tenant, user_id="u", metadata={"b": 1e2, "a": [1.50, None, "ü"]})
    await session.add_items(WEIRD)
    await a_paused_run(session)
    await session.snapshots.save("summary", {"metadata": 1, "content": "\ud800"}, metadata={"content": [1e2]})
    await session.events.record("mine", {"\0": [10**30]})
    branch = await session.fork("two")
    await branch.pop_item()
    await branch.clear_session()
    await branch.end("resolved")
    first = await exported(stores[source], tenant)

    done = await imported(stores[target], first)
    second = await exported(stores[target], tenant)
    await erase(stores[source], tenant)
    await imported(stores[source], second)

    assert (done.sessions, done.complete) == (2, True)
    assert second == first
    assert await exported(stores[source], tenant) == first
    assert {line["table"] for line in lines_of(first) if "table" in line} == {
        *("sessions", "items", "tool_runs", "runs", "events", "snapshots")
    }


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
ITEMS = st.one_of(
    st.sampled_from([user("u"), assistant("a"), call("c1"), output("c1"), output("c1", "An error"), *WEIRD]),
    st.dictionaries(st.one_of(st.text(max_size=8), st.sampled_from(["item", "type", "role"])), VALUES, max_size=4),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(ITEMS, max_size=4), st.booleans()),
        st.tuples(st.just("add"), st.lists(ITEMS, max_size=4), st.booleans()),
        st.tuples(st.just("save"), st.sampled_from(["summary", "ä", "Z"]), VALUES),
        st.tuples(st.just("record"), VALUES),
        st.tuples(st.sampled_from(["pop", "clear", "fork", "end", "replace"])),
    ),
    max_size=8,
)


@pytest.mark.parametrize(("source", "target"), [("sqlite", "asyncpg"), ("psycopg", "sqlite")])
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_any_history_survives(
    stores: Stores, new_id: Callable[[], str], source: str, target: str, steps: list[tuple[Any, ...]]
) -> None:
    """Whatever was done to sessions through the package's verbs, another database holds and exports it identically."""
    tenant = new_id()
    session, run = stores[source].session(new_id(), tenant=tenant, agent="A"), RunContextWrapper[Any](context=None)
    await session.add_items([user("begin")])
    for step, *details in steps:
        match step:
            case "add":
                run.usage.add(Usage(requests=1, input_tokens=7, output_tokens=1, total_tokens=8))
                await session.add_items(details[0], wrapper=run if details[1] else None)
            case "save":
                await session.snapshots.save(details[0], details[1])
            case "record":
                await session.events.record("mine", details[0])
            case "fork":
                session = await session.fork(new_id())
            case "pop":
                await session.pop_item()
            case "clear":
                await session.clear_session()
            case "end":
                await session.end()
            case "replace":
                await session._atomic_replace_items([assistant("summed up")])
    first = await exported(stores[source], tenant)

    await imported(stores[target], first)

    assert await exported(stores[target], tenant) == first


async def test_times_are_kept_to_the_microsecond(stores: Stores, tenant: str) -> None:
    """What PostgreSQL wrote at a microsecond, SQLite reads, sorts and pages at that microsecond."""
    store, sqlite = stores["asyncpg"], stores["sqlite"]
    for number in range(6):
        await store.session(f"s{number}", tenant=tenant).add_items([user("hi")])
    at = datetime(2026, 1, 1, tzinfo=UTC)
    async with store.engine.begin() as connection:
        for number in range(6):
            await connection.execute(
                text("UPDATE agents.sessions SET active_at = :at WHERE tenant_id = :tenant AND session_id = :session"),
                {"at": at + timedelta(microseconds=number * 7), "tenant": tenant, "session": f"s{number}"},
            )

    await imported(sqlite, await exported(store, tenant))
    seen, cursor = [], None
    while page := await sqlite.sessions(tenant=tenant, limit=1, after=cursor):
        seen += [(each.session_id, each.active_at) for each in page]
        cursor = page.cursor

    assert seen == [(f"s{number}", at + timedelta(microseconds=number * 7)) for number in reversed(range(6))]


@PAIRS
async def test_an_imported_session_goes_on(stores: Stores, tenant: str, source: str, target: str) -> None:
    """Positions, turns, search and windows go on where they were, and a paused run is taken up and finished."""
    await a_paused_run(stores[source].session("one", tenant=tenant))
    claimed = stores[source].session("one", tenant=tenant)
    assert await claimed.resume(scripted()) is not None  # somebody is at it over there
    before = await claimed.info()
    await imported(stores[target], await exported(stores[source], tenant))
    session = stores[target].session("one", tenant=tenant)
    agent = scripted(says("Refunded"))

    state = await session.resume(agent)
    assert state is not None
    state.approve(state.get_interruptions()[0])
    result = await Runner.run(agent, state, session=session, run_config=QUIET)
    await session.add_items([user("thanks")])

    after, found = await session.info(), await session.find("thanks")
    assert result.final_output == "Refunded"
    assert (after.turn_count, after.last_position) == (before.turn_count + 1, before.last_position + 3)
    assert [each.position for each in found] == [after.last_position]
    assert (after.created_at, after.tool_run_count) == (before.created_at, before.tool_run_count)


async def test_importing_again_changes_nothing(stores: Stores, tenant: str) -> None:
    """An archive that is there already is skipped session by session, whether compared quickly or byte for byte."""
    for name in ("a", "b"):
        await stores["sqlite"].session(name, tenant=tenant).add_items([user("hi"), call("c"), *WEIRD])
    archive = await exported(stores["sqlite"], tenant)
    for target in ("asyncpg", "psycopg", "sqlite"):
        await imported(stores[target], archive)

        again = await imported(stores[target], archive)
        verified = await imported(stores[target], archive, verify=True)

        assert (again.sessions, again.skipped) == (verified.sessions, verified.skipped) == (0, 2)
        assert await exported(stores[target], tenant) == archive


@pytest.mark.parametrize("target", ["asyncpg", "sqlite"])
async def test_a_different_session_is_a_conflict(stores: Stores, tenant: str, target: str) -> None:
    """One that went on is never overwritten unasked: it ends the import, is left alone, or is replaced, as one says."""
    there = stores[target]
    for name in ("a", "b", "c"):
        await stores["psycopg"].session(name, tenant=tenant).add_items([user(name)])
    archive = await exported(stores["psycopg"], tenant)
    await erase(there, tenant)
    await there.session("b", tenant=tenant).add_items([user("mine"), assistant("yours")])

    with pytest.raises(
        SessionConflict, match=r"'b' .* is there already and differs .*last_position is 2.*1 of its"
    ) as told:
        await imported(there, archive)
    assert "nothing of it was written" in str(told.value)
    assert {each.session_id for each in await there.sessions(tenant=tenant)} == {"a", "b"}

    skipped = await imported(there, archive, on_conflict="skip")
    assert (skipped.sessions, skipped.skipped, skipped.complete) == (1, 1, False)
    assert skipped.conflicts == ((tenant, "b"),)
    assert await there.session("b", tenant=tenant).get_items() == [user("mine"), assistant("yours")]

    replaced = await imported(there, archive, on_conflict="replace")
    assert (replaced.sessions, replaced.replaced, replaced.skipped) == (1, 1, 2)
    assert await exported(there, tenant) == archive


@pytest.mark.parametrize("target", ["asyncpg", "sqlite"])
async def test_rows_that_are_missing_or_were_edited_are_noticed(stores: Stores, tenant: str, target: str) -> None:
    """Whose row is the same but whose items are fewer differs; an item edited by hand is found byte for byte."""
    there = stores[target]
    await there.session("a", tenant=tenant).add_items([user("one"), user("two")])
    archive = await exported(there, tenant)
    table = "items" if target == "sqlite" else "agents.items"
    where = {"tenant": tenant}
    async with there.engine.connect() as connection:
        edit = f"""UPDATE {table} SET item = '{{"role"\\:"user"}}' WHERE tenant_id = :tenant AND position = 1"""
        await connection.execute(text(edit), where)
    assert (await imported(there, archive)).skipped == 1

    with pytest.raises(SessionConflict, match="its rows are not the same"):
        await imported(there, archive, verify=True)
    async with there.engine.connect() as connection:
        await connection.execute(text(f"DELETE FROM {table} WHERE tenant_id = :tenant AND position = 1"), where)
    with pytest.raises(SessionConflict, match="it has 1 items, not 2"):
        await imported(there, archive)


async def test_sessions_move_into_another_tenant(stores: Stores, tenant: str) -> None:
    """With a tenant, the sessions are that tenant's, and skipped there when they come again."""
    await stores["asyncpg"].session("a", tenant=tenant).add_items([user("hi")])
    archive = await exported(stores["asyncpg"], tenant)

    moved = await imported(stores["asyncpg"], archive, tenant=f"{tenant}-2", verify=True)
    again = await imported(stores["asyncpg"], archive, tenant=f"{tenant}-2", verify=True)

    assert (moved.sessions, again.skipped) == (1, 1)
    assert await stores["asyncpg"].session("a", tenant=f"{tenant}-2").get_items() == [user("hi")]


@pytest.mark.parametrize("source", ["asyncpg", "sqlite"])
async def test_an_export_tells_what_was_asked_for(stores: Stores, tenant: str, source: str) -> None:
    """By session, by status, by when they were written to; a session that is not there is an error and no file."""
    store = stores[source]
    for name in ("a", "b", "ä"):
        await store.session(name, tenant=tenant).add_items([user("hi")])
    await store.session("b", tenant=tenant).end("resolved")
    now = (await store.session("b", tenant=tenant).info()).updated_at

    async def names(**asked: Any) -> list[str]:
        lines = lines_of(await exported(store, tenant, **asked))
        return [line["session_id"] for line in lines if line.get("table") == "sessions"]

    assert await names() == ["a", "b", "ä"]
    assert await names(session_ids=["ä", "a", "a"]) == ["a", "ä"]
    assert await names(status="resolved") == ["b"]
    assert await names(since=now) == ["b"]
    assert await names(since=timedelta(hours=1)) == ["a", "b", "ä"]
    with pytest.raises(SessionNotFound, match="'nobody'"):
        await names(session_ids=["a", "nobody"])
    assert lines_of(await exported(store, tenant, status="x"))[0]["asked"] == {"tenant": tenant, "status": "x"}


async def test_a_session_is_exported_as_it_was_at_one_moment(
    stores: Stores, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Appends that commit between two pages are not in it: rows and counters tell of the same moment."""
    store = stores["asyncpg"]
    monkeypatch.setattr(pages, "ROWS", 2)
    session = store.session("a", tenant=tenant)
    await session.add_items([user(f"{number}") for number in range(6)])
    writing = True

    async def write() -> None:
        while writing:
            await session.add_items([user("more"), call("c")])

    writer = asyncio.create_task(write())
    archives: list[bytes] = []
    while len(archives) < 5 or lines_of(archives[-1])[-1]["items"] == 6:  # until an append has come between
        archives.append(await exported(store, tenant))
    writing = False
    await writer

    for archive in archives:
        _, row, *rows, _, end = lines_of(archive)
        assert row["item_count"] == end["items"] == sum(each["table"] == "items" for each in rows)
        assert row["tool_run_count"] == end["tool_runs"]
    assert lines_of(archives[-1])[-1]["items"] > 6


@pytest.mark.parametrize("source", ["asyncpg", "sqlite"])
async def test_pages_end_where_rows_are_large(
    stores: Stores, tenant: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page takes rows up to a size and one at least, so megabytes in a row are read a few at a time, none twice."""
    session = stores[source].session("a", tenant=tenant)
    large = [user(f"{number}" * 3000) if number % 3 else user("small") for number in range(12)]
    await session.add_items(large)
    whole = await exported(stores[source], tenant)

    for rows, limit in ((5, 1 << 20), (5, 1), (100, 100)):
        monkeypatch.setattr(pages, "ROWS", rows)
        monkeypatch.setattr(pages, "BYTES", limit)
        assert await exported(stores[source], tenant) == whole
