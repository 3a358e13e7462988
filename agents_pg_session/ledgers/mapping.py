"""Rows into records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

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

__all__ = ["event", "moment", "optional_moment", "run", "session_info", "snapshot", "sums", "tool_run", "waiting_run"]


def moment(value: datetime | str) -> datetime:
    """Return a time as an aware datetime in UTC: the drivers have their own zones, SQLite has text."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def optional_moment(value: datetime | str | None) -> datetime | None:
    return None if value is None else moment(value)


def value_of(text: str | None) -> JSON:
    return None if text is None else json.loads(text)


def session_info(row: Row[Any]) -> SessionInfo:
    return SessionInfo(
        **_with(
            row,
            {"tenant_id": "tenant", "last_event_id": "event_count"},
            times=("created_at", "updated_at", "active_at", "ended_at", "expires_at"),
            values=("metadata",),
        )
    )


def run(row: Row[Any]) -> Run:
    return Run(**_with(row, {}, times=("started_at", "last_seen_at", "finished_at"), values=("details",)))


def tool_run(row: Row[Any]) -> ToolRun:
    names = {"tenant_id": "tenant", "call_position": "position"}
    return ToolRun(**_with(row, names, times=("created_at", "started_at", "finished_at"), values=("arguments",)))


def event(row: Row[Any]) -> Event:
    return Event(**_with(row, {}, times=("created_at",), values=("payload",)))


def snapshot(row: Row[Any]) -> Snapshot:
    names = {"through_position": "through"}
    return Snapshot(**_with(row, names, times=("created_at", "claimed_until"), values=("content", "metadata")))


def waiting_run(row: Row[Any]) -> WaitingRun:
    """What a paused run asked for is in its snapshot; where nobody saved one, the calls without output tell."""
    asked = (value_of(row.asked) or {}).get("approvals") if row.version is not None else value_of(row.running)
    return WaitingRun(
        tenant=row.tenant_id,
        session_id=row.session_id,
        agent=row.agent,
        user_id=row.user_id,
        metadata=json.loads(row.metadata),
        active_at=moment(row.active_at),
        approvals=tuple(Approval(**each) for each in asked or ()),
        version=row.version,
        paused_at=optional_moment(row.paused_at),
        claimed_until=optional_moment(row.claimed_until),
    )


def sums(row: Row[Any]) -> TokenUsage:
    return TokenUsage(
        runs=row.runs,
        requests=int(row.requests),
        input_tokens=int(row.input_tokens),
        cached_tokens=int(row.cached_tokens),
        output_tokens=int(row.output_tokens),
        reasoning_tokens=int(row.reasoning_tokens),
        total_tokens=int(row.total_tokens),
    )


def _with(
    row: Row[Any], names: Mapping[str, str], *, times: Sequence[str] = (), values: Sequence[str] = ()
) -> dict[str, Any]:
    """Return a row's columns as a record's fields: some under another name, times in UTC, JSON text as values."""
    fields = {names.get(column, column): value for column, value in row._mapping.items()}
    fields |= {name: optional_moment(fields[name]) for name in times}
    return fields | {name: value_of(fields[name]) for name in values}
