"""One append on SQLite: the session's row first, then items and record at what it handed out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from time import monotonic
from typing import Any

from agents_pg_session.entries import Answer, Entry, ToolRunRow
from agents_pg_session.projection import Batch
from agents_pg_session.reports import Note, RunReport
from agents_pg_session.statements import Step, clause
from agents_pg_session.statements.sqlite.words import ALIVE, ERASE, NOW, after, before, shifted
from agents_pg_session.statements.values import ago, run_values, session_values

__all__ = ["APPEND_ITEM", "append_steps", "item_values", "note_steps"]

Values = Mapping[str, Any]

# The call each output answers: the newest that still runs under its call id, the next one for the next output.
_ANSWERED = """
WITH said AS MATERIALIZED (
    SELECT json_extract(value, '$.call_id') AS call_id, json_extract(value, '$.nth') AS nth,
           json_extract(value, '$.place') AS place, json_extract(value, '$.status') AS status,
           json_extract(value, '$.error') AS error, json_extract(value, '$.started') AS started,
           json_extract(value, '$.finished') AS finished
      FROM json_each(:answers)
), waiting AS MATERIALIZED (
    SELECT call_position, call_id, row_number() OVER (PARTITION BY call_id ORDER BY call_position DESC) - 1 AS nth
      FROM tool_runs
     WHERE tenant_id = :tenant_id AND session_id = :session_id AND status = 'running'
       AND call_id IN (SELECT call_id FROM said)
), answered AS (
    SELECT said.place, said.status, said.error, said.started, said.finished, waiting.call_position
      FROM said JOIN waiting ON waiting.call_id = said.call_id AND waiting.nth = said.nth
)"""

# Create or advance the session's row; no row answers where a condition does not hold.
_SESSION = f"""
INSERT INTO sessions AS s (
    tenant_id, session_id, agent, user_id, metadata, status, last_position, last_event_id,
    item_count, message_count, turn_count, tool_run_count, tool_error_count, input_tokens, output_tokens,
    created_at, updated_at, active_at, expires_at)
SELECT :tenant_id, :session_id, coalesce(:agent, :run_agent), :user_id, coalesce(:metadata, '{{}}'),
       coalesce(:status, 'active'), :count, :events,
       :count, :messages, :turns, :tool_runs, {{tool_errors}}, :input_tokens, :output_tokens,
       {NOW}, {NOW}, {NOW}, {shifted(":expires_in")}
 WHERE {{condition_where_absent}}
ON CONFLICT (tenant_id, session_id) DO UPDATE SET
    agent = coalesce(excluded.agent, s.agent),
    user_id = coalesce(excluded.user_id, s.user_id),
    metadata = coalesce(:metadata, s.metadata),
    status = CASE WHEN :status_at IS NULL OR s.last_position = :status_at
                  THEN coalesce(:status, s.status) ELSE s.status END,
    ended_at = CASE WHEN coalesce(:status, '') <> 'active' THEN s.ended_at END,
    last_position = s.last_position + excluded.last_position,
    last_event_id = s.last_event_id + excluded.last_event_id,
    item_count = s.item_count + excluded.item_count,
    message_count = s.message_count + excluded.message_count,
    turn_count = s.turn_count + excluded.turn_count,
    tool_run_count = s.tool_run_count + excluded.tool_run_count,
    tool_error_count = s.tool_error_count + excluded.tool_error_count,
    input_tokens = s.input_tokens + excluded.input_tokens,
    output_tokens = s.output_tokens + excluded.output_tokens,
    updated_at = excluded.updated_at,
    active_at = CASE WHEN excluded.turn_count > 0 THEN excluded.active_at ELSE s.active_at END,
    expires_at = coalesce(excluded.expires_at, s.expires_at)
WHERE {ALIVE.replace("expires_at", "s.expires_at")} AND {{conditions}}
RETURNING last_position
"""

# What the guard asks of the row.
_GUARDED = """
      (:guard_position IS NULL OR (s.last_position, s.item_count) = (:guard_position, :guard_count))
  AND (:guard_lease IS NULL OR s.lease_id = :guard_lease)"""
# Without a row, only a guard that expects nothing holds; and a run that only says its last words makes none.
_ABSENT = """
       (:count > 0 AND coalesce(:guard_position, 0) = 0 AND :guard_lease IS NULL)
    OR EXISTS (SELECT 1 FROM sessions WHERE tenant_id = :tenant_id AND session_id = :session_id)"""

# Insert one item of the batch at its place behind the items before the batch.
APPEND_ITEM = f"""
INSERT INTO items (tenant_id, session_id, position, turn, run_id, append_id, type, role, call_id, created_at, item)
SELECT s.tenant_id, s.session_id, s.last_position - :count + :place, s.turn_count - :turns + :turn,
       :run_id, :operation_id, :type, :role, :call_id, {NOW}, :item
  FROM sessions s
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
"""

# Write the outputs of calls that earlier appends brought. An end that nobody measured is the time it was stored.
_FINISH = (
    _ANSWERED
    + f"""
UPDATE tool_runs AS t
   SET output_position = s.last_position - :count + answered.place, status = answered.status, error = answered.error,
       started_at = coalesce({shifted("answered.started")}, t.started_at), finished_at = {shifted("answered.finished")}
  FROM sessions s, answered
 WHERE t.tenant_id = :tenant_id AND t.session_id = :session_id AND t.call_position = answered.call_position
   AND s.tenant_id = :tenant_id AND s.session_id = :session_id
"""
)

# Insert one call, with its output where the same append brings it.
_TOOL_RUN = f"""
INSERT INTO tool_runs (
    tenant_id, session_id, call_position, output_position, call_id, tool_name, tool_type, agent, status, run_id,
    started_at, finished_at, error, arguments, created_at)
SELECT s.tenant_id, s.session_id, s.last_position - :count + :place, s.last_position - :count + :output_place,
       :call_id, :tool_name, :tool_type, :agent, :status, :run_id,
       {shifted(":started")}, {shifted(":finished")}, :error, :arguments, {NOW}
  FROM sessions s
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
"""

# The run: begun by its first append, then what it used since.
_RUN = f"""
INSERT INTO runs AS r (
    tenant_id, session_id, run_id, status, agent, trace_id, requests, input_tokens, cached_tokens, output_tokens,
    reasoning_tokens, total_tokens, started_at, last_seen_at, finished_at, error, usage_details, turn, model_seconds)
SELECT s.tenant_id, s.session_id, :run_id, :run_status, :run_agent, :trace_id, :requests, :input_tokens,
       :cached_tokens, :output_tokens, :reasoning_tokens, :total_tokens,
       {shifted(":run_started")}, {NOW}, {shifted(":run_finished")}, :run_error, :usage_details, s.turn_count,
       :model_seconds
  FROM sessions s
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
ON CONFLICT (tenant_id, session_id, run_id) DO UPDATE SET
    status = excluded.status, agent = coalesce(excluded.agent, r.agent),
    trace_id = coalesce(excluded.trace_id, r.trace_id),
    requests = r.requests + excluded.requests, input_tokens = r.input_tokens + excluded.input_tokens,
    cached_tokens = r.cached_tokens + excluded.cached_tokens,
    output_tokens = r.output_tokens + excluded.output_tokens,
    reasoning_tokens = r.reasoning_tokens + excluded.reasoning_tokens,
    total_tokens = r.total_tokens + excluded.total_tokens,
    last_seen_at = excluded.last_seen_at, finished_at = excluded.finished_at, error = excluded.error,
    usage_details = coalesce(excluded.usage_details, r.usage_details),
    model_seconds = r.model_seconds + excluded.model_seconds
"""

# Write one event among those the session's row has made room for.
_NOTE = f"""
INSERT INTO events (tenant_id, session_id, event_id, kind, run_id, agent, operation_id, created_at, payload)
SELECT s.tenant_id, s.session_id, s.last_event_id - :events + :place, :kind, :run_id, :agent, :operation_id, {NOW},
       :payload
  FROM sessions s
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
"""

# The answer: the position before the batch, and how far the session has come with it.
_ANSWER = """
SELECT last_position - :count AS position, last_position, item_count FROM sessions
 WHERE tenant_id = :tenant_id AND session_id = :session_id
"""


def append_steps(bound: Values, entry: Entry, *, erase: bool) -> Iterator[Step]:
    """Yield the steps for an entry: the session's, and one for each kind of row it brings; ages are taken now.

    *bound* is the key and the operation's id. Outputs find their calls before this append brings any. Told to *erase*
    what has expired, it does so first; it answers no row where it was not told and should have been.
    """
    now = monotonic()
    values = {**session_values(entry), **bound, "expires_in": after(entry.labels.expires_after)}
    if erase:
        yield from (Step(clause(sql), values) for sql in ERASE)
    if entry.answers:
        values["answers"] = _answers(entry.answers, now)
    yield Step(clause(_session_sql(entry.conditional, bool(entry.answers))), values, decisive=True)
    if entry.batch.rows:
        yield Step(clause(APPEND_ITEM), item_values({**bound, "run_id": values["run_id"]}, entry.batch))
    if entry.answers:
        yield Step(clause(_FINISH), values)
    if entry.tool_runs:
        common = {**bound, "count": values["count"], "run_id": values["run_id"]}
        yield Step(clause(_TOOL_RUN), [{**common, **_tool_run(row, now)} for row in entry.tool_runs])
    if entry.report is not None:
        yield Step(clause(_RUN), {**values, **_run(entry.report, now)})
    yield from note_steps({**bound, "events": values["events"]}, entry.notes)
    yield Step(clause(_ANSWER), values)


def item_values(common: Values, batch: Batch) -> list[Values]:
    """Return the values of `APPEND_ITEM` for each item."""
    counts = {**common, "count": len(batch.rows), "turns": batch.turns}
    return [
        {
            **counts,
            "place": place,
            "item": row.item,
            "type": row.type,
            "role": row.role,
            "call_id": row.call_id,
            "turn": row.turn,
        }
        for place, row in enumerate(batch.rows, start=1)
    ]


def note_steps(common: Values, notes: Sequence[Note]) -> Iterator[Step]:
    """Yield the step that writes events, if there are any; they are the first of the `events` made room for."""
    rows: list[Values] = [
        {
            **common,
            "place": place,
            "kind": note.kind,
            "run_id": note.run_id,
            "agent": note.agent,
            "payload": _not_null(note.payload),
        }
        for place, note in enumerate(notes, start=1)
    ]
    if rows:
        yield Step(clause(_NOTE), rows)


@lru_cache(maxsize=4)
def _session_sql(guarded: bool, answers: bool) -> str:
    errors = ":tool_errors_count"
    if answers:
        errors += " + (SELECT count(*) FROM answered WHERE status = 'failed')"
    return (_ANSWERED if answers else "") + (
        _SESSION.replace("{tool_errors}", errors)
        .replace("{condition_where_absent}", _ABSENT if guarded else "true")
        .replace("{conditions}", _GUARDED if guarded else "true")
    )


def _tool_run(row: ToolRunRow, now: float) -> Values:
    return {
        "place": row.place,
        "output_place": row.output_place,
        "call_id": row.call_id,
        "tool_name": row.tool_name,
        "tool_type": row.tool_type,
        "agent": row.agent,
        "status": row.status,
        "error": row.error,
        "arguments": _not_null(row.arguments),
        "started": before(ago(row.started, now)),
        "finished": None if row.status == "running" else before(ago(row.finished, now) or 0.0),
    }


def _answers(rows: Sequence[Answer], now: float) -> str:
    """Return the answers as one JSON array, for a list cannot be bound."""
    return json.dumps(
        [
            {
                "place": row.place,
                "call_id": row.call_id,
                "nth": row.nth,
                "status": row.status,
                "error": row.error,
                "started": before(ago(row.started, now)),
                "finished": before(ago(row.finished, now) or 0.0),
            }
            for row in rows
        ],
        ensure_ascii=False,
    )


def _run(report: RunReport, now: float) -> Values:
    values = run_values(report, now)
    return {
        **values,
        "run_started": before(values["run_started"]),
        "run_finished": before(values["run_finished"]),
    }


def _not_null(text: str | None) -> str | None:
    """JSON's null is no value."""
    return None if text == "null" else text
