"""The verbs on SQLite: each one short transaction that takes the write lock at its start (`BEGIN IMMEDIATE`).

One writer at a time, so nothing a statement reads can be stale. The file is local, so a try that failed did not commit:
nothing is ever in doubt, and a fence has nothing to do.
"""

from __future__ import annotations

from typing import Any

from agents_pg_session.projection import Batch
from agents_pg_session.statements import Command, Key, Labels, Step, Subject, Write, clause, steps

__all__ = ["SQLiteStatements"]

# SQLite's CURRENT_TIMESTAMP ends at seconds.
_NOW = "strftime('%Y-%m-%d %H\\:%M\\:%f', 'now')"

# Create or advance the session's row.
APPEND_SESSION = f"""
INSERT INTO sessions AS s (
    tenant_id, session_id, agent, user_id, metadata,
    last_position, item_count, message_count, turn_count, created_at, updated_at, active_at)
VALUES (
    :tenant_id, :session_id, :agent, :user_id, coalesce(:metadata, '{{}}'),
    :count, :count, :messages, :turns, {_NOW}, {_NOW}, {_NOW})
ON CONFLICT (tenant_id, session_id) DO UPDATE SET
    agent = coalesce(excluded.agent, s.agent),
    user_id = coalesce(excluded.user_id, s.user_id),
    metadata = coalesce(:metadata, s.metadata),
    last_position = s.last_position + excluded.last_position,
    item_count = s.item_count + excluded.item_count,
    message_count = s.message_count + excluded.message_count,
    turn_count = s.turn_count + excluded.turn_count,
    updated_at = excluded.updated_at,
    active_at = CASE WHEN excluded.turn_count > 0 THEN excluded.active_at ELSE s.active_at END
"""

# Insert one item of the batch at its place behind the items before the batch.
APPEND_ITEM = f"""
INSERT INTO items (tenant_id, session_id, position, turn, append_id, type, role, call_id, created_at, item)
SELECT :tenant_id, :session_id, last_position - :count + :ordinality, turn_count - :turns + :turn,
       :operation_id, :type, :role, :call_id, {_NOW}, :item
  FROM sessions
 WHERE tenant_id = :tenant_id AND session_id = :session_id
"""

# The position before the batch: the answer of an append.
APPENDED = """
SELECT last_position - :count AS position FROM sessions
 WHERE tenant_id = :tenant_id AND session_id = :session_id
"""

# The newest items of one session, newest first; -1 is SQLite's word for no limit.
LATEST = """
SELECT position, item FROM items
 WHERE tenant_id = :tenant_id AND session_id = :session_id
 ORDER BY position DESC
 LIMIT :limit
"""

# Keep the newest item in an event. A row that was edited by hand may hold anything: it is kept as a JSON string.
POP_EVENT = f"""
INSERT INTO events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
SELECT i.tenant_id, i.session_id, s.last_event_id + 1, 'item_popped', :operation_id, {_NOW},
       '{{"position"\\:' || i.position || ',"append_id"\\:' || json_quote(i.append_id) || ',"item"\\:'
       || CASE WHEN json_valid(i.item) THEN i.item ELSE json_quote(CAST(i.item AS text)) END || '}}'
  FROM items i JOIN sessions s ON s.tenant_id = i.tenant_id AND s.session_id = i.session_id
 WHERE i.tenant_id = :tenant_id AND i.session_id = :session_id
 ORDER BY i.position DESC
 LIMIT 1
"""

# Correct the counters for the item that goes next; where there is none, change nothing.
POP_SESSION = f"""
UPDATE sessions AS s
   SET item_count = s.item_count - 1,
       message_count = s.message_count - (newest.type IS 'message'),
       turn_count = coalesce((SELECT turn FROM items
                               WHERE tenant_id = :tenant_id AND session_id = :session_id
                               ORDER BY position DESC LIMIT 1 OFFSET 1), 0),
       last_event_id = s.last_event_id + 1,
       updated_at = {_NOW}
  FROM (SELECT type FROM items
         WHERE tenant_id = :tenant_id AND session_id = :session_id
         ORDER BY position DESC LIMIT 1) AS newest
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
"""

POP_ITEM = """
DELETE FROM items
 WHERE tenant_id = :tenant_id AND session_id = :session_id
   AND position = (SELECT max(position) FROM items
                    WHERE tenant_id = :tenant_id AND session_id = :session_id)
"""

# Say in an event what is cleared.
CLEAR_EVENT = f"""
INSERT INTO events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
SELECT tenant_id, session_id, last_event_id + 1, 'session_cleared', :operation_id, {_NOW},
       json_object('through_position', last_position, 'item_count', item_count)
  FROM sessions
 WHERE tenant_id = :tenant_id AND session_id = :session_id
"""

CLEAR_SESSION = f"""
UPDATE sessions
   SET item_count = 0, message_count = 0, turn_count = 0, last_event_id = last_event_id + 1, updated_at = {_NOW}
 WHERE tenant_id = :tenant_id AND session_id = :session_id
"""

CLEAR_ITEMS = "DELETE FROM items WHERE tenant_id = :tenant_id AND session_id = :session_id"

# What the pop or clear with this id took: its own event.
HAPPENED = """
SELECT 1 AS fresh, payload FROM events
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND operation_id = :operation_id
"""

PING = "SELECT sqlite_version() AS version"


class SQLiteStatements:
    """The verbs over the tables of one SQLite file."""

    def append(self, key: Key, batch: Batch, labels: Labels) -> Write:
        values = {
            **key._asdict(),
            "agent": labels.agent,
            "user_id": labels.user_id,
            "metadata": labels.metadata,
            "count": len(batch.rows),
            "messages": batch.messages,
            "turns": batch.turns,
        }
        rows = [
            {
                **values,
                "ordinality": ordinality,
                "item": row.item,
                "type": row.type,
                "role": row.role,
                "call_id": row.call_id,
                "turn": row.turn,
            }
            for ordinality, row in enumerate(batch.rows, start=1)
        ]

        subject = Subject("append", key, writes=True)

        def attempt(operation_id: str) -> Command:
            return Command(
                subject,
                (
                    Step(clause(APPEND_SESSION), values),
                    Step(clause(APPEND_ITEM), [{**row, "operation_id": operation_id} for row in rows]),
                    Step(clause(APPENDED), values),
                ),
            )

        return Write(subject, attempt)

    def latest(self, key: Key, limit: int | None) -> Command:
        values = {**key._asdict(), "limit": -1 if limit is None else limit}
        return Command(Subject("latest", key), steps(clause(LATEST), values=values))

    def pop(self, key: Key, *, patient: bool = False) -> Write:
        return self._write("pop", key, POP_EVENT, POP_SESSION, POP_ITEM, HAPPENED)

    def clear(self, key: Key, *, patient: bool = False) -> Write:
        return self._write("clear", key, CLEAR_EVENT, CLEAR_SESSION, CLEAR_ITEMS, HAPPENED)

    def ping(self) -> Command:
        return Command(Subject("check"), steps(clause(PING), values={}))

    def _write(self, verb: str, key: Key, *sql: str) -> Write:
        subject = Subject(verb, key, writes=True)

        def attempt(operation_id: str) -> Command:
            values: dict[str, Any] = {**key._asdict(), "operation_id": operation_id}
            return Command(subject, steps(*map(clause, sql), values=values))

        return Write(subject, attempt)
