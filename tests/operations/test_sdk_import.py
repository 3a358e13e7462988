"""History that the Agents SDK wrote into its own tables comes over as it was, once, and goes on here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from agents import Agent, Runner
from agents.testing import ScriptedModel, assistant_message

from agents_pg_session import SessionStore
from agents_pg_session.operations import sdk_import, sdk_tables
from agents_pg_session.operations.sdk_import import import_sdk
from tests.items import assistant, call, output, user
from tests.operations.sdk_sources import KINDS, QUIET, Source, converse, record

PAIRS = [("sqlite", kind) for kind in KINDS] + [("asyncpg", KINDS[0]), ("asyncpg", KINDS[3]), ("psycopg", KINDS[0])]
ON_BOTH = pytest.mark.parametrize("backend", ["sqlite", "asyncpg"], indirect=True)


def pytest_generate_tests() -> None:
    """Each test here names its own backends."""


@pytest.fixture(scope="module")
def sdk_database(new_database: Callable[[], str]) -> str:
    """A PostgreSQL database in which the SDK keeps tables."""
    return new_database()


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path, sdk_database: str) -> Source:
    """The SDK's tables, of the kind that the test names; on PostgreSQL without one."""
    return Source.of(getattr(request, "param", KINDS[0]), tmp_path, sdk_database)


@pytest.mark.parametrize(("backend", "source"), PAIRS, indirect=True)
async def test_what_runs_have_written_is_as_if_it_was_written_here(
    store: SessionStore, source: Source, new_id: Callable[[], str]
) -> None:
    """What real runs left in the SDK's tables gives the same items, turns, tool runs and counters as the runs here."""
    there, here = new_id(), store.session(new_id())
    async with source.session(there) as session:
        await converse(session)
    await converse(here)
    report = await import_sdk(store, **source.options)

    moved = store.session(there)
    assert await moved.get_items() == await source.items(there)
    assert await record(moved) == await record(here)
    assert (report.sessions, report.items, report.turns, report.tool_runs) == (1, 10, 2, 3)
    assert [event.kind for event in await moved.events.list()] == ["tool_failed", "handoff", "imported"]


@ON_BOTH
async def test_a_session_goes_on_here(store: SessionStore, source: Source, new_id: Callable[[], str]) -> None:
    """A run on an imported session sees all of it and appends behind it."""
    session_id = new_id()
    async with source.session(session_id) as session:
        await converse(session)
    await import_sdk(store, **source.options)
    model = ScriptedModel([[assistant_message("welcome back")]])
    await Runner.run(
        Agent(name="Desk", model=model), "hello again", session=store.session(session_id), run_config=QUIET
    )

    items = await store.session(session_id).get_items()
    assert items[:-2] == await source.items(session_id)
    assert (await store.session(session_id).info()).turn_count == 3


@pytest.mark.parametrize("source", KINDS[:3], indirect=True)
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
async def test_the_order_is_the_one_the_sdk_gives(store: SessionStore, source: Source) -> None:
    """Where times and ids disagree, items come in the order in which the SDK's session showed them."""
    await source.add("s", [user("first")])
    await source.write("UPDATE {messages} SET created_at = '2025-01-01 10:00:00'")
    for second, text in ((9, "by time last"), (3, "a"), (3, "b"), (3, "c"), (1, "by time second")):
        await source.row("s", user(text), f"2025-01-01 10:00:0{second}")
    await import_sdk(store, **source.options)

    assert await store.session("s").get_items() == await source.items("s")


@ON_BOTH
async def test_concurrent_writers_of_the_sdk(store: SessionStore, source: Source, new_id: Callable[[], str]) -> None:
    """Sessions that many writers fed at once come in the order in which the SDK shows them, each once."""
    ids = [new_id() for _ in range(2)]
    await source.add(ids[0], [user("the tables are made")])

    async def feed(number: int) -> None:
        for session_id in ids:
            await source.add(session_id, [user(f"{number}"), assistant("to that")], [user(f"{number} again")])

    await asyncio.gather(*map(feed, range(4)))
    report = await import_sdk(store, **source.options)

    assert report.items == 1 + 2 * 3 * 4
    for session_id in ids:
        assert await store.session(session_id).get_items() == await source.items(session_id)


@pytest.mark.parametrize("source", [KINDS[0], KINDS[2]], indirect=True)
@ON_BOTH
async def test_rows_that_hold_no_item_are_kept_aside(
    store: SessionStore, source: Source, new_id: Callable[[], str]
) -> None:
    """Rows that are no JSON, no object or hold NaN become events with their text at their place, and are counted."""
    session_id, odd = new_id(), ["{torn", '"a string"', '{"role": "user", "content": NaN}', "", "[1]"]
    await source.add(session_id, [user("before")])
    for second, text in enumerate(odd):
        await source.row(session_id, text, f"2095-01-01 10:00:0{second}")
    await source.row(session_id, user("after"), "2095-01-01 10:00:09")
    report = await import_sdk(store, **source.options)

    session = store.session(session_id)
    events = [each for each in await session.events.list() if each.kind == "undecodable"]
    assert await session.get_items() == [user("before"), user("after")]
    assert [each.payload["message_data"] for each in events] == odd
    assert {each.payload["after_position"] for each in events} == {1}
    assert (report.undecodable, report.items, report.complete) == (len(odd), 2, True)


@pytest.mark.parametrize("source", [KINDS[1]], indirect=True)
@ON_BOTH
async def test_bytes_that_are_no_text_are_kept_aside(
    store: SessionStore, source: Source, new_id: Callable[[], str]
) -> None:
    """What SQLite holds where text belongs, bytes that are no UTF-8 above all, can be had back byte for byte."""
    session_id, torn = new_id(), b'{"role": "user", "content": "\xff\xfe\x00"}'
    await source.add(session_id, [user("before")])
    await source.row(session_id, torn, "2095-01-01 10:00:00")
    await import_sdk(store, **source.options)

    [event] = [each for each in await store.session(session_id).events.list() if each.kind == "undecodable"]
    assert event.payload["message_data"].encode("utf-8", "surrogateescape") == torn


@pytest.mark.parametrize("source", [KINDS[1]], indirect=True)
@ON_BOTH
async def test_everything_json_can_say_comes_through(
    store: SessionStore, source: Source, new_id: Callable[[], str]
) -> None:
    """NUL, lone surrogates, integers beyond 64 bits and the order of keys come out as they went in."""
    session_id = new_id()
    item = {"z": "\0", "role": "user", "content": "\ud800 ü 🚚", "a": 2**80, "n": [1.0, -0.0, {"y": None}]}
    await source.add(session_id, [user("before")])
    await source.row(session_id, json.dumps(item), "2095-01-01 10:00:00")
    await import_sdk(store, **source.options)

    [_, got] = await store.session(session_id).get_items()
    assert json.dumps(got) == json.dumps(item)


@ON_BOTH
async def test_orphans_are_imported_and_named(store: SessionStore, source: Source, new_id: Callable[[], str]) -> None:
    """A call without an output and an output without a call come over as they are, counted and named."""
    session_id = new_id()
    await source.add(session_id, [user("hi"), call("open"), call("done")], [output("done"), output("nobody")])
    report = await import_sdk(store, **source.options)

    session = store.session(session_id)
    assert await session.get_items() == await source.items(session_id)
    assert (report.orphan_calls, report.calls) == (1, [(session_id, "open")])
    assert (report.orphan_outputs, report.outputs) == (1, [(session_id, "nobody")])
    assert {each.call_id: each.status for each in await session.tool_runs.list()} == {
        "open": "running",
        "done": "succeeded",
    }


@pytest.mark.parametrize(("backend", "source"), [PAIRS[0], PAIRS[3], PAIRS[5]], indirect=True)
async def test_borders_of_pages_leave_no_trace(
    store: SessionStore, source: Source, new_id: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session read in tiny pages, its calls and their outputs pages apart, is the same as one read at once."""
    whole, paged = new_id(), new_id()
    batches = [
        [user("begin")],
        *([call(f"c{number}", "look"), call("same", "look")] for number in range(4)),
        *([output(f"c{number}", "Tool 'look' not found.")] for number in range(4)),
        [output("same"), output("same", "2"), output("same", "3"), user("and"), assistant("done")],
    ]
    await source.add(whole, *batches)
    await import_sdk(store, **source.options)
    await source.add(paged, *batches)
    for name, value in (("PAGE_ROWS", 3), ("PAGE_BYTES", 400)):
        monkeypatch.setattr(sdk_tables, name, value)
        monkeypatch.setattr(sdk_import, name, value)
    report = await import_sdk(store, **source.options)

    assert (report.sessions, report.skipped, report.orphan_calls) == (1, 1, 1)
    assert await record(store.session(paged)) == await record(store.session(whole))
    assert (await store.session(paged).info()).tool_error_count == 4


@pytest.mark.parametrize("source", [KINDS[3]], indirect=True)
@ON_BOTH
async def test_branches_become_sessions(store: SessionStore, source: Source, new_id: Callable[[], str]) -> None:
    """The main branch is the session; another is a session of its own, a fork that shares the beginning."""
    session_id = new_id()
    async with source.session(session_id) as session:
        await converse(session)
        await session.create_branch_from_turn(2, "try-2")
        await session.add_items([user("otherwise"), assistant("fine")])
        branch = await session.get_items()
    report = await import_sdk(store, **source.options)

    assert await store.session(session_id).get_items() == await source.items(session_id)
    assert await store.session(f"{session_id}/try-2").get_items() == branch
    info = await store.session(f"{session_id}/try-2").info()
    assert (info.forked_from, info.forked_through, info.turn_count) == (session_id, 6, 2)
    assert (report.sessions, report.branches) == (2, 1)


@pytest.mark.parametrize("source", [KINDS[3]], indirect=True)
@ON_BOTH
async def test_two_of_one_name(store: SessionStore, source: Source, new_id: Callable[[], str]) -> None:
    """Where a session is called what a branch of another would be called here, one of them comes; both times the other
    is a conflict."""
    session_id = new_id()
    async with source.session(session_id) as session:
        await converse(session)
        await session.create_branch_from_turn(2, "b")
    await source.add(f"{session_id}/b", [user("mine")])
    first = await import_sdk(store, **source.options)
    second = await import_sdk(store, **source.options)

    assert (first.sessions, second.skipped) == (2, 2)
    assert [each.session_id for each in first.conflicts] == [f"{session_id}/b"]
    assert second.conflicts == first.conflicts


@pytest.mark.parametrize("source", [KINDS[3]], indirect=True)
@ON_BOTH
async def test_tokens_become_runs(store: SessionStore, source: Source, new_id: Callable[[], str]) -> None:
    """Each turn whose tokens the source knows is a run, also where they were told after the import."""
    session_id = new_id()
    async with source.session(session_id) as session:
        await session.add_items([user("before any tokens")])
        await converse(session)
        await source.write("UPDATE turn_usage SET input_tokens = 5, total_tokens = 12 WHERE user_turn_number = 3")
        first = await import_sdk(store, **source.options)
        await source.write("UPDATE turn_usage SET input_tokens = 105, total_tokens = 112 WHERE user_turn_number = 3")
    second = await import_sdk(store, **source.options)

    moved = store.session(session_id)
    runs = await moved.runs.list()
    info = await moved.info()
    assert (first.runs, second.continued, second.items) == (2, 1, 0)
    assert [(each.turn, each.requests, each.input_tokens) for each in runs] == [(3, 2, 105), (2, 2, 200)]
    assert (info.input_tokens, info.output_tokens) == (305, 28)
    assert {item.run_id for turn in await moved.turns() for item in turn.items} == {None, "turn-2", "turn-3"}


@pytest.mark.parametrize("source", [KINDS[3]], indirect=True)
@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
async def test_sessions_from_before_the_structure(store: SessionStore, source: Source) -> None:
    """In an AdvancedSQLiteSession's file, sessions a SQLiteSession wrote come too; rows in no branch are counted."""
    await source.add("advanced", [user("hi")])
    await Source("SQLiteSession", source.url, source.sessions_table, source.messages_table).add("plain", [user("ho")])
    await source.row("advanced", user("nowhere"), "2025-01-01 10:00:00")
    await source.write("INSERT INTO {sessions} (session_id) VALUES ('empty')")
    report = await import_sdk(store, **source.options)

    assert (await store.session("plain").get_items(), await store.session("advanced").get_items()) == (
        [user("ho")],
        [user("hi")],
    )
    assert (report.sessions, report.unlisted, report.empty) == (2, 1, 1)


@ON_BOTH
async def test_times_are_those_of_the_source(store: SessionStore, source: Source, new_id: Callable[[], str]) -> None:
    """Items, session, turns and tool runs have the times at which the SDK stored them."""
    session_id = new_id()
    await source.add(session_id, [user("x")])
    await source.write("UPDATE {messages} SET created_at = '2025-03-30 01:30:00.123456'")
    await source.write("UPDATE {sessions} SET created_at = '2025-03-30 01:00:00', updated_at = '2025-03-31 00:00:00'")
    await source.row(session_id, call("c"), "2025-03-30 01:31:00")
    await source.row(session_id, output("c"), "2025-03-30 01:32:00")
    await import_sdk(store, **source.options)

    session = store.session(session_id)
    info, [tool] = await session.info(), await session.tool_runs.list()
    [turn] = await session.turns()
    at = datetime(2025, 3, 30, 1, tzinfo=UTC)
    assert info.created_at == at
    assert info.updated_at == datetime(2025, 3, 31, tzinfo=UTC)
    assert abs(info.active_at - at - timedelta(minutes=30, seconds=0.123456)) < timedelta(milliseconds=1)
    assert [item.created_at.minute for item in turn.items] == [30, 31, 32]
    assert (tool.created_at.minute, tool.finished_at and tool.finished_at.minute) == (31, 32)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
async def test_a_servers_own_time_zone(
    store: SessionStore, source: Source, sdk_database: str, new_id: Callable[[], str]
) -> None:
    """Times that PostgreSQL stored without a zone are read in the zone of the server that stored them."""
    session_id = new_id()
    await source.add(session_id, [user("x")])
    await source.write("UPDATE {messages} SET created_at = '2025-07-01 12:00:00'")
    options = {**source.options, "source": f"{source.url}?options=-c%20TimeZone%3DEurope/Zurich"}
    await import_sdk(store, **options)

    [turn] = await store.session(session_id).turns()
    assert turn.items[0].created_at == datetime(2025, 7, 1, 10, tzinfo=UTC)
