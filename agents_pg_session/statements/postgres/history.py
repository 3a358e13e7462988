"""Rewriting history on PostgreSQL: replacing a tail of it, bringing it back, copying it into another session.

Nothing remembered is overwritten: whatever these statements take out is kept as the next `history` snapshot. Its
content is the items alone, verbatim; where they stood is in its metadata, so that they can go back to their own
positions. (Looking for a key inside an item would fail on an escaped NUL.)
"""

from __future__ import annotations

from agents_pg_session.statements.postgres.locks import LOCKED, TOLD

__all__ = ["FORK", "FORKED", "REPLACE", "RESTORE"]

# Keep what was taken out as a version of its own; `stood` says what replaced it.
_KEPT = """, version AS (
    SELECT coalesce(max(version), 0) + 1 AS version FROM {schema}snapshots
     WHERE tenant_id = :tenant_id AND session_id = :session_id AND kind = 'history'
), kept AS (
    INSERT INTO {schema}snapshots (
        tenant_id, session_id, kind, version, through_position, created_at, content, metadata)
    SELECT :tenant_id, :session_id, 'history', version.version,
           coalesce((SELECT max(position) FROM removed), 0), now(),
           coalesce((SELECT json_agg(item ORDER BY position) FROM removed), '[]'),
           json_build_object(
               'first_position', stood.first_position, 'last_position', stood.last_position, 'count', stood.count,
               'rows', coalesce((SELECT json_agg(json_build_object(
                           'position', position, 'turn', turn, 'run_id', run_id, 'append_id', append_id, 'type', type,
                           'role', role, 'call_id', call_id, 'created_at', created_at) ORDER BY position)
                         FROM removed), '[]'))
      FROM version, stood
    RETURNING version
), event AS (
    INSERT INTO {schema}events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
    SELECT :tenant_id, :session_id, session.last_event_id, 'history_replaced', CAST(:operation_id AS uuid), now(),
           json_build_object('version', kept.version, 'removed', (SELECT count(*) FROM removed),
                             'inserted', stood.count, 'last_position', session.last_position,
                             'item_count', session.item_count,
                             'append_ids', (SELECT json_agg(DISTINCT append_id) FROM removed))
      FROM session, kept, stood
    RETURNING payload
)"""

# Replace all items from a position on by others, if they still are what the caller has seen. No tool run changes: what
# was executed was executed.
REPLACE = (
    LOCKED
    + """, tail AS (
    SELECT count(*) AS count, coalesce(max(position), 0) AS last_position FROM {schema}items
     WHERE tenant_id = :tenant_id AND session_id = :session_id AND position >= :first_position
), agreed AS (
    SELECT FROM fresh, tail
     WHERE CAST(:expected_count AS bigint) IS NULL
        OR (tail.count, tail.last_position)
           = (CAST(:expected_count AS bigint), CAST(:expected_position AS bigint))
), removed AS (
    DELETE FROM {schema}items
     WHERE tenant_id = :tenant_id AND session_id = :session_id AND position >= :first_position
       AND EXISTS (SELECT FROM agreed)
    RETURNING *
), session AS (
    UPDATE {schema}sessions AS s
       SET last_position = s.last_position + :count,
           item_count = s.item_count + :count - (SELECT count(*) FROM removed),
           message_count = s.message_count + :messages - (SELECT count(*) FROM removed WHERE type = 'message'),
           turn_count = CAST(:turns AS bigint) + coalesce(
               (SELECT turn FROM {schema}items
                 WHERE tenant_id = :tenant_id AND session_id = :session_id AND position < :first_position
                 ORDER BY position DESC LIMIT 1), 0),
           status = CASE WHEN s.status = 'waiting' THEN 'active' ELSE s.status END,
           last_event_id = s.last_event_id + 1, updated_at = now()
      FROM agreed
     WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
    RETURNING s.last_position - CAST(:count AS bigint) AS position, s.turn_count - CAST(:turns AS bigint) AS turn,
              s.last_event_id, s.last_position, s.item_count
), stood AS (
    SELECT position + 1 AS first_position, last_position, CAST(:count AS bigint) AS count FROM session
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
)"""
    + _KEPT
    + TOLD
)

# Bring a history snapshot back: its items return to their own positions, and what stood for them goes. Nothing happens
# where that no longer stands there whole. Items after it move to the turns they would have had.
RESTORE = (
    LOCKED
    + """, snapshot AS (
    SELECT content, metadata, CAST(metadata ->> 'first_position' AS bigint) AS first_position,
           CAST(metadata ->> 'last_position' AS bigint) AS last_position,
           CAST(metadata ->> 'count' AS bigint) AS count
      FROM {schema}snapshots
     WHERE tenant_id = :tenant_id AND session_id = :session_id
       AND kind = 'history' AND version = CAST(:version AS bigint)
), brought AS (
    SELECT each.*
      FROM snapshot
     CROSS JOIN LATERAL ROWS FROM (
           json_array_elements(snapshot.content),
           json_to_recordset(snapshot.metadata -> 'rows') AS (
               position bigint, turn bigint, run_id text, append_id uuid, type text, role text, call_id text,
               created_at timestamptz))
           AS each (item, position, turn, run_id, append_id, type, role, call_id, created_at)
), agreed AS (
    SELECT snapshot.first_position, snapshot.last_position
      FROM fresh, snapshot
     WHERE snapshot.count = (SELECT count(*) FROM {schema}items
                              WHERE tenant_id = :tenant_id AND session_id = :session_id
                                AND position BETWEEN (SELECT first_position FROM snapshot)
                                                 AND (SELECT last_position FROM snapshot))
       AND NOT EXISTS (SELECT FROM {schema}items
                        WHERE tenant_id = :tenant_id AND session_id = :session_id
                          AND position IN (SELECT position FROM brought))
), removed AS (
    DELETE FROM {schema}items AS i
     USING agreed
     WHERE i.tenant_id = :tenant_id AND i.session_id = :session_id
       AND i.position BETWEEN agreed.first_position AND agreed.last_position
    RETURNING i.*
), shift AS (
    SELECT coalesce((SELECT max(turn) FROM brought), before.turn)
         - coalesce((SELECT max(turn) FROM removed), before.turn) AS turns
      FROM (SELECT coalesce((SELECT turn FROM {schema}items
                              WHERE tenant_id = :tenant_id AND session_id = :session_id
                                AND position < (SELECT least(min(brought.position),
                                                             (SELECT first_position FROM snapshot)) FROM brought)
                              ORDER BY position DESC LIMIT 1), 0) AS turn) AS before
), session AS (
    UPDATE {schema}sessions AS s
       SET item_count = s.item_count + (SELECT count(*) FROM brought) - (SELECT count(*) FROM removed),
           message_count = s.message_count + (SELECT count(*) FROM brought WHERE type = 'message')
                                           - (SELECT count(*) FROM removed WHERE type = 'message'),
           turn_count = s.turn_count + shift.turns,
           last_event_id = s.last_event_id + 1, updated_at = now()
      FROM agreed, shift
     WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
    RETURNING s.last_event_id, s.last_position, s.item_count
), stood AS (
    -- Where nothing comes back, that still stands somewhere.
    SELECT coalesce(min(brought.position), snapshot.first_position) AS first_position,
           coalesce(max(brought.position), snapshot.first_position - 1) AS last_position,
           count(brought.position) AS count
      FROM snapshot LEFT JOIN brought ON true
     GROUP BY snapshot.first_position
), moved AS (
    UPDATE {schema}items AS i SET turn = i.turn + shift.turns
      FROM agreed, shift
     WHERE i.tenant_id = :tenant_id AND i.session_id = :session_id AND i.position > agreed.last_position
       AND i.position > (SELECT last_position FROM stood) AND shift.turns <> 0
), inserted AS (
    INSERT INTO {schema}items (
        tenant_id, session_id, position, turn, run_id, append_id, type, role, call_id, created_at, item)
    SELECT :tenant_id, :session_id, brought.position, brought.turn, brought.run_id, brought.append_id, brought.type,
           brought.role, brought.call_id, brought.created_at, brought.item
      FROM session, brought
)"""
    + _KEPT.replace("FROM version, stood\n", "FROM version, stood, session\n")
    + """
SELECT EXISTS (SELECT FROM fresh) AS fresh, (SELECT CAST(payload AS text) FROM event) AS payload,
       EXISTS (SELECT FROM snapshot) AS found
  FROM locked
"""
)

# Copy a session up to a turn into another that is not there yet. The source is read in one snapshot and not locked. The
# copy keeps the positions, and its source's end unless told another; what its source has spent (runs, tokens) stays
# with the source.
FORK = """
WITH source AS (
    SELECT agent, user_id, metadata, cleared_through, expires_at FROM {schema}sessions
     WHERE tenant_id = :tenant_id AND session_id = :source_id AND (expires_at IS NULL OR expires_at > now())
), copied AS (
    SELECT * FROM {schema}items
     WHERE tenant_id = :tenant_id AND session_id = :source_id
       AND (CAST(:before_turn AS bigint) IS NULL OR turn < CAST(:before_turn AS bigint))
), reach AS (
    SELECT coalesce(max(position), 0) AS position, count(*) AS items, coalesce(max(turn), 0) AS turns,
           count(*) FILTER (WHERE type = 'message') AS messages
      FROM copied
), called AS (
    SELECT t.*, t.output_position <= reach.position AS answered
      FROM {schema}tool_runs t, reach
     WHERE t.tenant_id = :tenant_id AND t.session_id = :source_id
       -- One probe each: what a planner believes of the copy may be far off.
       AND EXISTS (SELECT FROM {schema}items i
                    WHERE i.tenant_id = :tenant_id AND i.session_id = :source_id AND i.position = t.call_position
                      AND (CAST(:before_turn AS bigint) IS NULL OR i.turn < CAST(:before_turn AS bigint)) OFFSET 0)
), session AS (
    INSERT INTO {schema}sessions AS s (
        tenant_id, session_id, agent, user_id, metadata, last_position, last_event_id, item_count, message_count,
        turn_count, tool_run_count, tool_error_count, forked_from, forked_through, forked_at, cleared_through,
        created_at, updated_at, active_at, expires_at)
    SELECT :tenant_id, :session_id, coalesce(CAST(:agent AS text), source.agent),
           coalesce(CAST(:user_id AS text), source.user_id),
           coalesce(CAST(CAST(:metadata AS text) AS jsonb), source.metadata),
           reach.position, 1, reach.items, reach.messages, reach.turns,
           (SELECT count(*) FROM called), (SELECT count(*) FROM called WHERE status = 'failed' AND answered),
           CAST(:source_id AS text), reach.position, now(), source.cleared_through, now(), now(), now(),
           coalesce(now() + make_interval(secs => CAST(:expires_after AS double precision)), source.expires_at)
      FROM source, reach
    ON CONFLICT (tenant_id, session_id) DO UPDATE SET
        agent = excluded.agent, user_id = excluded.user_id, metadata = excluded.metadata,
        last_position = excluded.last_position, last_event_id = 1, item_count = excluded.item_count,
        message_count = excluded.message_count, turn_count = excluded.turn_count,
        tool_run_count = excluded.tool_run_count, tool_error_count = excluded.tool_error_count,
        forked_from = excluded.forked_from, forked_through = excluded.forked_through, forked_at = excluded.forked_at,
        cleared_through = excluded.cleared_through, expires_at = excluded.expires_at,
        updated_at = excluded.updated_at, active_at = excluded.active_at
    -- Only the row that a fence leaves behind where no session is may be taken over.
    WHERE NOT CAST(:operation_id AS uuid) = ANY (s.fenced_ids) AND s.last_position = 0 AND s.last_event_id = 0
    RETURNING s.last_position
), items AS (
    INSERT INTO {schema}items (
        tenant_id, session_id, position, turn, run_id, append_id, type, role, call_id, created_at, item)
    SELECT :tenant_id, :session_id, position, turn, run_id, append_id, type, role, call_id, created_at, item
      FROM copied WHERE EXISTS (SELECT FROM session)
), tools AS (
    INSERT INTO {schema}tool_runs (
        tenant_id, session_id, call_position, output_position, call_id, tool_name, tool_type, agent, status, run_id,
        started_at, finished_at, error, arguments, created_at)
    SELECT :tenant_id, :session_id, call_position, CASE WHEN answered THEN output_position END, call_id, tool_name,
           tool_type, agent, CASE WHEN answered OR output_position IS NULL THEN status ELSE 'running' END, run_id,
           CASE WHEN answered THEN started_at END, CASE WHEN answered THEN finished_at END,
           CASE WHEN answered THEN error END, arguments, created_at
      FROM called WHERE EXISTS (SELECT FROM session)
), remembered AS (
    INSERT INTO {schema}snapshots (
        tenant_id, session_id, kind, version, through_position, label, created_at, content, metadata)
    SELECT :tenant_id, :session_id, n.kind, n.version, n.through_position, n.label, n.created_at, n.content,
           n.metadata
      FROM {schema}snapshots n, reach
     WHERE n.tenant_id = :tenant_id AND n.session_id = :source_id AND n.through_position <= reach.position
       AND n.kind NOT IN ('run_state', 'history') AND EXISTS (SELECT FROM session)
), event AS (
    INSERT INTO {schema}events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
    SELECT :tenant_id, :session_id, 1, 'session_forked', CAST(:operation_id AS uuid), now(),
           json_build_object('from', CAST(:source_id AS text), 'through_position', last_position,
                             'before_turn', CAST(:before_turn AS bigint))
      FROM session
    RETURNING payload
), locked AS (
    -- Who has that id by now, which the snapshot need not show: one that has expired makes way first.
    SELECT expires_at <= now() AS expired FROM {schema}sessions
     WHERE tenant_id = :tenant_id AND session_id = :session_id
       AND EXISTS (SELECT FROM source) AND NOT EXISTS (SELECT FROM session)
       FOR UPDATE
)
SELECT NOT EXISTS (SELECT FROM locked WHERE expired) AS fresh,
       EXISTS (SELECT FROM source) AS found, EXISTS (SELECT FROM session) AS created
"""

# Did the fork with this id take effect?
FORKED = """
SELECT true AS fresh, true AS found, true AS created FROM {schema}events
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND operation_id = CAST(:operation_id AS uuid)
"""
