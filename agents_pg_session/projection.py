"""Item ⇄ row: pure functions, no database.

The item itself is stored verbatim as JSON text; what people filter, join and audit by is promoted to columns here. A
projection is total: whatever an item looks like (encrypted envelopes have neither a type nor a role), it yields a
row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple, cast

from agents.items import TResponseInputItem
from pydantic_core import from_json, to_json

from agents_pg_session.errors import InvalidItem

__all__ = ["MAX_DEPTH", "Batch", "Item", "ItemRow", "decode", "encode", "encode_value", "project"]

Item = TResponseInputItem

#: Levels of nesting an item may have. Python's JSON decoder recurses, so an item that was written from a shallow call
#: stack could become unreadable from a deep one; half of the default recursion limit keeps every stored item readable.
MAX_DEPTH = 500

#: Characters of a promoted column. Longer values stay in the item only, so that an index over them never overflows.
MAX_COLUMN = 512

# Made once: json.dumps would make an encoder for each item.
_READABLE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_ESCAPED = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))

# Values that every JSON encoder writes alike; whole numbers too, as far as 64 bits go.
_PLAIN = frozenset({str, bool, type(None)})

#: Levels of nesting that are looked through for a plain value.
_PLAIN_DEPTH = 32

_INPUT_ROLES = frozenset({"user", "system", "developer"})


class ItemRow(NamedTuple):
    """One item as its row: the JSON text and the promoted columns."""

    item: str
    type: str | None
    role: str | None
    call_id: str | None
    turn: int  #: turns this batch has begun up to and including this item; 0 means "the turn before this batch"


class Batch(NamedTuple):
    """The items of one append, projected."""

    rows: tuple[ItemRow, ...]
    turns: int  #: turns this batch begins
    messages: int  #: items of type "message" in it


def project(items: Sequence[Item]) -> Batch:
    """Turn the items of one append into rows, or refuse all of them.

    Raises `InvalidItem` naming the place, for example `items[3]["output"][0]["score"] is NaN`.
    """
    if not isinstance(items, list) and (isinstance(items, str | bytes | dict) or not isinstance(items, Sequence)):
        raise InvalidItem(f"items is {_named(items)}, not a list of dicts")
    texts = [encode(item, place=f"items[{index}]") for index, item in enumerate(items)]
    fields = cast("Sequence[dict[str, Any]]", items)
    types = [_type(item) for item in fields]
    roles = [_column(item.get("role")) for item in fields]
    call_ids = [_column(item.get("call_id")) for item in fields]
    turns = _turns(roles)
    return Batch(
        rows=tuple(map(ItemRow, texts, types, roles, call_ids, turns)),
        turns=turns[-1] if turns else 0,
        messages=types.count("message"),
    )


def encode(item: object, *, place: str) -> str:
    """Return the item as JSON text that decodes to an equal value, keys in the same order.

    Raises `InvalidItem` for what JSON has no form for: NaN and infinities, bytes, keys that are not strings, nesting
    beyond `MAX_DEPTH`, and anything that is not a dict to begin with.
    """
    if not isinstance(item, dict):
        raise InvalidItem(f"{place} is {_named(item)}, not a dict")
    return encode_value(item, place=place)


def encode_value(value: object, *, place: str) -> str:
    """Return any JSON value as text, as `encode` does for an item."""
    try:
        if _is_plain(value):
            return to_json(value).decode()  # the same text as json's, several times as fast
    except (ValueError, RecursionError):  # a lone surrogate, or a caller who is far down already
        pass
    try:
        text = _READABLE.encode(value)
    except (TypeError, ValueError, RecursionError):
        text = None
    # json.dumps turns the key 1 into "1" without a word: only a walk finds that.
    if text is None or (isinstance(value, dict | list | tuple) and not _has_string_keys_within_depth(value)):
        raise InvalidItem(f"{place}{_fault(value)}") from None
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate: no UTF-8, but JSON can escape it
            return _ESCAPED.encode(value)
    return text


def decode(text: str) -> Item | None:
    """Return the item that was stored as *text*; None for text that holds no JSON object (a hand-edited row)."""
    try:
        value = from_json(text, cache_strings="keys")  # several times as fast as json, and never says anything else …
    except ValueError:  # … but knows no lone surrogates, and not as many levels
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
    return cast("Item", value) if isinstance(value, dict) else None


def _turns(roles: Iterable[str | None]) -> list[int]:
    """For each item the turns begun so far: neighbouring input messages with a user's among them begin one."""
    turns: list[int] = []
    turn = 0
    for is_input, group in groupby(roles, _INPUT_ROLES.__contains__):
        members = list(group)
        turn += is_input and "user" in members
        turns += [turn] * len(members)
    return turns


def _type(item: dict[str, Any]) -> str | None:
    """The item's type; "message" where the SDK lets callers leave it out (`{"role": …, "content": …}`)."""
    if "type" in item:
        return _column(item["type"])
    return "message" if "role" in item and "content" in item else None


def _column(value: object) -> str | None:
    """The value if a text column and an index over it can hold it, else None: the item keeps it in any case."""
    if not isinstance(value, str) or len(value) > MAX_COLUMN or "\0" in value:
        return None
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return None
    return str(value)


def _is_plain(node: object, levels: int = _PLAIN_DEPTH) -> bool:
    """Say whether a value has nothing but JSON's own types, and no numbers with more than one way to write them.

    No subclasses, for an encoder may ask those what they are; nothing deep, which also ends what holds itself.
    """
    children: Iterable[object]
    if type(node) is dict:
        for key in node:
            if type(key) is not str:
                return False
        children = node.values()
    elif type(node) is list:
        children = node
    else:
        children = (node,)
    for child in children:
        kind = type(child)
        if kind in _PLAIN:
            continue
        if kind is dict or kind is list:
            if levels == 0 or not _is_plain(child, levels - 1):
                return False
        elif not (type(child) is int and -(2**63) <= child < 2**63):
            return False
    return True


def _has_string_keys_within_depth(item: object) -> bool:
    """Walk level by level: no recursion, so depth is only a count."""
    level: list[Any] = [item]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for node in level:
            values = node
            if isinstance(node, dict):
                if not all(isinstance(key, str) for key in node):
                    return False
                values = node.values()
            deeper.extend(value for value in values if isinstance(value, dict | list | tuple))
        if not deeper:
            return True
        level = deeper
    return False


def _fault(item: object) -> str:
    """Find the first thing JSON has no form for, as `path is what`. Runs only when an item was refused."""
    stack: list[tuple[str, int, object]] = [("", 0, item)]
    while stack:
        path, depth, node = stack.pop()
        if depth == MAX_DEPTH:
            return f" is nested deeper than {MAX_DEPTH} levels, or holds itself"
        if isinstance(node, dict):
            for key in node:
                if not isinstance(key, str):
                    return f"{path} has a key that is {_named(key)}, not a string"
            children: list[tuple[str, object]] = [(f"[{json.dumps(key[:64])}]", value) for key, value in node.items()]
        elif isinstance(node, list | tuple):
            children = [(f"[{index}]", value) for index, value in enumerate(node)]
        else:
            if (reason := _leaf_fault(node)) is not None:
                return f"{path} is {reason}"
            continue
        stack.extend((path + step, depth + 1, value) for step, value in reversed(children))
    return " cannot be written as JSON"


def _leaf_fault(leaf: object) -> str | None:
    try:
        json.dumps(leaf, allow_nan=False)
    except TypeError:
        return f"{_named(leaf)}, which JSON has no form for"
    except ValueError:
        if isinstance(leaf, float):
            return "NaN" if leaf != leaf else ("Infinity" if leaf > 0 else "-Infinity")
        return "an integer with more digits than Python converts (see sys.set_int_max_str_digits)"
    return None


def _named(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
