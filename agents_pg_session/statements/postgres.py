"""The verbs on PostgreSQL: each one statement, pasteable into psql with its named values.

Every part of a statement names the session's key, so it routes to one shard of a cluster or one hash partition, and
`DO UPDATE SET` calls no function (times come in through VALUES), which a distributed table would refuse.

All parts of one statement see one snapshot, taken before it waits for the session row's lock. What the row itself says
is fresh after the wait; what other tables say is not. Append needs only the row. Pop and clear need the newest items:
they compare the row as the snapshot saw it (`seen`) with the row they locked (`locked`), and do nothing where the two
differ. The caller then asks again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import TextClause

from agents_pg_session.projection import Batch
from agents_pg_session.statements import Command, Key, Labels, Step, Subject, Write, clause, quoted_prefix, steps

__all__ = ["PostgresStatements"]

#: Ids a session's fence remembers. An older one could only matter to a statement that spent the whole time since, and
#: this many other lost connections on the same session, in a network buffer.
FENCE_LENGTH = 256

# Append one batch: create or lock the session's row, take positions and a turn from it, insert the items.
# A fenced try changes nothing and answers no row. The items travel as one JSON array, whose elements come out verbatim;
# as text, because an engine may have a JSON codec of its own.
APPEND = """
WITH session AS (
    INSERT INTO {schema}sessions AS s (
        tenant_id, session_id, agent, user_id, metadata,
        last_position, item_count, message_count, turn_count, created_at, updated_at, active_at)
    VALUES (
        :tenant_id, :session_id, :agent, :user_id, coalesce(CAST(CAST(:metadata AS text) AS jsonb), '{}'),
        :count, :count, :messages, :turns, now(), now(), now())
    ON CONFLICT (tenant_id, session_id) DO UPDATE SET
        agent = coalesce(excluded.agent, s.agent),
        user_id = coalesce(excluded.user_id, s.user_id),
        metadata = coalesce(CAST(CAST(:metadata AS text) AS jsonb), s.metadata),
        last_position = s.last_position + excluded.last_position,
        item_count = s.item_count + excluded.item_count,
        message_count = s.message_count + excluded.message_count,
        turn_count = s.turn_count + excluded.turn_count,
        updated_at = excluded.updated_at,
        active_at = CASE WHEN excluded.turn_count > 0 THEN excluded.active_at ELSE s.active_at END
    WHERE NOT CAST(:operation_id AS uuid) = ANY (s.fenced_ids)
    RETURNING s.last_position - :count AS position, s.turn_count - :turns AS turn
), inserted AS (
    INSERT INTO {schema}items (
        tenant_id, session_id, position, turn, append_id, type, role, call_id, created_at, item)
    SELECT :tenant_id, :session_id, session.position + each.ordinality, session.turn + each.turn,
           CAST(:operation_id AS uuid), each.type, each.role, each.call_id, now(), each.item
      FROM session,
           ROWS FROM (json_array_elements(CAST(CAST(:items AS text) AS json)),
                      unnest(CAST(:types AS text[])), unnest(CAST(:roles AS text[])),
                      unnest(CAST(:call_ids AS text[])), unnest(CAST(:turn_offsets AS bigint[])))
           WITH ORDINALITY AS each (item, type, role, call_id, turn, ordinality)
)
SELECT session.position FROM session
"""

# The newest items of one session, newest first. The primary key answers it alone: no sort, no second index.
LATEST = """
SELECT position, CAST(item AS text) AS item
  FROM {schema}items
 WHERE tenant_id = :tenant_id AND session_id = :session_id
 ORDER BY position DESC
 LIMIT :limit
"""

# The same without a limit, oldest first as the caller wants them.
EVERYTHING = """
SELECT position, CAST(item AS text) AS item
  FROM {schema}items
 WHERE tenant_id = :tenant_id AND session_id = :session_id
 ORDER BY position DESC
"""

# The session's row before and after the wait for its lock. Equal means: no append (positions only grow), no pop, no
# clear (they lower the count) came in between, so what the snapshot shows of the items is the present.
_LOCKED = """
WITH seen AS (
    SELECT last_position, item_count FROM {schema}sessions
     WHERE tenant_id = :tenant_id AND session_id = :session_id
), locked AS (
    SELECT last_position, item_count FROM {schema}sessions
     WHERE tenant_id = :tenant_id AND session_id = :session_id
       AND NOT CAST(:operation_id AS uuid) = ANY (fenced_ids)
       FOR UPDATE
), fresh AS (
    SELECT locked.last_position FROM locked JOIN seen USING (last_position, item_count)
)"""

# Take out the newest item, correct the counters, and keep the item in an event, where a retry finds it again.
POP = (
    _LOCKED
    + """, taken AS (
    DELETE FROM {schema}items
     WHERE tenant_id = :tenant_id AND session_id = :session_id
       AND position = (SELECT position FROM {schema}items
                        WHERE tenant_id = :tenant_id AND session_id = :session_id
                        ORDER BY position DESC LIMIT 1)
       AND EXISTS (SELECT FROM fresh)
    RETURNING position, type, append_id, item
), session AS (
    UPDATE {schema}sessions AS s
       SET item_count = s.item_count - 1,
           message_count = s.message_count - CASE WHEN taken.type = 'message' THEN 1 ELSE 0 END,
           turn_count = coalesce((SELECT turn FROM {schema}items
                                   WHERE tenant_id = :tenant_id AND session_id = :session_id
                                   ORDER BY position DESC OFFSET 1 LIMIT 1), 0),
           last_event_id = s.last_event_id + 1,
           updated_at = now()
      FROM taken
     WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
    RETURNING s.last_event_id
), event AS (
    INSERT INTO {schema}events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
    SELECT :tenant_id, :session_id, session.last_event_id, 'item_popped', CAST(:operation_id AS uuid), now(),
           json_build_object('position', taken.position, 'append_id', taken.append_id, 'item', taken.item)
      FROM taken, session
    RETURNING payload
)
SELECT EXISTS (SELECT FROM fresh) AS fresh, (SELECT CAST(payload AS text) FROM event) AS payload FROM locked
"""
)

# Take out all items and say so in an event; the row stays, for positions are never handed out twice.
CLEAR = (
    _LOCKED
    + """, cleared AS (
    DELETE FROM {schema}items
     WHERE tenant_id = :tenant_id AND session_id = :session_id
       AND EXISTS (SELECT FROM fresh)
    RETURNING append_id
), session AS (
    UPDATE {schema}sessions AS s
       SET item_count = 0, message_count = 0, turn_count = 0,
           last_event_id = s.last_event_id + 1, updated_at = now()
      FROM fresh
     WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
    RETURNING s.last_event_id, s.last_position
), event AS (
    INSERT INTO {schema}events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
    SELECT :tenant_id, :session_id, session.last_event_id, 'session_cleared', CAST(:operation_id AS uuid), now(),
           json_build_object('through_position', session.last_position,
                             'item_count', (SELECT count(*) FROM cleared),
                             'append_ids', (SELECT json_agg(DISTINCT append_id) FROM cleared))
      FROM session
    RETURNING payload
)
SELECT EXISTS (SELECT FROM fresh) AS fresh, (SELECT CAST(payload AS text) FROM event) AS payload FROM locked
"""
)

# Wait for the session's other writers. The statement after it in the same transaction sees all they did. Should our
# connection vanish between the two, the server lets go of the lock by itself instead of waiting for TCP to notice.
LOCK = """
SELECT set_config('idle_in_transaction_session_timeout', '5s', true)
  FROM (SELECT FROM {schema}sessions
         WHERE tenant_id = :tenant_id AND session_id = :session_id
           FOR UPDATE) AS locked
"""

# Wait until the try with this id is over, and leave its id so that it can never take effect later. The row is created
# where it is missing: the lost try may be the one that was about to create it.
FENCE = """
INSERT INTO {schema}sessions AS s (tenant_id, session_id, fenced_ids)
VALUES (:tenant_id, :session_id, ARRAY[CAST(:operation_id AS uuid)])
ON CONFLICT (tenant_id, session_id) DO UPDATE SET
    fenced_ids = (s.fenced_ids || excluded.fenced_ids)[greatest(1, cardinality(s.fenced_ids) + 2 - :fence_length):]
"""

# Did the append with this id take effect? Its items are there, or an event tells that they were taken out since. The
# ids are random, so finding one anywhere in a payload is proof; looking inside as JSON would fail on an escaped NUL.
APPENDED = """
SELECT s.last_position AS position FROM {schema}sessions s
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
   AND (EXISTS (SELECT FROM {schema}items i
                 WHERE i.tenant_id = :tenant_id AND i.session_id = :session_id
                   AND i.append_id = CAST(:operation_id AS uuid))
     OR EXISTS (SELECT FROM {schema}events e
                 WHERE e.tenant_id = :tenant_id AND e.session_id = :session_id
                   AND e.kind IN ('item_popped', 'session_cleared')
                   AND strpos(CAST(e.payload AS text), CAST(CAST(:operation_id AS uuid) AS text)) > 0))
"""

# Did the pop or clear with this id take effect? Then its event is there, with what it took.
HAPPENED = """
SELECT true AS fresh, CAST(payload AS text) AS payload
  FROM {schema}events
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND operation_id = CAST(:operation_id AS uuid)
"""

PING = "SELECT current_setting('server_version') AS version"


class PostgresStatements:
    """The verbs over the tables of one PostgreSQL schema."""

    def __init__(self, schema: str) -> None:
        self._prefix = quoted_prefix(schema)

    def append(self, key: Key, batch: Batch, labels: Labels) -> Write:
        rows = batch.rows
        values = {
            **key._asdict(),
            "agent": labels.agent,
            "user_id": labels.user_id,
            "metadata": labels.metadata,
            "count": len(rows),
            "messages": batch.messages,
            "turns": batch.turns,
            "items": f"[{','.join(row.item for row in rows)}]",
            "types": [row.type for row in rows],
            "roles": [row.role for row in rows],
            "call_ids": [row.call_id for row in rows],
            "turn_offsets": [row.turn for row in rows],
        }
        return self._write("append", key, (self._sql(APPEND),), values, outcome=APPENDED)

    def latest(self, key: Key, limit: int | None) -> Command:
        values = key._asdict() if limit is None else {**key._asdict(), "limit": limit}
        sql = self._sql(EVERYTHING if limit is None else LATEST)
        return Command(Subject("latest", key), steps(sql, values=values))

    def pop(self, key: Key, *, patient: bool = False) -> Write:
        return self._write("pop", key, self._patiently(POP, patient), key._asdict(), outcome=HAPPENED)

    def clear(self, key: Key, *, patient: bool = False) -> Write:
        return self._write("clear", key, self._patiently(CLEAR, patient), key._asdict(), outcome=HAPPENED)

    def ping(self) -> Command:
        return Command(Subject("check"), steps(self._sql(PING), values={}))

    def _patiently(self, sql: str, patient: bool) -> tuple[TextClause, ...]:
        return (self._sql(LOCK), self._sql(sql)) if patient else (self._sql(sql),)

    def _write(
        self, verb: str, key: Key, clauses: tuple[TextClause, ...], values: dict[str, Any], *, outcome: str
    ) -> Write:
        subject = Subject(verb, key, writes=True)

        def attempt(operation_id: str) -> Command:
            return Command(subject, steps(*clauses, values={**values, "operation_id": operation_id}))

        def fence(operation_id: str) -> Command:
            bound = {**key._asdict(), "operation_id": operation_id, "fence_length": FENCE_LENGTH}
            return Command(subject, (Step(self._sql(FENCE), bound),))

        def ask(operation_id: str) -> Command:
            bound = {**key._asdict(), "operation_id": operation_id}
            return Command(subject, (Step(self._sql(outcome), bound),))

        return Write(subject, attempt, fence, ask)

    def _sql(self, template: str) -> TextClause:
        return _in_schema(template, self._prefix)


@lru_cache(maxsize=512)
def _in_schema(template: str, prefix: str) -> TextClause:
    return clause(template.replace("{schema}", prefix))
