"""Rewriting history on SQLite: replacing a tail of it, and bringing it back.

Nothing remembered is overwritten: whatever these statements take out is kept as the next `history` snapshot. Its
content is the items alone; where they stood is in its metadata, so that they can go back to their own positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agents_pg_session.projection import Batch
from agents_pg_session.statements import Step, clause
from agents_pg_session.statements.sqlite.append import APPEND_ITEM, item_values
from agents_pg_session.statements.sqlite.words import APPEND_IDS, HAPPENING, HAPPENS, ITEM_JSON, NOW, TOLD

__all__ = ["RESTORE", "replace_steps"]

Values = Mapping[str, Any]

# The version that what is taken out becomes.
_VERSION = """(SELECT coalesce(max(version), 0) + 1 FROM snapshots
                       WHERE tenant_id = :tenant_id AND session_id = :session_id AND kind = 'history')"""

# Keep what is taken out (`removed`) as a version of its own; `stood` says what replaces it. An item that would not come
# back to the letter from the content (edited by hand: spaces, or no object, or no JSON) is kept raw as well.
_KEEP = f"""
INSERT INTO snapshots (tenant_id, session_id, kind, version, through_position, created_at, content, metadata)
SELECT s.tenant_id, s.session_id, 'history', json_extract(e.payload, '$.version'),
       coalesce((SELECT max(position) FROM removed), 0), {NOW},
       coalesce((SELECT '[' || group_concat(item, ',') || ']'
                   FROM (SELECT {ITEM_JSON} AS item FROM removed ORDER BY position)), '[]'),
       json_object(
           'first_position', stood.first_position, 'last_position', stood.last_position, 'count', stood.count,
           'rows', json((SELECT json_group_array(json_object(
                       'position', position, 'turn', turn, 'run_id', run_id, 'append_id', append_id, 'type', type,
                       'role', role, 'call_id', call_id, 'created_at', created_at,
                       'raw', CASE WHEN NOT json_valid(verbatim) THEN verbatim
                                   WHEN json_type(verbatim) <> 'object' OR json(verbatim) <> verbatim THEN verbatim
                              END))
                   FROM (SELECT *, CAST(item AS text) AS verbatim FROM removed ORDER BY position))))
  FROM stood, {HAPPENING}
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
"""

_TAIL = "tenant_id = :tenant_id AND session_id = :session_id AND position >= :first_position"

# Say that the tail is replaced, if it still is what the caller has seen.
_REPLACE_EVENT = f"""
INSERT INTO events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
SELECT s.tenant_id, s.session_id, s.last_event_id + 1, 'history_replaced', :operation_id, {NOW},
       json_object('version', {_VERSION},
                   'removed', tail.count, 'inserted', :count,
                   'last_position', s.last_position + :count, 'item_count', s.item_count + :count - tail.count,
                   'append_ids', {APPEND_IDS.replace("{range}", "position >= :first_position")})
  FROM sessions s,
       (SELECT count(*) AS count, coalesce(max(position), 0) AS last_position FROM items WHERE {_TAIL}) AS tail
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
   AND (:expected_count IS NULL OR (tail.count, tail.last_position) = (:expected_count, :expected_position))
"""

# Correct the counters while the tail is still there.
_REPLACE_SESSION = f"""
UPDATE sessions AS s
   SET last_position = s.last_position + :count,
       item_count = s.item_count + :count - (SELECT count(*) FROM items WHERE {_TAIL}),
       message_count = s.message_count + :messages
                       - (SELECT count(*) FROM items WHERE {_TAIL} AND type = 'message'),
       turn_count = :turns + coalesce(
           (SELECT turn FROM items
             WHERE tenant_id = :tenant_id AND session_id = :session_id AND position < :first_position
             ORDER BY position DESC LIMIT 1), 0),
       status = CASE WHEN s.status = 'waiting' THEN 'active' ELSE s.status END,
       last_event_id = s.last_event_id + 1, updated_at = {NOW}
  FROM events e
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
   AND e.tenant_id = :tenant_id AND e.session_id = :session_id
   AND e.event_id = s.last_event_id + 1 AND e.operation_id = :operation_id
"""

# Keep the tail.
_REPLACE_KEEP = (
    f"""
WITH removed AS (
    SELECT * FROM items WHERE {_TAIL}
), stood AS (
    SELECT last_position - :count + 1 AS first_position, last_position, :count AS count FROM sessions
     WHERE tenant_id = :tenant_id AND session_id = :session_id
)"""
    + _KEEP
)

# Take it out.
_REPLACE_REMOVE = f"""
DELETE FROM items WHERE {_TAIL} AND {HAPPENS}
"""

# Put one of the other items there.
_REPLACE_INSERT = APPEND_ITEM.replace("FROM sessions s", f"FROM {HAPPENING}")


def replace_steps(bound: Values, batch: Batch) -> Iterator[Step]:
    """Yield the steps that replace all items from a position on by others.

    No tool run changes: what was executed was executed.
    """
    values = {**bound, "count": len(batch.rows), "messages": batch.messages, "turns": batch.turns}
    for sql in (_REPLACE_EVENT, _REPLACE_SESSION, _REPLACE_KEEP, _REPLACE_REMOVE):
        yield Step(clause(sql), values)
    if batch.rows:
        yield Step(clause(_REPLACE_INSERT), item_values({**bound, "run_id": None}, batch))
    yield Step(clause(TOLD), values)


# What a history snapshot brings back (its items paired with where they stood), what goes for it, and by how many turns
# the items after it move.
_SNAPSHOT = """
WITH snapshot AS (
    SELECT content, metadata, json_extract(metadata, '$.first_position') AS first_position,
           json_extract(metadata, '$.last_position') AS last_position, json_extract(metadata, '$.count') AS count
      FROM snapshots
     WHERE tenant_id = :tenant_id AND session_id = :session_id AND kind = 'history' AND version = :version
), parts AS (
    SELECT key AS place, value AS item, NULL AS stood FROM snapshot, json_each(snapshot.content)
    UNION ALL
    SELECT key, NULL, value FROM snapshot, json_each(snapshot.metadata, '$.rows')
), paired AS (
    SELECT max(item) AS item, max(stood) AS stood FROM parts GROUP BY place
), brought AS MATERIALIZED (
    SELECT json_extract(stood, '$.position') AS position, json_extract(stood, '$.turn') AS turn,
           json_extract(stood, '$.run_id') AS run_id, json_extract(stood, '$.append_id') AS append_id,
           json_extract(stood, '$.type') AS type, json_extract(stood, '$.role') AS role,
           json_extract(stood, '$.call_id') AS call_id, json_extract(stood, '$.created_at') AS created_at,
           coalesce(json_extract(stood, '$.raw'), item) AS item
      FROM paired
), removed AS (
    SELECT i.* FROM snapshot, items i
     WHERE i.tenant_id = :tenant_id AND i.session_id = :session_id
       AND i.position BETWEEN snapshot.first_position AND snapshot.last_position
), stood AS (
    SELECT coalesce(min(brought.position), snapshot.first_position) AS first_position,
           coalesce(max(brought.position), snapshot.first_position - 1) AS last_position,
           count(brought.position) AS count
      FROM snapshot LEFT JOIN brought ON 1
     GROUP BY snapshot.first_position
), shift AS (
    SELECT coalesce((SELECT max(turn) FROM brought), earlier.turn)
         - coalesce((SELECT max(turn) FROM removed), earlier.turn) AS turns
      FROM (SELECT coalesce((SELECT turn FROM items
                              WHERE tenant_id = :tenant_id AND session_id = :session_id
                                AND position < (SELECT min(coalesce((SELECT min(position) FROM brought),
                                                                    first_position), first_position) FROM snapshot)
                              ORDER BY position DESC LIMIT 1), 0) AS turn) AS earlier
)"""

# Say that it comes back, if what stood for it still stands there whole.
_RESTORE_EVENT = (
    _SNAPSHOT
    + f"""
INSERT INTO events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
SELECT s.tenant_id, s.session_id, s.last_event_id + 1, 'history_replaced', :operation_id, {NOW},
       json_object('version', {_VERSION},
                   'removed', (SELECT count(*) FROM removed), 'inserted', (SELECT count(*) FROM brought),
                   'last_position', s.last_position, 'item_count', s.item_count
                       + (SELECT count(*) FROM brought) - (SELECT count(*) FROM removed),
                   'append_ids', {APPEND_IDS.replace("{range}", "position IN (SELECT position FROM removed)")})
  FROM sessions s, snapshot
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
   AND snapshot.count = (SELECT count(*) FROM removed)
   AND NOT EXISTS (SELECT 1 FROM items
                    WHERE tenant_id = :tenant_id AND session_id = :session_id
                      AND position IN (SELECT position FROM brought))
"""
)

# Correct the counters while what goes is still there.
_RESTORE_SESSION = (
    _SNAPSHOT
    + f"""
UPDATE sessions AS s
   SET item_count = s.item_count + (SELECT count(*) FROM brought) - (SELECT count(*) FROM removed),
       message_count = s.message_count + (SELECT count(*) FROM brought WHERE type = 'message')
                                       - (SELECT count(*) FROM removed WHERE type = 'message'),
       turn_count = s.turn_count + shift.turns,
       last_event_id = s.last_event_id + 1, updated_at = {NOW}
  FROM shift, events e
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
   AND e.tenant_id = :tenant_id AND e.session_id = :session_id
   AND e.event_id = s.last_event_id + 1 AND e.operation_id = :operation_id
"""
)

# Keep what goes.
_RESTORE_KEEP = _SNAPSHOT + _KEEP

# Items after it move to the turns they would have had.
_RESTORE_MOVE = (
    _SNAPSHOT
    + f"""
UPDATE items AS i SET turn = i.turn + shift.turns
  FROM shift, stood, snapshot
 WHERE i.tenant_id = :tenant_id AND i.session_id = :session_id
   AND i.position > snapshot.last_position AND i.position > stood.last_position
   AND shift.turns <> 0 AND {HAPPENS}
"""
)

# Take out what stood for it.
_RESTORE_REMOVE = (
    _SNAPSHOT
    + f"""
DELETE FROM items
 WHERE tenant_id = :tenant_id AND session_id = :session_id
   AND position IN (SELECT position FROM removed) AND {HAPPENS}
"""
)

# Put its items back to their own positions.
_RESTORE_INSERT = (
    _SNAPSHOT
    + f"""
INSERT INTO items (tenant_id, session_id, position, turn, run_id, append_id, type, role, call_id, created_at, item)
SELECT :tenant_id, :session_id, position, turn, run_id, append_id, type, role, call_id, created_at, item
  FROM brought
 WHERE {HAPPENS}
"""
)

# The answer, and whether there is such a snapshot at all.
_RESTORED = TOLD.replace(
    "AS payload\n",
    """AS payload,
       EXISTS (SELECT 1 FROM snapshots n
                WHERE n.tenant_id = :tenant_id AND n.session_id = :session_id
                  AND n.kind = 'history' AND n.version = :version) AS found
""",
)

# Bring a history snapshot back: its items return to their own positions, and what stood for them goes.
RESTORE = (
    _RESTORE_EVENT,
    _RESTORE_SESSION,
    _RESTORE_KEEP,
    _RESTORE_MOVE,
    _RESTORE_REMOVE,
    _RESTORE_INSERT,
    _RESTORED,
)
