"""Items, tool runs and events in words: who, and what they said or did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from agents_pg_session import Event, Run, StoredItem, ToolRun
from agents_pg_session.cli.paper import clipped, json_text, number, seconds

__all__ = ["STATUS_STYLES", "Said", "call_words", "event_words", "item_words", "outcome_words", "run_words"]

STATUS_STYLES: Mapping[str, str] = {
    "succeeded": "green",
    "completed": "green",
    "failed": "red",
    "rejected": "red",
    "cancelled": "red",
    "interrupted": "yellow",
    "waiting": "yellow",
    "running": "yellow",
}


class Said(NamedTuple):
    """Who, and what; *quiet* is what stands behind the conversation rather than in it."""

    who: str
    text: str
    quiet: bool = False


def item_words(stored: StoredItem, agent: str | None = None) -> Said:
    """Return who says what in an item; *agent* is who speaks for the model."""
    item: Mapping[str, Any] = dict(stored.item)
    kind, role = item.get("type"), item.get("role")
    if isinstance(role, str) and kind in (None, "message"):
        return Said(agent or role if role == "assistant" else role, _message(stored, item))
    if "__enc__" in item:
        return Said("", "(encrypted)", quiet=True)
    if kind == "reasoning":
        return Said(agent or "model", f"(thinks) {_parts(item.get('summary'))}".rstrip(), quiet=True)
    if isinstance(kind, str) and kind.endswith(("_output", "_result")):
        said = stored.text or json_text({key: item[key] for key in item if key not in ("type", "call_id", "id")})
        return Said("tool", said, quiet=True)
    if isinstance(kind, str) and isinstance(item.get("name"), str):
        return Said(agent or "model", f"{item['name']}({_arguments(item.get('arguments', item.get('input')))})")
    return Said(agent or "", f"{kind or 'item'} {json_text({key: item[key] for key in item if key != 'type'})}", True)


def call_words(run: ToolRun) -> str:
    """Return a call as code has it: track_parcel(order_id="A-1042")."""
    return f"{run.tool_name or run.tool_type}({_arguments(run.arguments)})"


def outcome_words(run: ToolRun) -> str:
    """Return how a tool run ended, after how long, and why."""
    took = f" {'after' if run.status == 'failed' else 'in'} {seconds(run.duration)}" if run.duration is not None else ""
    why = f": {run.error}" if run.error else ""
    return f"{run.status}{took}{why}" if run.status != "running" else "running: no output yet"


def run_words(run: Run) -> str:
    """Return a run in one line: how it ended, and what it cost."""
    said = [run.status if run.error is None else f"{run.status}: {run.error}"]
    if run.status == "running":
        said = [f"running, last heard of {run.last_seen_at:%Y-%m-%d %H:%M:%S}"]
    said.append(f"{number(run.requests)} {'request' if run.requests == 1 else 'requests'}")
    of_these = [f"{number(count)} {name}" for count, name in ((run.cached_tokens, "cached"),) if count]
    said.append(f"{number(run.input_tokens)} tokens in{f' ({of_these[0]})' if of_these else ''}")
    thought = f" ({number(run.reasoning_tokens)} reasoning)" if run.reasoning_tokens else ""
    said.append(f"{number(run.output_tokens)} out{thought}")
    if run.model_seconds:
        said.append(f"model {seconds(run.model_seconds)}")
    return ", ".join(said)


def event_words(event: Event) -> str:
    """Return an event in words; one of your own kind with its payload."""
    payload = event.payload if isinstance(event.payload, dict) else {}
    if (words := _EVENTS.get(event.kind)) is not None:
        return words(payload)
    told = "" if event.payload is None else f" {json_text(event.payload)}"
    return f"{event.kind.replace('_', ' ')}{told}"


_EVENTS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "run_started": lambda told: "run started",
    "run_updated": lambda told: "run updated",
    "run_ended": lambda told: f"run {told.get('status')}{_why(told)}",
    "handoff": lambda told: f"hands over to {told.get('to')}",
    "agent_changed": lambda told: (
        f"hands over to {told.get('to')}" if told.get("to") else f"agent changed {_rest(told)}"
    ),
    "approval_asked": lambda told: f"asks for approval of {told.get('tool_name')}({_arguments(told.get('arguments'))})",
    "approval_answered": lambda told: f"{told.get('tool_name') or 'a call'} was {_answer(told.get('approved'))}",
    "tool_failed": lambda told: f"{told.get('tool_name') or 'a tool'} failed{_why(told)}",
    "snapshot_saved": lambda told: f"saved {told.get('kind')} version {told.get('version')}",
    "snapshot_claimed": lambda told: f"{told.get('kind')} version {told.get('version')} was taken up",
    "history_replaced": lambda told: f"history replaced: {told.get('removed')} items by {told.get('inserted')}",
    "item_popped": lambda told: f"took back item {told.get('position')}",
    "session_cleared": lambda told: f"cleared: {told.get('item_count')} items taken out",
    "session_ended": lambda told: f"ended: {told.get('status')}",
    "session_forked": lambda told: f"began as a copy of {told.get('from')} up to item {told.get('through_position')}",
}


def _why(told: Mapping[str, Any]) -> str:
    return f": {told['error']}" if told.get("error") else ""


def _answer(approved: object) -> str:
    return {True: "approved", False: "rejected"}.get(approved is True, "answered")


def _rest(told: Mapping[str, Any]) -> str:
    return json_text(told) if told else ""


def _message(stored: StoredItem, item: Mapping[str, Any]) -> str:
    """What a message says; parts that are no text by what they are."""
    content = item.get("content")
    return _parts(content) if isinstance(content, list) else stored.text


def _parts(parts: object) -> str:
    if not isinstance(parts, list):
        return parts if isinstance(parts, str) else ""
    return "".join(_part(part) for part in parts)


def _part(part: object) -> str:
    if not isinstance(part, dict):
        return str(part)
    for name in ("text", "refusal"):
        if isinstance(part.get(name), str):
            return str(part[name])
    return f"[{str(part.get('type', 'part')).removeprefix('input_').removeprefix('output_')}]"


def _arguments(arguments: object) -> str:
    """Arguments as keywords; what is no JSON object as it is."""
    if isinstance(arguments, dict):
        return ", ".join(f"{name}={json_text(value)}" for name, value in arguments.items())
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else clipped(json_text(arguments), 1000)
