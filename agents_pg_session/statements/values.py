"""Values as the statements of both dialects bind them."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

from agents_pg_session.entries import Entry, Labels
from agents_pg_session.projection import Batch
from agents_pg_session.reports import Note, RunReport
from agents_pg_session.statements import Snapshotted

__all__ = [
    "ago",
    "append_values",
    "batch_values",
    "label_values",
    "note_values",
    "record_values",
    "run_values",
    "session_values",
    "snapshot_values",
]


def ago(moment: float | None, now: float) -> float | None:
    """Return how many seconds before *now* a moment was; both are readings of `time.monotonic()`."""
    return None if moment is None else max(0.0, now - moment)


def label_values(labels: Labels) -> dict[str, Any]:
    return {
        "agent": labels.agent,
        "user_id": labels.user_id,
        "metadata": labels.metadata,
        "expires_after": labels.expires_after,
    }


def append_values(entry: Entry) -> dict[str, Any]:
    """Return the values of the statement, but for the key and the operation's id; ages are taken now."""
    now = monotonic()
    values = session_values(entry)
    if entry.batch.rows:
        values |= batch_values(entry.batch)
    if entry.notes:
        values |= note_values(entry.notes)
    if entry.tool_runs:
        values |= _tool_run_values(entry, now)
    if entry.answers:
        values |= _answer_values(entry, now)
    if entry.report is not None:
        values |= run_values(entry.report, now)
    return values


def session_values(entry: Entry) -> dict[str, Any]:
    batch, labels, guard, report = entry.batch, entry.labels, entry.guard, entry.report
    values: dict[str, Any] = {
        **label_values(labels),
        "run_agent": report.agent if report else None,
        "status": entry.status,
        "status_at": entry.status_at,
        "count": len(batch.rows),
        "events": len(entry.notes),
        "messages": batch.messages,
        "turns": batch.turns,
        "tool_runs": len(entry.tool_runs),
        "tool_errors_count": entry.tool_errors,
        "input_tokens": report.usage.input_tokens if report else 0,
        "output_tokens": report.usage.output_tokens if report else 0,
        "run_id": report.run_id if report else None,
    }
    if entry.conditional:
        values |= {
            "guard_position": guard.last_position,
            "guard_count": guard.item_count,
            "guard_lease": guard.lease_id,
        }
    return values


def batch_values(batch: Batch) -> dict[str, Any]:
    rows = batch.rows
    return {
        "count": len(rows),
        "messages": batch.messages,
        "turns": batch.turns,
        "items": f"[{','.join(row.item for row in rows)}]",
        "types": [row.type for row in rows],
        "roles": [row.role for row in rows],
        "call_ids": [row.call_id for row in rows],
        "turn_offsets": [row.turn for row in rows],
    }


def _tool_run_values(entry: Entry, now: float) -> dict[str, Any]:
    rows = entry.tool_runs
    return {
        "tool_arguments": f"[{','.join(row.arguments or 'null' for row in rows)}]",
        "tool_places": [row.place for row in rows],
        "tool_output_places": [row.output_place for row in rows],
        "tool_call_ids": [row.call_id for row in rows],
        "tool_names": [row.tool_name for row in rows],
        "tool_types": [row.tool_type for row in rows],
        "tool_agents": [row.agent for row in rows],
        "tool_statuses": [row.status for row in rows],
        "tool_errors": [row.error for row in rows],
        "tool_started": [ago(row.started, now) for row in rows],
        "tool_finished": [ago(row.finished, now) for row in rows],
    }


def _answer_values(entry: Entry, now: float) -> dict[str, Any]:
    rows = entry.answers
    return {
        "answer_places": [row.place for row in rows],
        "answer_call_ids": [row.call_id for row in rows],
        "answer_nths": [row.nth for row in rows],
        "answer_statuses": [row.status for row in rows],
        "answer_errors": [row.error for row in rows],
        "answer_started": [ago(row.started, now) for row in rows],
        "answer_finished": [ago(row.finished, now) for row in rows],
    }


def run_values(report: RunReport, now: float) -> dict[str, Any]:
    usage = report.usage
    return {
        "run_status": report.status,
        "trace_id": report.trace_id,
        "requests": usage.requests,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "total_tokens": usage.total_tokens,
        "run_started": ago(report.started, now),
        "run_finished": None if report.status == "running" else ago(report.finished, now) or 0.0,
        "run_error": report.error,
        "usage_details": report.usage_details,
        "model_seconds": report.model_seconds,
    }


def note_values(notes: Sequence[Note]) -> dict[str, Any]:
    return {
        "payloads": f"[{','.join(note.payload or 'null' for note in notes)}]",
        "kinds": [note.kind for note in notes],
        "event_run_ids": [note.run_id for note in notes],
        "event_agents": [note.agent for note in notes],
    }


def snapshot_values(snapshot: Snapshotted, labels: Labels) -> dict[str, Any]:
    expected_position, expected_count = snapshot.expected or (None, None)
    return {
        **label_values(labels),
        "events": len(snapshot.notes) + 1,
        "status": snapshot.status,
        "expected_position": expected_position,
        "expected_count": expected_count,
        "kind": snapshot.kind,
        "content": snapshot.content,
        "through": snapshot.through,
        "label": snapshot.label,
        "snapshot_metadata": snapshot.metadata,
        "run_id": snapshot.run_id,
    }


def record_values(note: Note, labels: Labels) -> dict[str, Any]:
    return {
        **label_values(labels),
        "events": 1,
        "status": None,
        "expected_position": None,
        "expected_count": None,
        "kind": note.kind,
        "run_id": note.run_id,
        "event_agent": note.agent,
        "payload": note.payload,
    }
