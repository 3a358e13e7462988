"""Item ⇄ row, without a database."""

from __future__ import annotations

import enum
import itertools
import json
from collections import OrderedDict
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from agents_pg_session import InvalidItem
from agents_pg_session.projection import MAX_COLUMN, MAX_DEPTH, decode, encode, project
from tests.items import assistant, call, item, output, user

ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    lambda each: st.one_of(
        st.lists(each), st.dictionaries(st.one_of(st.text(), st.integers(), st.none()), each), st.tuples(each)
    ),
    max_leaves=10,
)


NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
STRINGS = st.from_regex(r'"([a-zé🎉\t\0]|\\u[dD][89a-fA-F][0-9a-f]{2}|\\[nbtrfux0/\\"])*"', fullmatch=True)

#: JSON as text, and what is nearly JSON.
TEXTS = st.recursive(
    st.one_of(NUMBERS, STRINGS, st.sampled_from(["null", "true", "false", "NaN", "-Infinity", "nul", "01", "-", "1."])),
    lambda each: st.one_of(
        st.lists(each, max_size=3).map(lambda parts: f"[{','.join(parts)}]"),
        st.lists(st.tuples(STRINGS, each), max_size=3).map(
            lambda pairs: f"{{{', '.join(f'{key}: {value}' for key, value in pairs)}}}"
        ),
    ),
    max_leaves=6,
)


class Color(enum.StrEnum):
    RED = "red"


class Model(BaseModel):
    name: str = "x"


@dataclass
class Data:
    name: str = "x"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (float("nan"), 'items[1]["value"] is NaN'),
        (float("inf"), 'items[1]["value"] is Infinity'),
        ([0, {"deep": -float("inf")}], 'items[1]["value"][1]["deep"] is -Infinity'),
        (b"bytes", 'items[1]["value"] is a bytes, which JSON has no form for'),
        ({"a", "set"}, 'items[1]["value"] is a set, which JSON has no form for'),
        (object(), 'items[1]["value"] is an object, which JSON has no form for'),
        ({1: "x"}, 'items[1]["value"] has a key that is an int, not a string'),
        ([{None: 1}], 'items[1]["value"][0] has a key that is a NoneType, not a string'),
        ([10**5000], 'items[1]["value"][0] is an integer with more digits than Python converts'),
    ],
)
def test_a_fault_is_named_by_its_place(bad: object, message: str) -> None:
    """The message says which item, the path inside it, and what is wrong there."""
    with pytest.raises(InvalidItem) as refused:
        project([user("fine"), item(value=bad)])

    assert str(refused.value).startswith(message)
    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize("bad", ["text", b"bytes", None, 5, ["list"], [user("fine")]])
def test_an_item_is_a_dict(bad: Any) -> None:
    """Anything but a dict is refused where it stands."""
    with pytest.raises(InvalidItem, match=r"items\[0\] is an? \w+, not a dict"):
        project([bad])


@pytest.mark.parametrize("bad", ["text", b"bytes", {"role": "user"}, None, 5, iter([])])
def test_items_is_a_list(bad: Any) -> None:
    """A single item, or a string, is not taken for a list of items."""
    with pytest.raises(InvalidItem, match=r"items is an? .*not a list of dicts"):
        project(bad)


def test_an_item_that_holds_itself_is_refused() -> None:
    """A cycle ends with an error, not with a full stack."""
    value: list[Any] = []
    value.append(value)

    with pytest.raises(InvalidItem, match=f"nested deeper than {MAX_DEPTH} levels, or holds itself"):
        project([item(value=value)])


def test_nesting_far_beyond_the_stack_is_refused() -> None:
    """A hundred thousand levels are an error of ours, not a RecursionError."""
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]

    with pytest.raises(InvalidItem, match="nested deeper"):
        project([item(value=value)])
    while value:  # taken apart by hand: freeing it at once would recurse
        value = value.pop()


@given(value=ANYTHING)
def test_a_value_is_stored_exactly_or_refused(value: object) -> None:
    """Whatever an item holds, it comes back equal as JSON has it, or it is refused: nothing in between."""
    try:
        text = encode({"value": value}, place="items[0]")
    except InvalidItem:
        with pytest.raises(InvalidItem, match=r'^items\[0\]\["value"\]'):
            encode({"value": value}, place="items[0]")
    else:
        assert "\0" not in text
        text.encode()
        assert decode(text) == json.loads(json.dumps({"value": value}))
        assert json.dumps(decode(text)) == json.dumps({"value": value})


def test_what_reads_like_json_is_taken_as_json() -> None:
    """Tuples, enums and ordered dicts are what their JSON is."""
    odd = OrderedDict(b=(1, 2), a=Color.RED)

    assert decode(encode(odd, place="items[0]")) == {"b": [1, 2], "a": "red"}


@given(
    value=st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(st.characters(codec="utf-8")),
            st.sampled_from(Color),
        ),
        lambda each: st.one_of(
            st.lists(each), st.tuples(each), st.dictionaries(st.text(st.characters(codec="utf-8")), each)
        ),
        max_leaves=10,
    ),
    levels=st.sampled_from([0, 1, 30, 31, 32, 33, 300]),
)
def test_there_is_one_text_for_a_value(value: Any, levels: int) -> None:
    """Whichever encoder writes an item, its text is json's, character for character."""
    for _ in range(levels):
        value = [value]

    expected = json.dumps({"value": value}, ensure_ascii=False, separators=(",", ":"))
    assert encode({"value": value}, place="items[0]") == expected


@pytest.mark.parametrize(
    "odd", [PurePosixPath("x"), date(2026, 11, 21), Decimal(1), Model(), Data(), b"x", bytearray(b"x"), {"x"}, range(3)]
)
def test_what_is_not_json_is_refused(odd: object) -> None:
    """Things that some encoders find a form for are no JSON: they would come back as something else."""
    with pytest.raises(InvalidItem, match="which JSON has no form for"):
        project([item(value=odd)])


def test_nothing_is_used_up() -> None:
    """An iterator is refused as it is, even one without an end."""
    endless = itertools.count()
    with pytest.raises(InvalidItem, match="a count, which JSON has no form for"):
        project([item(value=endless)])

    assert next(endless) == 0


def test_an_item_that_holds_itself_many_times_is_refused_at_once() -> None:
    """Nothing walks every way through a cycle."""
    value: dict[str, Any] = {}
    value |= {key: [value, value] for key in "abc"}

    with pytest.raises(InvalidItem, match="holds itself"):
        project([item(value=value)])


@given(text=TEXTS)
@example(text='"\\ud800"')
@example(text="[" * 450 + "]" * 450)
@example(text="[1e400, -0, -0.0, 5e-324, 9007199254740993, 18446744073709551616]")
@example(text='{"a": 1, "b": 2, "a": 3}')
@example(text="1" * 5000)
def test_there_is_one_value_for_a_text(text: str) -> None:
    """Whichever decoder reads an item, it is what json reads, to the last bit of a number; or it is no item."""
    row = f'{{"value": {text}}}'
    try:
        expected = json.loads(row)
    except ValueError:
        assert decode(row) is None
    else:
        assert repr(decode(row)) == repr(expected)


def test_text_stays_readable() -> None:
    """What a person sees in psql is text, not escapes, wherever UTF-8 has a form for it."""
    assert encode({"content": "Zoë 🎉"}, place="items[0]") == '{"content":"Zoë 🎉"}'
    assert encode({"content": "Zoë \ud800"}, place="items[0]") == '{"content":"Zo\\u00eb \\ud800"}'


@pytest.mark.parametrize("text", ["", "nonsense", '"text"', "[]", "5", "null", "{", "{} {}"])
def test_what_is_no_object_decodes_to_nothing(text: str) -> None:
    """A row edited by hand is recognised, not raised about."""
    assert decode(text) is None


@pytest.mark.parametrize(
    ("each", "expected"),
    [
        (user("hi"), ("message", "user", None)),
        (assistant("hi"), ("message", "assistant", None)),
        (call("c1"), ("function_call", None, "c1")),
        (output("c1"), ("function_call_output", None, "c1")),
        (item(__enc__=1, payload="x"), (None, None, None)),
        (item(type=5, role=[], call_id={}), (None, None, None)),
        (item(type="a\0b", role="\ud800", call_id="x" * (MAX_COLUMN + 1)), (None, None, None)),
        (item(type=None, role="user", content=""), (None, "user", None)),
    ],
)
def test_columns_are_promoted(each: Any, expected: tuple[str | None, ...]) -> None:
    """Type, role and call id become columns where a text column can hold them; no item is ever refused for them."""
    [row] = project([each]).rows

    assert (row.type, row.role, row.call_id) == expected


def test_turns_begin_with_user_input() -> None:
    """Neighbouring input messages with a user's among them begin one turn; a lone system message begins none."""
    system = item(role="system", content="be kind")
    batch = project([assistant("0"), system, user("1"), user("1"), assistant("1"), system, call("c"), user("2")])

    assert [row.turn for row in batch.rows] == [0, 1, 1, 1, 1, 1, 1, 2]
    assert (batch.turns, batch.messages) == (2, 7)
