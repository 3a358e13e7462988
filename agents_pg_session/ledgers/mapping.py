"""Rows into records.

What this package writes always fits. A row that was edited by hand may hold anything (SQLite takes text for a number):
then the error names the row, for a record that is wrong would be worse, and so would somebody else's exception.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar

from agents_pg_session.drivers import Row
from agents_pg_session.errors import SessionError
from agents_pg_session.records import (
    JSON,
    Approval,
    Event,
    Run,
    SessionInfo,
    Snapshot,
    TokenUsage,
    ToolRun,
    WaitingRun,
)
from agents_pg_session.texts import shown

__all__ = [
    "event",
    "moment",
    "readable",
    "run",
    "session_info",
    "snapshot",
    "sums",
    "tool_run",
    "unreadable",
    "waiting_run",
]

_T = TypeVar("_T")

#: What a value has to be, by how its field in a record is annotated; other fields are converted.
_TYPES: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, type(None)),
    "float": (float, int),
    "str": (str,),
    "str | None": (str, type(None)),
}
_UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)


def readable(place: str, column: str, read: Callable[[Any], _T], value: object) -> _T:
    """Return what *read* makes of a column; raise `SessionError` naming *place* where it cannot be read."""
    try:
        return read(value)
    except _UNREADABLE:
        raise unreadable(place, column) from None


def unreadable(place: str, column: str) -> SessionError:
    """Return the error that says where a row was edited by hand, and what to do."""
    return SessionError(
        f"{place}: its column {column} holds what this package never writes there, so somebody edited it by hand; "
        "mend that row with SQL, or delete the session"
    )


def moment(value: datetime | str) -> datetime:
    """Return a time as an aware datetime in UTC: the drivers have their own zones, SQLite has text."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _optional_moment(value: datetime | str | None) -> datetime | None:
    return None if value is None else moment(value)


def _value_of(text: str | None) -> JSON:
    return None if text is None else json.loads(text)


def _object(text: str) -> dict[str, JSON]:
    if not isinstance(value := json.loads(text), dict):
        raise ValueError("no JSON object")
    return value


def session_info(row: Row) -> SessionInfo:
    names = {"tenant_id": "tenant", "last_event_id": "event_count"}
    times = ("created_at", "updated_at", "active_at", "ended_at", "expires_at")
    return SessionInfo(**_fields(SessionInfo, row, _session(row), names, times=times, objects=("metadata",)))


def run(row: Row) -> Run:
    place = f"{_session(row)}, run {shown(row.run_id)}"
    return Run(**_fields(Run, row, place, times=("started_at", "last_seen_at", "finished_at"), values=("details",)))


def tool_run(row: Row) -> ToolRun:
    place = f"{_session(row)}, tool run of the call at position {shown(row.call_position)}"
    names = {"tenant_id": "tenant", "call_position": "position"}
    times = ("created_at", "started_at", "finished_at")
    return ToolRun(**_fields(ToolRun, row, place, names, times=times, values=("arguments",)))


def event(row: Row) -> Event:
    place = f"{_session(row)}, event {shown(row.event_id)}"
    return Event(**_fields(Event, row, place, times=("created_at",), values=("payload",)))


def snapshot(row: Row) -> Snapshot:
    place = f"{_session(row)}, snapshot {shown(row.kind)} version {shown(row.version)}"
    names, times = {"through_position": "through"}, ("created_at", "claimed_until")
    return Snapshot(**_fields(Snapshot, row, place, names, times=times, values=("content", "metadata")))


def waiting_run(row: Row) -> WaitingRun:
    """What a paused run asked for is in its snapshot; where nobody saved one, the calls without output tell."""

    def asked(told: str | None) -> tuple[Approval, ...]:
        said = _value_of(told) or ()
        each = said if row.version is None else dict(said).get("approvals") or ()
        return tuple(Approval(**one) for one in each)

    names = {"tenant_id": "tenant"}
    times = ("active_at", "paused_at", "claimed_until")
    place, told = _session(row), (row.running if row.version is None else row.asked)
    fields = _fields(WaitingRun, row, place, names, times=times, objects=("metadata",))
    approvals = readable(f"{place}, the newest paused run", "metadata", asked, told)
    return WaitingRun(
        **{name: fields[name] for name in fields if name not in ("asked", "running")}, approvals=approvals
    )


def sums(row: Row) -> TokenUsage:
    return TokenUsage(
        runs=row.runs,
        requests=int(row.requests),
        input_tokens=int(row.input_tokens),
        cached_tokens=int(row.cached_tokens),
        output_tokens=int(row.output_tokens),
        reasoning_tokens=int(row.reasoning_tokens),
        total_tokens=int(row.total_tokens),
    )


def _fields(
    record: type,
    row: Row,
    place: str,
    names: Mapping[str, str] = {},
    *,
    times: Sequence[str] = (),
    values: Sequence[str] = (),
    objects: Sequence[str] = (),
) -> dict[str, Any]:
    """Return a row's columns as a record's fields: some under another name, times in UTC, JSON text as values."""
    fields = {names.get(column, column): value for column, value in row._asdict().items()}
    for each, read in ((times, _optional_moment), (values, _value_of), (objects, _object)):
        for name in each:
            fields[name] = readable(place, name, read, fields[name])
    for name, types in _types_of(record):
        if not isinstance(fields[name], types):
            raise unreadable(place, name)
    return fields


@cache
def _types_of(record: type) -> tuple[tuple[str, tuple[type, ...]], ...]:
    return tuple((name, _TYPES[kind]) for name, kind in record.__annotations__.items() if kind in _TYPES)


def _session(row: Row) -> str:
    """Which session a row is of, as errors name it."""
    tenant = row._asdict().get("tenant_id")
    return f"session {row.session_id!r}{f' of tenant {tenant!r}' if tenant else ''}"
