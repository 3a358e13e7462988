"""Reading and taking out items on PostgreSQL."""

from __future__ import annotations

from agents_pg_session.statements.postgres.locks import LOCKED, TOLD

__all__ = ["APPENDED", "CLEAR", "EVERYTHING", "EXTENT", "HAPPENED", "LATEST", "POP", "SINCE_SUMMARY"]

# The newest items of one session, newest first. The primary key answers it alone: no sort, no second index. Whether the
# session has expired is asked once, before the first item.
LATEST = """
SELECT position, turn, CAST(item AS text) AS item
  FROM {schema}items
 WHERE tenant_id = :tenant_id AND session_id = :session_id
   AND NOT EXISTS (SELECT FROM {schema}sessions
                    WHERE tenant_id = :tenant_id AND session_id = :session_id AND expires_at <= now())
 ORDER BY position DESC
 LIMIT :limit
"""

# The same without a limit.
EVERYTHING = """
SELECT position, turn, CAST(item AS text) AS item
  FROM {schema}items
 WHERE tenant_id = :tenant_id AND session_id = :session_id
   AND NOT EXISTS (SELECT FROM {schema}sessions
                    WHERE tenant_id = :tenant_id AND session_id = :session_id AND expires_at <= now())
 ORDER BY position DESC
"""

# The newest items, and how far the session had come at that same moment: for a handle that wants to know of others.
# Without a session that is there, also if it has expired, there are no items.
EXTENT = """
SELECT s.last_position, s.item_count, i.position, i.turn, i.item
  FROM (SELECT 1) AS always
  LEFT JOIN (SELECT last_position, item_count FROM {schema}sessions
              WHERE tenant_id = :tenant_id AND session_id = :session_id
                AND (expires_at IS NULL OR expires_at > now())) AS s ON true
  LEFT JOIN (SELECT position, turn, CAST(item AS text) AS item FROM {schema}items
              WHERE tenant_id = :tenant_id AND session_id = :session_id
              ORDER BY position DESC
              LIMIT CAST(:limit AS bigint)) AS i ON s.last_position IS NOT NULL
 ORDER BY i.position DESC
"""

# The newest summary, and every item after what it has seen, newest first. A clear ends what was said before it, so a
# summary of that is over too.
SINCE_SUMMARY = """
WITH session AS (
    SELECT last_position, item_count, coalesce(cleared_through, -1) AS cleared_through FROM {schema}sessions
     WHERE tenant_id = :tenant_id AND session_id = :session_id AND (expires_at IS NULL OR expires_at > now())
), summary AS (
    SELECT version, through_position, CAST(content AS text) AS content FROM {schema}snapshots
     WHERE tenant_id = :tenant_id AND session_id = :session_id AND kind = :kind
       AND through_position > (SELECT cleared_through FROM session)
     ORDER BY version DESC LIMIT 1
)
SELECT s.last_position, s.item_count, summary.version, summary.through_position, summary.content,
       i.position, i.turn, i.item
  FROM (SELECT 1) AS always
  LEFT JOIN session AS s ON true
  LEFT JOIN summary ON true
  LEFT JOIN (SELECT position, turn, CAST(item AS text) AS item FROM {schema}items
              WHERE tenant_id = :tenant_id AND session_id = :session_id
                AND position > coalesce((SELECT through_position FROM summary), 0)
                AND EXISTS (SELECT FROM session)) AS i ON true
 ORDER BY i.position DESC
"""

# Take out the newest item, correct the counters, and keep the item in an event, where a retry finds it again. A call
# takes its tool run with it; an output leaves its tool run running again.
POP = (
    LOCKED
    + """, taken AS (
    DELETE FROM {schema}items
     WHERE tenant_id = :tenant_id AND session_id = :session_id
       AND position = (SELECT position FROM {schema}items
                        WHERE tenant_id = :tenant_id AND session_id = :session_id
                        ORDER BY position DESC LIMIT 1)
       AND EXISTS (SELECT FROM fresh)
    RETURNING position, type, call_id, append_id, item
), uncalled AS (
    DELETE FROM {schema}tool_runs t USING taken
     WHERE t.tenant_id = :tenant_id AND t.session_id = :session_id AND t.call_position = taken.position
    RETURNING t.status
), unanswered AS (
    SELECT call.call_position, call.status
      FROM taken
     CROSS JOIN LATERAL (SELECT t.call_position, t.status FROM {schema}tool_runs t
                          WHERE t.tenant_id = :tenant_id AND t.session_id = :session_id
                            AND t.call_position < taken.position AND t.output_position = taken.position
                          ORDER BY t.call_position DESC LIMIT 1) AS call
     WHERE taken.type LIKE '%output'
), reopened AS (
    UPDATE {schema}tool_runs t
       SET output_position = NULL, status = 'running', error = NULL, started_at = NULL, finished_at = NULL
      FROM unanswered
     WHERE t.tenant_id = :tenant_id AND t.session_id = :session_id AND t.call_position = unanswered.call_position
), session AS (
    UPDATE {schema}sessions AS s
       SET item_count = s.item_count - 1, status = CASE WHEN s.status = 'waiting' THEN 'active' ELSE s.status END,
           message_count = s.message_count - CASE WHEN taken.type = 'message' THEN 1 ELSE 0 END,
           turn_count = coalesce((SELECT turn FROM {schema}items
                                   WHERE tenant_id = :tenant_id AND session_id = :session_id
                                   ORDER BY position DESC OFFSET 1 LIMIT 1), 0),
           tool_run_count = s.tool_run_count - (SELECT count(*) FROM uncalled),
           tool_error_count = s.tool_error_count - (SELECT count(*) FROM uncalled WHERE status = 'failed')
                                                 - (SELECT count(*) FROM unanswered WHERE status = 'failed'),
           last_event_id = s.last_event_id + 1,
           updated_at = now()
      FROM taken
     WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
    RETURNING s.last_event_id, s.last_position, s.item_count
), event AS (
    INSERT INTO {schema}events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
    SELECT :tenant_id, :session_id, session.last_event_id, 'item_popped', CAST(:operation_id AS uuid), now(),
           json_build_object('position', taken.position, 'append_id', taken.append_id, 'item', taken.item)
      FROM taken, session
    RETURNING payload
)"""
    + TOLD
)

# Take out all items and say so in an event. The row stays, for positions are never handed out twice; so do the tool
# runs: what was executed was executed.
CLEAR = (
    LOCKED
    + """, cleared AS (
    DELETE FROM {schema}items
     WHERE tenant_id = :tenant_id AND session_id = :session_id
       AND EXISTS (SELECT FROM fresh)
    RETURNING append_id
), session AS (
    UPDATE {schema}sessions AS s
       SET item_count = 0, message_count = 0, turn_count = 0, cleared_through = s.last_position,
           status = CASE WHEN s.status = 'waiting' THEN 'active' ELSE s.status END,
           last_event_id = s.last_event_id + 1, updated_at = now()
      FROM fresh
     WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
    RETURNING s.last_event_id, s.last_position, s.item_count
), event AS (
    INSERT INTO {schema}events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
    SELECT :tenant_id, :session_id, session.last_event_id, 'session_cleared', CAST(:operation_id AS uuid), now(),
           json_build_object('through_position', session.last_position,
                             'item_count', (SELECT count(*) FROM cleared),
                             'append_ids', (SELECT json_agg(DISTINCT append_id) FROM cleared))
      FROM session
    RETURNING payload
)"""
    + TOLD
)

# Did the append with this id take effect? Its items are there, or its events, or an event tells that the items were
# taken out since. The ids are random, so finding one anywhere in a payload is proof; looking inside as JSON would fail
# on an escaped NUL.
APPENDED = """
SELECT s.last_position AS position, s.last_position, s.item_count FROM {schema}sessions s
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
   AND (EXISTS (SELECT FROM {schema}items i
                 WHERE i.tenant_id = :tenant_id AND i.session_id = :session_id
                   AND i.append_id = CAST(:operation_id AS uuid))
     OR EXISTS (SELECT FROM {schema}events e
                 WHERE e.tenant_id = :tenant_id AND e.session_id = :session_id
                   AND (e.operation_id = CAST(:operation_id AS uuid)
                     OR e.kind IN ('item_popped', 'session_cleared', 'history_replaced')
                        AND strpos(CAST(e.payload AS text), CAST(CAST(:operation_id AS uuid) AS text)) > 0)))
"""

# Did the change with this id take effect? Then its event is there, with what it did.
HAPPENED = """
SELECT true AS fresh, CAST(payload AS text) AS payload
  FROM {schema}events
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND operation_id = CAST(:operation_id AS uuid)
 ORDER BY event_id DESC LIMIT 1
"""
