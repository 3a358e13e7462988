"""Which tool output answers which call, item by item: the same pairs that windows are cut by, in constant memory."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agents_pg_session.drivers import Row
from agents_pg_session.projection import decode
from agents_pg_session.windows import _ANSWERS, _CALLS, _call_id

__all__ = ["NAMED_OTHERWISE", "TOOL_ITEMS", "Pairing", "Said"]

#: Types of items that take part.
TOOL_ITEMS = tuple(sorted({*_CALLS, *_ANSWERS}))

#: Types whose id may stand elsewhere than in `call_id`.
NAMED_OTHERWISE = ("local_shell_call_output", "mcp_approval_request", "mcp_approval_response")

#: Calls that only a caller answers. The API may answer the others itself.
_ANSWERED_BY_CALLERS = frozenset(
    {"function_call", "custom_tool_call", "shell_call", "local_shell_call", "apply_patch_call", "computer_call"}
)


class Said(NamedTuple):
    """A call or an output."""

    position: int
    turn: int
    type: str
    call_id: str | None


@dataclass
class Pairing:
    """The calls and outputs of one session, read in order."""

    outputs: list[Said] = field(default_factory=list)  #: that answer no call
    pairs: dict[int, int] = field(default_factory=dict)  #: position of a call: of its output
    _waiting: dict[tuple[str, str | None], list[Said]] = field(default_factory=lambda: defaultdict(list))

    def read(self, row: Row, keep: frozenset[int] | None = None) -> None:
        """Take the next item; of the pairs only those of the calls to *keep* are kept."""
        said = Said(row.position, row.turn, row.type, row.call_id or _id_in(row.named_by))
        if said.type in _CALLS:
            self._waiting[_CALLS[said.type], said.call_id].append(said)
        elif said.type in _ANSWERS:
            waiting = self._waiting.get((_ANSWERS[said.type], said.call_id))
            if not waiting:
                self.outputs.append(said)
                return
            call = waiting.pop()
            if not waiting:
                del self._waiting[_ANSWERS[said.type], said.call_id]
            if (keep is None or call.position in keep) and _is_recorded(call.type, said.type):
                self.pairs[call.position] = said.position

    def calls(self) -> list[Said]:
        """Return the calls without output that nobody but a caller could have answered, in order."""
        waiting = (each for calls in self._waiting.values() for each in calls)
        return sorted(each for each in waiting if each.type in _ANSWERED_BY_CALLERS and each.call_id is not None)


def _is_recorded(call: str, output: str) -> bool:
    """Whether the record, too, has this output answer this call, also within one append: it knows less ways."""
    return output == f"{call}_output" or (call, output) == ("apply_patch_call", "custom_tool_call_output")


def _id_in(item: str | None) -> str | None:
    decoded: Any = None if item is None else decode(item)
    return None if decoded is None else _call_id(decoded)
