"""Calls without outputs and outputs without calls: which of them hurt now, and answering what nobody will."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from agents import Runner
from hypothesis import HealthCheck, given, settings

from agents_pg_session import PGSession, SessionConflict, SessionNotFound, SessionStore, SnapshotNotFound
from agents_pg_session.operations.doctor import examine
from agents_pg_session.operations.doctor.answers import INTERRUPTED
from agents_pg_session.windows import whole
from tests.acceptance.agents_for_tests import QUIET, heard, says, scripted
from tests.contract.test_recount import STEPS, items_of, spend, started_at
from tests.items import assistant, call, item, output, user
from tests.operations.ailing import by_hand, found, mended, new_tenant

pytestmark = pytest.mark.parametrize("backend", ["sqlite", "asyncpg"], indirect=True)

QUIET_SINCE = "UPDATE {}sessions SET updated_at = '2020-01-01 00:00:00.000'"


async def orphaned(store: SessionStore, *batches: list[Any]) -> PGSession:
    """A session of these appends that nobody has written to for long."""
    session = store.session("s", tenant=new_tenant())
    for batch in batches:
        await session.add_items(batch)
    await by_hand(store, session.tenant, QUIET_SINCE)
    return session


async def told(store: SessionStore, session: PGSession) -> list[tuple[str, list[int | None]]]:
    """What is said of a session, with the positions."""
    findings = (await found(store, session.tenant)).findings
    assert {each.examination for each in findings} <= {"orphans"}
    return [(each.severity, [place.position for place in each.places]) for each in findings]


async def test_an_output_without_a_call_bricks_its_session(store: SessionStore) -> None:
    """An output that answers no call is a fault wherever it stands: the Runner does send it with the next request."""
    session = await orphaned(store, [user("a"), output("gone"), assistant("b")], [user("c"), assistant("d")])
    agent = scripted(says("e"))

    assert await told(store, session) == [("fault", [2])]
    await Runner.run(agent, "f", session=session, run_config=QUIET)
    assert output("gone") in heard(agent)


async def test_a_call_that_nobody_will_answer_is_left_out_of_the_next_request(store: SessionStore) -> None:
    """A call without output in the last turn of a quiet session is a warning: the Runner leaves it out."""
    session = await orphaned(store, [user("a"), call("c1")])
    agent = scripted(says("b"))

    assert await told(store, session) == [("warning", [2])]
    await Runner.run(agent, "c", session=session, run_config=QUIET)
    assert [each.get("type", "message") for each in heard(agent)] == ["message", "message"]
    assert await told(store, session) == [("note", [2])], "later turns have followed"


async def test_a_call_that_somebody_may_answer_is_no_orphan(store: SessionStore) -> None:
    """A tool at work, a run that waits for an approval and a paused run are no findings."""
    at_work = store.session("s", tenant=new_tenant())
    await at_work.add_items([user("a"), call("c1")])
    waiting = await orphaned(store, [user("a"), call("c1")])
    await by_hand(store, waiting.tenant, "UPDATE {}sessions SET status = 'waiting'")
    paused = await orphaned(store, [user("a"), call("c1")])
    await paused.snapshots.save("state", {})
    await by_hand(store, paused.tenant, "UPDATE {}snapshots SET kind = 'run_state'", QUIET_SINCE)

    assert await told(store, at_work) == []
    assert [each.examination for each in (await found(store, waiting.tenant)).findings] == ["waiting"]
    assert await told(store, paused) == []


async def test_answering_is_asked_for_by_name(store: SessionStore) -> None:
    """Repair answers an orphan call only when told to; then the model hears that the tool was interrupted."""
    session = await orphaned(
        store,
        [user("a"), call("c1", "pay"), item(type="custom_tool_call", call_id="c2", name="grep", input="x")],
        [item(type="shell_call", call_id="c3", action={"commands": ["ls"]}), call("c4")],
        [output("c4")],
    )
    await session.end()
    await by_hand(store, session.tenant, QUIET_SINCE)
    agent = scripted(says("b"))

    assert await mended(store, session.tenant) == []
    assert len((await mended(store, session.tenant, "orphans", dry_run=True))[0].changes) == 3
    [done] = await mended(store, session.tenant, "orphans")
    items = (await session.get_items())[-3:]
    info, runs = await session.info(), await session.tool_runs.list()

    assert [each.what for each in done.changes] == [
        "function_call at 2", "custom_tool_call at 3", "shell_call at 4",
    ]  # fmt: skip
    assert items[0] == output("c1", INTERRUPTED)
    assert whole(items) == []
    assert [(each.call_id, each.status) for each in runs] == [
        ("c4", "succeeded"), ("c3", "failed"), ("c2", "failed"), ("c1", "failed"),
    ]  # fmt: skip
    assert (info.status, info.tool_error_count, info.item_count) == ("ended", 3, 9)
    assert [event.kind for event in await session.events.list()][-1] == "repaired"
    assert await mended(store, session.tenant, "orphans") == []
    assert await told(store, session) == []
    await Runner.run(agent, "c", session=session, run_config=QUIET)
    assert output("c1", INTERRUPTED) in heard(agent)


async def test_what_was_answered_meanwhile_is_not_answered_again(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a worker answers between the look and the append, the repair appends nothing."""
    from agents_pg_session.operations.doctor import answers

    session = await orphaned(store, [user("a"), call("c1")])
    append = answers._append

    async def overtaken(*arguments: Any) -> bool:
        await session.add_items([output("c1", "late, but there")])
        return await append(*arguments)

    monkeypatch.setattr(answers, "_append", overtaken)

    assert await mended(store, session.tenant, "orphans") == []
    assert [each.get("output") for each in await session.get_items()][2:] == ["late, but there"]


@pytest.mark.parametrize(
    "batches",
    [
        # The record has the output answer the newest call of that id; a window, the newest of its type.
        [[user("a"), call("c1")], [item(type="shell_call", call_id="c1", action={})], [output("c1")]],
        # In a window the two ways to patch are one; in the record of one append they are not.
        [
            [
                user("a"),
                item(type="custom_tool_call", call_id="c1", name="grep", input="x"),
                item(type="apply_patch_call_output", call_id="c1", status="completed", output=""),
            ]
        ],
    ],
    ids=["ids used again", "two ways to patch"],
)
async def test_the_record_may_pair_otherwise_than_a_window(store: SessionStore, batches: list[list[Any]]) -> None:
    """Where the rules of the record leave a call running that a window sees answered, that is no fault."""
    session = store.session("s", tenant=new_tenant())
    for batch in batches:
        await session.add_items(batch)

    assert "running" in [each.status for each in await session.tool_runs.list()]
    assert (await found(store, session.tenant, only=["tool_runs"])).findings == ()
    assert await mended(store, session.tenant) == []


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_no_history_is_ill(steps: list[tuple[Any, ...]], store: SessionStore, new_id: Callable[[], str]) -> None:
    """Whatever verbs a session has lived through: its orphans are found, each one, and nothing else; no repair."""
    sessions = await lived(store.session(new_id(), tenant=new_tenant()), steps, new_id)
    tenant = sessions[0].tenant

    diagnosis = await examine(store, tenant=tenant, only=["counters", "orphans", "items", "tool_runs", "leases",
                                                          "claims", "expired", "waiting"])  # fmt: skip
    outputs = {
        (each.session_id, stored.position)
        for each in sessions
        for turn in await each.turns()
        for stored in turn.items
        if str(stored.item.get("type")).endswith(("_output", "_response"))
        and stored.item not in whole([other.item for turn in await each.turns() for other in turn.items])
    }
    faults = [each for each in diagnosis.findings if each.severity == "fault"]
    named = {(place.session_id, place.position) for each in faults for place in each.places}

    assert {(each.examination, each.severity) for each in diagnosis.findings} <= {
        ("orphans", "fault"), ("orphans", "note"),
    }  # fmt: skip
    assert outputs <= named or sum(each.count for each in faults) > 5
    assert await mended(store, tenant) == []


async def lived(session: PGSession, steps: list[tuple[Any, ...]], new_id: Callable[[], str]) -> list[PGSession]:
    """Live through the steps of the recount; return every session there is then."""
    sessions, wrappers = [session], [started_at(number * 100) for number in range(3)]
    for step, *details in steps:
        try:
            match step:
                case "add":
                    batch, run, tokens = details
                    wrapper = None if run is None else wrappers[run]
                    await session.add_items(items_of(batch), wrapper=wrapper)
                    if wrapper is not None:
                        spend(wrapper, tokens)
                case "pop":
                    await session.pop_item()
                case "clear":
                    await session.clear_session()
                case "fork":
                    session = await session.fork(new_id(), before_turn=details[0])
                    sessions.append(session)
                case "replace":
                    await session._atomic_replace_items(items_of(details[0]))
                case "compact":
                    limit, start, batch = details
                    snapshot = await session._get_compaction_snapshot(limit)
                    assert snapshot is not None
                    if start < len(snapshot.items):
                        await snapshot.replace_suffix(start, items_of(batch))
                case "restore":
                    await session.restore(details[0])
        except (SessionConflict, SessionNotFound, SnapshotNotFound):
            continue
    return sessions


async def test_repair_beside_writers(store: SessionStore) -> None:
    """While sixteen writers append, repair mends again and again: no append fails or is lost, all counts are right."""
    tenant, names = new_tenant(), ("s0", "s1", "s2", "s3")
    for name in names:
        await store.session(name, tenant=tenant).add_items([user("begin")])
    writing, mends = True, 0

    async def write(number: int) -> None:
        session = store.session(names[number % 4], tenant=tenant)
        for count in range(6):
            await session.add_items([call(f"c{number}-{count}"), output(f"c{number}-{count}")])

    async def keep_mending() -> None:
        nonlocal mends
        while writing:
            for name in names:
                broken = "UPDATE {}sessions SET item_count = item_count - 1, tool_run_count = 0, turn_count = 9"
                await by_hand(store, tenant, broken, session_id=name)
            mends += len(await mended(store, tenant))

    mending = asyncio.create_task(keep_mending())
    try:
        await asyncio.gather(*(write(number) for number in range(16)))
    finally:
        writing = False
        await mending
    await mended(store, tenant)

    assert mends > 0
    assert (await found(store, tenant)).findings == ()
    for name in names:
        items = await store.session(name, tenant=tenant).get_items()
        assert len(items) == 1 + 4 * 6 * 2
        assert whole(items) == items
