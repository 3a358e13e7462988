"""Remembered state: versions, paused runs, and history that compaction replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import agents.memory.session
import pytest
from agents import Runner, UserError
from agents.memory import OpenAIResponsesCompactionSession
from openai import AsyncOpenAI
from openai.types.responses import ResponseCompactionItem

from agents_pg_session import (
    InvalidItem,
    PGSession,
    SessionConflict,
    SessionNotFound,
    SessionStore,
    SnapshotNotFound,
    Window,
)
from agents_pg_session.projection import Item
from tests.acceptance.agents_for_tests import QUIET, calls, heard, says, scripted
from tests.items import assistant, call, item, output, user

#: What a store that keeps JSON its own way would change.
AWKWARD = [
    user("a\0b"),
    item(role="user", content="half \ud800"),
    item(role="assistant", content="x", numbers=[1e2, -0.0, 1e-7, 123456789012345678901234567890, 1.0], z=1, a=None),
    item(type="function_call", call_id="c\0", name="n", arguments='{"b": 1, "b": 2}'),
    item(type="function_call_output", call_id="c\0", output=[{"type": "input_text", "text": "é'\"\\%"}]),
]


# -- versions


async def test_versions_count_per_kind(session: PGSession) -> None:
    """Each kind has versions 1, 2, 3 …; what was saved comes back as it was, newest first."""
    await session.add_items([user("1"), user("2")])
    saved = [await session.snapshots.save("summary", f"version {number}") for number in (1, 2, 3)]
    other = await session.snapshots.save("plan", {"steps": [1, 2]}, through=1, label="first", metadata={"by": "me"})

    latest = await session.snapshots.latest("summary")
    plan = await session.snapshots.get("plan", 1)
    assert (saved, other) == ([1, 2, 3], 1)
    assert latest is not None
    assert (latest.kind, latest.version, latest.content, latest.through) == ("summary", 3, "version 3", 2)
    assert (latest.label, latest.metadata, latest.claimed_by) == (None, None, None)
    assert (plan.content, plan.through, plan.label, plan.metadata) == ({"steps": [1, 2]}, 1, "first", {"by": "me"})
    assert [each.version for each in await session.snapshots.list("summary")] == [3, 2, 1]
    assert [(each.kind, each.version) for each in await session.snapshots.list()] == [
        ("summary", 3),
        ("summary", 2),
        ("summary", 1),
        ("plan", 1),
    ]
    told = [event.payload for event in await session.events.list(kind="snapshot_saved")]
    assert told[-1] == {"kind": "plan", "version": 1, "through_position": 1}
    assert len(told) == 4


@pytest.mark.parametrize(
    "content", ["", "a\0\ud800", None, 1e2, True, [], {}, {"a": [None, {"\0": "é"}]}, [1, "x", [2.5]]], ids=repr
)
async def test_content_and_metadata_are_any_json(session: PGSession, content: object) -> None:
    """Whatever JSON has a form for comes back equal."""
    await session.snapshots.save("mine", content, metadata=content)

    [snapshot] = await session.snapshots.list()
    assert (snapshot.content, snapshot.metadata) == (content, content)
    assert type(snapshot.content) is type(content)


async def test_what_is_no_json_is_refused(session: PGSession) -> None:
    """Bytes, NaN and keys that are no strings raise, name the place, and save nothing."""
    with pytest.raises(InvalidItem, match=r'content\["a"\] is NaN'):
        await session.snapshots.save("mine", {"a": float("nan")})
    with pytest.raises(InvalidItem, match="metadata"):
        await session.snapshots.save("mine", "x", metadata={1: 2})
    for kind in ("", "a\0", "x" * 513):
        with pytest.raises(ValueError, match="kind must"):
            await session.snapshots.save(kind, "x")

    assert await session.snapshots.latest("mine") is None


async def test_a_version_that_is_not_there(session: PGSession) -> None:
    """Asking for a version nobody saved raises and names it; asking for the latest of nothing answers None."""
    await session.snapshots.save("summary", "x")

    with pytest.raises(SnapshotNotFound, match="no version 2 of snapshot 'summary'"):
        await session.snapshots.get("summary", 2)
    with pytest.raises(SnapshotNotFound):
        await session.snapshots.diff("summary", 1, 2)
    assert await session.snapshots.latest("other") is None


async def test_diff_tells_what_changed(session: PGSession) -> None:
    """A unified diff from one version to another, of text line by line and of JSON key by key."""
    for text in ("one\ntwo\nthree", "one\n2\nthree", "one\n2\nthree"):
        await session.snapshots.save("summary", text)
    await session.snapshots.save("plan", {"a": 1, "b": 2})
    await session.snapshots.save("plan", {"a": 1, "b": 3})

    assert await session.snapshots.diff("summary", 1, 2) == (
        "--- summary 1\n+++ summary 2\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three"
    )
    assert await session.snapshots.diff("summary", 2, 3) == ""
    assert '-  "b": 2\n+  "b": 3' in await session.snapshots.diff("plan", 1, 2)


async def test_ten_savers_at_once_get_ten_versions(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Savers that race get versions 1 to 10, and each finds what it saved under its own."""
    name = new_id()
    saved = await asyncio.gather(*(store.session(name).snapshots.save("summary", number) for number in range(10)))

    session = store.session(name)
    assert sorted(saved) == list(range(1, 11))
    for number, version in enumerate(saved):
        assert (await session.snapshots.get("summary", version)).content == number


async def test_a_snapshot_begins_a_session_that_is_not_there(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Remembering something is enough to create the session, with what its handle says of it."""
    session = store.session(new_id(), user_id="ada", metadata={"plan": "pro"})
    await session.snapshots.save("notes", "x")

    info = await session.info()
    assert (info.user_id, dict(info.metadata), info.item_count, info.event_count) == ("ada", {"plan": "pro"}, 0, 1)


# -- paused runs


async def paused(session: PGSession, *, amounts: tuple[int, ...] = (5,), context: object = None) -> Any:
    """Run an agent until it asks whether it may refund."""
    agent: Any = scripted([calls("refund", f"c{amount}", amount=amount) for amount in amounts])
    return await Runner.run(agent, "Refund", session=session, run_config=QUIET, context=context)


@pytest.mark.parametrize("approve", [True, False])
async def test_a_paused_run_goes_on_elsewhere(store: SessionStore, new_id: Callable[[], str], approve: bool) -> None:
    """One handle pauses, another approves or rejects and runs on; the session says all along what it is."""
    name = new_id()
    session = store.session(name, tenant=name, user_id="ada", metadata={"n": 1})
    version = await session.pause(await paused(session))
    waiting = await session.info()
    [asked] = await store.waiting(tenant=name)

    other, agent = store.session(name, tenant=name), scripted(says("Done"))
    state = await other.resume(agent)
    [request] = state.get_interruptions()
    if approve:
        state.approve(request)
    else:
        state.reject(request)
    result = await Runner.run(agent, state, session=other, run_config=QUIET)

    [tool] = await session.tool_runs.list()
    assert (version, waiting.status, (await session.info()).status) == (1, "waiting", "active")
    assert (asked.session_id, asked.user_id, asked.version, asked.claimed_until) == (name, "ada", 1, None)
    assert dict(asked.metadata) == {"n": 1}
    assert [(each.tool_name, each.call_id, each.arguments, each.agent) for each in asked.approvals] == [
        ("refund", "c5", {"amount": 5}, "Assistant")
    ]
    assert asked.paused_at is not None
    assert result.final_output == "Done"
    assert tool.status == ("succeeded" if approve else "rejected")
    assert len(await store.waiting(tenant=name)) == 0
    assert [run.status for run in await session.runs.list()] == ["running", "interrupted"]
    assert await session.get_items() == result.to_input_list()


async def test_a_pause_tells_its_story(session: PGSession) -> None:
    """Each approval asked for is an event, then the end of the run, the snapshot, the claim and the answers."""
    await session.pause(await paused(session, amounts=(1, 2)))
    agent = scripted(says("Done"))
    state = await session.resume(agent)
    for request in state.get_interruptions():
        state.approve(request)
    await Runner.run(agent, state, session=session, run_config=QUIET)

    events = list(await session.events.list())
    assert [event.kind for event in events] == [
        "run_started",
        "approval_asked",
        "approval_asked",
        "run_ended",
        "snapshot_saved",
        "snapshot_claimed",
        "run_started",
        "approval_answered",
        "approval_answered",
    ]
    assert [event.payload["arguments"] for event in events[1:3]] == [{"amount": 1}, {"amount": 2}]


async def test_a_recorded_pause_asks_once(session: PGSession) -> None:
    """Pausing inside a recording writes each question and the end of the run once."""
    async with session.recording() as run:
        agent = scripted(calls("refund", "c5", amount=5))
        result = await Runner.run(agent, "Refund", session=session, hooks=run.hooks, run_config=QUIET)
        await session.pause(result)

    kinds = [event.kind for event in await session.events.list()]
    [stored] = await session.runs.list()
    assert (kinds.count("approval_asked"), kinds.count("run_ended"), kinds.count("snapshot_saved")) == (1, 1, 1)
    assert (stored.status, (await session.info()).status) == ("interrupted", "waiting")


@dataclass
class Till:
    """A run's context that JSON has no form for."""

    shop: str


async def test_context_serialisers_are_passed_on(session: PGSession) -> None:
    """The SDK's options for contexts go through both ways."""
    result = await paused(session, context=Till("Rome"))
    with pytest.raises(UserError):
        await session.pause(result, strict_context=True)
    await session.pause(result, context_serializer=lambda till: {"shop": till.shop})
    agent = scripted(says("Done"))
    state = await session.resume(agent, context_deserializer=lambda fields: Till(**fields))

    assert state._context is not None
    assert state._context.context == Till("Rome")
    [snapshot] = await session.snapshots.list("run_state")
    assert snapshot.claimed_by is not None


async def test_a_run_that_waits_for_nothing_is_not_paused(session: PGSession) -> None:
    """There is nothing to approve in a run that is complete."""
    result = await Runner.run(scripted(says("Hello")), "Hi", session=session, run_config=QUIET)

    with pytest.raises(ValueError, match="nothing to pause"):
        await session.pause(result)
    assert (await session.info()).status == "active"


async def test_there_must_be_a_paused_run(session: PGSession) -> None:
    """Resuming where nobody paused says so, with or without a session; a claim needs a length."""
    agent = scripted(says("Done"))
    with pytest.raises(SnapshotNotFound, match="no paused run"):
        await session.resume(agent)
    await session.add_items([user("Hi")])
    with pytest.raises(SnapshotNotFound, match="no paused run"):
        await session.resume(agent)
    for seconds in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="claim_for must"):
            await session.resume(agent, claim_for=seconds)


async def test_of_twenty_workers_one_resumes(store: SessionStore, new_id: Callable[[], str]) -> None:
    """All others are told that another worker has it."""
    name = new_id()
    session = store.session(name)
    await session.pause(await paused(session))
    agent = scripted(says("Done"))
    answers = await asyncio.gather(*(store.session(name).resume(agent) for _ in range(20)), return_exceptions=True)

    lost = [answer for answer in answers if isinstance(answer, BaseException)]
    [waiting] = [each for each in await store.waiting() if each.session_id == name]
    assert len(lost) == 19
    assert {(type(error), "another worker" in str(error)) for error in lost} == {(SessionConflict, True)}
    assert waiting.claimed_until is not None
    assert len(await session.events.list(kind="snapshot_claimed")) == 1


async def test_a_claim_ends_when_its_worker_does_nothing(store: SessionStore, new_id: Callable[[], str]) -> None:
    """After *claim_for* seconds the next worker may have it; the one that lost it cannot append any more."""
    name = new_id()
    session = store.session(name)
    await session.pause(await paused(session))
    slow, quick, agent = store.session(name), store.session(name), scripted(says("Done"))
    late = await slow.resume(agent, claim_for=0.01)
    state = await resumed_in_time(quick, agent)
    for each in (state, late):
        each.approve(each.get_interruptions()[0])
    await Runner.run(agent, state, session=quick, run_config=QUIET)

    with pytest.raises(SessionConflict):
        await Runner.run(scripted(says("Too late")), late, session=slow, run_config=QUIET)
    [tool] = await session.tool_runs.list()
    assert (tool.status, len(await session.get_items())) == ("succeeded", 4)


async def resumed_in_time(session: PGSession, agent: Any) -> Any:
    """Claim a run as soon as the claim of another worker has run out."""
    while True:
        try:
            return await session.resume(agent)
        except SessionConflict:
            await asyncio.sleep(0.01)


async def test_a_run_is_resumed_only_where_it_stopped(session: PGSession) -> None:
    """When the conversation went on since, the state is of the past: nobody gets it."""
    await session.pause(await paused(session))
    await session.add_items([user("Never mind")])

    with pytest.raises(SessionConflict, match="has gone on"):
        await session.resume(scripted(says("Done")))


async def test_a_popped_call_cannot_be_resumed_twice_over(session: PGSession) -> None:
    """A worker that resumed and then finds items taken out does not append outputs without their calls."""
    await session.pause(await paused(session))
    agent = scripted(says("Done"))
    state = await session.resume(agent)
    state.approve(state.get_interruptions()[0])
    other = PGSession(session.session_id, engine=session.engine)
    await other.pop_item()

    with pytest.raises(SessionConflict):
        await session.add_items([output("c5")])


async def test_a_claim_that_could_not_be_used_is_given_back(session: PGSession) -> None:
    """When the state cannot be rebuilt, the next worker need not wait for the claim to end."""
    await session.pause(await paused(session, context={"a": 1}))

    def broken(_: object) -> object:
        raise LookupError("mine")

    agent = scripted(says("Done"))
    with pytest.raises((LookupError, UserError)):  # the SDK says so in words of its own since 0.24
        await session.resume(agent, context_deserializer=broken)

    state = await session.resume(agent)
    assert len(state.get_interruptions()) == 1


async def test_a_second_pause_is_the_one_resumed(session: PGSession) -> None:
    """A run that asks again is paused again: the newest version counts, and the older one stays readable."""
    await session.pause(await paused(session))
    agent = scripted(calls("refund", "c6", amount=6))
    state = await session.resume(agent)
    state.approve(state.get_interruptions()[0])
    version = await session.pause(await Runner.run(agent, state, session=session, run_config=QUIET))
    agent = scripted(says("Done"))
    again = await session.resume(agent)

    assert version == 2
    assert [request.call_id for request in again.get_interruptions()] == ["c6"]
    assert (await session.snapshots.get("run_state", 1)).claimed_by is not None


# -- history that compaction replaced


async def placed(session: PGSession) -> list[tuple[int, int, Item]]:
    return [(each.position, each.turn, each.item) for turn in await session.turns() for each in turn.items]


async def replace_tail(session: PGSession, start: int, items: list[Item]) -> bool:
    snapshot = await session._get_compaction_snapshot(1000)
    assert snapshot is not None
    return await snapshot.replace_suffix(start, items)


async def test_a_compaction_snapshot_is_the_newest_items(session: PGSession) -> None:
    """At most so many, oldest first, and whether there are more; an empty session is complete."""
    empty = await session._get_compaction_snapshot(3)
    history = [user(str(number)) for number in range(4)]
    await session.add_items(history)
    some, all_of_them = await session._get_compaction_snapshot(3), await session._get_compaction_snapshot(4)

    assert empty is not None
    assert some is not None
    assert all_of_them is not None
    assert (empty.items, empty.complete) == ([], True)
    assert (some.items, some.complete) == (history[1:], False)
    assert (all_of_them.items, all_of_them.complete) == (history, True)
    assert await empty.replace_suffix(0, [user("x")]) is False


async def test_a_tail_is_replaced_only_as_it_was_seen(store: SessionStore, session: PGSession) -> None:
    """When somebody appended or popped since, nothing is replaced and nothing is lost."""
    await session.add_items([user("1"), user("2"), user("3")])
    for change in (lambda: session.add_items([user("4")]), session.pop_item, session.clear_session):
        snapshot = await session._get_compaction_snapshot(10)
        assert snapshot is not None
        await change()
        before = await session.get_items()

        assert await snapshot.replace_suffix(1, [user("short")]) is False
        assert await session.get_items() == before
    assert len(await session.snapshots.list("history")) == 0


async def test_replaced_items_come_back_as_they_were(session: PGSession) -> None:
    """Order, positions, turns and every value: a restore undoes a compaction, and is itself undone by a restore."""
    await session.add_items([user("kept")])
    await session.add_items([*AWKWARD, user("last")])
    before = await placed(session)
    assert await replace_tail(session, 1, [item(type="compaction", id="cmp", encrypted_content="x\0")])
    compacted = await placed(session)
    await session.restore(1)
    restored = await placed(session)
    await session.restore(2)

    undone, replaced = [(await session.snapshots.get("history", version)).content for version in (2, 1)]
    assert compacted == [before[0], (8, 1, item(type="compaction", id="cmp", encrypted_content="x\0"))]
    assert restored == before
    assert repr(restored) == repr(before)
    assert await placed(session) == compacted
    assert replaced == [entry[2] for entry in before[1:]]
    assert undone == [compacted[1][2]]
    assert [event.payload["version"] for event in await session.events.list(kind="history_replaced")] == [1, 2, 3]


async def test_what_came_after_a_compaction_stays_behind_it(session: PGSession) -> None:
    """Restoring moves later items to the turns they would have had, and leaves their positions alone."""
    for number in (1, 2, 3):
        await session.add_items([user(str(number)), assistant(str(number))])
    assert await session._atomic_replace_items([assistant("summary")])
    await session.add_items([user("4"), assistant("4")])
    short = [(position, turn) for position, turn, _ in await placed(session)]
    await session.restore(1)

    long = [(position, turn) for position, turn, _ in await placed(session)]
    assert short == [(7, 0), (8, 1), (9, 1)]
    assert long == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (8, 4), (9, 4)]
    assert (await session.info()).turn_count == 4
    await session.add_items([user("5")])
    assert (await placed(session))[-1][:2] == (10, 5)


async def test_compactions_of_compactions_are_restored_in_order(session: PGSession) -> None:
    """The newer version first: an older one waits until what stood for it stands there whole again."""
    await session.add_items([user("1"), user("2")])
    before = await placed(session)
    await replace_tail(session, 0, [user("short"), user("er")])
    await replace_tail(session, 1, [user("shortest")])
    with pytest.raises(SessionConflict, match="restore the newer version first"):
        await session.restore(1)
    await session.restore(2)
    await session.restore(1)

    assert await placed(session) == before
    assert (await session.info()).item_count == 2


async def test_a_tail_replaced_by_nothing_comes_back_any_number_of_times(session: PGSession) -> None:
    """A replacement may be empty: there and back again, the items keep their turns."""
    await session.add_items([user("1"), assistant("1")])
    await session.add_items([user("2")])
    before = await placed(session)
    assert await replace_tail(session, 2, [])
    await session.add_items([user("3")])
    for version in (1, 2, 3):
        await session.restore(version)

    assert await placed(session) == [*before, (4, 3, user("3"))]
    assert (await session.info()).turn_count == 3


@pytest.mark.parametrize("change", ["pop", "clear", "restore"])
async def test_a_version_is_restored_only_where_its_replacement_stands(session: PGSession, change: str) -> None:
    """Popped, cleared or brought back already: a restore raises and changes nothing."""
    await session.add_items([user("1"), user("2")])
    await replace_tail(session, 1, [user("short")])
    if change == "pop":
        await session.pop_item()
    elif change == "clear":
        await session.clear_session()
    else:
        await session.restore(1)
    before, info = await placed(session), await session.info()

    with pytest.raises(SessionConflict, match="not there whole"):
        await session.restore(1)
    assert await placed(session) == before
    assert await session.info() == info


async def test_restoring_what_is_not_there(session: PGSession) -> None:
    """No session, or no such version: the error says which."""
    with pytest.raises(SessionNotFound):
        await session.restore(1)
    assert await session._atomic_replace_items([user("x")]) is False
    await session.add_items([user("1")])
    with pytest.raises(SnapshotNotFound, match="no version 1 of snapshot 'history'"):
        await session.restore(1)


async def test_compacting_changes_no_tool_run(session: PGSession) -> None:
    """What was executed was executed, and a call whose item was replaced still gets its late output."""
    await session.add_items([user("go"), call("c1"), output("c1"), call("c2")])
    assert await session._atomic_replace_items([assistant("summary")])
    await session.add_items([output("c2")])
    tools = [(tool.position, tool.output_position, tool.status) for tool in await session.tool_runs.list()]
    await session.restore(1)

    assert tools == [(4, 6, "succeeded"), (2, 3, "succeeded")]
    assert [(tool.position, tool.output_position, tool.status) for tool in await session.tool_runs.list()] == tools
    assert (await session.info()).tool_run_count == 2


async def test_replacing_while_others_append_loses_nothing(store: SessionStore, session: PGSession) -> None:
    """A whole replacement is one boundary: each append lies before it, in its snapshot, or after it."""
    await session.add_items([user("first")])
    handles = [store.session(session.session_id) for _ in range(8)]
    await asyncio.gather(
        *(handle.add_items([user(str(number))]) for number, handle in enumerate(handles)),
        session._atomic_replace_items([assistant("summary")]),
    )

    [history] = await session.snapshots.list("history")
    left = await session.get_items()
    assert left[0] == assistant("summary")
    assert sorted(str(each) for each in [*history.content, *left[1:]]) == sorted(
        str(user(text)) for text in ("first", *map(str, range(8)))
    )


class CompactionClient:
    """As much of the OpenAI client as compaction uses: it answers with one compacted item."""

    def __init__(self) -> None:
        self.responses = self

    async def compact(self, **request: Any) -> object:
        compacted = ResponseCompactionItem(id="cmp_1", type="compaction", encrypted_content="short")
        return SimpleNamespace(output=[compacted], usage=None)


@pytest.mark.skipif(
    not hasattr(agents.memory.session, "_CompactionSnapshot"),
    reason="this SDK's compaction clears and adds again",
)
async def test_the_sdks_compaction_keeps_the_history(session: PGSession) -> None:
    """`OpenAIResponsesCompactionSession` replaces in one transaction; `restore` brings back what it replaced."""
    client = cast("AsyncOpenAI", CompactionClient())
    wrapped = OpenAIResponsesCompactionSession(session.session_id, session, client=client)
    agent = scripted(calls("weather", "c1", city="Rome"), says("Sunny"))
    await Runner.run(agent, "Weather?", session=wrapped, run_config=QUIET)
    before = await placed(session)
    await wrapped.run_compaction({"force": True})
    agent = scripted(says("As I said"))
    await Runner.run(agent, "Really?", session=wrapped, run_config=QUIET)
    compacted = heard(agent)
    await session.restore(1)

    after = await placed(session)
    assert [each.get("type") for each in compacted] == ["compaction", None]
    assert after[: len(before)] == before
    assert after[len(before)][1:] == (2, user("Really?"))
    assert "session_cleared" not in [event.kind for event in await session.events.list()]
    assert (await session.info()).tool_run_count == 1


async def test_a_subclass_with_a_form_of_its_own_is_compacted_the_slow_way(
    store: SessionStore, new_id: Callable[[], str]
) -> None:
    """A subclass that stores items in another form offers no replacing of stored rows."""

    class Shouting(PGSession):
        async def add_items(self, items: list[Item], *, wrapper: Any = None) -> None:
            await super().add_items(items, wrapper=wrapper)

    session = Shouting(new_id(), engine=store.engine)
    await session.add_items([user("1")])

    assert await session._get_compaction_snapshot(10) is None


async def test_a_run_whose_call_was_taken_out_is_not_paused(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Whoever resumed it would answer a call that is not there any more."""
    session = store.session(new_id())
    result = await paused(session)
    await store.session(session.session_id).pop_item()

    with pytest.raises(SessionConflict, match="another writer came first"):
        await session.pause(result)
    assert (await session.info()).status == "active"


@pytest.mark.parametrize("taken_out", ["pop_item", "clear_session"])
async def test_what_is_taken_out_ends_the_waiting(session: PGSession, store: SessionStore, taken_out: str) -> None:
    """A paused run whose call is gone can be resumed by nobody."""
    await session.pause(await paused(session))
    await getattr(session, taken_out)()

    assert (await session.info()).status == "active"
    with pytest.raises(SessionConflict, match="has gone on"):
        await session.resume(scripted(says("Done")))


async def test_a_released_run_binds_its_handle_to_nothing(store: SessionStore, new_id: Callable[[], str]) -> None:
    """It is another worker's then; this handle goes on like any other."""
    name = new_id()
    session = store.session(name)
    await session.pause(await paused(session))
    await session.resume(scripted(says("Done")))
    await session.release()

    other, agent = store.session(name), scripted(says("Done"))
    state = await other.resume(agent)
    state.approve(state.get_interruptions()[0])
    await Runner.run(agent, state, session=other, run_config=QUIET)
    await session.add_items([user("Thanks")])
    assert (await session.get_items())[-1] == user("Thanks")


async def test_a_clear_ends_what_summaries_say(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Also in a fork: what was cleared is not said again."""
    session = store.session(new_id(), window=Window(summary="summary"))
    await session.add_items([user("the secret is 42")])
    await session.snapshots.save("summary", "a secret: 42")
    await session.clear_session()
    await session.add_items([user("new")])

    fork = await session.fork(new_id())
    assert await session.get_items() == await fork.get_items() == [user("new")]


async def test_hooks_tell_the_run_that_compaction_hides(session: PGSession) -> None:
    """The SDK's compaction passes no run on; hooks see which one is at work, and its append is the run's."""
    client = cast("AsyncOpenAI", CompactionClient())
    wrapped = OpenAIResponsesCompactionSession(session.session_id, session, client=client)
    agent = scripted(calls("weather", "c1", city="Rome"), says("Sunny"))
    await Runner.run(agent, "Weather?", session=wrapped, hooks=session.hooks(), run_config=QUIET)

    [run] = await session.runs.list()
    [tool] = await session.tool_runs.list()
    assert (run.status, run.input_tokens, tool.run_id) == ("completed", 20, run.run_id)
