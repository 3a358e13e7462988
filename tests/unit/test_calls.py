"""Items ⇒ tool runs, without a database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast, get_args, get_type_hints

import pytest
from agents import (
    Agent,
    CodeInterpreterTool,
    FileSearchTool,
    ImageGenerationTool,
    LocalShellTool,
    RunContextWrapper,
    WebSearchTool,
    handoff,
)
from agents._tool_identity import tool_trace_name
from agents.items import ItemHelpers, RunItem, ToolApprovalItem
from agents.run_internal.items import (
    REJECTION_MESSAGE,
    apply_patch_rejection_item,
    function_rejection_item,
    shell_rejection_item,
)
from agents.run_internal.tool_execution import normalize_shell_output_entries
from agents.run_internal.turn_resolution import _default_tool_not_found_message
from agents.tool import (
    ApplyPatchTool,
    ComputerTool,
    ShellTool,
    default_tool_error_function,
    default_tool_timeout_error_message,
)
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseFunctionToolCall, ResponseInputItemParam

from agents_pg_session import InvalidItem
from agents_pg_session.calls import HostedApproval, ToolCall, ToolItems, ToolOutput, project_calls
from agents_pg_session.projection import MAX_COLUMN, MAX_DEPTH, Item, project
from agents_pg_session.texts import MAX_TEXT
from tests.items import assistant, call, item, output, user

AGENT = Agent(name="triage")

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(codec=None))),
    lambda each: st.one_of(st.lists(each, max_size=3), st.dictionaries(st.text(), each, max_size=3)),
    max_leaves=6,
)

#: Input items that are no tool runs.
NO_TOOLS = {
    "message",
    "reasoning",
    "compaction",
    "compaction_trigger",
    "configuration_update",
    "additional_tools",
    "item_reference",
    "mcp_list_tools",
}


def sdk_call(call_id: str = "c1", name: str = "lookup", **fields: Any) -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(type="function_call", call_id=call_id, name=name, arguments="{}", **fields)


def as_item(made: RunItem | ResponseFunctionToolCall) -> Item:
    """What the SDK hands to `add_items`."""
    if isinstance(made, ResponseFunctionToolCall):
        return cast("Item", made.model_dump(exclude_unset=True))
    return made.to_input_item()


def one(*items: Item, **options: Any) -> ToolCall:
    [found] = project_calls(items, **options).calls
    return found


def orphan(each: Item, **options: Any) -> ToolOutput:
    [found] = project_calls([each], **options).outputs
    return found


def shell_output(*entries: dict[str, Any], **fields: Any) -> Item:
    return item(type="shell_call_output", call_id="c1", output=list(entries), **fields)


def exited(code: object, *, stdout: str = "", stderr: str = "") -> dict[str, Any]:
    return {"stdout": stdout, "stderr": stderr, "outcome": {"type": "exit", "exit_code": code}}


def test_a_call_and_its_output_are_one_tool_run() -> None:
    """The everyday batch: both places, the name, the arguments as they came, and that it went well."""
    found = project_calls([user("hi"), call("c1", "lookup", '{"q": 1}'), output("c1"), assistant("done")])

    assert found == ToolItems(
        calls=(ToolCall(1, 2, "c1", "lookup", "function", "succeeded", None, '{"q": 1}'),),
        outputs=(),
        handoffs=(),
        approvals=(),
    )


@pytest.mark.parametrize(
    "each",
    [
        user("hi"),
        item(__enc__=1, v=1, payload="x"),
        item(type=5, call_id="c1"),
        item(type=["function_call"], call_id="c1"),
        item(type="_call", call_id="c1"),
        item(type="_call_output", call_id="c1"),
        item(type="new_call", id="without a call id"),
        item(type="call", call_id="c1"),
        item(type="a\0_call", call_id="c1"),
        *(item(type=kind, id="i", call_id="c1") for kind in sorted(NO_TOOLS)),
    ],
)
def test_what_is_no_tool_item_is_passed_by(each: Item) -> None:
    """Messages, envelopes and everything else that only looks like a tool leave no trace."""
    assert project_calls([each]) == ToolItems((), (), (), ())


def input_types() -> Iterator[str]:
    for declared in get_args(ResponseInputItemParam):
        hint = get_type_hints(declared)["type"]
        yield from (kind for each in get_args(hint) for kind in (get_args(each) or [each]) if isinstance(kind, str))


@pytest.mark.parametrize("kind", sorted(set(input_types()) - NO_TOOLS))
def test_every_tool_item_of_the_sdk_is_known(kind: str) -> None:
    """Whatever the SDK's input items can be is a call, an output or an approval; a new type fails here first."""
    found = project_calls([item(type=kind, id="i", call_id="c1", name="lookup")])

    [[each]] = [group for group in (found.calls, found.outputs, found.approvals) if group]
    assert isinstance(each, HostedApproval) or f"{each.tool_type}_call" not in NO_TOOLS
    assert not isinstance(each, ToolOutput) or kind.endswith("_output")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": "lookup"}, "lookup"),
        ({"name": "lookup", "namespace": "crm"}, "crm.lookup"),
        ({"name": "lookup", "namespace": "lookup"}, "lookup"),
        ({"name": "lookup", "namespace": ""}, "lookup"),
        ({"name": "lookup", "namespace": 5}, "lookup"),
        ({"name": ""}, None),
        ({"name": None, "namespace": "crm"}, None),
        ({"name": "x" * (MAX_COLUMN + 1)}, None),
        ({"name": "\ud800"}, None),
    ],
)
def test_function_tools_are_named_as_in_traces(fields: dict[str, Any], expected: str | None) -> None:
    """With their namespace, unless the SDK made it up; a name no column can hold is none."""
    assert one(item(type="function_call", call_id="c1", arguments="{}", **fields)).tool_name == expected
    if expected is not None:
        assert tool_trace_name(fields["name"], fields.get("namespace")) == expected


@pytest.mark.parametrize(
    ("kind", "tool"),
    [
        ("shell", ShellTool(executor=lambda request: "")),
        ("local_shell", LocalShellTool(executor=lambda request: "")),
        ("apply_patch", ApplyPatchTool(editor=cast("Any", object()))),
        ("computer", ComputerTool(computer=cast("Any", object()))),
        ("web_search", WebSearchTool()),
        ("file_search", FileSearchTool(vector_store_ids=[])),
        ("code_interpreter", CodeInterpreterTool(tool_config=cast("Any", {}))),
        ("image_generation", ImageGenerationTool(tool_config=cast("Any", {}))),
    ],
)
def test_tools_without_a_name_in_the_item_have_the_sdks(kind: str, tool: Any) -> None:
    """What `tool.name` says is what the run is called."""
    found = one(item(type=f"{kind}_call", id="i", call_id="c1"))

    assert (found.tool_type, found.tool_name) == (kind, tool.name)


@pytest.mark.parametrize(
    ("each", "expected"),
    [
        (item(type="custom_tool_call", call_id="c1", name="grep", input="a{b"), ("custom", "grep", '"a{b"')),
        (item(type="shell_call", call_id="c1", action={"commands": ["ls"]}), ("shell", "shell", '{"commands":["ls"]}')),
        (
            item(type="local_shell_call", call_id="c1", action={"command": ["ls"]}),
            ("local_shell", "local_shell", '{"command":["ls"]}'),
        ),
        (
            item(type="computer_call", call_id="c1", action={"type": "wait"}),
            ("computer", "computer_use_preview", '{"type":"wait"}'),
        ),
        (
            item(type="computer_call", call_id="c1", action=None, actions=[{"type": "wait"}]),
            ("computer", "computer_use_preview", '[{"type":"wait"}]'),
        ),
        (
            item(type="apply_patch_call", call_id="c1", operation={"path": "a"}),
            ("apply_patch", "apply_patch", '{"path":"a"}'),
        ),
        (
            item(type="apply_patch_call", call_id="c1", operations=[{"path": "a"}]),
            ("apply_patch", "apply_patch", '[{"path":"a"}]'),
        ),
        (
            item(type="tool_search_call", call_id="c1", arguments={"goal": "x"}),
            ("tool_search", "tool_search", '{"goal":"x"}'),
        ),
        (item(type="program", call_id="c1", code="1 + 1"), ("program", "programmatic_tool_calling", '"1 + 1"')),
        (item(type="mcp_call", id="c1", server_label="git", name="log", arguments="[]"), ("mcp", "git.log", "[]")),
        (item(type="web_search_call", id="c1", action={"query": "x"}), ("web_search", "web_search", '{"query":"x"}')),
        (item(type="file_search_call", id="c1", queries=["x"]), ("file_search", "file_search", '["x"]')),
        (
            item(type="code_interpreter_call", id="c1", code="print()"),
            ("code_interpreter", "code_interpreter", '"print()"'),
        ),
        (item(type="code_interpreter_call", id="c1", code=None), ("code_interpreter", "code_interpreter", None)),
        (item(type="image_generation_call", id="c1", result="…"), ("image_generation", "image_generation", None)),
        (item(type="robot_arm_call", call_id="c1", action={"up": 1}), ("robot_arm", "robot_arm", '{"up":1}')),
        (item(type="robot_arm_call", call_id="c1", name="left", arguments=""), ("robot_arm", "left", '""')),
    ],
)
def test_each_kind_of_call_is_read_its_own_way(each: Item, expected: tuple[str | None, ...]) -> None:
    """Type, name and arguments come from where that kind of item has them, also for kinds nobody knows yet."""
    found = one(each)

    assert (found.tool_type, found.tool_name, found.arguments) == expected
    assert found.call_id == "c1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1,  "b": [null]}', '{"a": 1,  "b": [null]}'),
        ('{"a": "\\ud800\\u0000"}', '{"a": "\\ud800\\u0000"}'),
        ("1e999", "1e999"),
        ("", '""'),
        ("not json", '"not json"'),
        ('{"a": NaN}', '"{\\"a\\": NaN}"'),
        ("-Infinity", '"-Infinity"'),
        ('{"a": 1} extra', '"{\\"a\\": 1} extra"'),
        ('"raw \ud800"', '"\\"raw \\ud800\\""'),
        ('"raw \0"', '"\\"raw \\u0000\\""'),
        ("9" * 5000, f'"{"9" * 5000}"'),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, "[" * MAX_DEPTH + "]" * MAX_DEPTH),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), f'"{"[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)}"'),
        ("[" * 100_000, f'"{"[" * 100_000}"'),
        (json.dumps("[" * 1000), json.dumps("[" * 1000)),
        ({"already": "parsed"}, '{"already":"parsed"}'),
        (None, None),
        ({"bad": float("nan")}, None),
        (b"bytes", None),
    ],
)
def test_arguments_are_json_that_postgresql_takes(text: Any, expected: str | None) -> None:
    """JSON text stays as the model wrote it; anything else is a JSON string of it, or nothing."""
    assert one(item(type="function_call", call_id="c1", name="f", arguments=text)).arguments == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ("succeeded", None, 0)),
        ({"status": "completed"}, ("succeeded", None, 0)),
        ({"status": "in_progress"}, ("running", None, None)),
        ({"status": "searching"}, ("running", None, None)),
        ({"status": "interpreting"}, ("running", None, None)),
        ({"status": "generating"}, ("running", None, None)),
        ({"status": "calling"}, ("running", None, None)),
        ({"status": "failed"}, ("failed", None, 0)),
        ({"status": "incomplete"}, ("failed", None, 0)),
        ({"status": ["odd"]}, ("succeeded", None, 0)),
        ({"error": None}, ("succeeded", None, 0)),
        ({"error": "refused"}, ("failed", "refused", 0)),
        ({"error": {"type": "http_error", "code": 502, "message": "bad gateway"}}, ("failed", "bad gateway", 0)),
        ({"error": {"type": "mcp_tool_execution_error", "content": ["x"]}}, ("failed", '["x"]', 0)),
        ({"error": {"odd": 1}}, ("failed", '{"odd":1}', 0)),
    ],
)
def test_hosted_tools_carry_their_own_result(fields: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """Their item's status and error say how it went, and their id is the call's."""
    found = one(item(type="mcp_call", id="m1", server_label="git", name="log", arguments="{}", **fields))

    assert (found.status, found.error, found.output_place, found.call_id) == (*expected, "m1")


def test_the_servers_tool_search_is_answered_by_the_next_output() -> None:
    """Searches the server runs on its own have no call ids: the call takes the output that follows."""
    search = item(type="tool_search_call", id="ts1", call_id=None, execution="server", status="completed", arguments={})
    results = item(type="tool_search_output", id="to1", call_id=None, execution="server", status="completed", tools=[])
    [first, second] = project_calls([search, results, search, results]).calls

    assert (first.output_place, first.status, first.call_id) == (1, "succeeded", "ts1")
    assert second.output_place == 3
    assert one(search)._replace(output_place=1) == first
    assert project_calls([results]).outputs == ()


@pytest.mark.parametrize("kinds", [("custom_tool_call", "apply_patch_call"), ("apply_patch_call", "custom_tool_call")])
def test_an_output_two_kinds_of_calls_wait_for_answers_the_latest(kinds: tuple[str, str]) -> None:
    """Where a patch and a custom call share their id, the output is the later one's."""
    waiting = [item(type=kind, call_id="c1", name="apply_patch", operation={}) for kind in kinds]
    found = project_calls([*waiting, item(type="custom_tool_call_output", call_id="c1", output="done")])

    assert [each.output_place for each in found.calls] == [None, 2]


def test_parallel_calls_find_their_own_outputs() -> None:
    """Outputs may come in any order."""
    found = project_calls([call("a"), call("b"), call("c"), output("b"), output("a")])

    assert [(each.call_id, each.output_place, each.status) for each in found.calls] == [
        ("a", 4, "succeeded"),
        ("b", 3, "succeeded"),
        ("c", None, "running"),
    ]
    assert found.outputs == ()


def test_a_reused_id_is_another_run() -> None:
    """Models that count from call_0 in each turn get one run per call, each with the output after it."""
    found = project_calls([call("call_0"), output("call_0"), call("call_0"), output("call_0")])

    assert [(each.place, each.output_place) for each in found.calls] == [(0, 1), (2, 3)]


def test_an_output_answers_only_what_came_before_it() -> None:
    """An output ahead of its call, and a second one, are outputs of earlier batches' calls."""
    found = project_calls([output("a"), call("a"), output("a"), output("a")])

    assert [(each.place, each.output_place) for each in found.calls] == [(1, 2)]
    assert [(each.place, each.call_id) for each in found.outputs] == [(0, "a"), (3, "a")]


def test_an_output_answers_its_own_kind_of_call() -> None:
    """The same id on another type of tool is another call."""
    found = project_calls([call("c1"), shell_output()])

    assert found.calls[0].status == "running"
    assert found.outputs == (ToolOutput(1, "c1", "shell", "succeeded", None),)


@pytest.mark.parametrize(
    ("call_type", "output_type"),
    [
        ("apply_patch_call", "custom_tool_call_output"),
        ("local_shell_call", "shell_call_output"),
        ("tool_search_call", "tool_search_output"),
        ("program", "program_output"),
        ("robot_arm_call", "robot_arm_call_output"),
    ],
)
def test_outputs_of_another_name_answer_too(call_type: str, output_type: str) -> None:
    """Some pairs do not share a name, some the SDK crosses, and some are not known yet."""
    found = one(item(type=call_type, call_id="a"), item(type=output_type, call_id="a"))

    assert (found.output_place, found.status) == (1, "succeeded")


def test_a_local_shell_output_may_carry_the_calls_id_as_its_own() -> None:
    """OpenAI's type of that item has no call_id."""
    found = one(item(type="local_shell_call", call_id="a"), item(type="local_shell_call_output", id="a", output="{}"))

    assert found.output_place == 1


@pytest.mark.parametrize("call_id", [None, "", 5, [], "\ud800", "a\0", "x" * (MAX_COLUMN + 1)])
def test_ids_no_column_can_hold_are_none(call_id: Any) -> None:
    """Such a call is a run without an id, and such an output cannot be matched to anything stored."""
    found = project_calls([output(call_id), call(call_id)])

    assert [each.call_id for each in found.calls] == [None]
    assert found.outputs == ()


def test_an_overlong_id_still_matches_inside_the_batch() -> None:
    """What a column cannot hold can be compared all the same."""
    found = one(call("x" * 2000), output("x" * 2000))

    assert (found.call_id, found.output_place, found.status) == (None, 1, "succeeded")


def test_nothing_is_not_an_id() -> None:
    """A call and an output without ids are not a pair."""
    found = one(item(type="function_call", name="f"), item(type="function_call_output", output="x"))

    assert (found.call_id, found.status) == (None, "running")


PROGRAM = {"type": "program", "caller_id": "p1"}


@pytest.mark.parametrize(
    "each",
    [
        as_item(function_rejection_item(AGENT, sdk_call())),
        as_item(function_rejection_item(AGENT, sdk_call(caller=PROGRAM), output_json_schema={"type": "object"})),
        as_item(shell_rejection_item(AGENT, "c1")),
        as_item(apply_patch_rejection_item(AGENT, "c1")),
        as_item(apply_patch_rejection_item(AGENT, "c1", output_type="custom_tool_call_output")),
    ],
)
def test_the_sdks_rejections_are_recognised(each: Item) -> None:
    """In every shape the SDK writes its default message, without asking anybody."""
    found = orphan(each)

    assert (found.status, found.error) == ("rejected", REJECTION_MESSAGE)


@pytest.mark.parametrize(
    ("namespace", "lookup_key"), [(None, None), ("crm", None), ("lookup", ("deferred_top_level", "lookup"))]
)
def test_a_person_said_no(namespace: str | None, lookup_key: Any) -> None:
    """The run's context knows what was rejected with a message of its own, however the tool is named."""
    context = RunContextWrapper(None)
    made = sdk_call(namespace=namespace)
    context.reject_tool(
        ToolApprovalItem(AGENT, made, "lookup", tool_namespace=namespace, tool_lookup_key=lookup_key),
        rejection_message="Not today.",
    )
    said = as_item(function_rejection_item(AGENT, made, rejection_message="Not today."))
    [found] = project_calls([as_item(made)]).calls
    name = cast("str", found.tool_name)

    for each in (
        one(as_item(made), said, approved=context.is_tool_approved),
        orphan(said, approved=context.is_tool_approved, names={"c1": name}),
    ):
        assert (each.status, each.error) == ("rejected", "Not today.")
    assert one(as_item(made), said).status == "succeeded"
    assert orphan(said, approved=context.is_tool_approved).status == "succeeded"


def test_a_rejected_shell_call_is_no_failure() -> None:
    """A rejection with a message of its own looks like a command that failed: what was answered counts."""
    said = as_item(shell_rejection_item(AGENT, "c1", rejection_message="No shells."))

    assert orphan(said).status == "failed"
    assert orphan(said, approved=lambda name, call_id: not (name == "shell" and call_id == "c1")) == ToolOutput(
        0, "c1", "shell", "rejected", "No shells."
    )


@pytest.mark.parametrize("answer", [True, None])
def test_only_a_no_is_a_rejection(answer: bool | None) -> None:
    """Approved, or never asked: the output stands for itself."""
    assert one(call("c1"), output("c1"), approved=lambda name, call_id: answer).status == "succeeded"


def test_who_cannot_say_did_not_say_no() -> None:
    """An `approved` that raises costs nobody an append."""

    def approved(name: str, call_id: str) -> bool | None:
        raise RuntimeError(name)

    assert one(call("c1"), output("c1"), approved=approved).status == "succeeded"


@pytest.mark.parametrize(
    "text",
    [
        default_tool_error_function(RunContextWrapper(None), ValueError("secret")),
        "An error occurred while running the tool. Please try again. Error: two\nlines",
        "An error occurred while parsing tool arguments. Please try again with valid JSON. Error: line 1",
        default_tool_timeout_error_message(tool_name="lookup", timeout_seconds=0.5),
        default_tool_timeout_error_message(tool_name="lookup", timeout_seconds=1e-7),
        _default_tool_not_found_message("lookup"),
        _default_tool_not_found_message("crm.lookup"),
        "Multiple handoffs detected, ignoring this one.",
    ],
)
def test_the_sdks_failures_are_recognised(text: str) -> None:
    """What the SDK writes for a function tool that did not do its work is an error, whichever version wrote it."""
    plain = as_item(sdk_call())
    program = as_item(sdk_call(caller=PROGRAM))
    wrapped = output("c1", json.dumps({"error": text})) | {"caller": PROGRAM}

    for found in (one(plain, output("c1", text)), one(program, cast("Item", wrapped)), orphan(output("c1", text))):
        assert (found.status, found.error) == ("failed", text)


@pytest.mark.parametrize(
    "text",
    [
        "Error: it broke",
        "An error occurred while running the tool. Please try again. Later.",
        "Tool 'hammer' not found.",
        "Tool 'lookup' timed out after a while.",
        "It says: Tool 'lookup' not found.",
        json.dumps({"error": REJECTION_MESSAGE}),
        f" {REJECTION_MESSAGE}",
    ],
)
def test_nothing_is_guessed_from_free_text(text: str) -> None:
    """A tool may talk about errors, also about another tool's, and have worked."""
    assert one(call("c1"), output("c1", text)).status == "succeeded"


@pytest.mark.parametrize(
    ("each", "error"),
    [
        (item(type="function_call_output", call_id="c1", output="cut", status="incomplete"), "cut"),
        (item(type="function_call_output", call_id="c1", output=[{"type": "input_text"}], status="incomplete"), None),
        (item(type="computer_call_output", call_id="c1", output={}, status="incomplete"), None),
        (item(type="apply_patch_call_output", call_id="c1", output="no such file", status="failed"), "no such file"),
        (item(type="apply_patch_call_output", call_id="c1", status="failed"), None),
        (item(type="program_output", call_id="c1", result="undefined", status="incomplete"), "undefined"),
        (item(type="robot_arm_call_output", call_id="c1", output="stuck", status="failed"), "stuck"),
        (shell_output(status="failed"), None),
        (shell_output(exited(0), exited(2, stderr="no such file")), "no such file"),
        (shell_output(exited(1, stdout="3 failed")), "3 failed"),
        (shell_output(exited(127)), "exit code 127"),
        (shell_output(exited(10**5000)), "exit code None"),
        (shell_output({"stdout": "half", "stderr": "", "outcome": {"type": "timeout"}}), "timed out"),
        (
            shell_output(
                *normalize_shell_output_entries([{"stdout": "broke", "stderr": "", "outcome": "failure"}]),
            ),
            "broke",
        ),
    ],
)
def test_an_output_that_says_so_has_failed(each: Item, error: str | None) -> None:
    """By its status, or by the first command that did not exit with 0; its own words are the error."""
    found = orphan(each)

    assert (found.status, found.error) == ("failed", error)


@pytest.mark.parametrize(
    "each",
    [
        shell_output(exited(0, stderr="warning")),
        shell_output(exited(None)),
        shell_output({"outcome": "success"}, cast("Any", "odd"), {}),
        item(type="shell_call_output", call_id="c1", output="odd"),
        item(type="apply_patch_call_output", call_id="c1", output="fine", status="completed"),
        item(type="function_call_output", call_id="c1", output=[{"type": "input_text", "text": REJECTION_MESSAGE}]),
        item(type="function_call_output", call_id="c1", output="x", status=["failed"]),
        item(type="function_call_output", call_id="c1", output='{"error": {}}', caller={"type": "program"}),
        item(type="function_call_output", call_id="c1", output='{"error": ', caller={"type": "program"}),
        item(type="custom_tool_call_output", call_id="c1", output="Multiple handoffs detected, ignoring this one."),
    ],
)
def test_anything_else_is_a_result(each: Item) -> None:
    """Without a word about failure, an output is what the tool was asked for."""
    found = orphan(each)

    assert (found.status, found.error) == ("succeeded", None)


def test_an_error_fits_a_column() -> None:
    """It is cut, and what no text column holds is replaced."""
    found = orphan(shell_output(exited(1, stderr="\0\ud800" + "x" * 5000)))

    assert found.error == "\N{REPLACEMENT CHARACTER}?" + "x" * (MAX_TEXT - 2)


def test_a_handoff_names_the_agent() -> None:
    """The call that handed over is a tool run, and its output says to whom."""
    target = Agent(name='Billing "Ü"')
    hands_over = handoff(target, tool_name_override="transfer_to_billing")
    made = sdk_call(name=hands_over.tool_name)
    said = cast("Item", ItemHelpers.tool_call_output_item(made, hands_over.get_transfer_message(target)))
    found = project_calls([as_item(made), said])

    [[each], [moved]] = [found.calls, found.handoffs]
    assert (each.tool_name, each.status) == ("transfer_to_billing", "succeeded")
    assert (moved.place, moved.call_id, moved.to_agent) == (1, "c1", target.name)
    assert project_calls([said], names={"c1": "transfer_to_billing"}).handoffs[0].to_agent == target.name
    assert project_calls([said]).handoffs == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lookup", '{"assistant": "Billing"}'),
        ("transfer_to_x", '{"assistant": "Billing", "more": 1}'),
        ("transfer_to_x", '{"assistant": 5}'),
        ("transfer_to_x", '{"assistant": ""}'),
        ("transfer_to_x", '{"assistant": "\\ud800"}'),
        ("transfer_to_x", '{"assistant": "cut'),
        ("transfer_to_x", '{"assistant":' + "[" * 100_000),
        ("transfer_to_x", "Billing"),
        ("transfer_to_x", "Multiple handoffs detected, ignoring this one."),
    ],
)
def test_what_only_resembles_a_handoff_is_none(name: str, text: str) -> None:
    """It takes a transfer's name and the SDK's exact words."""
    assert project_calls([call("c1", name), output("c1", text)]).handoffs == ()


def test_hosted_approvals_are_no_tool_runs() -> None:
    """The question and the answer of a hosted MCP server, side by side by the request's id."""
    request = item(type="mcp_approval_request", id="r1", server_label="git", name="push", arguments='{"force":true}')
    response = item(type="mcp_approval_response", id="x", approval_request_id="r1", approve=False, reason="no")
    odd = item(type="mcp_approval_response", approval_request_id=5, approve="yes")
    found = project_calls([request, response, odd])

    assert found.approvals == (
        HostedApproval(0, True, "r1", "git.push", '{"force":true}', None),
        HostedApproval(1, False, "r1", None, None, False),
        HostedApproval(2, False, None, None, None, None),
    )
    assert (found.calls, found.outputs) == ((), ())


TOOL_LIKE = st.fixed_dictionaries(
    {
        "type": st.one_of(
            st.sampled_from(sorted(set(input_types()))),
            st.text().map(lambda text: f"{text}_call"),
            st.text().map(lambda text: f"{text}_call_output"),
            JSON,
        )
    },
    optional={
        **dict.fromkeys(("call_id", "id", "approval_request_id"), st.one_of(st.sampled_from(["a", "b", ""]), JSON)),
        **dict.fromkeys(("name", "namespace", "server_label"), st.one_of(st.sampled_from(["transfer_to_x"]), JSON)),
        "output": st.one_of(
            JSON,
            st.sampled_from(['{"assistant": "x"}', REJECTION_MESSAGE]),
            st.lists(st.fixed_dictionaries({"outcome": st.one_of(JSON, st.just({"type": "timeout"}))})),
            JSON.map(lambda code: [{"outcome": {"type": "exit", "exit_code": code}, "stderr": code}]),
        ),
        "caller": st.one_of(JSON, st.just(PROGRAM)),
        "arguments": st.one_of(JSON, JSON.map(json.dumps)),
        **dict.fromkeys(("status", "error", "action", "approve", "input", "code", "result"), JSON),
    },
)


@given(items=st.lists(TOOL_LIKE, max_size=6), approved=st.sampled_from([None, lambda name, call_id: False]))
def test_the_projection_is_total(items: list[Any], approved: Any) -> None:
    """Whatever JSON a tool item holds, it is read; and what is read fits the columns it is meant for."""
    found = project_calls(items, approved=approved)

    rows: tuple[Any, ...] = (*found.calls, *found.outputs, *found.handoffs, *found.approvals)
    for columns in (row._asdict() for row in rows):
        assert columns.get("status", "running") in {"running", "succeeded", "failed", "rejected"}
        assert columns.get("tool_type") != ""
        json.loads(columns.get("arguments") or "null")
        for text in (value for value in columns.values() if isinstance(value, str)):
            assert "\0" not in text
            text.encode()


@given(value=JSON)
def test_arguments_decode_to_what_the_item_holds(value: object) -> None:
    """Where the item itself can be stored, so can the arguments, without loss."""
    each = item(type="custom_tool_call", call_id="c1", name="f", input=value)
    found = one(each)
    try:
        project([each])
    except InvalidItem:
        assert found.arguments is None
    else:
        assert json.loads(found.arguments or "null") == value


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("ab"), st.sampled_from(["function", "shell"]))))
def test_matching_is_the_latest_open_call(steps: list[tuple[bool, str, str]]) -> None:
    """Against the rule written down plainly: walk back from each output to the first open call of its id and type."""
    items = [
        item(type=f"{tool_type}_call" if is_call else f"{tool_type}_call_output", call_id=call_id, name="f")
        for is_call, call_id, tool_type in steps
    ]
    pairs: dict[int, int] = {}
    alone = []
    for place, (is_call, *key) in enumerate(steps):
        if not is_call:
            before = (at for at in reversed(range(place)) if steps[at] == (True, *key) and at not in pairs)
            if (at := next(before, None)) is None:
                alone.append(place)
            else:
                pairs[at] = place
    found = project_calls(items)

    assert {each.place: each.output_place for each in found.calls} == {
        place: pairs.get(place) for place, (is_call, *_) in enumerate(steps) if is_call
    }
    assert [each.place for each in found.outputs] == alone
