"""Importing again: what is complete is skipped, what has grown is continued, what went on here too is left alone."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agents_pg_session import SessionStore
from agents_pg_session.operations import sdk_import
from agents_pg_session.operations.sdk_import import SDKImport, import_sdk
from agents_pg_session.operations.sdk_target import Target
from agents_pg_session.passages import Passage
from tests.items import assistant, call, output, user
from tests.operations.sdk_sources import KINDS, Source, converse, record

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


@pytest.mark.parametrize(("backend", "source"), [*zip(("sqlite", "asyncpg") * 2, KINDS, strict=True)], indirect=True)
async def test_running_it_again_brings_what_is_new(
    store: SessionStore, source: Source, new_id: Callable[[], str]
) -> None:
    """A second import skips what is complete, continues what has grown in the source, and answers its open calls."""
    grown, complete = new_id(), new_id()
    await source.add(grown, [user("hi"), call("late", "look")])
    await source.add(complete, [user("nothing more")])
    first = await import_sdk(store, **source.options)
    await source.add(grown, [output("late"), assistant("there")], [user("and now?")])
    second = await import_sdk(store, **source.options)
    third = await import_sdk(store, **source.options)

    session = store.session(grown)
    assert await session.get_items() == await source.items(grown)
    assert [(each.status, each.output_position) for each in await session.tool_runs.list()] == [("succeeded", 3)]
    assert (await session.info()).turn_count == 2
    assert (first.sessions, second.continued, second.skipped, third.skipped) == (2, 1, 1, 2)
    assert (second.items, third.items) == (3, 0)


@ON_BOTH
async def test_what_is_no_turn_is_no_activity(store: SessionStore, source: Source, new_id: Callable[[], str]) -> None:
    """A later import changes of a session what has changed: without another turn, it was last active when it was."""
    session_id = new_id()
    await source.add(session_id, [user("hi")], [user("and?")])
    await source.write("UPDATE {sessions} SET created_at = '2025-01-01 00:00:00'")
    await import_sdk(store, **source.options, user_from="^.")
    before = await store.session(session_id).info()
    await source.add(session_id, [assistant("hello")])
    await import_sdk(store, **source.options)
    after = await store.session(session_id).info()

    assert (after.active_at, after.created_at, after.user_id) == (before.active_at, before.created_at, session_id[0])
    assert after.item_count == before.item_count + 1
    assert after.updated_at >= before.updated_at


@ON_BOTH
async def test_what_went_on_on_both_sides_is_left_alone(
    store: SessionStore, source: Source, new_id: Callable[[], str]
) -> None:
    """A session that both sides wrote to since, one that changed behind us, and one we had already: none is touched."""
    both, popped, ours, fine = ids = [new_id() for _ in range(4)]
    for session_id in ids:
        await source.add(session_id, [user("hi"), assistant("hello")])
    await store.session(ours).add_items([user("mine")])
    await import_sdk(store, **source.options)
    for session_id in (both, fine):
        await store.session(session_id).add_items([user("here")])
    async with source.session(popped) as session:
        await session.pop_item()
    for session_id in (both, popped):
        await source.add(session_id, [user("there")])
    before = {each: await record(store.session(each)) for each in ids}
    report = await import_sdk(store, **source.options)

    assert {each: await record(store.session(each)) for each in ids} == before
    assert {each.session_id: each.reason.partition(" ")[0] for each in report.conflicts} == {
        both: "it",
        popped: "what",
        ours: "a",
    }
    assert (report.conflict_count, report.skipped, report.complete) == (3, 1, False)


@ON_BOTH
async def test_the_same_id_from_another_database_is_no_continuation(
    store: SessionStore, tmp_path: Path, sdk_database: str, new_id: Callable[[], str]
) -> None:
    """Two sources with a session of one name, and rows of the same ids: the second is a conflict, not a duplicate."""
    session_id = new_id()
    one, other = (Source.of(KINDS[2], tmp_path, sdk_database) for _ in range(2))
    for each in (one, other):
        await each.add(session_id, [user("hi")])
    await other.write("UPDATE {sessions} SET created_at = '2024-02-29 12:00:00'")
    await import_sdk(store, **one.options)
    report = await import_sdk(store, **other.options)

    assert [each.session_id for each in report.conflicts] == [session_id]


@pytest.mark.parametrize(("backend", "source"), [("sqlite", KINDS[0]), ("asyncpg", KINDS[3])], indirect=True)
async def test_a_dry_run_says_the_same_and_writes_nothing(
    store: SessionStore, source: Source, new_id: Callable[[], str]
) -> None:
    """A dry run reports what the import then does, conflicts too, and leaves no row behind."""
    ids = [new_id() for _ in range(3)]
    for session_id in ids:
        async with source.session(session_id) as session:
            await converse(session)
    await store.session(ids[0]).add_items([user("ours")])
    dry = await import_sdk(store, **source.options, dry_run=True)
    assert await store.session(ids[1]).get_items() == []
    wet = await import_sdk(store, **source.options)

    assert (dry.dry_run, wet.dry_run) == (True, False)
    wet.dry_run = True
    assert dry == wet


@ON_BOTH
async def test_what_is_chosen(store: SessionStore, source: Source, new_id: Callable[[], str]) -> None:
    """One session, those changed since a time, another tenant, and users found in the ids: only what was asked for."""
    old, new = f"u-7:{new_id()}", f"u-8:{new_id()}"
    for session_id in (old, new):
        await source.add(session_id, [user("hi")])
    await source.write("UPDATE {sessions} SET updated_at = '2024-01-01' WHERE session_id = $1", old)
    recent = await import_sdk(store, **source.options, since=timedelta(days=1), tenant="acme", user_from="^u-([0-9]+)")
    one = await import_sdk(store, **source.options, session_id=old, user_from="^u-[0-9]+")

    page = await store.sessions(tenant="acme")
    assert new in [each.session_id for each in page]
    assert old not in [each.session_id for each in page]
    assert (await store.session(new, tenant="acme").info()).user_id == "8"
    assert (await store.session(old).info()).user_id == "u-7"
    assert (recent.sessions, one.sessions) == (1, 1)


@ON_BOTH
async def test_two_imports_at_once(
    backend: Any, store: SessionStore, source: Source, new_id: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two imports of the same tables at the same time bring each session once, whole."""
    monkeypatch.setattr(sdk_import, "PAGE_ROWS", 4)
    ids = [new_id() for _ in range(5)]
    for session_id in ids:
        await source.add(session_id, [user("hi"), assistant("hello")], [user("more")])
    async with SessionStore.open(backend.url) as other:
        reports = await asyncio.gather(*(import_sdk(each, **source.options) for each in (store, other)))

    assert sum(each.sessions for each in reports) == len(ids)
    assert sum(each.skipped for each in reports) == len(ids)
    for session_id in ids:
        assert await store.session(session_id).get_items() == await source.items(session_id)


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"], indirect=True)
async def test_who_writes_first_has_the_session(
    store: SessionStore, source: Source, new_id: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that somebody begins here while it is about to be imported is theirs, and a conflict."""
    session_id = new_id()
    await source.add(session_id, [user("hi")])
    states, looks = Target.states, itertools.count(1)

    async def then_written(self: Target, passage: Passage, names: Sequence[str], *, lock: bool) -> Any:
        found = await states(self, passage, names, lock=lock)
        if next(looks) == 1:
            await store.session(session_id).add_items([user("mine")])
        return found

    monkeypatch.setattr(Target, "states", then_written)
    report = await import_sdk(store, **source.options)

    assert (report.sessions, report.conflict_count) == (0, 1)
    assert await store.session(session_id).get_items() == [user("mine")]


@ON_BOTH
async def test_a_reserved_name_is_taken_over(store: SessionStore, source: Source, new_id: Callable[[], str]) -> None:
    """A session that holds nothing yet but somebody's lease is filled, with the times of the source."""
    session_id = new_id()
    await source.add(session_id, [user("hi")])
    await source.write("UPDATE {sessions} SET created_at = '2025-01-01 00:00:00'")
    async with store.session(session_id).exclusive():
        report = await import_sdk(store, **source.options)

    info = await store.session(session_id).info()
    assert (report.sessions, info.item_count, info.created_at.year) == (1, 1, 2025)


@ON_BOTH
async def test_the_sdk_goes_on_writing_meanwhile(
    store: SessionStore, source: Source, new_id: Callable[[], str]
) -> None:
    """Sessions that the SDK feeds during an import are complete after the next one."""
    ids = [new_id() for _ in range(3)]
    for session_id in ids:
        await source.add(session_id, [user("hi")])
    done = asyncio.Event()

    async def feed() -> None:
        number = 0
        while not done.is_set():
            for session_id in ids:
                await source.add(session_id, [user(f"{number}"), assistant("yes")])
            number += 1

    feeding = asyncio.create_task(feed())
    for _ in range(3):
        assert (await import_sdk(store, **source.options)).complete
    done.set()
    await feeding
    last = await import_sdk(store, **source.options)

    assert (last.conflicts, last.sessions) == ([], 0)
    for session_id in ids:
        assert await store.session(session_id).get_items() == await source.items(session_id)


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
async def test_an_id_that_cannot_be_ours_is_reported(store: SessionStore, source: Source) -> None:
    """A session whose id no key column of ours can hold is left out, and the report says which and why."""
    await source.add("x" * 600, [user("hi")])
    await source.add("fine", [user("hi")])
    report = await import_sdk(store, **source.options)

    assert [(each.session_id, each.reason) for each in report.conflicts] == [
        ("x" * 600, "its id must be at most 512 bytes of UTF-8, not 600")
    ]
    assert report.sessions == 1


def test_reports_add_up() -> None:
    """The report of a whole import counts what its parts counted, and names no more than it promises."""
    one = SDKImport(sessions=1, items=5, conflicts=[sdk_import.Conflict("a", "why")], conflict_count=1)
    one.add(SDKImport(sessions=2, items=7, calls=[sdk_import.Orphan("a", "c")] * 20, orphan_calls=20))

    assert (one.sessions, one.items, one.conflict_count, one.orphan_calls, len(one.calls)) == (3, 12, 1, 20, 10)
