"""Cursors: where a page ended, as text that says nothing to the caller.

A cursor holds only the sort key of the last record. It is no permission: the list it is passed to names its tenant and
session itself, so a forged cursor gives an error or some other place in the same list.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

from agents_pg_session.records import Page
from agents_pg_session.texts import shown

__all__ = ["MAX_PAGE", "checked_limit", "page", "read_cursor"]

#: Records one page may have.
MAX_PAGE = 1000

_T = TypeVar("_T")
Key = Sequence[object]


def checked_limit(limit: int) -> int:
    """Return *limit* if a page may have so many records, else raise `ValueError`."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= MAX_PAGE:
        raise ValueError(f"limit must be a whole number from 1 to {MAX_PAGE}, not {shown(limit)}")
    return limit


def page(of: str, records: Sequence[_T], limit: int, key: Callable[[_T], Key], after: str | None) -> Page[_T]:
    """Make a page of the list *of* something, at most *limit* records; one more than that was asked for."""
    shown = tuple(records[:limit])
    return Page(shown, _cursor([of, *key(shown[-1])]) if shown else after, more=len(records) > limit)


def read_cursor(of: str, cursor: str | None, *kinds: type) -> list[object] | None:
    """Return the sort key in a cursor, one value per kind; raise `ValueError` if this list never made it."""
    if cursor is None:
        return None
    try:
        values = json.loads(urlsafe_b64decode(cursor.encode("ascii")))
        if not isinstance(values, list) or len(values) != len(kinds) + 1 or values[0] != of:
            raise ValueError
        return [_value(value, kind) for value, kind in zip(values[1:], kinds, strict=True)]
    except (ValueError, AttributeError, RecursionError):
        raise ValueError(f"after must be the cursor of a page of this same list, not {shown(cursor)}") from None


def _cursor(key: Key) -> str:
    values = [value.isoformat() if isinstance(value, datetime) else value for value in key]
    return urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode()


def _value(value: object, kind: type) -> object:
    if kind is datetime and isinstance(value, str):
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is not None and 1 < moment.year < 9999:
            return moment
    elif kind is int and type(value) is int and 0 <= value < 2**63:
        return value
    elif kind is str and isinstance(value, str) and "\0" not in value:
        value.encode()
        return value
    raise ValueError
