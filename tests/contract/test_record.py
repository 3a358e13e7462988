"""What a run leaves in the database, beside its items: from `session=` alone, with hooks, and inside a recording."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from agents import (
    Agent,
    MaxTurnsExceeded,
    RunConfig,
    RunContextWrapper,
    RunHooks,
    Runner,
    RunState,
    Usage,
    UserError,
    function_tool,
    set_trace_processors,
)
from agents.tool import DEFAULT_APPROVAL_REJECTION_MESSAGE

from agents_pg_session import InvalidItem, PGSession, SessionConflict, SessionError, SessionStore, ToolRun
from tests.acceptance.agents_for_tests import QUIET, TELLS_TOOL_ERRORS, calls, says, scripted
from tests.items import assistant, call, item, output, user

FAILED = "An error occurred while running the tool. Please try again."


@function_tool(failure_error_function=lambda _, error: f"sorry: {error}")
def apologetic(city: str) -> str:
    """Fail, and say so in words of its own."""
    raise ValueError(f"no station in {city}")


async def kinds_of(session: PGSession) -> list[str]:
    return [event.kind for event in await session.events.list(limit=1000)]


async def tools_of(session: PGSession) -> dict[str | None, ToolRun]:
    """The tool runs by call id."""
    return {each.call_id: each for each in await session.tool_runs.list(limit=1000)}


def spending(tokens: int) -> RunContextWrapper[Any]:
    """A run that has used so much when the session first hears of it."""
    wrapper = RunContextWrapper[Any](context=None)
    spend(wrapper, tokens)
    return wrapper


def spend(wrapper: RunContextWrapper[Any], tokens: int) -> None:
    wrapper.usage.add(Usage(requests=1, input_tokens=tokens, output_tokens=1, total_tokens=tokens + 1))


# -- from `session=` alone


async def test_a_run_leaves_its_row(session: PGSession) -> None:
    """`session=` is enough to know who ran, since when, in which turn and at what cost; nobody told how it ended."""
    agent = scripted(calls("weather", "c1", city="Rome"), says("Sunny"))
    await Runner.run(agent, "Weather?", session=session, run_config=QUIET)

    [run] = await session.runs.list()
    info = await session.info()
    assert (run.agent, run.status, run.turn, run.error) == ("Assistant", "running", 1, None)
    assert (run.requests, run.input_tokens, run.output_tokens, run.total_tokens) == (2, 20, 10, 30)
    assert (run.cached_tokens, run.reasoning_tokens, run.model_seconds) == (0, 0, 0.0)
    assert run.started_at <= run.last_seen_at
    assert (run.finished_at, run.trace_id) == (None, None)
    assert [(each["input_tokens"], each["output_tokens"]) for each in run.details["requests"]] == [(10, 5), (10, 5)]
    assert (info.agent, info.status, info.input_tokens, info.output_tokens) == ("Assistant", "active", 20, 10)
    assert await kinds_of(session) == ["run_started"]


async def test_a_traced_run_knows_its_trace(session: PGSession) -> None:
    """With tracing on, the run's row and its first event name the trace."""
    set_trace_processors([])
    trace_id = "trace_" + "0" * 32
    await Runner.run(scripted(says("Hello")), "Hi", session=session, run_config=RunConfig(trace_id=trace_id))

    [run] = await session.runs.list()
    started = await session.events.latest(kind="run_started")
    assert run.trace_id == trace_id
    assert started is not None
    assert started.payload["trace_id"] == trace_id
    assert started.run_id == run.run_id


async def test_a_streamed_run_is_recorded_like_any_other(session: PGSession) -> None:
    """`run_streamed` leaves the same record as `run`."""
    agent = scripted(calls("weather", "c1", city="Rome"), says("Sunny"))
    result = Runner.run_streamed(agent, "Weather?", session=session, run_config=QUIET)
    async for _ in result.stream_events():
        pass

    [run] = await session.runs.list()
    assert (run.agent, run.requests, run.total_tokens) == ("Assistant", 2, 30)
    assert (await session.info()).tool_run_count == 1


async def test_tokens_are_differences(session: PGSession) -> None:
    """Each append adds what the run used since the one before; what was used before first sight is not this run's."""
    wrapper = spending(100)
    await session.get_items(wrapper=wrapper)
    spend(wrapper, 7)
    await session.add_items([user("Hi")], wrapper=wrapper)
    first = await session.runs.latest()
    spend(wrapper, 4)
    await session.add_items([assistant("Hello")], wrapper=wrapper)
    await session.add_items([assistant("there")], wrapper=wrapper)

    second = await session.runs.latest()
    assert first is not None
    assert second is not None
    assert (first.run_id, first.input_tokens, first.requests) == (second.run_id, 7, 1)
    assert (second.input_tokens, second.output_tokens, second.requests) == (11, 2, 2)


async def test_details_of_tokens_are_kept(session: PGSession) -> None:
    """Cached and reasoning tokens are counted, also where a provider names none of them."""
    wrapper = RunContextWrapper[Any](context=None)
    await session.get_items(wrapper=wrapper)
    usage = Usage(requests=1, input_tokens=9, output_tokens=5, total_tokens=14)
    usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens = 4, 3
    wrapper.usage.add(usage)
    spend(wrapper, 1)
    await session.add_items([user("Hi")], wrapper=wrapper)

    total = await session.usage()
    assert (total.cached_tokens, total.reasoning_tokens, total.input_tokens, total.total_tokens) == (4, 3, 10, 16)


async def test_a_refused_append_keeps_what_it_had_to_tell(session: PGSession) -> None:
    """What a run used is not lost with an append that was refused: the next one writes it."""
    wrapper = RunContextWrapper[Any](context=None)
    await session.get_items(wrapper=wrapper)
    spend(wrapper, 7)
    with pytest.raises(InvalidItem):
        await session.add_items([item(role="user", content=float("nan"))], wrapper=wrapper)
    spend(wrapper, 2)
    await session.add_items([user("Hi")], wrapper=wrapper)

    [run] = await session.runs.list()
    assert (run.requests, run.input_tokens) == (2, 9)
    assert await kinds_of(session) == ["run_started"]


async def test_a_resumed_run_counts_nothing_twice(store: SessionStore, new_id: Callable[[], str]) -> None:
    """A run resumed from JSON starts with the totals of its pause, and adds only what it uses itself."""
    name = new_id()
    agent = scripted(calls("refund", "c1", amount=5))
    paused = await Runner.run(agent, "Refund", session=store.session(name), run_config=QUIET)
    agent = scripted(says("Done"))
    state = await RunState.from_json(agent, json.loads(json.dumps(paused.to_state().to_json())))
    [request] = state.get_interruptions()
    state.approve(request)
    await Runner.run(agent, state, session=store.session(name), run_config=QUIET)

    session = store.session(name)
    assert [run.requests for run in await session.runs.list()] == [1, 1]
    assert (await session.usage()).input_tokens == (await session.info()).input_tokens == 20


async def test_runs_of_one_handle_are_told_apart(session: PGSession) -> None:
    """Runs that take turns on one handle each have their own row and tokens."""
    one, other = spending(0), spending(50)
    for wrapper, tokens in ((one, 1), (other, 10), (one, 2), (other, 20)):
        await session.get_items(wrapper=wrapper)
        spend(wrapper, tokens)
        await session.add_items([user("Hi")], wrapper=wrapper)

    assert [run.input_tokens for run in await session.runs.list()] == [30, 3]
    assert [(each.turn, each.input_tokens) for each in (await session.usage()).turns] == [(1, 3), (2, 30)]


async def test_parallel_tool_runs_with_their_outputs(session: PGSession) -> None:
    """Calls and outputs of one response are paired by call id, with their arguments and places."""
    two = [calls("weather", "c1", city="Rome"), calls("broken", "c2", city="Oslo")]
    await Runner.run(scripted(two, says("Sunny")), "Weather?", session=session, run_config=QUIET)

    [run] = await session.runs.list()
    tools = [await session.tool_runs.get(position) for position in (2, 3)]
    assert [
        (tool.call_id, tool.tool_name, tool.tool_type, tool.position, tool.output_position, tool.status)
        for tool in tools
        if tool is not None
    ] == [
        ("c1", "weather", "function", 2, 4, "succeeded"),
        ("c2", "broken", "function", 3, 5, "failed"),
    ]
    assert [(tool.arguments, tool.agent, tool.run_id) for tool in tools if tool is not None] == [
        ({"city": "Rome"}, "Assistant", run.run_id),
        ({"city": "Oslo"}, "Assistant", run.run_id),
    ]


async def test_an_output_that_comes_later_ends_its_tool_run(session: PGSession) -> None:
    """A call is running until its output arrives, in whichever append; then it says when that was."""
    await session.add_items([user("go"), call("c1", "lookup", '{"q":1}'), call("c2", "find")])
    before = await tools_of(session)
    await session.add_items([output("c2", FAILED)])
    await session.add_items([output("c1")])

    after = await tools_of(session)
    assert {(tool.status, tool.output_position, tool.finished_at) for tool in before.values()} == {
        ("running", None, None)
    }
    assert [(after[name].status, after[name].output_position, after[name].error) for name in ("c1", "c2")] == [
        ("succeeded", 5, None),
        ("failed", 4, FAILED),
    ]
    assert all(tool.finished_at is not None and tool.started_at is None for tool in after.values())
    assert after["c1"].created_at == before["c1"].created_at
    assert (await session.info()).tool_error_count == 1


async def test_reused_call_ids_answer_the_newest_running_call(session: PGSession) -> None:
    """A provider that uses an id again: each output ends the newest call that still waits under that id."""
    await session.add_items([call("c"), call("c"), call("c")])
    await session.add_items([output("c", "newest")])
    await session.add_items([call("c"), output("c", "own")])
    await session.add_items([output("c", "middle"), output("c", FAILED), output("c", "nobody's")])

    tools = list(await session.tool_runs.list())[::-1]
    assert [(tool.position, tool.output_position, tool.status) for tool in tools] == [
        (1, 8, "failed"),
        (2, 7, "succeeded"),
        (3, 4, "succeeded"),
        (5, 6, "succeeded"),
    ]
    assert (await session.info()).tool_error_count == 1


async def test_an_output_after_a_clear_still_ends_its_tool_run(session: PGSession) -> None:
    """What was executed was executed: clearing the items between call and output loses no tool run."""
    await session.add_items([call("c1")])
    await session.clear_session()
    await session.add_items([output("c1")])

    [tool] = await session.tool_runs.list()
    assert (tool.status, tool.position, tool.output_position) == ("succeeded", 1, 2)
    assert (await session.info()).tool_run_count == 1


async def test_a_call_that_is_never_answered_keeps_running(session: PGSession) -> None:
    """A call nobody approved nor refused runs for ever, also when the conversation goes on without it."""
    await Runner.run(scripted(calls("refund", "c1", amount=5)), "Refund", session=session, run_config=QUIET)
    await Runner.run(scripted(says("Hello")), "Something else", session=session, run_config=QUIET)

    [tool] = await session.tool_runs.list(status="running")
    assert (tool.call_id, tool.output_position, tool.finished_at) == ("c1", None, None)


async def test_a_tool_that_ends_its_run_leaves_no_tool_run(session: PGSession) -> None:
    """The SDK stores no call of a turn that raised, so without hooks nothing tells of it."""
    with pytest.raises(UserError):
        await Runner.run(scripted(calls("fatal", "c1", city="Rome")), "Go", session=session, run_config=QUIET)

    assert (await session.info()).tool_run_count == len(await session.tool_runs.list()) == 0


@pytest.mark.parametrize(
    ("arguments", "stored"),
    [
        ('{"city":"Rome"}', {"city": "Rome"}),
        ('{"n":1e2,"big":123456789012345678901234567890}', {"n": 100.0, "big": 123456789012345678901234567890}),
        ('{"city":"a\\u0000b\\ud800"}', {"city": "a\0b\ud800"}),
        ("{not json", "{not json"),
        ("not\0json\ud800", "not\0json\ud800"),
        ('{"n":NaN}', '{"n":NaN}'),
        ("null", None),
        ("", ""),
    ],
)
async def test_arguments_are_kept_whatever_they_are(session: PGSession, arguments: str, stored: object) -> None:
    """Arguments read back as the JSON they are, or as text where a model wrote no JSON."""
    await session.add_items([call("c1", arguments=arguments)])

    [tool] = await session.tool_runs.list()
    assert tool.arguments == stored


async def test_texts_no_column_holds_do_no_harm(session: PGSession) -> None:
    """NUL and lone surrogates in names and ids stay in the item; the tool run does without."""
    items = [
        item(type="function_call", call_id="a\0", name="x\ud800", arguments="{}"),
        item(type="function_call_output", call_id="a\0", output="fine\0"),
        item(type="custom_tool_call", call_id="\ud800", name="y" * 600, input="z\0"),
        item(
            type="shell_call_output",
            call_id="b",
            output=[{"outcome": {"type": "exit", "exit_code": 2}, "stderr": "\0"}],
        ),
    ]
    await session.add_items(items)

    tools = list(await session.tool_runs.list())[::-1]
    assert await session.get_items() == items
    assert [(tool.call_id, tool.tool_name, tool.status) for tool in tools] == [
        (None, None, "succeeded"),
        (None, None, "running"),
    ]


async def test_what_people_refused_is_rejected(session: PGSession) -> None:
    """A refused call is rejected, with the SDK's words for it or with the refuser's own."""
    agent = scripted([calls("refund", "c1", amount=1), calls("refund", "c2", amount=2)], says("As you wish"))
    state = (await Runner.run(agent, "Refund", session=session, run_config=QUIET)).to_state()
    one, other = state.get_interruptions()
    state.reject(one)
    state.reject(other, rejection_message="Not on Sundays")
    await Runner.run(agent, state, session=session, run_config=QUIET)

    tools = await tools_of(session)
    answered = [event.payload for event in await session.events.list(kind="approval_answered")]
    assert {call_id: (tool.status, tool.error) for call_id, tool in tools.items()} == {
        "c1": ("rejected", DEFAULT_APPROVAL_REJECTION_MESSAGE),
        "c2": ("rejected", "Not on Sundays"),
    }
    assert [(each["call_id"], each["approved"]) for each in answered] == [("c1", False), ("c2", False)]
    assert (await session.info()).tool_error_count == 0


async def test_a_failure_is_an_event(session: PGSession) -> None:
    """A tool that failed is in the log, with the call and what was said of it."""
    agent = scripted(calls("broken", "c1", city="Rome"), says("Sorry"))
    await Runner.run(agent, "Weather?", session=session, run_config=QUIET)

    [failed] = await session.events.list(kind="tool_failed")
    [run] = await session.runs.list()
    assert (failed.payload["call_id"], failed.payload["tool_name"]) == ("c1", "broken")
    assert failed.payload["error"].startswith(FAILED)
    assert (failed.run_id, failed.agent) == (run.run_id, "Assistant")


@pytest.mark.parametrize("hooked", [False, True])
async def test_a_hand_off_is_an_event(session: PGSession, hooked: bool) -> None:
    """Who handed off to whom is told once, and the run belongs to who had it last."""
    billing = scripted(says("Billed"))
    billing.name = "Billing"
    triage = scripted(calls("transfer_to_billing", "c1"))
    triage.handoffs = [billing]
    hooks = session.hooks() if hooked else None
    await Runner.run(triage, "Bill me", session=session, hooks=hooks, run_config=QUIET)

    [handoff] = await session.events.list(kind="handoff")
    [run] = await session.runs.list()
    [tool] = await session.tool_runs.list()
    assert (handoff.payload["from"], handoff.payload["to"]) == ("Assistant", "Billing")
    assert handoff.run_id == run.run_id
    assert run.agent == "Billing"
    assert (tool.tool_name, tool.status) == ("transfer_to_billing", "succeeded")


# -- whose session it is


@dataclass
class Org:
    org_id: Any


async def test_the_runs_context_tells_the_tenant(store: SessionStore, new_id: Callable[[], str]) -> None:
    """One handle serves every tenant's runs, each in its own session of that name."""
    name = new_id()
    session = store.session(name, tenant=lambda run: run.context.org_id)
    for org in ("acme", "bolt", "acme"):
        agent: Any = scripted(says("Hello"))
        await Runner.run(agent, f"I am {org}", session=session, context=Org(org), run_config=QUIET)

    sessions = {org: store.session(name, tenant=org) for org in ("acme", "bolt")}
    assert {org: (await each.info()).turn_count for org, each in sessions.items()} == {"acme": 2, "bolt": 1}
    assert (await sessions["bolt"].get_items())[0] == user("I am bolt")
    assert len(await sessions["acme"].runs.list()) == 2


def without_context(run: RunContextWrapper[Any]) -> str:
    raise LookupError("nobody knows")


@pytest.mark.parametrize(
    "tenant", [lambda run: None, lambda run: "", lambda run: 7, lambda run: run.context.org_id, without_context]
)
async def test_a_run_that_does_not_tell_its_tenant_is_refused(
    store: SessionStore, new_id: Callable[[], str], tenant: Callable[[RunContextWrapper[Any]], str]
) -> None:
    """None, nothing, a number or an error is no answer: nothing is read or written, under any tenant."""
    name = new_id()
    session = store.session(name, tenant=tenant)
    wrapper = RunContextWrapper[Any](context=None)
    with pytest.raises(SessionError, match="does not tell its tenant"):
        await Runner.run(scripted(says("Hello")), "Hi", session=session, run_config=QUIET)
    for verb in (session.get_items, session.pop_item, session.clear_session):
        with pytest.raises(SessionError, match="does not tell its tenant"):
            await verb(wrapper=wrapper)
    with pytest.raises(SessionError, match="does not tell its tenant"):
        await session.add_items([user("Hi")], wrapper=wrapper)

    found = await store.sessions(all_tenants=True, limit=1000)
    assert name not in [each.session_id for each in found]


@pytest.mark.parametrize("tenant", ["a\0", "x" * 513, "\ud800"])
async def test_a_tenant_that_no_key_holds_is_refused(session: PGSession, store: SessionStore, tenant: str) -> None:
    """What a run's context tells is checked like any other tenant."""
    handle = store.session(session.session_id, tenant=lambda run: tenant)

    with pytest.raises(ValueError, match="tenant must"):
        await handle.add_items([user("Hi")], wrapper=RunContextWrapper[Any](context=None))


async def test_outside_of_a_run_there_is_no_tenant(store: SessionStore, new_id: Callable[[], str]) -> None:
    """A handle whose tenant a run tells cannot be asked without one: neither for items nor for the record."""
    session = store.session(new_id(), tenant=lambda run: "acme")
    asked: list[Callable[[], Any]] = [
        session.get_items,
        session.pop_item,
        session.clear_session,
        lambda: session.add_items([user("Hi")]),
        session.info,
        session.turns,
        session.usage,
        session.delete,
        session.end,
        lambda: session.find("Hi"),
        lambda: session.fork("other"),
        lambda: session.events.record("mine"),
        lambda: session.snapshots.save("summary", "x"),
        session.runs.list,
        session.tool_runs.list,
    ]
    for verb in asked:
        with pytest.raises(SessionError, match="told by a run's context"):
            await verb()
    with pytest.raises(SessionError, match="told by a run's context"):
        _ = session.tenant


# -- with hooks


async def test_hooks_measure_tools_and_their_errors(session: PGSession) -> None:
    """Start, end and exception of each tool run, also where the model was given friendly text instead."""
    two = [calls("weather", "c1", city="Rome"), calls("broken", "c2", city="Oslo")]
    agent = scripted(two, says("Sunny"))
    await Runner.run(agent, "Weather?", session=session, hooks=session.hooks(), run_config=QUIET)

    tools = await tools_of(session)
    assert (tools["c1"].status, tools["c1"].error) == ("succeeded", None)
    error = "ValueError: no station in Oslo" if TELLS_TOOL_ERRORS else "no station in Oslo"
    assert (tools["c2"].status, tools["c2"].error) == ("failed", error)
    for tool in tools.values():
        assert tool.started_at is not None
        assert tool.finished_at is not None
        assert tool.started_at <= tool.finished_at
        assert tool.duration is not None
    [failed] = await session.events.list(kind="tool_failed")
    assert failed.payload["error"] == error
    assert (await session.info()).tool_error_count == 1


async def test_without_hooks_a_tool_run_has_no_start(session: PGSession) -> None:
    """A start nobody measured is empty rather than guessed, and so is the duration."""
    agent = scripted(calls("weather", "c1", city="Rome"), says("Sunny"))
    await Runner.run(agent, "Weather?", session=session, run_config=QUIET)

    [tool] = await session.tool_runs.list()
    assert (tool.started_at, tool.duration) == (None, None)
    assert tool.finished_at is not None


async def test_a_tool_with_its_own_words_for_failure_failed(session: PGSession) -> None:
    """With tracing on, hooks know the error of a tool that explains itself to the model."""
    set_trace_processors([])
    agent = scripted(calls("apologetic", "c1", city="Rome"), says("Sorry"))
    agent.tools.append(apologetic)
    await Runner.run(agent, "Weather?", session=session, hooks=session.hooks())

    [tool] = await session.tool_runs.list()
    assert tool.status == "failed"
    assert "no station in Rome" in str(tool.error)


async def test_hooks_measure_an_approved_tool_in_its_own_run(session: PGSession) -> None:
    """A tool that waited for a person is measured when it ran, in the run that ran it."""
    agent = scripted(calls("refund", "c1", amount=5), says("Done"))
    hooks = session.hooks()
    state = (await Runner.run(agent, "Refund", session=session, hooks=hooks, run_config=QUIET)).to_state()
    [request] = state.get_interruptions()
    waiting = await tools_of(session)
    state.approve(request)
    await Runner.run(agent, state, session=session, hooks=hooks, run_config=QUIET)

    [tool] = await session.tool_runs.list()
    [answered] = await session.events.list(kind="approval_answered")
    assert (waiting["c1"].status, waiting["c1"].started_at) == ("running", None)
    assert (tool.status, tool.error) == ("succeeded", None)
    assert tool.duration is not None
    assert answered.payload == {"call_id": "c1", "tool_name": "refund", "approved": True}


async def test_the_users_hooks_are_called(session: PGSession) -> None:
    """Hooks of one's own go around the session's: they see all they would have seen alone."""
    seen: list[str] = []

    class Mine(RunHooks[Any]):
        async def on_agent_start(self, *args: Any, **kwargs: Any) -> None:
            seen.append("agent_start")

        async def on_tool_start(self, *args: Any, **kwargs: Any) -> None:
            seen.append("tool_start")

        async def on_tool_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append("tool_end")

        async def on_agent_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append("agent_end")

    agent = scripted(calls("weather", "c1", city="Rome"), says("Sunny"))
    await Runner.run(agent, "Weather?", session=session, hooks=session.hooks(wrap=Mine()), run_config=QUIET)
    alone = list(seen)
    agent = scripted(calls("weather", "c1", city="Rome"), says("Sunny"))
    async with session.recording(hooks=Mine()) as run:
        await Runner.run(agent, "Weather?", session=session, hooks=run.hooks, run_config=QUIET)

    assert alone == ["agent_start", "tool_start", "tool_end", "agent_end"]
    assert seen == alone * 2


async def test_requests_are_listed_with_the_time_they_took(session: PGSession) -> None:
    """With hooks, each model request of a run is listed with its tokens and its latency."""
    agent = scripted(calls("weather", "c1", city="Rome"), says("Sunny"))
    await Runner.run(agent, "Weather?", session=session, hooks=session.hooks(), run_config=QUIET)

    [run] = await session.runs.list()
    assert [each["input_tokens"] for each in run.details["requests"]] == [10, 10]
    assert all("model_seconds" in each for each in run.details["requests"])


# -- inside a recording


async def test_a_recording_tells_the_whole_story(session: PGSession) -> None:
    """From run_started to run_ended, in the order things happened; the input is stored before an agent is at work."""
    billing = scripted(calls("broken", "c2", city="Rome"), says("Billed"))
    billing.name = "Billing"
    triage = scripted([calls("weather", "c1", city="Rome")], calls("transfer_to_billing", "h1"))
    triage.handoffs = [billing]
    async with session.recording() as run:
        await Runner.run(triage, "Bill me", session=session, hooks=run.hooks, run_config=QUIET)

    [stored] = await session.runs.list()
    events = list(await session.events.list())
    assert [event.kind for event in events] == ["run_started", "handoff", "tool_failed", "run_ended"]
    assert {event.run_id for event in events} == {run.run_id} == {stored.run_id}
    assert [event.agent for event in events] == [None, "Assistant", "Billing", "Billing"]
    assert events[-1].payload == {"status": "completed", "error": None}
    assert (stored.status, stored.agent, stored.error) == ("completed", "Billing", None)
    assert stored.finished_at is not None
    assert stored.requests == 4


async def test_a_run_that_raised_is_failed(session: PGSession) -> None:
    """The exception is in the run's row, its tool run and the log, and comes out of the block."""

    async def recorded() -> None:
        agent = scripted(calls("weather", "c1", city="Rome"), calls("fatal", "c2", city="Oslo"))
        async with session.recording() as run:
            await Runner.run(agent, "Go", session=session, hooks=run.hooks, run_config=QUIET)

    with pytest.raises(UserError):
        await recorded()

    [run] = await session.runs.list()
    assert run.status == "failed"
    assert (run.error or "").startswith("UserError: ")
    assert run.input_tokens == 20
    assert await kinds_of(session) == ["run_started", "tool_failed", "run_ended"]
    failed = await session.events.latest(kind="tool_failed")
    assert failed is not None
    assert failed.payload == {"call_id": "c2", "tool_name": "fatal", "error": "ValueError: no station in Oslo"}


async def test_a_run_that_waits_is_interrupted(session: PGSession) -> None:
    """A run that asks for approval leaves the session waiting; the answer and the end follow when it goes on."""
    agent = scripted(calls("refund", "c1", amount=5), says("Done"))
    async with session.recording() as run:
        state = (await Runner.run(agent, "Refund", session=session, hooks=run.hooks, run_config=QUIET)).to_state()
    waiting = await session.info()
    [request] = state.get_interruptions()
    state.approve(request)
    async with session.recording() as run:
        await Runner.run(agent, state, session=session, hooks=run.hooks, run_config=QUIET)

    assert (waiting.status, (await session.info()).status) == ("waiting", "active")
    assert [each.status for each in await session.runs.list()] == ["completed", "interrupted"]
    assert await kinds_of(session) == [
        "run_started",
        "approval_asked",
        "run_ended",
        "run_started",
        "approval_answered",
        "run_ended",
    ]


async def test_a_cancelled_run_is_cancelled(session: PGSession) -> None:
    """Cancelling the task is written down before the cancellation goes on."""
    started = asyncio.Event()

    @function_tool
    async def endless() -> str:
        started.set()
        await asyncio.Event().wait()
        return "never"

    async def recorded() -> None:
        agent: Agent[None] = scripted(calls("endless", "c1"))
        agent.tools.append(endless)
        async with session.recording() as run:
            await Runner.run(agent, "Go", session=session, hooks=run.hooks, run_config=QUIET)

    task = asyncio.create_task(recorded())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    [run] = await session.runs.list()
    assert (run.status, run.error) == ("cancelled", "CancelledError")
    assert (await kinds_of(session))[-1] == "run_ended"
    assert run.finished_at is not None


async def test_a_run_whose_session_was_deleted_leaves_nothing(session: PGSession) -> None:
    """Last words about a session that is gone by then do not begin it anew."""
    agent = scripted(calls("refund", "c1", amount=5))
    async with session.recording() as run:
        await Runner.run(agent, "Refund", session=session, hooks=run.hooks, run_config=QUIET)
        await session.delete()

    assert await session.get_items() == []
    assert len(await session.runs.list()) == 0
    assert len(await session.events.list()) == 0


async def test_several_runs_of_one_block_are_each_recorded(session: PGSession) -> None:
    """A block may hold many runs, one after another or at once; each has its own end."""
    async with session.recording() as run:
        await Runner.run(scripted(says("1")), "1", session=session, hooks=run.hooks, run_config=QUIET)
        await asyncio.gather(
            *(
                Runner.run(scripted(says(text)), text, session=session, hooks=run.hooks, run_config=QUIET)
                for text in ("2", "3")
            )
        )

    assert [each.status for each in await session.runs.list()] == ["completed"] * 3
    assert sorted(await kinds_of(session)) == ["run_ended"] * 3 + ["run_started"] * 3
    assert (await session.info()).input_tokens == 30


async def test_an_old_call_makes_no_other_run_wait(session: PGSession) -> None:
    """A run that stored nothing does not turn an ended session into one that waits for somebody else's call."""
    await session.add_items([user("refund"), call("old")])
    await session.end()

    def refuse(history: list[Any], new: list[Any]) -> list[Any]:
        raise ValueError("not today")

    config = RunConfig(tracing_disabled=True, session_input_callback=refuse)
    async with session.recording() as run:
        with pytest.raises(ValueError, match="not today"):
            await Runner.run(scripted(says("Hi")), "Hi", session=session, hooks=run.hooks, run_config=config)

    assert (await session.info()).status == "ended"


async def test_an_append_beside_a_paused_run_is_not_its_own(session: PGSession) -> None:
    """Hooks that saw the run do not make it the author of what somebody adds by hand."""
    agent: Any = scripted(calls("refund", "r1", amount=5))
    result = await Runner.run(agent, "Refund", session=session, hooks=session.hooks(), run_config=QUIET)
    await session.add_items([user("never mind")])

    assert (await session.turns())[-1].items[-1].run_id is None
    with pytest.raises(SessionConflict, match="another writer came first"):
        await session.pause(result)


async def test_a_run_whose_failure_its_block_handled_waits_for_nobody(session: PGSession) -> None:
    """It failed, and is not in anybody's inbox."""
    agent: Any = scripted(calls("weather", "c1", city="Rome"), calls("weather", "c2", city="Oslo"))
    async with session.recording() as run:
        with pytest.raises(MaxTurnsExceeded):
            await Runner.run(agent, "Weather?", session=session, hooks=run.hooks, run_config=QUIET, max_turns=1)

    [ended] = await session.runs.list()
    assert (ended.status, ended.error) == ("failed", "RuntimeError: it ended without an answer")
    assert (await session.info()).status == "active"


async def test_appends_of_one_run_at_once_tell_it_once(session: PGSession) -> None:
    """What it has used, and that it started, is written by one of them."""
    wrapper: Any = RunContextWrapper(context=None)
    await session.get_items(wrapper=wrapper)
    wrapper.usage.add(Usage(requests=1, input_tokens=10, output_tokens=5, total_tokens=15))
    await asyncio.gather(*(session.add_items([user(str(n))], wrapper=wrapper) for n in range(4)))

    [run] = await session.runs.list()
    assert (run.requests, run.total_tokens) == (1, 15)
    assert [event.kind for event in await session.events.list()] == ["run_started"]
