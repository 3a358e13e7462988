"""Values nobody should pass, beside values somebody may: what the harnesses of this folder generate from."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import PurePath
from typing import Any

from hypothesis import strategies as st
from pydantic import BaseModel

__all__ = [
    "ANYTHING",
    "IDS",
    "ITEMS",
    "JSON_VALUES",
    "KINDS",
    "METADATA",
    "MOMENTS",
    "NAMES",
    "NOT_JSON",
    "NUMBERS",
    "SECONDS",
    "TEXTS",
    "as_stored",
    "nested",
]


class Word(str):
    """Text of a class of its own."""

    __slots__ = ()


class Colour(str, Enum):  # noqa: UP042 -- StrEnum prints its value, this does not
    """Text that prints as something else."""

    RED = "red"


class Level(IntEnum):
    """A number of a class of its own."""

    LOW = 1


class Index:
    """What numpy's integers look like: an index, and no int."""

    def __index__(self) -> int:
        return 3

    def __int__(self) -> int:
        return 3


class Mute:
    """An object that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


class Model(BaseModel):
    """What the SDK's own item types are."""

    role: str = "user"
    content: str = "hi"


class Fields(dict[str, Any]):
    """A dict of a class of its own."""


class Nowhere(tzinfo):
    """A time zone that does not know its offset."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return None

    def dst(self, moment: datetime | None) -> timedelta | None:
        return None

    def tzname(self, moment: datetime | None) -> str | None:
        return None


def nested(depth: int, kind: type = list) -> Any:
    """Return a value nested so deep."""
    value: Any = 0
    for _ in range(depth):
        value = [value] if kind is list else {"k": value}
    return value


def circular() -> list[Any]:
    """Return a list that holds itself."""
    value: list[Any] = []
    value.append(value)
    return value


def as_stored(value: Any) -> Any:
    """Return what JSON makes of a value: tuples are lists, two halves of a surrogate pair are one character."""
    return json.loads(json.dumps(value))


#: Objects of every kind that no argument is.
OBJECTS = st.sampled_from(
    [
        b"bytes",
        1.5,
        float("nan"),
        float("inf"),
        Decimal(1),
        Index(),
        Mute(),
        object(),
        [],
        {},
        (),
        {1},
        Model(),
        int,
        PurePath("a"),
        date(2026, 1, 1),
        Colour.RED,
        Level.LOW,
        Word("word"),
        10**5000,
        -(10**5000),
        circular(),
        True,
    ]
)
TEXTS = st.one_of(
    st.text(st.characters(), max_size=12),
    st.sampled_from(
        ["", "\0", "\ud800", "a\0b", "x" * 512, "x" * 513, "é" * 257, "'; DROP TABLE items; --", ":a %s $1"]
    ),
    st.sampled_from(
        ["{schema}", "%", "_", "!", "\\", '"', "🎉", "ß", "ﬁ", "İ", "\u2028", "history", "run_state", "x" * 10**5]
    ),
)
#: What names something: mostly names, sometimes nothing of the kind.
NAMES = st.one_of(TEXTS, TEXTS, OBJECTS, st.integers())
IDS = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40), NAMES
)
KINDS = st.one_of(st.sampled_from(["summary", "note", "a kind", "history", "run_state"]), NAMES)
NUMBERS = st.one_of(
    st.integers(-3, 60),
    st.integers(),
    st.sampled_from([2**31, 2**31 - 1, 2**63 - 1, 2**63, 2**64, 2**70, -(2**70), 999, 1000, 1001]),
    st.sampled_from(["5", "", "1e3"]),
    OBJECTS,
)
SECONDS = st.one_of(
    st.floats(), st.sampled_from([0, -1, 1e-9, 1e300, 10**400, 31622400, 31622401, True, "3", timedelta(1)]), OBJECTS
)
MOMENTS = st.one_of(
    st.datetimes(timezones=st.just(UTC)),
    st.datetimes(),
    st.timedeltas(),
    st.sampled_from(
        [datetime(2026, 1, 1, tzinfo=Nowhere()), datetime.max.replace(tzinfo=timezone(timedelta(hours=-23))), "now", 5]
    ),
    st.sampled_from([datetime.min.replace(tzinfo=timezone(timedelta(hours=23))), timedelta.max, timedelta.min]),
    OBJECTS,
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**40), 10**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(), max_size=8),
    st.sampled_from(["\0", "\ud800", "\udfff\ud800", 2**64, -0.0, 5e-324, Word("w"), Level.LOW]),
)
JSON_VALUES = st.recursive(
    SCALARS,
    lambda each: st.one_of(
        st.lists(each, max_size=3),
        st.dictionaries(st.text(st.characters(), max_size=5), each, max_size=3),
        st.tuples(each),
    ),
    max_leaves=6,
)
NOT_JSON = st.one_of(
    st.sampled_from(
        [
            float("nan"),
            float("-inf"),
            b"x",
            {1: 2},
            {None: 1},
            {"a": {True: 1}},
            circular(),
            nested(600),
            nested(600, dict),
            [nested(501)],
            Model(),
            object(),
            {1, 2},
            datetime(2026, 1, 1, tzinfo=UTC),
            Decimal(1),
            10**5000,
            Mute(),
        ]
    ),
    st.builds(lambda value, bad: {"deep": [value, {"er": bad}]}, JSON_VALUES, OBJECTS),
)
ANYTHING = st.one_of(JSON_VALUES, JSON_VALUES, NOT_JSON)

#: Fields that the projections look at, with values they do not expect.
_TOOL_TYPES = [
    "function_call",
    "function_call_output",
    "shell_call",
    "shell_call_output",
    "mcp_call",
    "reasoning",
    "program",
]
_TOOL_TYPES += [
    "mcp_approval_request",
    "mcp_approval_response",
    "computer_call",
    "tool_search_call",
    "tool_search_output",
]
_TOOL_TYPES += [
    "local_shell_call",
    "apply_patch_call_output",
    "strange_call",
    "strange_call_output",
    "_call",
    "message",
]
_FIELD = st.one_of(
    JSON_VALUES, st.sampled_from(["c1", "c2", "lookup", "transfer_to_b", '{"assistant": "b"}', "completed"])
)
TOOL_ITEMS = st.fixed_dictionaries(
    {"type": st.sampled_from(_TOOL_TYPES)},
    optional=dict.fromkeys(
        (
            *("call_id", "id", "name", "namespace", "arguments", "output", "result", "status", "error", "action"),
            *("role", "content", "caller", "approve", "approval_request_id", "server_label", "code"),
        ),
        _FIELD,
    ),
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "developer", "tool", "", "\0"]), "content": _FIELD},
    optional={"type": _FIELD},
)
_ITEM = st.one_of(MESSAGES, TOOL_ITEMS, TOOL_ITEMS, st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=3))
ITEMS = st.one_of(
    st.lists(_ITEM, max_size=4),
    st.lists(_ITEM, max_size=4).map(tuple),
    st.lists(st.one_of(_ITEM, ANYTHING, _ITEM.map(Fields)), max_size=3),
    ANYTHING,
    st.sampled_from([None, "text", b"bytes", 5, range(3), {"role": "user"}, iter([{"a": 1}]), bytearray(b"ab")]),
)
METADATA = st.one_of(
    st.dictionaries(st.text(st.characters(), max_size=4), JSON_VALUES, max_size=3),
    st.sampled_from(
        [nested(100, dict), {"deep": nested(450)}, nested(499, dict), nested(501, dict), {"\0": 1}, {"a": "\ud800"}]
    ),
    ANYTHING,
)
