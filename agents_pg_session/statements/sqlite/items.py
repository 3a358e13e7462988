"""Reading and taking out items on SQLite."""

from __future__ import annotations

from agents_pg_session.statements.sqlite.words import ALIVE, APPEND_IDS, ITEM_JSON, NOT_EXPIRED, NOW, TOLD

__all__ = ["CLEAR", "EXTENT", "LATEST", "POP", "SINCE_SUMMARY"]

# The newest items of one session, newest first; -1 is SQLite's word for no limit.
LATEST = f"""
SELECT position, turn, CAST(item AS text) AS item
  FROM items
 WHERE tenant_id = :tenant_id AND session_id = :session_id
   AND {NOT_EXPIRED}
 ORDER BY position DESC
 LIMIT :limit
"""

# The newest items, and how far the session had come at that same moment: for a handle that wants to know of others.
# Without a session that is there, also if it has expired, there are no items.
EXTENT = f"""
SELECT s.last_position, s.item_count, i.position, i.turn, i.item
  FROM (SELECT 1) AS always
  LEFT JOIN (SELECT last_position, item_count FROM sessions
              WHERE tenant_id = :tenant_id AND session_id = :session_id AND {ALIVE}) AS s ON true
  LEFT JOIN (SELECT position, turn, CAST(item AS text) AS item FROM items
              WHERE tenant_id = :tenant_id AND session_id = :session_id
              ORDER BY position DESC
              LIMIT :limit) AS i ON s.last_position IS NOT NULL
 ORDER BY i.position DESC
"""

# The newest summary, and every item after what it has seen, newest first.
SINCE_SUMMARY = f"""
WITH session AS (
    SELECT last_position, item_count, coalesce(cleared_through, -1) AS cleared_through FROM sessions
     WHERE tenant_id = :tenant_id AND session_id = :session_id AND {ALIVE}
), summary AS (
    SELECT version, through_position, CAST(content AS text) AS content FROM snapshots
     WHERE tenant_id = :tenant_id AND session_id = :session_id AND kind = :kind
       AND through_position > (SELECT cleared_through FROM session)
     ORDER BY version DESC LIMIT 1
)
SELECT s.last_position, s.item_count, summary.version, summary.through_position, summary.content,
       i.position, i.turn, i.item
  FROM (SELECT 1) AS always
  LEFT JOIN session AS s ON true
  LEFT JOIN summary ON true
  LEFT JOIN (SELECT position, turn, CAST(item AS text) AS item FROM items
              WHERE tenant_id = :tenant_id AND session_id = :session_id
                AND position > coalesce((SELECT through_position FROM summary), 0)
                AND EXISTS (SELECT 1 FROM session)) AS i ON true
 ORDER BY i.position DESC
"""

# The place of the item that a pop takes.
_NEWEST = "(SELECT max(position) FROM items WHERE tenant_id = :tenant_id AND session_id = :session_id)"

# The tool run whose output that is: of the item as `taken`.
_ANSWERED_BY_TAKEN = """
  FROM tool_runs t
 WHERE t.tenant_id = :tenant_id AND t.session_id = :session_id
   AND taken.type LIKE '%output'
   AND t.call_position < taken.position AND t.output_position = taken.position
 ORDER BY t.call_position DESC LIMIT 1"""

# Keep the item in an event.
_POP_EVENT = f"""
INSERT INTO events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
SELECT s.tenant_id, s.session_id, s.last_event_id + 1, 'item_popped', :operation_id, {NOW},
       '{{"position"\\:' || taken.position || ',"append_id"\\:' || json_quote(taken.append_id)
       || ',"item"\\:' || taken.item || '}}'
  FROM sessions s,
       (SELECT position, append_id, {ITEM_JSON} AS item FROM items
         WHERE tenant_id = :tenant_id AND session_id = :session_id AND position = {_NEWEST}) AS taken
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
"""

# Correct the counters for the item that goes next; where there is none, change nothing.
_POP_SESSION = f"""
UPDATE sessions AS s
   SET item_count = s.item_count - 1, status = CASE WHEN s.status = 'waiting' THEN 'active' ELSE s.status END,
       message_count = s.message_count - (taken.type IS 'message'),
       turn_count = coalesce((SELECT turn FROM items
                               WHERE tenant_id = :tenant_id AND session_id = :session_id
                               ORDER BY position DESC LIMIT 1 OFFSET 1), 0),
       tool_run_count = s.tool_run_count - (called.status IS NOT NULL),
       tool_error_count = s.tool_error_count - (called.status IS 'failed')
           - coalesce((SELECT t.status = 'failed' {_ANSWERED_BY_TAKEN}), 0),
       last_event_id = s.last_event_id + 1,
       updated_at = {NOW}
  FROM (SELECT position, type, call_id FROM items
         WHERE tenant_id = :tenant_id AND session_id = :session_id AND position = {_NEWEST}) AS taken
  LEFT JOIN (SELECT call_position, status FROM tool_runs
              WHERE tenant_id = :tenant_id AND session_id = :session_id) AS called
    ON called.call_position = taken.position
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
"""

# An output leaves its tool run running again.
_POP_ANSWER = f"""
UPDATE tool_runs
   SET output_position = NULL, status = 'running', error = NULL, started_at = NULL, finished_at = NULL
 WHERE tenant_id = :tenant_id AND session_id = :session_id
   AND call_position = (
       SELECT (SELECT t.call_position {_ANSWERED_BY_TAKEN})
         FROM items taken
        WHERE tenant_id = :tenant_id AND session_id = :session_id AND position = {_NEWEST})
"""

# A call takes its tool run with it.
_POP_CALL = f"""
DELETE FROM tool_runs
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND call_position = {_NEWEST}
"""

# Take out the item itself, last: the others look at it.
_POP_ITEM = f"""
DELETE FROM items
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND position = {_NEWEST}
"""

# Take out the newest item, correct the counters, and keep the item in an event.
POP = (_POP_EVENT, _POP_SESSION, _POP_ANSWER, _POP_CALL, _POP_ITEM, TOLD)

# Say in an event what is cleared.
_CLEAR_EVENT = f"""
INSERT INTO events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
SELECT s.tenant_id, s.session_id, s.last_event_id + 1, 'session_cleared', :operation_id, {NOW},
       json_object(
           'through_position', s.last_position,
           'item_count', (SELECT count(*) FROM items WHERE tenant_id = :tenant_id AND session_id = :session_id),
           'append_ids', {APPEND_IDS.replace("{range}", "true")})
  FROM sessions s
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
"""

# The row stays, for positions are never handed out twice.
_CLEAR_SESSION = f"""
UPDATE sessions AS s
   SET item_count = 0, message_count = 0, turn_count = 0, cleared_through = s.last_position,
       status = CASE WHEN s.status = 'waiting' THEN 'active' ELSE s.status END,
       last_event_id = s.last_event_id + 1, updated_at = {NOW}
 WHERE tenant_id = :tenant_id AND session_id = :session_id
"""

# The items go.
_CLEAR_ITEMS = """
DELETE FROM items WHERE tenant_id = :tenant_id AND session_id = :session_id
"""

# Take out all items and say so in an event. The tool runs stay: what was executed was executed.
CLEAR = (_CLEAR_EVENT, _CLEAR_SESSION, _CLEAR_ITEMS, TOLD)
