"""What is noted of the runs of the SDK's own `Runner`: usage, tools, hand-offs, and how each run ended."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from typing import Any

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    OutputGuardrailTripwireTriggered,
    RunConfig,
    RunContextWrapper,
    RunHooks,
    Runner,
    RunState,
    ShellCommandRequest,
    ShellTool,
    UserError,
    function_tool,
    output_guardrail,
    set_trace_processors,
    set_tracing_disabled,
)
from agents.items import ToolCallOutputItem
from agents.memory import SessionSettings
from agents.run_config import ToolErrorFormatterArgs
from agents.usage import Usage
from openai.types.responses import ResponseFunctionShellToolCall
from openai.types.responses.response_function_shell_tool_call import Action

from agents_pg_session.projection import Item
from agents_pg_session.recorder import Recorder, Recording
from agents_pg_session.reports import Note, RunReport, ToolTiming, UsageDelta
from agents_pg_session.statements import Key
from agents_pg_session.texts import stored_text
from agents_pg_session.tracking import RunBook, TrackedRun
from tests.acceptance.agents_for_tests import QUIET, TELLS_TOOL_ERRORS, calls, says, scripted


class Listed:
    """A session in memory that keeps what it would have written of its runs."""

    session_id = "listed"
    session_settings: SessionSettings | None = None

    def __init__(self, items: list[Item] | None = None) -> None:
        self.items: list[Item] = list(items or [])
        self.book = RunBook()
        self.reports: list[RunReport] = []
        self.appends = 0
        self.failing = 0  #: the append that fails: 1 is the first
        self.waiting: dict[str, bool | None] = {}  #: what a person answered, of the calls that wait for an output

    async def get_items(self, limit: int | None = None, *, wrapper: RunContextWrapper[Any] | None = None) -> list[Item]:
        found = self.items if limit is None else self.items[-limit:]
        if wrapper is not None:
            self.book.run_of(wrapper, KEY).saw(found)
        return list(found)

    async def add_items(self, items: list[Item], *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        self.appends += 1
        if self.appends == self.failing:
            raise ConnectionError("the database is away")
        if wrapper is not None:
            run = self.book.run_of(wrapper, KEY)
            report = run.report()
            if report.approved is not None:
                self.waiting |= {call_id: report.approved(name, call_id) for call_id, name in run.names.items()}
            run.saw(items)
            self.tell(run, report)
        self.items += items

    async def pop_item(self, *, wrapper: RunContextWrapper[Any] | None = None) -> Item | None:
        return self.items.pop() if self.items else None

    async def clear_session(self, *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        self.items.clear()

    def tell(self, run: TrackedRun, report: RunReport) -> None:
        self.reports.append(report)
        run.written(report, None, (len(self.items), len(self.items)))

    async def flush(self, run: TrackedRun) -> None:
        self.tell(run, run.report())

    def recording(self, hooks: RunHooks[Any] | None = None) -> Recording:
        return Recording(self.book, flush=self.flush, hooks=hooks)

    # -- what was written, put together

    def runs(self) -> list[str]:
        return list(dict.fromkeys(report.run_id for report in self.reports))

    def usage(self, run_id: str | None = None) -> tuple[int, ...]:
        deltas = [report.usage for report in self.reports if run_id in (None, report.run_id)]
        return tuple(map(sum, zip(*deltas, strict=True)))

    def last(self) -> RunReport:
        return self.reports[-1]

    def timings(self) -> dict[str, ToolTiming]:
        return {call_id: timing for report in self.reports for call_id, timing in report.timings.items()}

    def notes(self) -> list[Note]:
        return [note for report in self.reports for note in report.notes]

    def kinds(self) -> list[str]:
        return [note.kind for note in self.notes()]


KEY = Key("", "listed")


@pytest.fixture
def kept() -> Listed:
    return Listed()


@pytest.fixture(params=["run", "streamed"])
def streamed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "streamed")


async def go(
    agent: Agent[None],
    said: Any,
    session: Listed,
    *,
    streamed: bool = False,
    hooks: RunHooks[Any] | None = None,
    config: RunConfig = QUIET,
) -> Any:
    """Run to the end, one way or the other."""
    if not streamed:
        return await Runner.run(agent, said, session=session, hooks=hooks, run_config=config)
    result = Runner.run_streamed(agent, said, session=session, hooks=hooks, run_config=config)
    async for _ in result.stream_events():
        pass
    return result


def totals(usage: Usage) -> tuple[int, ...]:
    """Return what `UsageDelta` counts, of the SDK's totals."""
    cached, reasoning = usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens
    return (usage.requests, usage.input_tokens, cached, usage.output_tokens, reasoning, usage.total_tokens)


def minus(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(one - other for one, other in zip(left, right, strict=True))


async def test_usage_without_hooks_adds_up_to_the_runs_own(kept: Listed, streamed: bool) -> None:
    """From `session=` alone, the differences that were written add up to `wrapper.usage`, request by request."""
    agent = scripted(calls("weather", "c1", city="R"), calls("weather", "c2", city="O"), says("Sunny"))
    result = await go(agent, "Weather?", kept, streamed=streamed)

    assert kept.usage() == totals(result.context_wrapper.usage) == (3, 30, 0, 15, 0, 45)
    assert [report.usage.requests for report in kept.reports] == [0, 1, 1, 1]
    kinds = [[note.kind for note in report.notes] for report in kept.reports]
    assert kinds == [["run_started"], [], [], []]
    assert kept.last().agent == "Assistant"
    requests = json.loads(kept.last().usage_details or "")["requests"]
    assert requests == [{"input_tokens": 10, "cached_tokens": 0, "output_tokens": 5, "reasoning_tokens": 0}] * 3


async def test_each_run_on_a_handle_counts_for_itself(kept: Listed, streamed: bool) -> None:
    """Two runs through one handle are two runs, each with its own usage."""
    first = await go(scripted(says("one")), "1", kept, streamed=streamed)
    await go(scripted(calls("weather", "c1", city="R"), says("two")), "2", kept, streamed=streamed)

    one, two = kept.runs()
    assert (kept.usage(one)[0], kept.usage(two)[0]) == (1, 2)
    assert kept.kinds() == ["run_started", "run_started"]
    assert first.context_wrapper.usage.requests == 1


@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "from JSON"])
@pytest.mark.parametrize("hooked", [True, False], ids=["hooks", "no hooks"])
async def test_a_resumed_run_counts_only_what_it_used(
    kept: Listed, streamed: bool, in_memory: bool, hooked: bool
) -> None:
    """A resumed run starts at the paused totals: nothing is counted twice, and nothing gets lost."""
    hooks = Recorder(kept.book) if hooked else None
    agent = scripted(calls("refund", "c1", amount=5), calls("weather", "c2", city="R"), says("Done"))
    paused = await go(agent, "Refund", kept, streamed=streamed, hooks=hooks)
    before = totals(paused.context_wrapper.usage)
    state: RunState[None] = paused.to_state()
    resuming = kept
    if not in_memory:
        state = await RunState.from_json(agent, json.loads(json.dumps(state.to_json())))
        resuming = Listed(kept.items)
        hooks = Recorder(resuming.book) if hooked else None
    state.approve(state.get_interruptions()[0])
    resumed = await go(agent, state, resuming, streamed=streamed, hooks=hooks)

    after = totals(resumed.context_wrapper.usage)
    assert after[0] == 3
    assert kept.usage(kept.runs()[0]) == before
    assert resuming.usage(resuming.runs()[-1]) == minus(after, before)
    assert len(set(kept.runs()) | set(resuming.runs())) == 2
    if hooked:
        timing = resuming.timings()["c1"]
        assert timing.started is not None
        assert timing.finished is not None
        assert timing.error is None
        assert resuming.last().status == "completed"
    assert len(json.loads(resuming.last().usage_details or "")["requests"]) == 2


async def test_what_a_person_answered_can_be_asked(kept: Listed, streamed: bool) -> None:
    """`approved` tells yes, no, or nothing for each call that waits for its output."""
    asked = [calls("refund", "yes", amount=1), calls("refund", "no", amount=2)]
    agent = scripted(asked, says("Done"))
    paused = await go(agent, "Refund", kept, streamed=streamed)
    state = paused.to_state()
    accepted, refused = state.get_interruptions()
    state.approve(accepted)
    state.reject(refused)
    await go(agent, state, kept, streamed=streamed)

    assert kept.waiting == {"yes": True, "no": False}


async def test_usage_of_a_failed_append_travels_with_the_next(kept: Listed) -> None:
    """What an append that failed would have told is told by the flush at the end."""
    agent = scripted(calls("weather", "c1", city="R"), says("Sunny"))
    kept.failing = 2
    with pytest.raises(ConnectionError):
        async with kept.recording() as run:
            await go(agent, "Weather?", kept, hooks=run.hooks)

    assert kept.usage()[0] == 1
    assert kept.timings()["c1"].error is None
    assert kept.last().status == "failed"
    assert kept.last().error == "ConnectionError: the database is away"


async def test_tools_are_timed(kept: Listed, streamed: bool) -> None:
    """Hooks give the start and the end of each tool run, written with the calls and outputs."""

    @function_tool
    async def slow(city: str) -> str:
        await asyncio.sleep(0.05)
        return city

    agent = scripted([calls("slow", "c1", city="R"), calls("weather", "c2", city="O")], says("Sunny"))
    agent.tools.append(slow)
    await go(agent, "Weather?", kept, streamed=streamed, hooks=Recorder(kept.book))

    with_tools = kept.reports[1]
    slowly, quickly = with_tools.timings["c1"], with_tools.timings["c2"]
    assert slowly.started is not None
    assert slowly.finished is not None
    assert slowly.finished - slowly.started >= 0.049
    assert (slowly.tool_type, slowly.tool_name, slowly.agent) == ("function", "slow", "Assistant")
    assert slowly.error is None
    assert quickly.finished is not None
    assert quickly.finished < slowly.finished
    assert kept.last().timings == {}


async def test_shell_tools_are_timed_without_a_call_id(kept: Listed) -> None:
    """A tool whose hooks tell no call id is timed in order, under its type; a trace tells its error."""
    set_trace_processors([])
    set_tracing_disabled(False)  # whatever tests before this one wanted

    def execute(request: ShellCommandRequest) -> str:
        [command] = request.data.action.commands
        if command == "rm":
            raise PermissionError("not rm")
        return "a file"

    shell_calls: list[Any] = [
        ResponseFunctionShellToolCall(
            id=command, call_id=command, type="shell_call", status="completed", action=Action(commands=[command])
        )
        for command in ("ls", "rm")
    ]
    agent = scripted(shell_calls, says("Done"))
    agent.tools.append(ShellTool(executor=execute))
    await go(agent, "List", kept, hooks=Recorder(kept.book), config=RunConfig())

    first, second = kept.reports[1].nameless
    assert (first.tool_type, first.error) == ("shell", None)
    assert (second.tool_type, second.error) == ("shell", "not rm")
    assert None not in (first.started, first.finished, second.started, second.finished)
    assert kept.last().nameless == ()


async def test_the_error_behind_the_default_text_is_noted(kept: Listed, streamed: bool) -> None:
    """A tool that raises leaves type and message, and the model hears what it would hear without us."""
    agent, plain = (scripted(calls("broken", "c1", city="Paris"), says("Sorry")) for _ in range(2))
    await go(agent, "Weather?", kept, streamed=streamed, hooks=Recorder(kept.book))
    without = Listed()
    await go(plain, "Weather?", without, streamed=streamed)

    expected = "ValueError: no station in Paris" if TELLS_TOOL_ERRORS else "no station in Paris"
    assert kept.timings()["c1"].error == expected
    assert kept.items == without.items


@pytest.mark.skipif(not TELLS_TOOL_ERRORS, reason="this SDK's formatter is not told exceptions")
@pytest.mark.parametrize("kind", ["sync", "async", "silent", "failing"])
async def test_the_users_formatter_of_tool_errors_still_answers(kept: Listed, kind: str) -> None:
    """The user's `tool_error_formatter` gets the same arguments, and its answer reaches the model."""
    heard: list[Any] = []

    def answer(args: ToolErrorFormatterArgs[Any]) -> str | None:
        heard.append(args)
        if kind == "failing":
            raise RuntimeError("formatter")
        return None if kind == "silent" else "try Rome"

    async def answer_later(args: ToolErrorFormatterArgs[Any]) -> str | None:
        return answer(args)

    config = RunConfig(tracing_disabled=True, tool_error_formatter=answer_later if kind == "async" else answer)
    agent = scripted(calls("broken", "c1", city="Paris"), says("Sorry"))
    result = await go(agent, "Weather?", kept, hooks=Recorder(kept.book), config=config)

    outputs = [item.output for item in result.new_items if isinstance(item, ToolCallOutputItem)]
    default = "An error occurred while running the tool. Please try again."
    assert outputs == ["try Rome" if kind in ("sync", "async") else default]
    assert [args.call_id for args in heard] == ["c1"]
    assert kept.timings()["c1"].error == "ValueError: no station in Paris"
    assert config.tool_error_formatter in (answer, answer_later)


async def test_the_error_behind_a_tools_own_text_is_noted_when_traced(kept: Listed, streamed: bool) -> None:
    """With tracing on, a tool with its own `failure_error_function` leaves the message on its span."""
    set_trace_processors([])
    set_tracing_disabled(False)  # whatever tests before this one wanted

    @function_tool(failure_error_function=lambda _, __: "sorry")
    def moody(city: str) -> str:
        raise ValueError(f"not {city}")

    agent = scripted(calls("moody", "c1", city="Paris"), calls("weather", "c2", city="R"), says("Sorry"))
    agent.tools.append(moody)
    await go(agent, "Weather?", kept, streamed=streamed, hooks=Recorder(kept.book), config=RunConfig())

    assert kept.timings()["c1"].error == "not Paris"
    assert kept.timings()["c2"].error is None
    assert (kept.last().trace_id or "").startswith("trace_")


async def test_a_tool_that_timed_out_failed(kept: Listed, streamed: bool) -> None:
    """The SDK's text for a timeout is an error."""

    @function_tool(timeout=0.01)
    async def endless() -> str:
        await asyncio.sleep(60)
        return ""

    agent = scripted(calls("endless", "c1"), says("Sorry"))
    agent.tools.append(endless)
    await go(agent, "Wait", kept, streamed=streamed, hooks=Recorder(kept.book))

    assert kept.timings()["c1"].error == "ToolTimeoutError: Tool 'endless' timed out after 0.01 seconds."


async def test_a_tool_that_ends_the_run_failed_with_it(kept: Listed, streamed: bool) -> None:
    """A tool without `failure_error_function` starts and never ends: the run's end carries its error."""
    agent = scripted(calls("fatal", "c1", city="Paris"), says("never"))
    with pytest.raises(UserError):
        async with kept.recording() as run:
            await go(agent, "Weather?", kept, streamed=streamed, hooks=run.hooks)

    assert kept.timings()["c1"].error == "ValueError: no station in Paris"
    assert kept.timings()["c1"].finished is not None
    assert kept.last().status == "failed"
    assert kept.last().error == "UserError: Error running tool fatal: no station in Paris"
    assert kept.last().finished is not None
    assert kept.usage()[0] == 1
    assert kept.kinds() == ["run_started", "run_ended"]
    assert run.run_id == kept.last().run_id


async def test_the_models_time_is_measured(kept: Listed, streamed: bool) -> None:
    """Hooks give the seconds spent waiting for the model, in all and for each request."""
    agent = scripted(calls("weather", "c1", city="R"), says("Sunny"))
    await go(agent, "Weather?", kept, streamed=streamed, hooks=Recorder(kept.book))

    requests = json.loads(kept.last().usage_details or "")["requests"]
    assert len(requests) == 2
    seconds = sum(request["model_seconds"] for request in requests)
    assert seconds == pytest.approx(sum(report.model_seconds for report in kept.reports), abs=1e-5)
    assert seconds > 0


async def test_a_hand_off_is_noted(kept: Listed, streamed: bool) -> None:
    """A hand-off is one event, not an agent change too, and the run completes with the agent that took over."""
    taker = scripted(says("Bonjour"))
    taker.name = "French"
    giver = scripted(calls("transfer_to_french", "h1"))
    giver.handoffs = [taker]
    await go(giver, "Bonjour", kept, streamed=streamed, hooks=Recorder(kept.book))

    assert kept.kinds() == ["run_started", "handoff", "run_ended"]
    [_, handoff, ended] = kept.notes()
    assert json.loads(handoff.payload or "") == {"from": "Assistant", "to": "French"}
    assert (handoff.agent, handoff.run_id) == ("Assistant", kept.last().run_id)
    assert json.loads(ended.payload or "") == {"status": "completed", "error": None}
    assert (kept.last().status, kept.last().agent) == ("completed", "French")


async def test_an_agent_change_without_a_hand_off_is_noted(kept: Listed) -> None:
    """Another agent that starts within a run is an event."""
    hooks: RunHooks[Any] = Recorder(kept.book)
    wrapper = RunContextWrapper[Any](None)
    for name in ("A", "A", "B"):
        await hooks.on_agent_start(wrapper, Agent(name=name))  # type: ignore[arg-type]
    await kept.add_items([], wrapper=wrapper)

    assert kept.kinds() == ["run_started", "agent_changed"]
    assert json.loads(kept.notes()[1].payload or "") == {"from": "A", "to": "B"}


async def test_an_agent_inside_a_tool_is_part_of_the_run(kept: Listed, streamed: bool) -> None:
    """An agent used as a tool adds its usage and makes no run, even when it is given the same hooks and session."""
    hooks = Recorder(kept.book)
    inner = scripted(calls("weather", "n1", city="R"), says("Sunny"))
    inner.name = "Inner"
    outer = scripted(calls("ask", "c1", input="Weather?"), says("Sunny, they say"))
    outer.tools.append(inner.as_tool("ask", "Ask", hooks=hooks, session=kept))
    result = await go(outer, "Weather?", kept, streamed=streamed, hooks=hooks)

    assert len(kept.runs()) == 1
    assert kept.usage() == totals(result.context_wrapper.usage)
    assert set(kept.timings()) == {"c1"}
    assert [report.status for report in kept.reports[:-1]] == ["running"] * (len(kept.reports) - 1)
    assert (kept.last().status, kept.last().agent) == ("completed", "Assistant")
    assert kept.kinds() == ["run_started", "run_ended"]


async def test_an_agent_inside_a_tool_is_part_of_the_run_without_hooks_too(kept: Listed, streamed: bool) -> None:
    """From `session=` alone, an agent used as a tool on the same session makes no run, and is counted once."""
    inner = scripted(says("Sunny"))
    outer = scripted(calls("ask", "c1", input="Weather?"), says("Sunny, they say"))
    outer.tools.append(inner.as_tool("ask", "Ask", session=kept))
    result = await go(outer, "Weather?", kept, streamed=streamed)

    assert len(kept.runs()) == 1
    assert kept.usage() == totals(result.context_wrapper.usage)
    assert kept.usage()[0] == 3


async def test_a_run_that_another_session_serves_leaves_nothing(kept: Listed) -> None:
    """Hooks of a run that never comes to the session write nothing, at the end of a recording either."""
    async with kept.recording() as run:
        await Runner.run(scripted(says("Hello")), "Hi", hooks=run.hooks, run_config=QUIET)

    assert kept.reports == []
    assert run.run_id is None


class Witness(RunHooks[Any]):
    """Hooks that keep what they are called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        async def note(*args: Any, **kwargs: Any) -> str:
            self.calls.append((name, [type(arg).__name__ for arg in args] + sorted(kwargs)))
            return name

        return note


async def test_the_users_hooks_are_called_as_without_us(kept: Listed, streamed: bool) -> None:
    """Every hook of the user gets the arguments the Runner gives, in the same order."""
    seen: list[list[tuple[str, list[str]]]] = []
    for recorded in (False, True):
        mine = Witness()
        taker = scripted(calls("weather", "c2", city="R"), says("Bonjour"))
        taker.name = "French"
        agent = scripted(calls("broken", "c1", city="R"), calls("transfer_to_french", "h1"))
        agent.handoffs = [taker]
        await go(agent, "Hi", kept, streamed=streamed, hooks=Recorder(kept.book, wrap=mine) if recorded else mine)
        seen.append(mine.calls)

    assert seen[0] == seen[1]
    assert {name for name, _ in seen[0]} == {name for name in vars(RunHooks.__origin__) if name.startswith("on_")}  # type: ignore[attr-defined]


async def test_the_users_hook_gets_the_very_objects_and_answers(kept: Listed) -> None:
    """Arguments are passed on by identity, and what the hook returns comes back."""
    got: list[Any] = []

    class Mine:
        async def on_handoff(self, *args: Any, **kwargs: Any) -> str:
            got.append((args, kwargs))
            return "answer"

    hooks: Any = Recorder(kept.book, wrap=Mine())  # type: ignore[arg-type]
    one, other = Agent(name="A"), Agent(name="B")
    context = RunContextWrapper[Any](None)
    assert await hooks.on_handoff(context=context, from_agent=one, to_agent=other) == "answer"
    assert await hooks.on_agent_start(context, one) is None  # a hook that Mine lacks

    [(args, kwargs)] = got
    assert args == ()
    assert kwargs["context"] is context
    assert (kwargs["from_agent"], kwargs["to_agent"]) == (one, other)


async def test_an_error_of_the_users_hook_ends_the_run(kept: Listed, streamed: bool) -> None:
    """What the user's hook raises comes out of the run unchanged, and the run failed with it."""
    error = LookupError("mine")

    class Mine(RunHooks[Any]):
        async def on_llm_start(self, *args: Any, **kwargs: Any) -> None:
            raise error

    with pytest.raises(LookupError) as raised:
        async with kept.recording(Mine()) as run:
            await go(scripted(says("Hello")), "Hi", kept, streamed=streamed, hooks=run.hooks)

    assert raised.value is error
    assert (kept.last().status, kept.last().error) == ("failed", "LookupError: mine")


async def test_an_error_of_the_recorder_never_ends_a_run(
    kept: Listed, streamed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What goes wrong while noting is logged, and the run and the user's hooks go on."""

    def broken_find(*_: Any) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(kept.book, "find", broken_find)
    mine = Witness()
    with caplog.at_level(logging.WARNING, logger="agents_pg_session"):
        result = await go(
            scripted(calls("weather", "c1", city="R"), says("Sunny")),
            "Weather?",
            kept,
            streamed=streamed,
            hooks=Recorder(kept.book, wrap=mine),
        )

    assert result.final_output == "Sunny"
    assert [name for name, _ in mine.calls][-1] == "on_agent_end"
    assert any("on_tool_start" in record.getMessage() for record in caplog.records)
    assert kept.usage()[0] == 2


async def test_a_completed_run_says_so_with_its_last_append(kept: Listed, streamed: bool) -> None:
    """The last append carries the status: leaving the recording writes nothing more."""
    async with kept.recording() as run:
        await go(scripted(says("Hello")), "Hi", kept, streamed=streamed, hooks=run.hooks)
        appended = len(kept.reports)

    assert len(kept.reports) == appended
    assert (kept.last().status, kept.last().error) == ("completed", None)
    assert kept.last().finished is not None
    assert run.run_id == kept.last().run_id


async def test_a_guardrail_that_trips_on_the_output_fails_the_run(kept: Listed, streamed: bool) -> None:
    """An output that a guardrail refuses came with `on_agent_end`, and the run failed all the same."""

    @output_guardrail
    async def never(context: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    agent = scripted(says("Hello"))
    agent.output_guardrails = [never]
    with pytest.raises(OutputGuardrailTripwireTriggered):
        async with kept.recording() as run:
            await go(agent, "Hi", kept, streamed=streamed, hooks=run.hooks)

    assert kept.last().status == "failed"
    assert (kept.last().error or "").startswith("OutputGuardrailTripwireTriggered: ")
    assert kept.usage()[0] == 1


async def test_a_run_that_waits_for_approval_is_interrupted(kept: Listed, streamed: bool) -> None:
    """A paused run is interrupted; its resumption in the same recording is a run of its own that completes."""
    agent = scripted(calls("refund", "c1", amount=5), says("Done"))
    async with kept.recording() as run:
        paused = await go(agent, "Refund", kept, streamed=streamed, hooks=run.hooks)
        first = run.run_id
        state = paused.to_state()
        state.approve(state.get_interruptions()[0])
        await go(agent, state, kept, streamed=streamed, hooks=run.hooks)

    ends = {report.run_id: report.status for report in kept.reports}
    assert list(ends.values()) == ["interrupted", "completed"]
    assert (first, run.run_id) == tuple(ends)
    assert kept.usage()[0] == 2


async def test_a_pause_stays_a_pause_when_the_resumed_run_fails(kept: Listed, streamed: bool) -> None:
    """In one recording, the error is the later run's."""
    agent = scripted(calls("refund", "c1", amount=5), calls("fatal", "c2", city="R"))

    async def both() -> None:
        async with kept.recording() as run:
            paused = await go(agent, "Refund", kept, streamed=streamed, hooks=run.hooks)
            state = paused.to_state()
            state.approve(state.get_interruptions()[0])
            await go(agent, state, kept, streamed=streamed, hooks=run.hooks)

    with pytest.raises(UserError):
        await both()

    ends = {report.run_id: (report.status, report.error) for report in kept.reports}
    assert [status for status, _ in ends.values()] == ["interrupted", "failed"]
    assert next(iter(ends.values()))[1] is None


async def test_a_recording_whose_hooks_were_forgotten_tells_pauses_by_their_calls(kept: Listed) -> None:
    """Without hooks, a run that left a call without output is interrupted, any other is completed."""
    async with kept.recording():
        await go(scripted(says("Hello")), "Hi", kept)
        await go(scripted(calls("refund", "c1", amount=5)), "Refund", kept)

    ends = {report.run_id: report.status for report in kept.reports}
    assert list(ends.values()) == ["completed", "interrupted"]


async def test_a_cancelled_run_is_cancelled(kept: Listed, streamed: bool) -> None:
    """Cancelling the task cancels the run and the tool that was at work, and writes both."""
    started = asyncio.Event()

    @function_tool
    async def endless() -> str:
        started.set()
        await asyncio.sleep(60)
        return ""

    agent = scripted(calls("endless", "c1"), says("never"))
    agent.tools.append(endless)

    async def recorded() -> None:
        async with kept.recording() as run:
            await go(agent, "Wait", kept, streamed=streamed, hooks=run.hooks)

    task = asyncio.create_task(recorded())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (kept.last().status, kept.last().error) == ("cancelled", "CancelledError")
    assert kept.timings()["c1"].error == "CancelledError"


@pytest.mark.parametrize("fails", [True, False], ids=["failing block", "fine block"])
async def test_an_error_of_the_flush_never_hides_the_runs(kept: Listed, fails: bool) -> None:
    """A flush that fails is raised, unless the block raised something itself."""

    async def away(run: TrackedRun) -> None:
        raise ConnectionError("away")

    agent = scripted(calls("fatal" if fails else "refund", "c1", **({"city": "R"} if fails else {"amount": 1})))
    with pytest.raises(UserError if fails else ConnectionError):
        async with Recording(kept.book, flush=away) as run:
            await go(agent, "Hi", kept, hooks=run.hooks)


async def test_recordings_side_by_side_keep_to_their_own_runs(kept: Listed) -> None:
    """Two recordings on one handle at the same time each note the end of the runs their hooks are in."""
    async with kept.recording() as one, kept.recording() as other:
        await go(scripted(says("1")), "1", kept, hooks=one.hooks)
        await go(scripted(calls("refund", "c1", amount=5)), "2", kept, hooks=other.hooks)

    ends = {report.run_id: report.status for report in kept.reports}
    assert (one.run_id, other.run_id) == tuple(ends)
    assert list(ends.values()) == ["completed", "interrupted"]
    assert kept.kinds().count("run_ended") == 2


async def test_runs_that_are_gone_leave_no_entries(kept: Listed, streamed: bool) -> None:
    """A handle and a recorder that serve many runs keep none of them."""
    hooks = Recorder(kept.book)
    for number in range(5):
        await go(
            scripted(calls("broken", f"c{number}", city="R"), says("x")), "Hi", kept, streamed=streamed, hooks=hooks
        )
        async with kept.recording() as run:
            await go(scripted(says("x")), "Hi", kept, streamed=streamed, hooks=run.hooks)
    kept.reports.clear()
    gc.collect()

    assert len(kept.book) == 0


async def test_a_usage_at_an_address_used_before_is_another_run() -> None:
    """Runs are told apart even where Python gives a new usage object the address of one that is gone."""
    book = RunBook()
    run_ids = set()
    for _ in range(50):
        wrapper = RunContextWrapper[Any](None, usage=Usage(requests=7))
        run = book.run_of(wrapper, KEY)
        assert run.report().usage == UsageDelta()
        run_ids.add(run.run_id)
        del wrapper

    assert len(run_ids) == 50
    assert len(book) == 0


async def test_what_came_after_a_report_stays_for_the_next() -> None:
    """`written` drops what the report told, and nothing that came to the buffers since."""
    book = RunBook()
    wrapper = RunContextWrapper[Any](None)
    run = book.run_of(wrapper, KEY)
    run.tool_started("c1", "function", "weather", "A")
    report = run.report()
    wrapper.usage.add(Usage(requests=1, input_tokens=3, total_tokens=3))
    run.tool_finished("c1", "function", "weather", "A", None)
    run.handed_off("A", "B")
    run.written(report)

    following = run.report()
    assert following.timings["c1"].finished is not None
    assert following.timings["c1"].started == report.timings["c1"].started
    assert [note.kind for note in following.notes] == ["handoff"]
    assert following.usage == UsageDelta(requests=1, input_tokens=3, total_tokens=3)


async def test_only_the_newest_requests_are_told() -> None:
    """`usage_details` holds at most 200 requests: the newest."""
    wrapper = RunContextWrapper[Any](None)
    run = RunBook().run_of(wrapper, KEY)
    for number in range(1, 251):
        wrapper.usage.add(Usage(requests=1, input_tokens=number, total_tokens=number))

    requests = json.loads(run.report().usage_details or "")["requests"]
    assert [request["input_tokens"] for request in requests] == list(range(51, 251))


def test_names_are_learned_from_calls_and_forgotten_with_outputs() -> None:
    """Call ids without output map to the tool's name, with its namespace, or the tool's type where it has none."""
    run = TrackedRun(Usage())
    items: Any = [
        {"type": "function_call", "call_id": "f", "name": "find"},
        {"type": "function_call", "call_id": "n", "name": "find", "namespace": "crm"},
        {"type": "custom_tool_call", "call_id": "c", "name": "grep"},
        {"type": "shell_call", "call_id": "s"},
        {"type": "computer_call", "call_id": "o"},
        {"type": "computer_call_output", "call_id": "o"},
        {"__enc__": 1},
        "not an item",
    ]
    run.saw(items)

    assert run.names == {"f": "find", "n": "crm.find", "c": "grep", "s": "shell"}


def test_texts_are_made_fit_for_a_column() -> None:
    """What PostgreSQL cannot store is replaced, and nothing is endless."""
    assert stored_text("a\0b\ud800") == "a\ufffdb?"
    assert len(stored_text("x" * 100_000)) == 2000
