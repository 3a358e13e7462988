"""What of a session the model is given: pure functions, no database.

A model refuses an output whose call it is not shown, and a call without the reasoning that led to it. So a window is
never just the newest N items: its start moves to where nothing is split, and an output that came so late that its call
has left the window is left out. Everything is total: an envelope without a type binds to nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from agents_pg_session.projection import Item
from agents_pg_session.texts import shown

__all__ = [
    "Placed",
    "Window",
    "as_system_message",
    "enough",
    "first_fetch",
    "is_safe_start",
    "safe_start",
    "select",
    "summary_boundary",
    "whole",
]

#: Rows asked for beyond the wanted items: room for the response the first of them belongs to, mostly.
_MARGIN = 16

# Which call an output answers. The two ways to patch are one: either output answers either call.
_ANSWERS: Mapping[str, str] = {
    "apply_patch_call_output": "custom_tool_call",
    "computer_call_output": "computer_call",
    "custom_tool_call_output": "custom_tool_call",
    "function_call_output": "function_call",
    "local_shell_call_output": "local_shell_call",
    "mcp_approval_response": "mcp_approval_request",
    "program_output": "program",
    "shell_call_output": "shell_call",
    "tool_search_output": "tool_search_call",
}
_CALLS: Mapping[str, str] = {call: call for call in _ANSWERS.values()} | {"apply_patch_call": "custom_tool_call"}
# Where the call's id stands, when it is not in call_id. The API's schema has local_shell_call_output name it by id.
_ID_FIELDS: Mapping[str, tuple[str, ...]] = {
    "local_shell_call_output": ("call_id", "id"),
    "mcp_approval_request": ("id",),
    "mcp_approval_response": ("approval_request_id",),
}
# These the API may write itself, in the middle of a response; every other output is a caller's, between responses.
_HOSTED_OUTPUTS = frozenset({"program_output", "shell_call_output", "tool_search_output"})

_INPUT_ROLES = frozenset({"user", "system", "developer"})


def as_system_message(text: str) -> Item:
    """Return *text* as the system message that stands for the conversation before the window."""
    return cast("Item", {"role": "system", "content": "Summary of the conversation so far:\n" + text})


class Placed(NamedTuple):
    """An item and where it stands in its session."""

    position: int
    turn: int
    item: Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What of a session `get_items` gives the model. Nothing is deleted: the session keeps all its items.

    One of three: the newest *items*, the newest whole *turns* (one user input and all that answers it), or the newest
    snapshot of the kind *summary* and everything after what that has seen. A call is never split from its output, nor
    a response from its reasoning; when that leaves none of the newest items, the window holds a few more instead.

    Raises `ValueError` unless exactly one is given.
    """

    items: int | None = None
    turns: int | None = None
    summary: str | None = None
    render: Callable[[str], Item] = as_system_message  #: how the summary's text becomes an item

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.items, self.turns, self.summary)) != 1:
            raise ValueError(
                'a window has one measure: Window(items=50), Window(turns=10) or Window(summary="summary")'
            )
        for name, count in (("items", self.items), ("turns", self.turns)):
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
                raise ValueError(f"{name} must be a whole number, one or more, not {shown(count)}: Window({name}=10)")
        if self.summary is not None and (not isinstance(self.summary, str) or not self.summary):
            what = shown(self.summary)
            raise ValueError(f'summary must be a kind of snapshot, not {what}: Window(summary="summary")')


def first_fetch(window: Window) -> int | None:
    """Return how many of the newest rows to ask for first; None for all (a summary's rows: all after it)."""
    if window.items is not None:
        return window.items + _MARGIN
    return None if window.turns is None else max(64, 16 * window.turns)


def enough(window: Window, rows: Sequence[Placed], *, complete: bool) -> bool:
    """True when older rows would not change what `select` returns.

    *rows* are the newest of the session, oldest first; *complete* says that there are no older ones, or for a summary,
    none that it has not seen.
    """
    if complete:
        return True
    if window.turns is not None:
        return len({row.turn for row in rows}) > window.turns
    if window.items is None or len(rows) <= window.items:
        return False
    if _turn_start(rows, len(rows) - window.items) > 0:
        return True  # the window begins inside a turn that is here from its start
    return _settled([row.item for row in rows], window.items)


def select(window: Window, rows: Sequence[Placed], text: str | None = None) -> list[Item]:
    """Return what the model is given of *rows* (oldest first, see `enough`): a suffix of them, without orphans.

    For a summary, *text* is its content, rendered in front; None when none has been made yet.
    """
    items = [row.item for row in rows]
    if window.items is not None:
        # Cut within the turn: a call from an earlier turn that is answered now must not pull in all between them.
        items = items[_turn_start(rows, max(0, len(rows) - window.items)) :]
        items = items[_newest(items, window.items) :]
    elif window.turns is not None:
        items = items[_newest_turns(rows, window.turns) :]
    rendered = [] if window.summary is None or text is None else [window.render(text)]
    return rendered + whole(items)


def summary_boundary(rows: Sequence[Placed], keep_turns: int) -> int:
    """Return the index before which *rows* may be summarised: all but the newest *keep_turns* turns, nothing split.

    0 when there is nothing to summarise. A call whose output came in a kept turn is kept too, and so is one of the
    newest turn that still waits for it: else neither the summary nor the window would show that output.
    """
    if keep_turns < 0:
        raise ValueError(f"keep_turns must be zero or more, not {keep_turns}")
    items = [row.item for row in rows]
    safe, boundary = _safe(items), _newest_turns(rows, keep_turns)
    newest_turn = _turn_start(rows, len(rows) - 1)
    waiting = [index for index in _paired(items)[1] if index >= newest_turn]
    boundary = min([boundary, *waiting])  # its output is still to come: an approval takes its time
    return next((index for index in range(boundary, -1, -1) if safe[index]), 0)


def is_safe_start(items: Sequence[Item], index: int) -> bool:
    """True when a window from *index* splits nothing and does not begin with an orphan. Its end is safe."""
    return _safe(items)[index]


def safe_start(items: Sequence[Item], start: int) -> int:
    """Return the smallest safe index from *start* on, so that a window holds at most what was wanted.

    When that would leave nothing, the largest safe index before *start*: better a little more than nothing.
    """
    safe = _safe(items)
    later = range(max(start, 0), len(items))
    earlier = range(start, -1, -1) if start < len(items) else ()
    return next((index for index in (*later, *earlier) if safe[index]), len(items))


def whole(items: Sequence[Item]) -> list[Item]:
    """Return *items* without orphans: outputs that answer no call before them. A call may still wait for its output."""
    return [item for item, need in zip(items, _needs(items), strict=True) if need is not None]


def _newest(items: Sequence[Item], count: int) -> int:
    """Where the newest *count* items start, orphans not counted and nothing split."""
    kept = [index for index, need in enumerate(_needs(items)) if need is not None][-count:]
    return safe_start(items, kept[0]) if kept else len(items)


def _settled(items: Sequence[Item], count: int) -> bool:
    """True when `_newest` would find the same start with older items in front.

    Four things could move it: a start at the edge, too few items that are no orphans, outputs in the window that only
    look like orphans because their calls lie beyond the edge, and reasoning beyond the edge that leads to the start.
    """
    start, needs = _newest(items, count), _needs(items)
    return (
        start > 0
        and len(needs) - needs.count(None) >= count
        and None not in needs[start:]
        and any(_ends_response(item) or _type(item) == "reasoning" for item in items[: start + 1])
    )


def _newest_turns(rows: Sequence[Placed], count: int) -> int:
    """Where the newest *count* turns start; turns are counted as they are here, whatever was popped between them."""
    newest = set(sorted({row.turn for row in rows})[-count:] if count else ())
    return next((index for index, row in enumerate(rows) if row.turn in newest), len(rows))


def _turn_start(rows: Sequence[Placed], index: int) -> int:
    """Where the turn of rows[index] starts, as far as it is here."""
    while 0 < index < len(rows) and rows[index - 1].turn == rows[index].turn:
        index -= 1
    return index


def _safe(items: Sequence[Item]) -> list[bool]:
    """For each index, the end included: does a window from there split nothing, and not begin with an orphan?"""
    safe = [True] * (len(items) + 1)
    needs = _needs(items)
    earliest = len(items)
    for index in range(len(items) - 1, -1, -1):
        need = needs[index]
        earliest = earliest if need is None else min(earliest, need)
        safe[index] = need is not None and earliest >= index
    return safe


def _needs(items: Sequence[Item]) -> list[int | None]:
    """For each item, the earliest that must be shown with it (itself, if nothing is), None for an orphan."""
    return _paired(items)[0]


def _paired(items: Sequence[Item]) -> tuple[list[int | None], list[int]]:
    """What each item needs, and which calls have no output.

    An output needs its call: the latest of that id that waits for one, since ids may be used again. The items of a
    response need the reasoning before them, also the second of two parallel calls.
    """
    needs: list[int | None] = []
    waiting: dict[tuple[str, str | None], list[int]] = defaultdict(list)
    reasoning: int | None = None  # where the reasoning starts that led to what is being read
    previous: str | None = None
    for index, item in enumerate(items):
        kind = _type(item) or ""
        if _ends_response(item):
            reasoning = None
        elif kind == "reasoning" and previous != "reasoning":
            reasoning = index
        need: int | None = index if reasoning is None else reasoning
        if kind in _CALLS:
            waiting[_CALLS[kind], _call_id(item)].append(index)
        elif kind in _ANSWERS:
            calls = waiting[_ANSWERS[kind], _call_id(item)]
            need = calls.pop() if calls else None
        needs.append(need)
        previous = kind
    return needs, [index for calls in waiting.values() for index in calls]


def _ends_response(item: Item) -> bool:
    """True for what the model did not write: input, a caller's outputs, and envelopes, which nobody can read here."""
    kind, role = _type(item), _text(item, "role")
    if kind is None and role is None:
        return True
    return role in _INPUT_ROLES or (kind in _ANSWERS and kind not in _HOSTED_OUTPUTS)


def _type(item: Item) -> str | None:
    return _text(item, "type")


def _call_id(item: Item) -> str | None:
    """The id that pairs calls and outputs; None where there is none, as in the tool searches the API runs itself."""
    fields = _ID_FIELDS.get(_type(item) or "", ("call_id",))
    return next((value for field in fields if (value := _text(item, field)) is not None), None)


def _text(item: Item, field: str) -> str | None:
    value = cast("Mapping[str, Any]", item).get(field)
    return value if isinstance(value, str) else None
