"""What is stored: turns as agents have them, the same for every contender."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any, cast

from agents_pg_session.projection import Item

__all__ = ["HEAVY", "READ", "USUAL", "Profile", "fresh_id", "templates"]

#: Items that are read before each turn.
READ = 50

_PROSE = (
    "the order was shipped from our warehouse on Monday and should reach you within three working days a refund is "
    "possible until the parcel has left customs please keep the receipt and the box tracking shows delivery München "
    "café the customer asked whether the invoice could be split between two accounts which we can do on request"
)


@dataclass(frozen=True, slots=True)
class Profile:
    """How large the parts of a turn are, in characters; four items in all."""

    name: str
    asked: int
    arguments: int
    output: int
    said: int

    def turn(self, number: int) -> list[Item]:
        """Return a turn's items: a question, a tool call, its output and the answer; no two turns are alike."""
        call_id = f"call_{number:08d}abcdefghijklmnop"
        question, *others = self._bodies()
        return [cast("Item", {"role": "user", "content": f"{number}: {question}"}), *_tool_turn(call_id, *others)]

    def step(self, number: int) -> list[Item]:
        """Return the items of a turn without its question: an append that starts no turn."""
        return self.turn(number)[1:]

    def _bodies(self) -> tuple[str, str, str, str]:
        return _text(self.asked, 1), _text(self.arguments, 2), _text(self.output, 3), _text(self.said, 4)


USUAL = Profile("4 items, 1.5 kB", asked=160, arguments=60, output=380, said=330)
HEAVY = Profile("4 items, 50 kB of tool output", asked=160, arguments=60, output=50_000, said=330)

_numbers = count(1)


def fresh_id() -> str:
    """Return the id of a session nobody has."""
    return f"session-{next(_numbers):08d}"


def templates(profile: Profile = USUAL) -> list[tuple[str, str, str | None, str | None]]:
    """Return the four items of a turn as (JSON, type, role, call id), for rows that the server generates."""

    def rows() -> Iterator[tuple[str, str, str | None, str | None]]:
        for item in profile.turn(0):
            body = cast("dict[str, Any]", item)
            text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
            yield text, body.get("type", "message"), body.get("role"), body.get("call_id")

    return list(rows())


def _tool_turn(call_id: str, arguments: str, output: str, said: str) -> list[Item]:
    return [
        cast("Item", each)
        for each in (
            {
                "id": f"fc_{call_id}",
                "type": "function_call",
                "call_id": call_id,
                "name": "look_up_order",
                "arguments": json.dumps({"query": arguments}),
                "status": "completed",
            },
            {"type": "function_call_output", "call_id": call_id, "output": output},
            {
                "id": f"msg_{call_id}",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": said, "annotations": []}],
            },
        )
    ]


@cache
def _text(length: int, seed: int) -> str:
    """Words that compress as prose does, the same in every run."""
    chosen = random.Random(seed).choices(_PROSE.split(), k=length // 4 + 1)
    return " ".join(chosen)[:length]
