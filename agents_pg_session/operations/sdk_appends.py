"""What rows of the SDK hold, and which of them were one append."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from agents_pg_session.operations.sdk_tables import SourceRow
from agents_pg_session.projection import Item, decode

__all__ = ["INPUT_ROLES", "appends", "item_of"]

INPUT_ROLES = ("user", "system", "developer")


def item_of(row: SourceRow) -> tuple[Item | None, str]:
    """Return the item that a row holds, or why it holds none."""
    text: str | None
    if isinstance(row.data, str):
        text = row.data
    else:
        try:
            text = bytes(row.data).decode()
        except (UnicodeDecodeError, TypeError):
            return None, "the text is no UTF-8"
    item = decode(text)
    if item is not None:
        return item, ""
    try:
        kind = type(json.loads(text)).__name__
    except (ValueError, RecursionError):
        return None, "the text is no JSON"
    return None, f"the JSON is a {kind}, not an object"


def appends(kept: Iterable[tuple[SourceRow, Item]]) -> Iterator[list[tuple[SourceRow, Item]]]:
    """Cut what was written at one moment where the Runner begins another append.

    It appends the input by itself, then what a model said with the outputs of its calls. SQLite's moments are seconds.
    """
    part: list[tuple[SourceRow, Item]] = []
    before = ""
    for row, item in kept:
        kind = _kind(item)
        if part and kind != before and ("input" in (kind, before) or before == "output"):
            yield part
            part = []
        part.append((row, item))
        before = kind
    if part:
        yield part


def _kind(item: Mapping[str, Any]) -> str:
    if item.get("role") in INPUT_ROLES:
        return "input"
    return "output" if str(item.get("type")).endswith("_output") else "said"
