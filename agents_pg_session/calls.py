"""Items ⇒ tool runs: pure functions, no database.

What a batch says about tools is read off its items: which calls there are, which outputs answer them, and how those
ended. Names, pairs and failure texts are the SDK's own; anything else an output says is its result, not an error. The
projection is total: whatever an item looks like, it is a tool item or it is not one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, cast

from agents.tool import DEFAULT_APPROVAL_REJECTION_MESSAGE

from agents_pg_session.errors import InvalidItem
from agents_pg_session.projection import MAX_DEPTH, Item, _column, _has_string_keys_within_depth, encode_value
from agents_pg_session.texts import stored_text

__all__ = ["Approved", "Handoff", "HostedApproval", "ToolCall", "ToolItems", "ToolOutput", "project_calls"]

Approved = Callable[[str, str], bool | None]


class ToolCall(NamedTuple):
    """One call of a tool, with its output where the batch holds it."""

    place: int  #: of the call in the batch
    output_place: int | None  #: of its output; the call's own place where the item carries its result
    call_id: str | None  #: the item's id for tools that run where the model runs
    tool_name: str | None
    tool_type: str
    status: str  #: running, succeeded, failed or rejected
    error: str | None
    arguments: str | None  #: as JSON text


class ToolOutput(NamedTuple):
    """An output whose call is not in the batch, or not before it."""

    place: int
    call_id: str
    tool_type: str
    status: str  #: succeeded, failed or rejected
    error: str | None


class Handoff(NamedTuple):
    """A call that handed the conversation to another agent."""

    place: int  #: of the output
    call_id: str | None
    to_agent: str


class HostedApproval(NamedTuple):
    """A hosted MCP server asked whether a tool may run, or was answered."""

    place: int
    asked: bool
    approval_id: str | None  #: the request's id, in the question and in the answer
    tool_name: str | None
    arguments: str | None
    approved: bool | None


class ToolItems(NamedTuple):
    """What one batch says about tools, each list in the batch's order."""

    calls: tuple[ToolCall, ...]
    outputs: tuple[ToolOutput, ...]
    handoffs: tuple[Handoff, ...]
    approvals: tuple[HostedApproval, ...]


_Fields = Mapping[str, Any]
_Reader = Callable[[_Fields], str | None]


def project_calls(
    items: Sequence[Item], *, approved: Approved | None = None, names: Mapping[str, str] = {}
) -> ToolItems:
    """Read calls, outputs, handoffs and hosted approvals off the items of one append; never raises for their content.

    *approved* says what a person answered to a tool's name and call id (`RunContextWrapper.is_tool_approved`); where it
    raises, nobody answered. *names* holds the tools of earlier batches by call id.
    """
    batch = _Batch(approved, names)
    for place, item in enumerate(cast("Sequence[_Fields]", items)):
        kind = item.get("type")
        if isinstance(kind, str) and (read := _reader(kind)) is not None:
            read(batch, place, item)
    return ToolItems(tuple(batch.calls), tuple(batch.outputs), tuple(batch.handoffs), tuple(batch.approvals))


def _traced(item: _Fields) -> str | None:
    """`namespace.name` as in the SDK's traces: a namespace equal to the name was made up for a deferred tool."""
    name, namespace = item.get("name"), item.get("namespace")
    return _qualified(name, None if namespace == name else namespace)


def _served(item: _Fields) -> str | None:
    return _qualified(item.get("name"), item.get("server_label"))


def _qualified(name: object, prefix: object) -> str | None:
    if not isinstance(name, str) or not name:
        return None
    return _column(f"{prefix}.{name}" if isinstance(prefix, str) and prefix else name)


def _always(name: str) -> _Reader:
    return lambda item: name


def _parsed(key: str) -> _Reader:
    """Read a field that is JSON text already, as models write arguments."""
    return lambda item: _json_text(item.get(key))


def _written(*keys: str) -> _Reader:
    """Write the first of these fields that says something as JSON text."""
    return lambda item: _encoded(next((item[key] for key in keys if item.get(key)), item.get(keys[0])))


@dataclass(frozen=True, slots=True)
class _Kind:
    """How the calls of one item type are read."""

    tool_type: str
    name: _Reader
    arguments: _Reader
    hosted: bool = False  #: ran where the model runs: the item carries its own result


_CALLS: Mapping[str, _Kind] = {
    "function_call": _Kind("function", _traced, _parsed("arguments")),
    "custom_tool_call": _Kind("custom", lambda item: _qualified(item.get("name"), None), _written("input")),
    "shell_call": _Kind("shell", _always("shell"), _written("action")),
    "local_shell_call": _Kind("local_shell", _always("local_shell"), _written("action")),
    "apply_patch_call": _Kind("apply_patch", _always("apply_patch"), _written("operation", "operations")),
    # The name of ComputerTool to this day, in hooks and approvals; "computer" is only what traces show.
    "computer_call": _Kind("computer", _always("computer_use_preview"), _written("actions", "action")),
    "tool_search_call": _Kind("tool_search", _always("tool_search"), _parsed("arguments")),
    "program": _Kind("program", _always("programmatic_tool_calling"), _written("code")),
    "mcp_call": _Kind("mcp", _served, _parsed("arguments"), hosted=True),
    "web_search_call": _Kind("web_search", _always("web_search"), _written("action"), hosted=True),
    "file_search_call": _Kind("file_search", _always("file_search"), _written("queries"), hosted=True),
    "code_interpreter_call": _Kind("code_interpreter", _always("code_interpreter"), _written("code"), hosted=True),
    "image_generation_call": _Kind("image_generation", _always("image_generation"), _written("revised_prompt"), True),
}

#: Item types of outputs, with the type of the calls they belong to.
_OUTPUTS: Mapping[str, str] = {
    "tool_search_output": "tool_search_call",
    "program_output": "program",
    **{f"{kind}_output": kind for kind in _CALLS if kind.endswith("_call")},
}

#: Tools of other types an output may answer: the SDK runs a local_shell call on a ShellTool when that is what the agent
#: has, and writes what became of a patch that came as a custom call as either.
_ANSWERS: Mapping[str, tuple[str, ...]] = {"custom": ("custom", "apply_patch"), "shell": ("shell", "local_shell")}

_RUNNING = ("in_progress", "searching", "generating", "interpreting", "calling")
_FAILED = ("failed", "incomplete")

# What the SDK writes on behalf of a function tool. Before 0.24 the first two went on with the error.
_FAILURES = re.compile(
    r"An error occurred while running the tool\. Please try again\.(?: Error: .*)?"
    r"|An error occurred while parsing tool arguments\. Please try again with valid JSON\. Error: .*"
    r"|Multiple handoffs detected, ignoring this one\."
    r"|Tool '(?P<name>.+)' (?:not found\.|timed out after [0-9.e+-]+ seconds\.)",
    re.DOTALL,
)


@dataclass(slots=True)
class _Batch:
    """The tool items of a batch read so far, and the calls that wait for an output."""

    approved: Approved | None
    names: Mapping[str, str]
    calls: list[ToolCall] = field(default_factory=list)
    outputs: list[ToolOutput] = field(default_factory=list)
    handoffs: list[Handoff] = field(default_factory=list)
    approvals: list[HostedApproval] = field(default_factory=list)
    waiting: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def call(self, place: int, item: _Fields) -> None:
        kind, key = _kind(item["type"]), _id(item, "call_id")
        if not key and item["type"] not in _CALLS:
            return  # a type nobody knows yet: without a call id nothing says that it is a call of a tool
        # The server searches for tools on its own, without call ids: the output is just the next one.
        is_anonymous = kind.tool_type == "tool_search" and not key
        status, error = _own_outcome(item) if kind.hosted or is_anonymous else ("running", None)
        if (key or is_anonymous) and not kind.hosted:
            self.waiting.setdefault((kind.tool_type, key), []).append(len(self.calls))
        self.calls.append(
            ToolCall(
                place=place,
                output_place=place if kind.hosted and status != "running" else None,
                call_id=_column(key or _id(item, "id")) or None,
                tool_name=kind.name(item),
                tool_type=kind.tool_type,
                status=status,
                error=error,
                arguments=kind.arguments(item),
            )
        )

    def output(self, place: int, item: _Fields) -> None:
        kind = _kind(_OUTPUTS.get(item["type"]) or item["type"].removesuffix("_output"))
        # OpenAI's type of local_shell outputs has no call_id: their id is the call's.
        key = _id(item, "call_id") or (_id(item, "id") if kind.tool_type == "local_shell" else "")
        index = self._answered(kind.tool_type, key)
        name = self.names.get(key) or kind.name(item) if index is None else self.calls[index].tool_name
        refused = self._is_refused(kind.tool_type, name, key)
        status, error = _outcome(item, kind.tool_type, name, refused=refused)
        call_id = _column(key) or None
        if index is not None:
            self.calls[index] = self.calls[index]._replace(output_place=place, status=status, error=error)
        elif call_id is not None:
            self.outputs.append(ToolOutput(place, call_id, kind.tool_type, status, error))
        if kind.tool_type == "function" and (to_agent := _to_agent(item, name)):
            self.handoffs.append(Handoff(place, call_id, to_agent))

    def approval(self, place: int, item: _Fields) -> None:
        asked, answer = item["type"] == "mcp_approval_request", item.get("approve")
        approval_id = _column(_id(item, "id" if asked else "approval_request_id")) or None
        approved = answer if isinstance(answer, bool) and not asked else None
        tool_name, arguments = (_served(item), _json_text(item.get("arguments"))) if asked else (None, None)
        self.approvals.append(HostedApproval(place, asked, approval_id, tool_name, arguments, approved))

    def _answered(self, tool_type: str, key: str) -> int | None:
        """Take the latest call that still waits for such an output."""
        latest: list[int] = []
        for each in _ANSWERS.get(tool_type, (tool_type,)):
            stack = self.waiting.get((each, key))
            if stack and (not latest or stack[-1] > latest[-1]):
                latest = stack
        return latest.pop() if latest else None

    def _is_refused(self, tool_type: str, name: str | None, key: str) -> bool:
        if self.approved is None or name is None or not key:
            return False
        try:
            answer = self.approved(name, key)
            if answer is None and tool_type == "function":
                # The SDK's key for answers about tools that tool search loads on their own.
                answer = self.approved(f"deferred_top_level:{name}", key)
        except Exception:
            return False
        return answer is False


def _reader(kind: str) -> Callable[[_Batch, int, _Fields], None] | None:
    if kind in _CALLS or (kind.endswith("_call") and _column(kind.removesuffix("_call"))):
        return _Batch.call
    if kind in _OUTPUTS or (kind.endswith("_call_output") and _column(kind.removesuffix("_call_output"))):
        return _Batch.output
    return _Batch.approval if kind in ("mcp_approval_request", "mcp_approval_response") else None


def _kind(call_type: str) -> _Kind:
    """How to read calls of this type, also of one that came after this was written."""
    tool_type = call_type.removesuffix("_call")
    return _CALLS.get(call_type) or _Kind(
        tool_type, lambda item: _traced(item) or tool_type, _written("arguments", "input", "action")
    )


def _id(item: _Fields, key: str) -> str:
    value = item.get(key)
    return str(value) if isinstance(value, str) else ""


def _own_outcome(item: _Fields) -> tuple[str, str | None]:
    """How a call went by what its own item says."""
    status, error = item.get("status"), item.get("error")
    if error or status in _FAILED:
        said = error.get("message") or error.get("content") if isinstance(error, dict) else error
        return "failed", _storable(said if isinstance(said, str) else _encoded(said or error))
    return ("running" if status in _RUNNING else "succeeded"), None


def _outcome(item: _Fields, tool_type: str, name: str | None, *, refused: bool) -> tuple[str, str | None]:
    """How a call went by what its output says, or by what a person said about it."""
    failed, said = _said(item, tool_type)
    if refused or said == DEFAULT_APPROVAL_REJECTION_MESSAGE:
        return "rejected", _storable(said)
    if failed or item.get("status") in _FAILED or (tool_type == "function" and _is_sdk_failure(said, name)):
        return "failed", _storable(said)
    return "succeeded", None


def _said(item: _Fields, tool_type: str) -> tuple[bool, str | None]:
    """Whether commands failed in this output, and the text to show if it turns out to be an error."""
    output = item.get("output", item.get("result"))
    if tool_type == "shell":
        entries = output if isinstance(output, list | tuple) else ()
        faults = (_shell_fault(entry) for entry in entries if isinstance(entry, dict))
        fault = next((fault for fault in faults if fault is not None), None)
        return fault is not None, fault
    caller = item.get("caller")
    if isinstance(caller, dict) and caller.get("type") == "program":
        # A program reads JSON, so the SDK wraps what it has to say to it.
        output = _only(output, "error") or output
    return False, output if isinstance(output, str) else None


def _shell_fault(entry: _Fields) -> str | None:
    """What went wrong with one command; None for one that exited with 0."""
    outcome = entry.get("outcome")
    if not isinstance(outcome, dict):
        return None
    if outcome.get("type") == "timeout":
        return _id(entry, "stderr") or "timed out"
    code = outcome.get("exit_code")
    if not isinstance(code, int) or code == 0:
        return None
    # The SDK writes to stdout what an executor raised.
    return _id(entry, "stderr") or _id(entry, "stdout") or f"exit code {_encoded(code)}"


def _is_sdk_failure(said: str | None, name: str | None) -> bool:
    found = _FAILURES.fullmatch(said) if said else None
    if found is None:
        return False
    # Some of these texts name the tool with its namespace, some without.
    meant = found["name"]
    return meant is None or name is None or meant.rpartition(".")[2] == name.rpartition(".")[2]


def _to_agent(item: _Fields, name: str | None) -> str | None:
    """The agent in what `Handoff.get_transfer_message` wrote."""
    if name is None or not name.startswith("transfer_to_"):
        return None
    return _column(_only(item.get("output"), "assistant")) or None


def _only(text: object, key: str) -> str | None:
    """The text in `{"key": "text"}`; None for any other JSON or none."""
    if not isinstance(text, str) or not text.startswith(f'{{"{key}"'):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value[key] if len(value) == 1 and isinstance(value[key], str) else None


def _storable(text: str | None) -> str | None:
    if not text:
        return None
    return stored_text(text)


def _encoded(value: object) -> str | None:
    """The value as JSON text; None for none, and for what no item could hold either."""
    if value is None:
        return None
    try:
        return encode_value(value, place="")
    except InvalidItem:
        return None


def _json_text(value: object) -> str | None:
    """The text itself where it is JSON that decodes everywhere, else the value as JSON."""
    return str(value) if isinstance(value, str) and _is_json(value) else _encoded(value)


def _is_json(text: str) -> bool:
    try:
        value = _STRICT.decode(text)
        text.encode()
    except (ValueError, RecursionError):
        return False
    # Text with fewer brackets than that cannot nest deeper.
    return text.count("[") + text.count("{") <= MAX_DEPTH or _has_string_keys_within_depth(value)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


# Made once, like projection's encoders. Python reads NaN and Infinity, PostgreSQL does not.
_STRICT = json.JSONDecoder(parse_constant=_refuse)
