"""Row ⇄ line: one row of a table as one line of JSON, and back. Pure.

What is stored as JSON is spliced into its line unparsed, so it comes out byte for byte: 1e2, -0.0, keys that come
twice, integers of any length. Where that would not make one line of JSON (a row that was edited by hand), the text
itself is told as a string, under the column's name with `_text` behind it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from json.encoder import encode_basestring
from typing import Any, NoReturn
from uuid import UUID

from pydantic_core import from_json

from agents_pg_session.operations.shapes import Field, Kind, Shape, Values, told_time
from agents_pg_session.statements import Key
from agents_pg_session.texts import shown

__all__ = ["LineReader", "LineWriter", "Unfit", "is_json", "named", "prefix_of", "table_of"]

_LENGTH_OF_TIME = len("2026-01-01T00:00:00.000000Z")


class Unfit(ValueError):
    """A value that cannot be there; the message says which and why."""


def prefix_of(table: str, key: Key) -> str:
    """Return how each line of a session's rows in *table* begins."""
    tenant, session = encode_basestring(key.tenant_id), encode_basestring(key.session_id)
    return f'{{"table":"{table}","tenant_id":{tenant},"session_id":{session}'


def named(key: Key) -> str:
    """Return how errors name a session."""
    return f"session {key.session_id!r}{f' of tenant {key.tenant_id!r}' if key.tenant_id else ''}"


def table_of(line: str) -> str | None:
    """Return the table a line is of; None for a line that tells no row."""
    start = '{"table":"'
    return line[len(start) : line.find('"', len(start))] if line.startswith(start) else None


class LineWriter:
    """Writes rows of one table, whose columns come in the order of the shape's fields."""

    def __init__(self, shape: Shape) -> None:
        self._fields = [(f',"{each.name}":', _WRITTEN[each.kind], each) for each in shape.fields]

    def __call__(self, prefix: str, row: Sequence[Any]) -> str:
        """Return the line, without its end. Raises `Unfit` naming the column for what nothing of ours wrote there."""
        parts = [prefix]
        verbatim: list[str] = []
        for (mark, written, field), value in zip(self._fields, row, strict=False):
            if value is None:
                continue
            if field.is_json:
                text = _as_json(field, value)
                if text is None:
                    parts += (f',"{field.name}_text":', encode_basestring(str(value)))
                else:
                    verbatim += (mark, text)
                continue
            try:
                parts += (mark, written(value))
            except (ValueError, TypeError, OverflowError):
                raise Unfit(field.name) from None
        return "".join((*parts, *verbatim, "}"))


class LineReader:
    """Reads lines of one table; their columns are those of the shape."""

    def __init__(self, shape: Shape) -> None:
        self._fields = shape.fields
        self._json = [(each.name, f',"{each.name}":') for each in shape.fields if each.is_json]
        self._known = shape.names | {f"{name}_text" for name, _ in self._json} | {"table", *Key._fields}
        self._table = shape.table

    def __call__(self, line: str, key: Key) -> Values:
        """Return the row's values. Raises `Unfit` for a line that is not one of session *key* in this table."""
        head, found = self._taken_apart(line)
        if not isinstance(head, dict):
            raise Unfit("it is no JSON object")
        if (head.get("tenant_id"), head.get("session_id")) != key:
            raise Unfit("it is a line of another session")
        if not self._known.issuperset(head):
            strange = min(set(head) - self._known)
            raise Unfit(f"{self._table} has no column {shown(strange)} in this archive")
        return [self._value(field, head, found) for field in self._fields]

    def _taken_apart(self, line: str) -> tuple[Any, dict[str, str]]:
        """Return what comes before the JSON, which is parsed, and the JSON, which is not.

        A quote inside a string has a backslash before it, so the first mark of a column is where its JSON begins.
        """
        found: dict[str, str] = {}
        places = [place for _, mark in self._json if (place := line.find(mark)) >= 0]
        end = min(places, default=len(line) - 1)
        head = _parsed(line[:end] + "}")
        while end < len(line) - 1:
            name, mark = next((each for each in self._json if line.startswith(each[1], end)), ("", ""))
            if not name or name in found:
                raise Unfit("it is no JSON")
            start = end + len(mark)
            end = len(line) - 1 if name == self._json[-1][0] else _end_of_value(line, start)
            found[name] = line[start:end]
            if not is_json(found[name]):
                raise Unfit("it is no JSON")
        if not line.endswith("}"):
            raise Unfit("it is no JSON")
        return head, found

    def _value(self, field: Field, head: Mapping[str, Any], found: Mapping[str, str]) -> Any:
        if field.is_json:
            value = found.get(field.name)
            if value is None:
                value = head.get(f"{field.name}_text")
                if value is not None and not isinstance(value, str):
                    raise Unfit(f"its {field.name}_text is no string")
        else:
            value = head.get(field.name)
            if value is not None and not _READ[field.kind](value):
                raise Unfit(f"its {field.name} cannot be {shown(value)}")
        if value is None and field.required:
            raise Unfit(f"it has no {field.name}")
        return value


def is_json(text: str) -> bool:
    """Say whether *text* is one JSON value that Python's decoder reads."""
    try:
        from_json(text, allow_inf_nan=False, cache_strings="none")
    except ValueError:  # it knows no lone surrogates, and not as many levels
        try:
            json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return False
    return True


def _as_json(field: Field, value: object) -> str | None:
    """Return what can be spliced into a line as it is; None where that would not make one line of JSON."""
    text = str(value)
    if field.kind is Kind.SORTED_JSON:
        text = _sorted(text)
    if text[:1].strip() and text[-1].strip() and "\n" not in text and "\r" not in text and is_json(text):
        return text
    return None


def _sorted(text: str) -> str:
    """Write JSON so that what jsonb made of it, and what it was before, are the same; what is no JSON stays."""
    try:
        value = json.loads(text, parse_float=Decimal, parse_int=Decimal, parse_constant=_no_constant)
        return _canonical(value)
    except (ValueError, RecursionError):
        return text


def _canonical(value: object) -> str:
    match value:
        case dict():
            return f"{{{','.join(f'{encode_basestring(name)}:{_canonical(value[name])}' for name in sorted(value))}}}"
        case list():
            return f"[{','.join(map(_canonical, value))}]"
        case Decimal():
            return format(value if value else abs(value), "f")
        case _:
            return json.dumps(value, ensure_ascii=False)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Unfit("it is no JSON") from None


def _end_of_value(line: str, start: int) -> int:
    try:
        return json.JSONDecoder(parse_constant=_no_constant).raw_decode(line, start)[1]
    except (ValueError, RecursionError):
        raise Unfit("it is no JSON") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _whole(value: object) -> str:
    if type(value) is not int:
        raise TypeError
    return str(value)


def _real(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError
    return repr(float(value))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return encode_basestring(value)


def _uuid(value: object) -> str:
    return f'"{value if isinstance(value, UUID) else UUID(str(value))}"'


def _truth(value: object) -> str:
    if value not in (True, False):
        raise TypeError
    return "true" if value else "false"


def _time(value: object) -> str:
    """A time of a driver, or SQLite's text of one, in UTC."""
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(moment, datetime):
        raise TypeError
    return f'"{told_time(moment)}"'


_WRITTEN: Mapping[Kind, Callable[[Any], str]] = {
    Kind.WHOLE: _whole,
    Kind.REAL: _real,
    Kind.TEXT: _text,
    Kind.UUID: _uuid,
    Kind.TRUTH: _truth,
    Kind.TIME: _time,
    Kind.JSON: str,
    Kind.SORTED_JSON: str,
}


def _is_time(value: object) -> bool:
    try:
        return (
            isinstance(value, str)
            and len(value) == _LENGTH_OF_TIME
            and value[10] == "T"
            and datetime.fromisoformat(value).tzinfo is UTC
        )
    except ValueError:
        return False


def _is_uuid(value: object) -> bool:
    try:
        return isinstance(value, str) and str(UUID(value)) == value
    except ValueError:
        return False


_READ: Mapping[Kind, Callable[[Any], bool]] = {
    Kind.WHOLE: lambda value: type(value) is int and -(2**63) <= value < 2**63,
    Kind.REAL: lambda value: type(value) in (int, float) and math.isfinite(value),
    Kind.TEXT: lambda value: isinstance(value, str),
    Kind.UUID: _is_uuid,
    Kind.TRUTH: lambda value: isinstance(value, bool),
    Kind.TIME: _is_time,
}
