"""Copying a session into another one on SQLite."""

from __future__ import annotations

from agents_pg_session.statements.sqlite.words import ALIVE, HAPPENS, NOW, shifted

__all__ = ["FORK"]

# A row for the copy, empty for now, if there is a source.
_FORK_OPEN = f"""
INSERT INTO sessions (tenant_id, session_id, created_at, updated_at, active_at)
SELECT :tenant_id, :session_id, {NOW}, {NOW}, {NOW}
  FROM sessions WHERE tenant_id = :tenant_id AND session_id = :source_id AND {ALIVE}
ON CONFLICT (tenant_id, session_id) DO NOTHING
"""

# What is copied, and how far it reaches.
_COPIED = """
WITH copied AS (
    SELECT * FROM items
     WHERE tenant_id = :tenant_id AND session_id = :source_id AND (:before_turn IS NULL OR turn < :before_turn)
), reach AS (
    SELECT coalesce(max(position), 0) AS position, count(*) AS items, coalesce(max(turn), 0) AS turns,
           coalesce(sum(type = 'message'), 0) AS messages
      FROM copied
), called AS (
    SELECT t.*, t.output_position <= reach.position AS answered
      FROM tool_runs t, reach
     WHERE t.tenant_id = :tenant_id AND t.session_id = :source_id
       AND t.call_position IN (SELECT position FROM copied)
)"""

# Say that it is a copy, if there is a source and nothing was ever written to the row.
_FORK_EVENT = (
    _COPIED
    + f"""
INSERT INTO events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
SELECT s.tenant_id, s.session_id, 1, 'session_forked', :operation_id, {NOW},
       json_object('from', :source_id, 'through_position', reach.position, 'before_turn', :before_turn)
  FROM sessions s, reach
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id AND s.last_position = 0 AND s.last_event_id = 0
   AND EXISTS (SELECT 1 FROM sessions WHERE tenant_id = :tenant_id AND session_id = :source_id AND {ALIVE})
"""
)

# The row becomes that of the copy. What the source has spent (runs, tokens) stays with the source.
_FORK_SESSION = (
    _COPIED
    + f"""
UPDATE sessions AS s
   SET agent = coalesce(:agent, source.agent), user_id = coalesce(:user_id, source.user_id),
       metadata = coalesce(:metadata, source.metadata), cleared_through = source.cleared_through,
       last_position = reach.position, last_event_id = 1, item_count = reach.items, message_count = reach.messages,
       turn_count = reach.turns, tool_run_count = (SELECT count(*) FROM called),
       tool_error_count = (SELECT count(*) FROM called WHERE status = 'failed' AND answered),
       expires_at = coalesce({shifted(":expires_in")}, source.expires_at),
       forked_from = :source_id, forked_through = reach.position, forked_at = {NOW},
       updated_at = {NOW}, active_at = {NOW}
  FROM sessions source, reach, events e
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
   AND source.tenant_id = :tenant_id AND source.session_id = :source_id
   AND e.tenant_id = :tenant_id AND e.session_id = :session_id
   AND e.event_id = s.last_event_id + 1 AND e.operation_id = :operation_id
"""
)

# The items keep their positions.
_FORK_ITEMS = (
    _COPIED
    + f"""
INSERT INTO items (tenant_id, session_id, position, turn, run_id, append_id, type, role, call_id, created_at, item)
SELECT :tenant_id, :session_id, position, turn, run_id, append_id, type, role, call_id, created_at, item
  FROM copied WHERE {HAPPENS}
"""
)

# A call whose output is not copied runs.
_FORK_TOOL_RUNS = (
    _COPIED
    + f"""
INSERT INTO tool_runs (
    tenant_id, session_id, call_position, output_position, call_id, tool_name, tool_type, agent, status, run_id,
    started_at, finished_at, error, arguments, created_at)
SELECT :tenant_id, :session_id, call_position, CASE WHEN answered THEN output_position END, call_id, tool_name,
       tool_type, agent, CASE WHEN answered OR output_position IS NULL THEN status ELSE 'running' END, run_id,
       CASE WHEN answered THEN started_at END, CASE WHEN answered THEN finished_at END,
       CASE WHEN answered THEN error END, arguments, created_at
  FROM called WHERE {HAPPENS}
"""
)

# What was remembered by then, but for paused runs and history.
_FORK_SNAPSHOTS = (
    _COPIED
    + f"""
INSERT INTO snapshots (
    tenant_id, session_id, kind, version, through_position, label, created_at, content, metadata)
SELECT :tenant_id, :session_id, n.kind, n.version, n.through_position, n.label, n.created_at, n.content, n.metadata
  FROM snapshots n, reach
 WHERE n.tenant_id = :tenant_id AND n.session_id = :source_id AND n.through_position <= reach.position
   AND n.kind NOT IN ('run_state', 'history') AND {HAPPENS}
"""
)

# The answer: one row in any case.
_FORKED = f"""
SELECT 1 AS fresh,
       {HAPPENS} OR EXISTS (SELECT 1 FROM sessions
                            WHERE tenant_id = :tenant_id AND session_id = :source_id AND {ALIVE}) AS found,
       {HAPPENS} AS created
"""

# Copy a session up to a turn into another that is not there yet.
FORK = (
    _FORK_OPEN,
    _FORK_EVENT,
    _FORK_SESSION,
    _FORK_ITEMS,
    _FORK_TOOL_RUNS,
    _FORK_SNAPSHOTS,
    _FORKED,
)
