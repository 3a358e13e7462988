"""Rows into records."""

from __future__ import annotations

import json
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
        tenant=row.tenant_id,
        session_id=row.session_id,
        status=row.status,
        agent=row.agent,
        user_id=row.user_id,
        metadata=json.loads(row.metadata),
        item_count=row.item_count,
        message_count=row.message_count,
        turn_count=row.turn_count,
        tool_run_count=row.tool_run_count,
        tool_error_count=row.tool_error_count,
        event_count=row.last_event_id,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        last_position=row.last_position,
        created_at=moment(row.created_at),
        updated_at=moment(row.updated_at),
        active_at=moment(row.active_at),
        ended_at=optional_moment(row.ended_at),
        expires_at=optional_moment(row.expires_at),
        forked_from=row.forked_from,
        forked_through=row.forked_through,
    )


def run(row: Row[Any]) -> Run:
    return Run(
        session_id=row.session_id,
        run_id=row.run_id,
        status=row.status,
        agent=row.agent,
        trace_id=row.trace_id,
        turn=row.turn,
        requests=row.requests,
        input_tokens=row.input_tokens,
        cached_tokens=row.cached_tokens,
        output_tokens=row.output_tokens,
        reasoning_tokens=row.reasoning_tokens,
        total_tokens=row.total_tokens,
        model_seconds=row.model_seconds,
        started_at=moment(row.started_at),
        last_seen_at=moment(row.last_seen_at),
        finished_at=optional_moment(row.finished_at),
        error=row.error,
        details=value_of(row.details),
    )


def tool_run(row: Row[Any]) -> ToolRun:
    return ToolRun(
        tenant=row.tenant_id,
        session_id=row.session_id,
        position=row.call_position,
        output_position=row.output_position,
        call_id=row.call_id,
        tool_name=row.tool_name,
        tool_type=row.tool_type,
        status=row.status,
        agent=row.agent,
        run_id=row.run_id,
        arguments=value_of(row.arguments),
        error=row.error,
        created_at=moment(row.created_at),
        started_at=optional_moment(row.started_at),
        finished_at=optional_moment(row.finished_at),
    )


def event(row: Row[Any]) -> Event:
    return Event(
        session_id=row.session_id,
        event_id=row.event_id,
        kind=row.kind,
        run_id=row.run_id,
        agent=row.agent,
        payload=value_of(row.payload),
        created_at=moment(row.created_at),
    )


def snapshot(row: Row[Any]) -> Snapshot:
    return Snapshot(
        session_id=row.session_id,
        kind=row.kind,
        version=row.version,
        through=row.through_position,
        content=json.loads(row.content),
        label=row.label,
        metadata=value_of(row.metadata),
        created_at=moment(row.created_at),
        claimed_by=row.claimed_by,
        claimed_until=optional_moment(row.claimed_until),
    )


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
