"""One append on PostgreSQL: items and record in one statement, made of the parts it needs.

The session's row first: the upsert creates or locks it, hands out positions, the turn and event ids, and advances the
counters. Everything else inserts at what it returned. A try that is fenced, a guard that does not hold, or (where
outputs must find their calls) a snapshot older than the lock, or a session that has expired and makes way first: then
the first part touches nothing, and so does the rest.
"""

from __future__ import annotations

from functools import lru_cache

from agents_pg_session.entries import Entry

__all__ = ["append_sql"]

# Who the session is, before the wait for its lock: its row's version tells afterwards whether anybody got in between.
_SEEN = """seen AS (
    SELECT xmin FROM {schema}sessions WHERE tenant_id = :tenant_id AND session_id = :session_id
), """

# The call each output answers: the newest that still runs under its call id.
_ANSWERED = """answered AS (
    SELECT each.place, each.status, each.error, each.started_ago, each.finished_ago, call.call_position
      FROM unnest(CAST(:answer_places AS bigint[]), CAST(:answer_call_ids AS text[]), CAST(:answer_nths AS bigint[]),
                  CAST(:answer_statuses AS text[]), CAST(:answer_errors AS text[]),
                  CAST(:answer_started AS double precision[]), CAST(:answer_finished AS double precision[]))
           AS each (place, call_id, nth, status, error, started_ago, finished_ago)
     CROSS JOIN LATERAL (
           SELECT call_position FROM {schema}tool_runs t
            WHERE t.tenant_id = :tenant_id AND t.session_id = :session_id
              AND t.status = 'running' AND t.call_id = each.call_id
            ORDER BY call_position DESC LIMIT 1 OFFSET each.nth) AS call
), """

_SESSION = """session AS (
    INSERT INTO {schema}sessions AS s (
        tenant_id, session_id, agent, user_id, metadata, status, last_position, last_event_id,
        item_count, message_count, turn_count, tool_run_count, tool_error_count, input_tokens, output_tokens,
        created_at, updated_at, active_at, expires_at)
    SELECT :tenant_id, :session_id, coalesce(CAST(:agent AS text), CAST(:run_agent AS text)), CAST(:user_id AS text),
           coalesce(CAST(CAST(:metadata AS text) AS jsonb), '{}'), coalesce(CAST(:status AS text), 'active'),
           CAST(:count AS bigint), CAST(:events AS bigint),
           CAST(:count AS bigint), CAST(:messages AS bigint), CAST(:turns AS bigint), CAST(:tool_runs AS bigint),
           CAST(:tool_errors_count AS bigint), CAST(:input_tokens AS bigint), CAST(:output_tokens AS bigint),
           now(), now(), now(),
           now() + make_interval(secs => CAST(:expires_after AS double precision)){condition_where_absent}
    ON CONFLICT (tenant_id, session_id) DO UPDATE SET
        agent = coalesce(CAST(:agent AS text), CAST(:run_agent AS text), s.agent),
        user_id = coalesce(excluded.user_id, s.user_id),
        metadata = coalesce(CAST(CAST(:metadata AS text) AS jsonb), s.metadata),
        status = {status},
        ended_at = CASE WHEN coalesce(CAST(:status AS text), '') <> 'active' THEN s.ended_at END,
        last_position = s.last_position + excluded.last_position,
        last_event_id = s.last_event_id + excluded.last_event_id,
        item_count = s.item_count + excluded.item_count,
        message_count = s.message_count + excluded.message_count,
        turn_count = s.turn_count + excluded.turn_count,
        tool_run_count = s.tool_run_count + excluded.tool_run_count,
        tool_error_count = s.tool_error_count + excluded.tool_error_count{answered_errors},
        input_tokens = s.input_tokens + excluded.input_tokens,
        output_tokens = s.output_tokens + excluded.output_tokens,
        updated_at = excluded.updated_at,
        active_at = CASE WHEN excluded.turn_count > 0 THEN excluded.active_at ELSE s.active_at END,
        expires_at = coalesce(excluded.expires_at, s.expires_at)
    WHERE NOT CAST(:operation_id AS uuid) = ANY (s.fenced_ids)
      AND (s.expires_at IS NULL OR s.expires_at > excluded.updated_at){conditions}
    RETURNING s.last_position, s.item_count, s.turn_count,
              s.last_position - CAST(:count AS bigint) AS position, s.turn_count - CAST(:turns AS bigint) AS turn,
              s.last_event_id - CAST(:events AS bigint) AS event_id
)"""

# What the guard asks of the locked row.
_GUARDED = """
      AND (CAST(:guard_position AS bigint) IS NULL
           OR (s.last_position, s.item_count) = (CAST(:guard_position AS bigint), CAST(:guard_count AS bigint)))
      AND (CAST(:guard_lease AS uuid) IS NULL OR s.lease_id = CAST(:guard_lease AS uuid))"""
# Where outputs have to find their calls, the snapshot must show the present: nobody wrote while this waited. (The
# sub-select does not see the locked row but the one from before.)
_FRESH = """
      AND s.xmin = (SELECT xmin FROM seen)"""
# A run's last words say what the session waits for only if nobody has gone on since its last append.
_STATUS = "coalesce(CAST(:status AS text), s.status)"
_STATUS_AT = (
    "CASE WHEN CAST(:status_at AS bigint) IS NULL OR s.last_position = CAST(:status_at AS bigint)\n"
    f"                      THEN {_STATUS} ELSE s.status END"
)
# Without a row to lock, only a guard that expects nothing holds; and a run that only says its last words makes none.
# (Locked while looking: a delete that this waits for takes the row that the snapshot still shows.)
_ABSENT = """
     WHERE (CAST(:count AS bigint) > 0 AND coalesce(CAST(:guard_position AS bigint), 0) = 0
            AND CAST(:guard_lease AS uuid) IS NULL)
        OR EXISTS (SELECT FROM {schema}sessions WHERE tenant_id = :tenant_id AND session_id = :session_id
                      FOR UPDATE)"""

# The items travel as one JSON array, whose elements come out verbatim; as text, because an engine may have a JSON codec
# of its own.
_ITEMS = """, inserted AS (
    INSERT INTO {schema}items (
        tenant_id, session_id, position, turn, run_id, append_id, type, role, call_id, created_at, item)
    SELECT :tenant_id, :session_id, session.position + each.ordinality, session.turn + each.turn,
           CAST(:run_id AS text), CAST(:operation_id AS uuid), each.type, each.role, each.call_id, now(), each.item
      FROM session,
           ROWS FROM (json_array_elements(CAST(CAST(:items AS text) AS json)),
                      unnest(CAST(:types AS text[])), unnest(CAST(:roles AS text[])),
                      unnest(CAST(:call_ids AS text[])), unnest(CAST(:turn_offsets AS bigint[])))
           WITH ORDINALITY AS each (item, type, role, call_id, turn, ordinality)
)"""

# Calls, with their outputs where the same append brings them. An end that nobody measured is the time it was stored.
_TOOL_RUNS = """, called AS (
    INSERT INTO {schema}tool_runs (
        tenant_id, session_id, call_position, output_position, call_id, tool_name, tool_type, agent, status, run_id,
        started_at, finished_at, error, arguments, created_at)
    SELECT :tenant_id, :session_id, session.position + each.place, session.position + each.output_place,
           each.call_id, each.tool_name, each.tool_type, each.agent, each.status, CAST(:run_id AS text),
           now() - make_interval(secs => each.started_ago),
           CASE WHEN each.status <> 'running' THEN now() - make_interval(secs => coalesce(each.finished_ago, 0)) END,
           each.error, CASE WHEN CAST(each.arguments AS text) <> 'null' THEN each.arguments END, now()
      FROM session,
           ROWS FROM (json_array_elements(CAST(CAST(:tool_arguments AS text) AS json)),
                      unnest(CAST(:tool_places AS bigint[])), unnest(CAST(:tool_output_places AS bigint[])),
                      unnest(CAST(:tool_call_ids AS text[])), unnest(CAST(:tool_names AS text[])),
                      unnest(CAST(:tool_types AS text[])), unnest(CAST(:tool_agents AS text[])),
                      unnest(CAST(:tool_statuses AS text[])), unnest(CAST(:tool_errors AS text[])),
                      unnest(CAST(:tool_started AS double precision[])),
                      unnest(CAST(:tool_finished AS double precision[])))
           AS each (arguments, place, output_place, call_id, tool_name, tool_type, agent, status, error,
                    started_ago, finished_ago)
)"""

# Outputs of calls that earlier appends brought.
_FINISHED = """, finished AS (
    UPDATE {schema}tool_runs AS t
       SET output_position = session.position + answered.place, status = answered.status, error = answered.error,
           started_at = coalesce(now() - make_interval(secs => answered.started_ago), t.started_at),
           finished_at = now() - make_interval(secs => coalesce(answered.finished_ago, 0))
      FROM session, answered
     WHERE t.tenant_id = :tenant_id AND t.session_id = :session_id AND t.call_position = answered.call_position
       -- Said once more, for a planner that believes sessions to be short.
       AND t.call_position = ANY (ARRAY(SELECT call_position FROM answered))
)"""

# The run: begun by its first append, then what it used since.
_RUN = """, run AS (
    INSERT INTO {schema}runs AS r (
        tenant_id, session_id, run_id, status, agent, trace_id, requests, input_tokens, cached_tokens, output_tokens,
        reasoning_tokens, total_tokens, started_at, last_seen_at, finished_at, error, usage_details, turn,
        model_seconds)
    SELECT :tenant_id, :session_id, CAST(:run_id AS text), CAST(:run_status AS text), CAST(:run_agent AS text),
           CAST(:trace_id AS text), CAST(:requests AS bigint), CAST(:input_tokens AS bigint),
           CAST(:cached_tokens AS bigint), CAST(:output_tokens AS bigint), CAST(:reasoning_tokens AS bigint),
           CAST(:total_tokens AS bigint), now() - make_interval(secs => CAST(:run_started AS double precision)), now(),
           now() - make_interval(secs => CAST(:run_finished AS double precision)), CAST(:run_error AS text),
           CAST(CAST(:usage_details AS text) AS json), session.turn_count, CAST(:model_seconds AS double precision)
      FROM session
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
)"""

# What happened beside the items.
_EVENTS = """, noted AS (
    INSERT INTO {schema}events (
        tenant_id, session_id, event_id, kind, run_id, agent, operation_id, created_at, payload)
    SELECT :tenant_id, :session_id, session.event_id + each.ordinality, each.kind, each.run_id, each.agent,
           CAST(:operation_id AS uuid), now(),
           CASE WHEN CAST(each.payload AS text) <> 'null' THEN each.payload END
      FROM session,
           ROWS FROM (json_array_elements(CAST(CAST(:payloads AS text) AS json)),
                      unnest(CAST(:kinds AS text[])), unnest(CAST(:event_run_ids AS text[])),
                      unnest(CAST(:event_agents AS text[])))
           WITH ORDINALITY AS each (payload, kind, run_id, agent, ordinality)
)"""

_ANSWER = """
SELECT position, last_position, item_count FROM session
"""


def append_sql(entry: Entry) -> str:
    """Return the statement for an entry: the session's part, and a part for each kind of row it brings."""
    parts = (entry.batch.rows, entry.tool_runs, entry.answers, entry.report, entry.notes)
    return _composed(entry.conditional, *map(bool, parts))


@lru_cache(maxsize=64)
def _composed(guarded: bool, items: bool, tool_runs: bool, answers: bool, run: bool, events: bool) -> str:
    # Only where the row is still there: a delete takes the calls along that the snapshot still shows.
    errors = "\n            + (SELECT count(*) FROM answered WHERE status = 'failed')" if answers else ""
    session = (
        _SESSION.replace("{answered_errors}", errors)
        .replace("{status}", _STATUS_AT if guarded else _STATUS)
        .replace("{condition_where_absent}", _ABSENT if guarded else "")
        .replace("{conditions}", (_GUARDED if guarded else "") + (_FRESH if answers else ""))
    )
    return (
        "\nWITH "
        + (_SEEN + _ANSWERED if answers else "")
        + session
        + (_ITEMS if items else "")
        + (_TOOL_RUNS if tool_runs else "")
        + (_FINISHED if answers else "")
        + (_RUN if run else "")
        + (_EVENTS if events else "")
        + _ANSWER
    )
