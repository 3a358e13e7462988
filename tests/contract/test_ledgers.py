"""The ledgers: lists and their pages, the session's own verbs, and who may write when."""

from __future__ import annotations

import asyncio
import json
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from agents import RunContextWrapper, Runner, Usage
from agents.memory import SessionSettings
from sqlalchemy import text

from agents_pg_session import (
    InvalidItem,
    Page,
    PGSession,
    SessionConflict,
    SessionNotFound,
    SessionStore,
    Window,
)
from agents_pg_session.leases import Exclusive
from tests.acceptance.agents_for_tests import QUIET, calls, says, scripted
from tests.items import assistant, call, item, output, user

TABLES = ("sessions", "items", "tool_runs", "runs", "events", "snapshots")
List = Callable[..., Awaitable[Page[Any]]]


async def pages_of(list_: List, limit: int, **filters: Any) -> list[Page[Any]]:
    """Walk through a list, page by page."""
    pages = [await list_(limit=limit, **filters)]
    while pages[-1].more:
        pages.append(await list_(limit=limit, after=pages[-1].cursor, **filters))
    return pages


def cursor(*values: object) -> str:
    """A cursor as somebody would forge it."""
    return urlsafe_b64encode(json.dumps(list(values)).encode()).decode()


async def filled(session: PGSession) -> PGSession:
    """Give a session seven of everything."""
    for number in range(7):
        wrapper = RunContextWrapper[Any](context=None)
        await session.get_items(wrapper=wrapper)
        wrapper.usage.add(Usage(requests=1, input_tokens=number, total_tokens=number))
        said = [user(str(number)), call(f"c{number}", "even" if number % 2 == 0 else "odd")]
        await session.add_items(said, wrapper=wrapper)
        await session.snapshots.save("summary" if number % 2 == 0 else "plan", number)
    await session.add_items([output("c1"), output("c2", "An error occurred while running the tool. Please try again.")])
    return session


def lists_of(session: PGSession) -> dict[str, List]:
    return {
        "runs": session.runs.list,
        "tool_runs": session.tool_runs.list,
        "events": session.events.list,
        "snapshots": session.snapshots.list,
    }


# -- lists


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
@pytest.mark.parametrize("name", ["runs", "tool_runs", "events", "snapshots"])
async def test_pages_lose_and_repeat_nothing(session: PGSession, name: str, limit: int) -> None:
    """Page after page gives what one long page gives, and only the last says that there is no more."""
    list_ = lists_of(await filled(session))[name]
    whole = await list_(limit=1000)
    pages = await pages_of(list_, limit)

    assert [record for page in pages for record in page] == list(whole)
    assert len(whole) >= 7
    assert all(len(page) == limit for page in pages[:-1])
    assert [page.more for page in pages] == [True] * (len(pages) - 1) + [False]
    assert whole.more is False


@pytest.mark.parametrize(
    ("name", "filters", "count"),
    [
        ("runs", {"status": "running"}, 7),
        ("runs", {"status": "failed"}, 0),
        ("runs", {"agent": "Nobody"}, 0),
        ("tool_runs", {"status": "running"}, 5),
        ("tool_runs", {"status": "failed"}, 1),
        ("tool_runs", {"tool_name": "odd"}, 3),
        ("tool_runs", {"tool_name": "odd", "status": "succeeded"}, 1),
        ("events", {"kind": "run_started"}, 7),
        ("events", {"kind": "Run_started"}, 0),
        ("snapshots", {"kind": "plan"}, 3),
        ("snapshots", {"kind": "' OR 1=1 --"}, 0),
    ],
)
async def test_filters_hold_on_every_page(session: PGSession, name: str, filters: dict[str, str], count: int) -> None:
    """A filtered list holds what was asked for, whole, over any number of pages."""
    list_ = lists_of(await filled(session))[name]
    records = [record for page in await pages_of(list_, 2, **filters) for record in page]

    assert len(records) == count
    assert all(getattr(record, column) == value for record in records for column, value in filters.items())
    assert records == [
        record
        for record in await list_(limit=1000)
        if all(getattr(record, column) == value for column, value in filters.items())
    ]


async def test_what_belongs_to_one_run(session: PGSession) -> None:
    """Tool runs and events are found by the run they belong to."""
    run = (await (await filled(session)).runs.list())[3]
    tools = await session.tool_runs.list(run_id=run.run_id)
    events = await session.events.list(run_id=run.run_id)

    assert [tool.call_id for tool in tools] == ["c3"]
    assert [event.kind for event in events] == ["run_started"]
    assert len(await session.tool_runs.list(run_id="nobody's")) == 0


async def test_the_order_of_lists(session: PGSession) -> None:
    """Runs and tool runs come newest first; events oldest first, for that is how a log is read."""
    await filled(session)

    assert [run.input_tokens for run in await session.runs.list()] == [6, 5, 4, 3, 2, 1, 0]
    assert [tool.call_id for tool in await session.tool_runs.list()] == [f"c{number}" for number in range(6, -1, -1)]
    ids = [event.event_id for event in await session.events.list()]
    assert ids == list(range(1, len(ids) + 1))


async def test_a_list_goes_on_where_its_page_ended(session: PGSession) -> None:
    """What is added meanwhile moves nothing between the pages."""
    first = await (await filled(session)).tool_runs.list(limit=3)
    await session.add_items([call("new")])
    second = await session.tool_runs.list(limit=3, after=first.cursor)

    assert [tool.call_id for tool in (*first, *second)] == ["c6", "c5", "c4", "c3", "c2", "c1"]


async def test_a_page_is_a_sequence(session: PGSession) -> None:
    """Iterate it, index it, take its length; an empty one leads nowhere new."""
    await filled(session)
    page = await session.runs.list(limit=2)
    empty = await session.runs.list(status="failed")
    beyond = await session.runs.list(after=(await session.runs.list(limit=100)).cursor)

    assert (len(page), page[0], list(page)[1], page.more) == (2, page.records[0], page.records[1], True)
    assert (len(empty), empty.cursor, empty.more) == (0, None, False)
    assert len(beyond) == 0
    assert beyond.cursor is not None


async def test_single_records(session: PGSession) -> None:
    """`get` by id and `latest`: None where there is nothing, before the first append too."""
    before = [
        await session.runs.latest(),
        await session.tool_runs.latest(),
        await session.events.latest(),
        await session.runs.get("x"),
        await session.tool_runs.get(1),
        await session.events.get(1),
    ]
    await filled(session)
    [run, *_], [tool, *_] = await session.runs.list(), await session.tool_runs.list()
    events = list(await session.events.list())

    assert before == [None] * 6
    assert (await session.runs.get(run.run_id), await session.runs.latest()) == (run, run)
    assert (await session.tool_runs.get(tool.position), await session.tool_runs.latest()) == (tool, tool)
    assert await session.events.get(3) == events[2]
    assert await session.events.latest() == events[-1]
    odd, started = await session.tool_runs.latest(tool_name="odd"), await session.events.latest(kind="run_started")
    assert odd is not None
    assert started is not None
    assert (odd.call_id, started.run_id) == ("c5", run.run_id)
    assert (await session.tool_runs.latest(tool_name="none"), await session.events.latest(kind="none")) == (None, None)
    assert (await session.runs.get("x"), await session.tool_runs.get(1), await session.events.get(0)) == (None,) * 3


@pytest.mark.parametrize("number", [-1, 2**63, 1.5, "1", True])
async def test_numbers_no_column_holds_are_refused(session: PGSession, number: Any) -> None:
    """An id, a position or a version that cannot be raises `ValueError`, and never reaches the database."""
    await session.add_items([user("Hi")])
    asked: list[Callable[[], Awaitable[Any]]] = [
        lambda: session.tool_runs.get(number),
        lambda: session.events.get(number),
        lambda: session.snapshots.get("summary", number),
        lambda: session.snapshots.save("summary", "x", through=number),
        lambda: session.turns(before_position=number),
        lambda: session.fork("x", before_turn=number),
        lambda: session.restore(number),
    ]
    for verb in asked:
        with pytest.raises(ValueError, match="must be a whole number"):
            await verb()


@pytest.mark.parametrize("name", ["a\0", "\ud800", "x" * 513, 5])
async def test_filters_no_column_holds_are_refused(session: PGSession, name: Any) -> None:
    """A filter is checked as what it is compared with; a status of tool runs is one of four."""
    asked: list[Callable[[], Awaitable[Any]]] = [
        lambda: session.runs.list(agent=name),
        lambda: session.runs.list(status=name),
        lambda: session.runs.get(name),
        lambda: session.tool_runs.list(tool_name=name),
        lambda: session.tool_runs.list(status=name),
        lambda: session.tool_runs.list(status="done"),
        lambda: session.events.list(kind=name),
        lambda: session.events.latest(kind=name),
        lambda: session.events.record("mine", run_id=name),
        lambda: session.snapshots.list(name),
    ]
    for verb in asked:
        with pytest.raises(ValueError, match="must"):
            await verb()


@pytest.mark.parametrize("limit", [0, -1, 1001, True, 1.5, "5", None])
async def test_a_page_has_one_to_a_thousand_records(session: PGSession, store: SessionStore, limit: Any) -> None:
    """Any other limit raises before the database is asked."""
    for list_ in (*lists_of(session).values(), store.sessions, store.tool_runs, store.waiting):
        with pytest.raises(ValueError, match="limit must be"):
            await list_(limit=limit)
    with pytest.raises(ValueError, match="limit must be"):
        await session.find("x", limit=limit)
    if limit is not None:
        with pytest.raises(ValueError, match="limit must be"):
            await session.turns(limit)


MOMENT = "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    "forged",
    [
        "",
        "x",
        "é",
        "!!!!",
        "a" * 100_000,
        cursor(),
        cursor("x"),
        cursor(None),
        cursor(True),
        cursor(1.5),
        cursor(-1),
        cursor(2**63),
        cursor([1]),
        cursor(1, 2, 3),
        cursor("2026-01-01T00:00:00", "x"),
        cursor("yesterday", "x"),
        cursor("0001-01-01T00:00:00+14:00", "x"),
        cursor(MOMENT, "a\0"),
        cursor(MOMENT, "\ud800"),
        cursor(MOMENT, None),
        cursor(MOMENT, 1, 2),
        urlsafe_b64encode(b"\xff\xfe").decode(),
        urlsafe_b64encode(b"{}").decode(),
        urlsafe_b64encode(b"[" * 50_000).decode(),
        urlsafe_b64encode(b"[" + b"1" * 10_000 + b"]").decode(),
        5,
        b"WzFd",
    ],
    ids=lambda forged: str(forged)[:30],
)
async def test_a_forged_cursor_is_refused(session: PGSession, store: SessionStore, forged: Any) -> None:
    """What no list ever made raises `ValueError`, and never reaches the database."""
    for list_ in (*lists_of(session).values(), store.sessions, store.tool_runs, store.waiting):
        with pytest.raises(ValueError, match="after must be the cursor"):
            await list_(after=forged)


async def test_a_cursor_of_another_list_is_refused(session: PGSession, store: SessionStore) -> None:
    """Cursors of runs, events and sessions are not each other's."""
    await filled(session)
    runs, events = (await session.runs.list(limit=1)).cursor, (await session.events.list(limit=1)).cursor
    all_of_them = (await store.sessions(all_tenants=True, limit=1)).cursor
    for list_, other in (
        (session.runs.list, events),
        (session.events.list, runs),
        (session.tool_runs.list, runs),
        (session.snapshots.list, events),
        (store.sessions, events),
        (store.sessions, all_of_them),
        (store.tool_runs, runs),
    ):
        with pytest.raises(ValueError, match="after must be the cursor"):
            await list_(after=other)


# -- events


PAYLOADS = [
    "x",
    "",
    0,
    -0.0,
    1e2,
    True,
    False,
    None,
    [],
    {},
    {"a": {"b": [1, None, "é"]}},
    "a\0b",
    ["\ud800"],
    {"\0": 1},
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=repr)
async def test_an_event_of_ones_own(session: PGSession, payload: object) -> None:
    """Any JSON is a payload, and what `record` returns is what is read back."""
    event = await session.events.record("escalated", payload, run_id="r", agent="a")

    assert await session.events.get(event.event_id) == event
    assert [each.payload for each in await session.events.list()] == [payload]
    assert type(event.payload) is type(payload)
    assert (event.kind, event.run_id, event.agent, event.event_id) == ("escalated", "r", "a", 1)
    assert (await session.info()).event_count == 1


@pytest.mark.parametrize("payload", [b"x", float("inf"), {1: 2}, {"a": object()}, {1, 2}], ids=repr)
async def test_a_payload_that_is_no_json_is_refused(session: PGSession, payload: object) -> None:
    """Nothing is written, and the error names the place."""
    with pytest.raises(InvalidItem, match="payload"):
        await session.events.record("escalated", payload)

    assert len(await session.events.list()) == 0


@pytest.mark.parametrize("kind", ["", "a\0", "\ud800", "x" * 513, None, 5])
async def test_a_kind_is_a_name(session: PGSession, kind: Any) -> None:
    """A kind no column holds raises `ValueError`."""
    with pytest.raises(ValueError, match="kind must"):
        await session.events.record(kind)


async def test_a_reader_with_a_cursor_misses_nothing(store: SessionStore, new_id: Callable[[], str]) -> None:
    """While ten write at once, a reader that asks again with its cursor sees every event once, in order."""
    name = new_id()
    session, seen = store.session(name), list[int]()
    writers = [asyncio.create_task(store.session(name).events.record("mine", number)) for number in range(10)]
    after: str | None = None
    while len(seen) < 10:
        page = await session.events.list(after=after, limit=3)
        seen += [event.event_id for event in page]
        after = page.cursor
        await asyncio.sleep(0)
    written = await asyncio.gather(*writers)

    assert seen == list(range(1, 11))
    assert sorted(event.event_id for event in written) == seen
    assert len(await session.events.list(after=after)) == 0
    later = await session.events.record("mine", "later")
    assert list(await session.events.list(after=after)) == [later]


# -- the session itself


async def test_info_says_what_the_session_is(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Its labels as the latest handle gave them, its counters, its times; before the first append it is not there."""
    name = new_id()
    session = store.session(name, tenant="t", agent="Support", user_id="ada", metadata={"plan": "pro", "é": [1, None]})
    with pytest.raises(SessionNotFound, match=name):
        await session.info()
    await session.add_items([user("Hi"), assistant("Hello")])
    first = await session.info()
    await store.session(name, tenant="t", metadata={}).add_items([user("Again")])

    second = await session.info()
    assert (first.tenant, first.session_id, first.status, first.agent, first.user_id) == (
        "t",
        name,
        "active",
        "Support",
        "ada",
    )
    assert dict(first.metadata) == {"plan": "pro", "é": [1, None]}
    assert (first.item_count, first.message_count, first.turn_count, first.last_position) == (2, 2, 1, 2)
    assert (first.ended_at, first.expires_at, first.forked_from, first.forked_through) == (None,) * 4
    assert first.created_at <= first.active_at <= first.updated_at
    assert (second.agent, second.user_id, dict(second.metadata), second.created_at) == (
        "Support",
        "ada",
        {},
        first.created_at,
    )


async def test_turns_are_whole(session: PGSession) -> None:
    """The conversation by turns: all of them, the newest ones, or those before one."""
    await session.add_items([assistant("Welcome")])
    for number in range(1, 5):
        await session.add_items([user(str(number)), call(f"c{number}")])
        await session.add_items([output(f"c{number}"), assistant(str(number))])

    async def numbers(*args: Any, **options: Any) -> list[tuple[int, int]]:
        return [(turn.number, len(turn.items)) for turn in await session.turns(*args, **options)]

    turns = await session.turns()
    assert await numbers() == [(0, 1), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert await numbers(2) == [(3, 4), (4, 4)]
    assert await numbers(2, before_position=turns[3].position) == [(1, 4), (2, 4)]
    assert await numbers(before_position=turns[1].position) == [(0, 1)]
    assert await numbers(before_position=2**63 - 1) == await numbers()
    assert await numbers(100) == await numbers()
    assert [each.item for turn in turns for each in turn.items] == await session.get_items()
    assert [each.position for turn in turns for each in turn.items] == list(range(1, 18))
    assert turns[1].started_at == turns[1].items[0].created_at
    assert await session.turns(before_position=0) == []


async def test_a_turn_longer_than_a_first_guess_is_whole(session: PGSession) -> None:
    """However long a turn is, the newest turn is all of it."""
    await session.add_items([user("short")])
    await session.add_items([user("long"), *(assistant(str(number)) for number in range(300))])

    [turn] = await session.turns(1)
    assert (turn.number, len(turn.items)) == (2, 301)


@pytest.mark.parametrize(
    ("said", "sought"),
    [
        ("Hello Rome", "hello rome"),
        ("Hello Rome", "O R"),
        ("ÄRGER im Büro", "ärger IM bÜRO"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("Straße", "STRASSE"),
        ("STRASSE", "straße"),
        ("日本語", "本"),
        ("💚 green", "💚"),
        ('He said "no"', '"no"'),
        ("it's", "'"),
        ("100% sure", "100%"),
        ("a_b", "A_"),
        ("a!b", "!"),
        ("C:\\temp", "\\t"),
        ("one\ntwo", "one\ntwo"),
        ("a\0b", "a\0"),
        ("half \ud800 é", "\ud800 É"),
        ("\x7f", "\x7f"),
        ("a/b", "a/b"),
        ("x'; DROP TABLE items; --", "'; drop table"),
    ],
)
async def test_what_was_said_is_found(session: PGSession, said: str, sought: str) -> None:
    """Whatever the case and the characters: the items that say it are found, and no others."""
    await session.add_items([user("something else"), user(said), call("c", arguments=json.dumps({"q": "other"}))])

    [found] = await session.find(sought)
    assert (found.position, found.item) == (2, user(said))


@pytest.mark.parametrize(
    "sought", ["%", "_x", "!", "content", "call_id", "\\", "\\n", '{"', '":"', "lo_up", "l%p", "\n"]
)
async def test_what_nobody_said_is_not_found(session: PGSession, sought: str) -> None:
    """Wildcards stand for themselves; keys and the punctuation of JSON are nobody's words."""
    await session.add_items([user("Hi"), call("c")])

    assert await session.find(sought) == []


async def test_found_items_come_newest_first(session: PGSession) -> None:
    """At most *limit*, wherever in an item it is said; popped ones are gone."""
    await session.add_items([user(f"Rome {number}") for number in range(5)])
    await session.add_items([item(role="user", content=[{"type": "input_text", "text": {"deep": ["in ROME"]}}])])
    await session.add_items([user("Rome, popped")])
    await session.pop_item()

    assert [found.position for found in await session.find("rome")] == [6, 5, 4, 3, 2, 1]
    assert [found.position for found in await session.find("rome", limit=2)] == [6, 5]
    for nothing in ("", None, 5):
        with pytest.raises(ValueError, match="text must be"):
            await session.find(nothing)  # type: ignore[arg-type]


async def test_usage_of_a_session_nobody_used(session: PGSession) -> None:
    """Nothing spent is zeros, with or without a session."""
    nothing = await session.usage()
    await session.add_items([user("Hi")])

    assert nothing == await session.usage()
    assert (nothing.runs, nothing.total_tokens, nothing.turns) == (0, 0, ())


async def test_a_turn_that_was_taken_back_has_cost_what_it_cost(session: PGSession) -> None:
    """Edit and regenerate: popping a turn refunds no tokens; both tries are the turn's."""
    for _ in range(2):
        await Runner.run(scripted(says("Hello")), "Hi", session=session, run_config=QUIET)
        await session.pop_item()
        await session.pop_item()

    usage = await session.usage()
    assert [(turn.turn, turn.runs, turn.input_tokens) for turn in usage.turns] == [(1, 2, 20)]
    assert (usage.requests, (await session.info()).input_tokens) == (2, 20)


async def test_an_ended_session_lives_again_with_an_append(session: PGSession) -> None:
    """`end` says how it ended; whoever appends afterwards makes it active."""
    with pytest.raises(SessionNotFound):
        await session.end()
    await session.add_items([user("Hi")])
    await session.end("resolved")
    ended = await session.info()
    await session.end()
    again = await session.info()
    await session.add_items([user("One more thing")])

    alive = await session.info()
    told = [event.payload for event in await session.events.list(kind="session_ended")]
    assert (ended.status, again.status, alive.status) == ("resolved", "ended", "active")
    assert ended.ended_at is not None
    assert alive.ended_at is None
    assert told == [{"status": "resolved"}, {"status": "ended"}]
    for status in ("", "a\0", None):
        with pytest.raises(ValueError, match="status must"):
            await session.end(status)  # type: ignore[arg-type]


async def conversation(session: PGSession) -> None:
    """Three turns; the second one's call is answered in the third."""
    await session.add_items([user("1"), assistant("1")])
    await session.snapshots.save("summary", "one")
    await session.add_items([user("2"), call("c1"), call("c2"), output("c2")])
    await session.add_items([user("3"), output("c1", "An error occurred while running the tool. Please try again.")])
    await session.snapshots.save("summary", "one to three")


async def test_a_fork_is_a_copy_with_lineage(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Items, tool runs and summaries up to the cut, labels, and where it came from; what was spent stays behind."""
    name = new_id()
    session = store.session(name, tenant="t", agent="A", user_id="ada", metadata={"n": 1})
    await conversation(session)
    await Runner.run(scripted(says("4")), "4", session=session, run_config=QUIET)
    fork = await session.fork(new_id(), before_turn=3)

    info = await fork.info()
    tools = list(await fork.tool_runs.list())
    summary = await fork.snapshots.latest("summary")
    assert fork.tenant == "t"
    assert await fork.get_items() == (await session.get_items())[:6]
    assert (info.forked_from, info.forked_through, info.status) == (name, 6, "active")
    assert (info.user_id, dict(info.metadata)) == ("ada", {"n": 1})
    assert (info.turn_count, info.item_count, info.last_position, info.input_tokens) == (2, 6, 6, 0)
    assert [(tool.call_id, tool.status, tool.output_position, tool.error) for tool in tools] == [
        ("c2", "succeeded", 6, None),
        ("c1", "running", None, None),
    ]
    assert (info.tool_run_count, info.tool_error_count) == (2, 0)
    assert summary is not None
    assert (summary.version, summary.content) == (1, "one")
    [event] = await fork.events.list()
    assert (event.kind, event.payload) == (
        "session_forked",
        {"from": name, "through_position": 6, "before_turn": 3},
    )
    assert len(await fork.runs.list()) == 0


async def test_a_fork_goes_its_own_way(session: PGSession, new_id: Callable[[], str]) -> None:
    """What is done to one is not done to the other."""
    await conversation(session)
    before = await session.get_items()
    fork = await session.fork(new_id(), before_turn=2)
    await fork.add_items([user("2, better")])
    edited = await fork.get_items()
    await session.clear_session()

    assert edited == [*before[:2], user("2, better")]
    assert await fork.get_items() == edited
    assert [turn.number for turn in await fork.turns()] == [1, 2]
    assert (await session.info()).item_count == 0


@pytest.mark.parametrize(("before_turn", "count"), [(None, 8), (0, 0), (1, 0), (2, 2), (99, 8)])
async def test_a_fork_ends_before_a_turn(
    session: PGSession, new_id: Callable[[], str], before_turn: int | None, count: int
) -> None:
    """Without a cut it is a whole copy; before the first turn it is empty, and can be written to."""
    await conversation(session)
    fork = await session.fork(new_id(), before_turn=before_turn)
    assert len(await fork.get_items()) == count
    await fork.add_items([user("next")])

    assert len(await fork.get_items()) == count + 1


async def test_a_fork_needs_a_source_and_a_free_id(
    store: SessionStore, session: PGSession, new_id: Callable[[], str]
) -> None:
    """A taken id, itself, an id that cannot be stored, or nothing to copy: each is refused, and nothing changes."""
    name = new_id()
    with pytest.raises(SessionNotFound):
        await session.fork(name)
    assert await store.session(name).get_items() == []
    await session.add_items([user("1")])
    taken = store.session(name)
    await taken.add_items([user("mine")])
    for other in (name, session.session_id):
        with pytest.raises(SessionConflict, match="there already"):
            await session.fork(other)
    for bad in ("", "a\0", "x" * 513):
        with pytest.raises(ValueError, match="session_id must"):
            await session.fork(bad)

    assert await taken.get_items() == [user("mine")]
    assert (await session.info()).event_count == 0


async def test_ten_forks_into_one_id_are_one(store: SessionStore, new_id: Callable[[], str]) -> None:
    """One wins, and the others are told."""
    session, name = store.session(new_id()), new_id()
    await session.add_items([user("1")])
    answers = await asyncio.gather(*(session.fork(name) for _ in range(10)), return_exceptions=True)

    assert sorted(type(answer).__name__ for answer in answers) == ["PGSession"] + ["SessionConflict"] * 9
    assert await store.session(name).get_items() == [user("1")]


async def test_a_fork_keeps_the_handles_settings(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Window and limit of the handle are its fork's too."""
    session = store.session(new_id(), window=Window(turns=1), session_settings=SessionSettings(limit=3))
    await conversation(session)
    fork = await session.fork(new_id())

    assert await fork.get_items() == await session.get_items()
    assert fork.session_settings == SessionSettings(limit=3)


async def rows_of(store: SessionStore, session_id: str) -> dict[str, int]:
    """Count what each table holds of a session, past the library."""
    schema = "agents." if store.engine.dialect.name == "postgresql" else ""
    async with store.engine.connect() as connection:
        return {
            table: (
                await connection.execute(
                    text(f"SELECT count(*) FROM {schema}{table} WHERE session_id = :id"), {"id": session_id}
                )
            ).scalar_one()
            for table in TABLES
        }


async def test_a_deleted_session_leaves_nothing(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Every table forgets it; a session of that name with another tenant stays."""
    name = new_id()
    session, other = store.session(name, tenant="a"), store.session(name, tenant="b")
    agent = scripted(calls("weather", "c1", city="Rome"), says("Sunny"))
    for each in (session, other):
        agent = scripted(calls("weather", "c1", city="Rome"), says("Sunny"))
        await Runner.run(agent, "Weather?", session=each, run_config=QUIET)
        await each.snapshots.save("summary", "x")
    before = await rows_of(store, name)
    kept = (await other.info(), await other.get_items())
    answers = [await session.delete(), await session.delete()]

    assert answers == [True, False]
    assert before == {table: (8 if table == "items" else 4 if table == "events" else 2) for table in TABLES}
    assert await rows_of(store, name) == {table: count // 2 for table, count in before.items()}
    assert (await other.info(), await other.get_items()) == kept
    with pytest.raises(SessionNotFound):
        await session.info()


async def test_a_deleted_session_begins_anew(session: PGSession) -> None:
    """Its name is free: positions, turns and events count from 1 again."""
    await session.add_items([user("1"), call("c1")])
    await session.delete()
    await session.add_items([user("2")])
    await session.add_items([output("c1")])

    info = await session.info()
    assert (info.last_position, info.turn_count, info.tool_run_count, info.event_count) == (2, 1, 0, 0)


# -- one at a time


async def test_one_holder_at_a_time(store: SessionStore, new_id: Callable[[], str]) -> None:
    """The second one waits for the first to leave, and then has it; inside the block it may append."""
    name, order = new_id(), list[str]()
    inside, leave = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with store.session(name).exclusive() as session:
            inside.set()
            await leave.wait()
            await session.add_items([user("first")])
            order.append("first")

    async def second() -> None:
        async with store.session(name).exclusive() as session:
            order.append("second")
            await session.add_items([user("second")])

    tasks = [asyncio.create_task(first())]
    await inside.wait()
    tasks.append(asyncio.create_task(second()))
    with pytest.raises(SessionConflict, match="run by somebody else"):
        async with store.session(name).exclusive(wait=0):
            raise AssertionError
    leave.set()
    await asyncio.gather(*tasks)

    assert order == ["first", "second"]
    assert await store.session(name).get_items() == [user("first"), user("second")]


async def test_holders_take_turns(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Eight that read, think and append lose no update: each sees what the one before it wrote."""
    name = new_id()

    async def count_up() -> None:
        async with store.session(name).exclusive() as session:
            number = len(await session.get_items())
            await asyncio.sleep(0)
            await session.add_items([user(str(number))])

    await asyncio.gather(*(count_up() for _ in range(8)))

    assert await store.session(name).get_items() == [user(str(number)) for number in range(8)]


async def test_the_lease_is_given_back(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Also when the block raises; the error comes out as it is."""
    session, other = store.session(name := new_id()), store.session(name)
    with pytest.raises(LookupError, match="mine"):
        async with session.exclusive():
            raise LookupError("mine")
    async with other.exclusive(wait=0):
        pass
    async with session.exclusive(wait=0):
        await session.add_items([user("Hi")])
    await other.add_items([user("Ho")])

    assert await session.get_items() == [user("Hi"), user("Ho")]


async def test_a_lease_keeps_apart_only_those_who_ask(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Whoever does not ask for the lease is not held up by it, and another session's is another lease."""
    name = new_id()
    async with store.session(name).exclusive(wait=0):
        await store.session(name).add_items([user("Hi")])
        async with store.session(new_id()).exclusive(wait=0), store.session(name, tenant="t").exclusive(wait=0):
            pass

    assert await store.session(name).get_items() == [user("Hi")]


async def dead_holder(session: PGSession) -> Exclusive[PGSession]:
    """Take the lease for a moment, and die: nothing beats, nothing is given back."""
    lease = session.exclusive(lease_for=0.02)
    await lease.__aenter__()
    assert lease._heart is not None
    lease._heart.cancel()
    await asyncio.wait([lease._heart])
    return lease


async def test_the_lease_of_a_dead_holder_ends(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Nobody has to release it: it runs out, and the next one has it. The dead one cannot append any more."""
    name = new_id()
    dead = store.session(name)
    await dead_holder(dead)
    async with store.session(name).exclusive() as session:
        await session.add_items([user("next")])
        with pytest.raises(SessionConflict, match="ran out"):
            await dead.add_items([user("ghost")])

    assert await session.get_items() == [user("next")]


async def test_a_holder_that_lost_its_lease_hears_of_it(store: SessionStore, new_id: Callable[[], str]) -> None:
    """The heartbeat finds out; appends raise, and so does the end of the block. The new holder keeps its lease."""
    name = new_id()
    schema = "agents." if store.engine.dialect.name == "postgresql" else ""
    holder, thief = store.session(name), store.session(name)
    lease, theirs = holder.exclusive(lease_for=0.2), thief.exclusive()
    await lease.__aenter__()
    async with store.engine.begin() as connection:  # as if the holder's process had stood still
        sql = text(f"UPDATE {schema}sessions SET lease_until = created_at, lease_id = NULL WHERE session_id = :id")
        await connection.execute(sql, {"id": name})
    await theirs.__aenter__()
    assert lease._heart is not None
    await asyncio.wait([lease._heart])

    with pytest.raises(SessionConflict, match="ran out"):
        await holder.add_items([user("ghost")])
    with pytest.raises(SessionConflict, match="lease was lost"):
        await lease.__aexit__(None, None, None)
    await thief.add_items([user("mine")])
    await theirs.__aexit__(None, None, None)
    assert await holder.get_items() == [user("mine")]


async def test_a_heartbeat_keeps_the_lease(store: SessionStore, new_id: Callable[[], str]) -> None:
    """While its holder lives, a lease is taken for longer again and again."""
    name = new_id()
    schema = "agents." if store.engine.dialect.name == "postgresql" else ""
    sql = text(f"SELECT lease_until FROM {schema}sessions WHERE session_id = :id")

    async def lease_until() -> Any:
        async with store.engine.connect() as connection:
            return (await connection.execute(sql, {"id": name})).scalar_one()

    async with store.session(name).exclusive(lease_for=0.3) as session:
        first = await lease_until()
        while (second := await lease_until()) == first:
            await asyncio.sleep(0.01)
        await session.add_items([user("Hi")])

    assert second > first
    assert await lease_until() is None


async def test_who_is_cancelled_while_waiting_holds_nothing(store: SessionStore, new_id: Callable[[], str]) -> None:
    """A waiter that gives up leaves no lease behind."""
    name = new_id()

    async def wait_for_it() -> None:
        async with store.session(name).exclusive():
            raise AssertionError

    async with store.session(name).exclusive():
        waiter = asyncio.create_task(wait_for_it())
        await asyncio.sleep(0.01)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    async with store.session(name).exclusive(wait=0) as session:
        await session.add_items([user("Hi")])

    assert await session.get_items() == [user("Hi")]


@pytest.mark.parametrize(
    "options", [{"wait": -1}, {"lease_for": 0}, {"lease_for": float("nan")}, {"wait": float("nan")}]
)
async def test_a_lease_needs_sensible_seconds(session: PGSession, options: dict[str, float]) -> None:
    """No negative waiting, no lease for no time."""
    with pytest.raises(ValueError, match="must be"):
        session.exclusive(**options)


# -- unchanged since


@pytest.mark.parametrize("change", ["append", "pop", "clear", "replace"])
async def test_an_append_to_what_somebody_changed_is_refused(
    store: SessionStore, new_id: Callable[[], str], change: str
) -> None:
    """Whatever another writer did to the items since this handle read them; after reading again it goes on."""
    name = new_id()
    careful, other = store.session(name, expect="unchanged"), store.session(name)
    await other.add_items([user("1"), user("2")])
    await careful.get_items()
    changes: dict[str, Callable[[], Awaitable[Any]]] = {
        "append": lambda: other.add_items([user("3")]),
        "pop": other.pop_item,
        "clear": other.clear_session,
        "replace": lambda: other._atomic_replace_items([user("short"), user("er")]),
    }
    await changes[change]()
    now = await other.get_items()
    for _ in range(2):
        with pytest.raises(SessionConflict, match="another writer came first"):
            await careful.add_items([user("mine")])
    unchanged = await other.get_items()
    await careful.get_items()
    await careful.add_items([user("mine")])

    assert unchanged == now
    assert await other.get_items() == [*now, user("mine")]


async def test_own_changes_are_no_surprise(store: SessionStore, new_id: Callable[[], str]) -> None:
    """A handle may append, pop, clear, compact and restore as it likes; events and snapshots of others are no items."""
    name = new_id()
    session, other = store.session(name, expect="unchanged"), store.session(name)
    assert await session.get_items() == []
    await session.add_items([user("1"), user("2")])
    await session.pop_item()
    await session.add_items([user("3")])
    await other.events.record("mine")
    await other.snapshots.save("summary", "x")
    await session._atomic_replace_items([user("short")])
    await session.add_items([user("4")])
    await session.restore(1)
    await session.add_items([user("5")])
    await session.clear_session()
    await session.pop_item()
    await session.add_items([user("6")])

    assert await session.get_items() == [user("6")]


async def test_the_first_writer_of_a_new_session_wins(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Two that both found nothing: one begins the conversation, the other is told."""
    name = new_id()
    handles = [store.session(name, expect="unchanged") for _ in range(5)]
    for handle in handles:
        assert await handle.get_items() == []
    answers = await asyncio.gather(
        *(handle.add_items([user(str(number))]) for number, handle in enumerate(handles)), return_exceptions=True
    )

    assert sorted(type(answer).__name__ for answer in answers) == ["NoneType"] + ["SessionConflict"] * 4
    assert len(await store.session(name).get_items()) == 1


async def test_parallel_appends_of_one_handle_are_no_conflict(store: SessionStore, new_id: Callable[[], str]) -> None:
    """A handle does not compete with itself."""
    session = store.session(new_id(), expect="unchanged")
    await session.get_items()
    await asyncio.gather(*(session.add_items([user(str(number))]) for number in range(10)))

    assert len(await session.get_items()) == 10


@pytest.mark.parametrize("window", [Window(items=1), Window(turns=1), Window(summary="summary")])
async def test_reading_through_a_window_is_reading(
    store: SessionStore, new_id: Callable[[], str], window: Window
) -> None:
    """What counts is how far the session had come, not how much of it was shown."""
    name = new_id()
    careful, other = store.session(name, expect="unchanged", window=window), store.session(name)
    await other.add_items([user("1"), user("2")])
    await careful.get_items()
    await careful.add_items([user("3")])
    await other.add_items([user("4")])

    with pytest.raises(SessionConflict):
        await careful.add_items([user("5")])


async def test_a_run_on_what_somebody_changed_is_stopped(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Two runs at once on one session: the one that comes second hears of it, instead of answering past the first."""
    name = new_id()
    careful = store.session(name, expect="unchanged")
    await careful.get_items()
    await Runner.run(scripted(says("First")), "1", session=careful, run_config=QUIET)
    slow = scripted(calls("weather", "c1", city="Rome"), says("Second"))
    run = Runner.run_streamed(slow, "2", session=careful, run_config=QUIET)

    async def watch() -> None:
        async for event in run.stream_events():
            if event.type == "run_item_stream_event" and event.name == "tool_called":
                await store.session(name).add_items([user("in between")])

    with pytest.raises(SessionConflict):
        await watch()

    assert user("in between") in await careful.get_items()


def test_there_is_one_expectation(store: SessionStore) -> None:
    """Anything but "unchanged" is a mistake."""
    with pytest.raises(ValueError, match="expect must be"):
        store.session("x", expect="changed")  # type: ignore[arg-type]


async def test_a_stored_item_says_its_text(session: PGSession) -> None:
    """A message's parts are joined, an output says its answer, and what is no text is empty."""
    parts = [{"type": "output_text", "text": "Hel"}, {"type": "refusal"}, {"type": "output_text", "text": "lo"}]
    await session.add_items(
        [user("Hi"), item(role="assistant", content=parts), output("c1", "42"), item(type="x", n=1)]
    )

    [turn] = await session.turns()
    assert [each.text for each in turn.items] == ["Hi", "Hello", "42", ""]


async def test_a_handle_runs_alone_once(session: PGSession) -> None:
    """A block within the block does not wait for itself."""
    async with session.exclusive():
        with pytest.raises(SessionConflict, match="runs it alone already"):
            async with session.exclusive():
                pass
