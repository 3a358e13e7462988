"""Whatever happens to a session, its record equals what a straightforward recount says, on every backend.

The model below keeps plain lists. It is told what each item is, instead of reading it off the item: so it shares no
code and no rule with the projection.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, NamedTuple

import pytest
from agents import RunContextWrapper, Runner, Usage
from agents.tool import DEFAULT_APPROVAL_REJECTION_MESSAGE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents_pg_session import PGSession, SessionConflict, SessionInfo, SessionNotFound, SessionStore, SnapshotNotFound
from agents_pg_session.projection import Item
from tests.acceptance.agents_for_tests import QUIET, calls, says, scripted
from tests.items import assistant, call, item, output, user

FAILED = "An error occurred while running the tool. Please try again."


class Said(NamedTuple):
    """An item, and what it is."""

    item: Item
    calls: str | None = None  #: the type of the tool it calls
    answers: tuple[str, ...] = ()  #: the types of tools it is an output of
    tool: str | None = None
    call_id: str | None = None
    status: str = "running"  #: of the tool run once this was said
    hands_off: bool = False
    event: str | None = None  #: what it is in the log, where it is no tool run


def call_of(call_id: str) -> list[Said]:
    """Every call there may be under this id; each tool's output can come in the same append, later, or never."""
    return [
        Said(call(call_id), "function", tool="lookup", call_id=call_id),
        Said(call(call_id, "transfer_to_billing"), "function", tool="transfer_to_billing", call_id=call_id),
        Said(
            item(type="function_call", call_id=call_id, name="find", namespace="crm", arguments='{"a":1}'),
            "function",
            tool="crm.find",
            call_id=call_id,
        ),
        Said(
            item(type="custom_tool_call", call_id=call_id, name="grep", input="a\0b"),
            "custom",
            tool="grep",
            call_id=call_id,
        ),
        Said(
            item(type="shell_call", call_id=call_id, action={"commands": ["ls"]}),
            "shell",
            tool="shell",
            call_id=call_id,
        ),
        Said(
            item(type="local_shell_call", call_id=call_id, action={"command": ["ls"]}),
            "local_shell",
            tool="local_shell",
            call_id=call_id,
        ),
        Said(
            item(type="apply_patch_call", call_id=call_id, operation={"type": "delete_file", "path": "a"}),
            "apply_patch",
            tool="apply_patch",
            call_id=call_id,
        ),
        Said(
            item(type="computer_call", call_id=call_id, actions=[{"type": "wait"}]),
            "computer",
            tool="computer_use_preview",
            call_id=call_id,
        ),
    ]


def output_of(call_id: str) -> list[Said]:
    """Every output there may be under this id."""

    def said(item: Item, *answers: str, status: str = "succeeded", hands_off: bool = False) -> Said:
        return Said(item, answers=answers, call_id=call_id, status=status, hands_off=hands_off)

    def shell(exit_code: int) -> Item:
        entry = {"stdout": "", "stderr": "", "outcome": {"type": "exit", "exit_code": exit_code}}
        return item(type="shell_call_output", call_id=call_id, output=[entry])

    return [
        said(output(call_id), "function"),
        said(output(call_id, FAILED), "function", status="failed"),
        said(output(call_id, DEFAULT_APPROVAL_REJECTION_MESSAGE), "function", status="rejected"),
        said(output(call_id, '{"assistant": "Billing"}'), "function", hands_off=True),
        said(item(type="custom_tool_call_output", call_id=call_id, output="found"), "custom", "apply_patch"),
        said(shell(0), "shell", "local_shell"),
        said(shell(1), "shell", "local_shell", status="failed"),
        said(item(type="local_shell_call_output", id=call_id, output="{}"), "local_shell"),
        said(item(type="apply_patch_call_output", call_id=call_id, status="completed", output=""), "apply_patch"),
        said(
            item(type="apply_patch_call_output", call_id=call_id, status="failed", output="no such file"),
            "apply_patch",
            status="failed",
        ),
        said(item(type="computer_call_output", call_id=call_id, output={"type": "computer_screenshot"}), "computer"),
    ]


def hosted(kind: str, tool: str, ended: str, /, **fields: Any) -> Said:
    """A call that ran where the model runs, and carries its own result."""
    said = item(type=f"{kind}_call", id="hosted", **fields)
    return Said(said, kind, (kind,), tool=tool, call_id="hosted", status=ended)


PLAIN = [
    Said(user("u")),
    Said(user("v")),
    Said(item(role="system", content="s")),
    Said(assistant("a")),
    Said(item(type="reasoning", id="r", summary=[])),
    Said(item(__enc__=1, payload="x")),
    Said(item(type="x\0", value=1e2)),
]
HOSTED = [
    hosted("mcp", "docs.search", "succeeded", server_label="docs", name="search", arguments="{}", output="x"),
    hosted("mcp", "docs.search", "failed", server_label="docs", name="search", arguments="{}", error="boom"),
    hosted("mcp", "docs.search", "running", server_label="docs", name="search", arguments="{}", status="calling"),
    hosted("web_search", "web_search", "succeeded", status="completed", action={"type": "search", "query": "q"}),
    hosted("file_search", "file_search", "failed", status="incomplete", queries=["q"]),
    Said(
        item(type="mcp_approval_request", id="m", server_label="docs", name="search", arguments="{}"),
        event="approval_asked",
    ),
    Said(item(type="mcp_approval_response", approval_request_id="m", approve=True), event="approval_answered"),
]
TOOLS = [*call_of("c1"), *call_of("c2"), *output_of("c1"), *output_of("c2")]
#: Calls with outputs of their own: what a Runner would say.
ROUNDS = [
    [one, other, result]
    for one, other in zip(call_of("c1"), reversed(call_of("c2")), strict=True)
    for result in output_of("c1")
    if one.calls in result.answers
]
BATCHES = st.one_of(
    st.lists(st.sampled_from([*PLAIN, *HOSTED, *TOOLS]), max_size=5),
    st.lists(st.sampled_from(TOOLS), min_size=1, max_size=4),
    st.sampled_from(ROUNDS),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), BATCHES, st.sampled_from([None, 0, 1, 2]), st.integers(0, 9)),
        st.tuples(st.just("add"), BATCHES, st.sampled_from([None, 0, 1, 2]), st.integers(0, 9)),
        st.tuples(st.just("pop")),
        st.tuples(st.just("pop")),
        st.tuples(st.sampled_from(["pop", "clear"])),
        st.tuples(st.just("fork"), st.one_of(st.none(), st.integers(0, 3))),
        st.tuples(st.just("replace"), st.lists(st.sampled_from(PLAIN), max_size=2)),
        st.tuples(
            st.just("compact"), st.integers(1, 5), st.integers(0, 5), st.lists(st.sampled_from(PLAIN), max_size=2)
        ),
        st.tuples(st.just("restore"), st.integers(1, 2)),
        st.tuples(st.just("restore"), st.integers(1, 4)),
    ),
    max_size=14,
)


@dataclass(frozen=True)
class Row:
    """An item of the model."""

    position: int
    turn: int
    said: Said


@dataclass
class Tool:
    """A tool run of the model."""

    position: int
    output_position: int | None
    call_id: str | None
    name: str | None
    kind: str
    status: str


@dataclass
class RunOf:
    """What the model knows of a run: what its usage stood at when it was first seen, and what it wrote."""

    seen: int
    turn: int | None = None  #: of its first append
    tokens: int = 0
    names: dict[str, str] = field(default_factory=dict)  #: tools whose outputs it waits for


@dataclass
class Model:
    """A session as plain lists."""

    rows: list[Row] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)  #: of the events
    runs: dict[int, RunOf] = field(default_factory=dict)
    history: list[tuple[list[Row], int, int, int]] = field(default_factory=list)
    last_position: int = 0
    exists: bool = False

    def turn(self, before: float = float("inf")) -> int:
        return next((row.turn for row in reversed(self.rows) if row.position < before), 0)

    def append(self, batch: Sequence[Said], run: int | None, usage: int) -> None:
        known = None if run is None else self.runs.setdefault(run, RunOf(usage))
        if not batch:
            return
        if known is not None and known.turn is None:
            self.kinds.append("run_started")
        start = self.last_position
        self.rows += placed(batch, start, self.turn())
        self.last_position += len(batch)
        self.exists = True
        names = known.names if known is not None else {}
        self._note(batch, start, names)
        for said in batch:
            if said.item.get("role") == "user":
                names.clear()  # what a new question talks over is not waited for any more
            if said.call_id is not None and said.item.get("call_id") is not None:
                if said.answers:
                    names.pop(said.call_id, None)
                elif said.tool is not None:
                    names[said.call_id] = said.tool
        if known is not None:
            known.turn = self.turn() if known.turn is None else known.turn
            known.tokens, known.seen = known.tokens + usage - known.seen, usage

    def _note(self, batch: Sequence[Said], start: int, names: dict[str, str]) -> None:
        """Pair calls and outputs. Within an append an output belongs to a call of its tool; a later one has its id."""
        earlier = [tool for tool in self.tools if tool.status == "running"]
        calls: list[Tool] = []
        late: list[str] = []
        handoffs = 0
        for position, said in enumerate(batch, start + 1):
            if said.calls is not None:
                ended = position if said.answers and said.status != "running" else None
                calls.append(Tool(position, ended, said.call_id, said.tool, said.calls, said.status))
            elif said.answers:
                open_calls = [each for each in calls if each.status == "running" and each.call_id == said.call_id]
                answered = next((each for each in reversed(open_calls) if each.kind in said.answers), None)
                name = answered.name if answered is not None else names.get(str(said.call_id))
                handoffs += said.hands_off and name == "transfer_to_billing"
                if answered is None:
                    late.append(said.status)
                    waiting = [each for each in earlier if each.call_id == said.call_id]
                    answered = waiting[-1] if waiting else None
                    earlier = [each for each in earlier if each is not answered]
                if answered is not None:
                    answered.output_position, answered.status = position, said.status
        self.tools += calls
        self.kinds += ["handoff"] * handoffs
        self.kinds += [said.event for said in batch if said.event is not None]
        self.kinds += ["tool_failed"] * [*(each.status for each in calls), *late].count("failed")

    def pop(self) -> Item | None:
        if not self.rows:
            return None
        row = self.rows.pop()
        self.tools = [tool for tool in self.tools if tool.position != row.position]
        for tool in self.tools:
            if tool.output_position == row.position:
                tool.output_position, tool.status = None, "running"
        self.kinds.append("item_popped")
        return row.said.item

    def clear(self) -> None:
        if self.exists:
            self.rows = []
            self.kinds.append("session_cleared")

    def replace(self, batch: Sequence[Said], start: int = 0) -> bool:
        """Replace everything from the item at index *start* on."""
        if not self.exists:
            return False
        kept, removed = self.rows[:start], self.rows[start:]
        first, self.rows = self.last_position + 1, kept
        self.rows = kept + placed(batch, self.last_position, self.turn())
        self.last_position += len(batch)
        self.history.append((removed, first, self.last_position, len(batch)))
        self.kinds.append("history_replaced")
        return True

    def restore(self, version: int) -> type[Exception] | None:
        """Bring a version back, or say what it raises."""
        if not self.exists:
            return SessionNotFound
        if version > len(self.history):
            return SnapshotNotFound
        brought, first, last, count = self.history[version - 1]
        removed = [row for row in self.rows if first <= row.position <= last]
        back = {row.position for row in brought}
        if len(removed) != count or back & {row.position for row in self.rows}:
            return SessionConflict
        before = self.turn(min([first, *back]) if count else min(back, default=0))
        turns = max((row.turn for row in brought), default=before) - max((row.turn for row in removed), default=before)
        end = max([*back, *(row.position for row in removed)], default=0)
        kept = [row for row in self.rows if row not in removed]
        moved = [replace(row, turn=row.turn + turns) if row.position > end else row for row in kept]
        self.rows = sorted([*moved, *brought], key=lambda row: row.position)
        self.history.append((removed, min(back, default=1), max(back, default=0), len(brought)))
        self.kinds.append("history_replaced")
        return None

    def fork(self, before_turn: int | None) -> Model:
        rows = [row for row in self.rows if before_turn is None or row.turn < before_turn]
        reach = max((row.position for row in rows), default=0)
        tools = [replace(tool) for tool in self.tools if tool.position in {row.position for row in rows}]
        for tool in tools:
            if tool.output_position is not None and tool.output_position > reach:
                tool.output_position, tool.status = None, "running"
        return Model(rows, tools, ["session_forked"], last_position=reach, exists=True)


def placed(batch: Sequence[Said], position: int, turn: int) -> list[Row]:
    """Give each item its place; neighbouring input messages with a user's among them begin a turn."""
    rows: list[Row] = []
    for is_input, group in groupby(batch, key=lambda said: said.item.get("role") in ("user", "system")):
        members = list(group)
        turn += is_input and any(said.item.get("role") == "user" for said in members)
        rows += [Row(position + len(rows) + place, turn, said) for place, said in enumerate(members, 1)]
    return rows


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_the_record_equals_a_recount(
    steps: list[tuple[Any, ...]], store: SessionStore, new_id: Callable[[], str]
) -> None:
    """Tools, runs, pops, clears, forks, replaced and restored history: each counter is what counting gives."""
    session, model = store.session(new_id(), tenant="t"), Model()
    wrappers = [started_at(number * 100) for number in range(3)]  # a resumed run begins at the totals of its pause
    for step, *details in steps:
        match step:
            case "add":
                batch, run, tokens = details
                model.append(batch, run, 0 if run is None else wrappers[run].usage.input_tokens)
                wrapper = None if run is None else wrappers[run]
                await session.add_items(items_of(batch), wrapper=wrapper)
                if wrapper is not None:
                    spend(wrapper, tokens)
            case "pop":
                assert await session.pop_item() == model.pop()
            case "clear":
                model.clear()
                await session.clear_session()
            case "fork" if model.exists:
                await equals(session, model)
                session, model = await session.fork(new_id(), before_turn=details[0]), model.fork(details[0])
            case "replace":
                assert await session._atomic_replace_items(items_of(details[0])) == model.replace(details[0])
            case "compact":
                limit, start, batch = details
                snapshot = await session._get_compaction_snapshot(limit)
                assert snapshot is not None
                tail = model.rows[-limit:]
                assert snapshot.items == [row.said.item for row in tail]
                assert snapshot.complete == (len(model.rows) <= limit)
                done = start < len(tail) and model.replace(batch, len(model.rows) - len(tail) + start)
                assert await snapshot.replace_suffix(start, items_of(batch)) == done
            case "restore":
                error = model.restore(details[0])
                if error is None:
                    await session.restore(details[0])
                else:
                    with pytest.raises(error):
                        await session.restore(details[0])

    await equals(session, model)


async def equals(session: PGSession, model: Model) -> None:
    """Compare everything the session says of itself with the model."""
    assert await session.get_items() == items_of(row.said for row in model.rows)
    if not model.exists:
        return
    stored = [each for turn in await session.turns() for each in turn.items]
    tools = list(await session.tool_runs.list(limit=1000))[::-1]
    events = await session.events.list(limit=1000)
    assert [(each.position, each.turn, each.item) for each in stored] == [
        (row.position, row.turn, row.said.item) for row in model.rows
    ]
    assert [Tool(t.position, t.output_position, t.call_id, t.tool_name, t.tool_type, t.status) for t in tools] == (
        model.tools
    )
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))
    assert [event.kind for event in events] == model.kinds
    assert counters_of(await session.info()) == {
        "item_count": len(model.rows),
        "message_count": sum("role" in row.said.item for row in model.rows),
        "turn_count": model.turn(),
        "tool_run_count": len(model.tools),
        "tool_error_count": sum(tool.status == "failed" for tool in model.tools),
        "event_count": len(model.kinds),
        "input_tokens": sum(run.tokens for run in model.runs.values()),
        "output_tokens": 2 * sum(run.tokens for run in model.runs.values()),
        "last_position": model.last_position,
    }
    await usage_equals(session, model)


async def usage_equals(session: PGSession, model: Model) -> None:
    """Compare the runs, their sums and the turns they began in."""
    begun = [run for run in model.runs.values() if run.turn is not None]
    stored, usage = await session.runs.list(limit=1000), await session.usage()
    turns: defaultdict[int, list[int]] = defaultdict(list)
    for run in begun:
        assert run.turn is not None
        turns[run.turn].append(run.tokens)

    assert sorted((run.turn, run.input_tokens) for run in stored) == sorted((run.turn, run.tokens) for run in begun)
    assert all(
        (run.output_tokens, run.total_tokens, run.cached_tokens, run.reasoning_tokens)
        == (2 * run.input_tokens, 3 * run.input_tokens, 0, 0)
        for run in stored
    )
    assert (usage.runs, usage.input_tokens) == (len(begun), sum(run.tokens for run in begun))
    assert [(each.turn, each.runs, each.input_tokens) for each in usage.turns] == [
        (turn, len(tokens), sum(tokens)) for turn, tokens in sorted(turns.items())
    ]


def counters_of(info: SessionInfo) -> dict[str, int]:
    names = ("item", "message", "turn", "tool_run", "tool_error", "event")
    counters = {f"{name}_count": getattr(info, f"{name}_count") for name in names}
    others = ("input_tokens", "output_tokens", "last_position")
    return counters | {name: getattr(info, name) for name in others}


def items_of(batch: Iterable[Said]) -> list[Item]:
    return [said.item for said in batch]


def started_at(tokens: int) -> RunContextWrapper[Any]:
    """A run that has used so many tokens when the session first hears of it."""
    wrapper = RunContextWrapper[Any](context=None)
    spend(wrapper, tokens)
    return wrapper


def spend(wrapper: RunContextWrapper[Any], tokens: int) -> None:
    wrapper.usage.add(Usage(requests=1, input_tokens=tokens, output_tokens=2 * tokens, total_tokens=3 * tokens))


async def test_what_the_runner_did_equals_a_recount(session: PGSession) -> None:
    """Parallel tools, one that fails, a hand-off, an approval given and one refused: the items tell the same story."""
    billing = scripted([calls("weather", "c4", city="Oslo"), calls("broken", "c5", city="Bern")], says("Billed"))
    billing.name = "Billing"
    triage = scripted(
        [calls("weather", "c1", city="Rome"), calls("broken", "c2", city="Paris")],
        says("Sunny"),
        [calls("refund", "c3", amount=5), calls("refund", "c6", amount=1000)],
        calls("transfer_to_billing", "c7"),
    )
    triage.handoffs = [billing]
    async with session.recording() as run:
        await Runner.run(triage, "Weather?", session=session, hooks=run.hooks, run_config=QUIET)
        paused = await Runner.run(triage, "Refund", session=session, hooks=run.hooks, run_config=QUIET)
    state = paused.to_state()
    small, large = state.get_interruptions()
    state.approve(small)
    state.reject(large)
    async with session.recording() as run:
        await Runner.run(triage, state, session=session, hooks=run.hooks, run_config=QUIET)

    items: list[Any] = await session.get_items()
    names = {each["call_id"]: each["name"] for each in items if each.get("type") == "function_call"}
    outputs = {each["call_id"]: each["output"] for each in items if each.get("type") == "function_call_output"}
    statuses = {call_id: status_of(output) for call_id, output in outputs.items()}
    info, usage, runs = await session.info(), await session.usage(), await session.runs.list()
    kinds = [event.kind for event in await session.events.list()]
    assert statuses == {
        "c1": "succeeded",
        "c2": "failed",
        "c3": "succeeded",
        "c4": "succeeded",
        "c5": "failed",
        "c6": "rejected",
        "c7": "succeeded",
    }
    assert {each.call_id: (each.tool_name, each.status) for each in await session.tool_runs.list()} == {
        call_id: (names[call_id], status) for call_id, status in statuses.items()
    }
    assert (info.item_count, info.turn_count, info.tool_run_count, info.tool_error_count) == (
        len(items),
        2,
        len(names),
        list(statuses.values()).count("failed"),
    )
    assert info.message_count == sum("role" in each for each in items)
    assert [run.status for run in runs] == ["completed", "interrupted", "completed"]
    assert (usage.runs, usage.requests, usage.input_tokens, usage.output_tokens) == (3, 6, 60, 30)
    assert (info.input_tokens, info.output_tokens) == (60, 30)
    assert [(each.turn, each.requests) for each in usage.turns] == [(1, 2), (2, 4)]
    assert info.event_count == len(kinds)
    assert (kinds.count("run_started"), kinds.count("run_ended")) == (3, 3)
    assert (kinds.count("approval_asked"), kinds.count("approval_answered"), kinds.count("handoff")) == (2, 2, 1)
    assert kinds.count("tool_failed") == info.tool_error_count


def status_of(output: str) -> str:
    if output == DEFAULT_APPROVAL_REJECTION_MESSAGE:
        return "rejected"
    return "failed" if output.startswith(FAILED) else "succeeded"
