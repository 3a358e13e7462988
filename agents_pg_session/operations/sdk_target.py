"""Writing what was imported into our tables, many rows of many sessions in a statement each.

The session's row comes first, as in an append: it is the lock. Its counters are written as they will be when all of
this transaction is in, and nobody sees them before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from agents_pg_session.operations.sdk_marks import MARK
from agents_pg_session.operations.sdk_rows import Batch
from agents_pg_session.statements import clause, quoted_prefix
from agents_pg_session.statements.sqlite.words import NOW

__all__ = ["Raced", "Target"]

Row = dict[str, Any]


class Raced(Exception):
    """Somebody else created one of these sessions meanwhile; nothing was written, look again."""


def _each(**types: str) -> str:
    """Return the rows that lists of values make, one list per column. JSON comes as one array and out verbatim."""
    columns = [
        f"json_array_elements(CAST(CAST(:{name} AS text) AS json))"
        if kind == "json"
        else f"unnest(CAST(:{name} AS {kind}[]))"
        for name, kind in types.items()
    ]
    return f"ROWS FROM ({', '.join(columns)}) AS each ({', '.join(types)})"


# What is here of the sessions that come: their counters, and how far they were imported before. {lock} keeps other
# writers away until the import of these is in.
_STATES = """
SELECT s.session_id, s.last_position, s.last_event_id, s.item_count, s.message_count, s.turn_count, s.tool_run_count,
       s.tool_error_count, s.input_tokens, s.output_tokens, s.active_at,
       (SELECT CAST(e.payload AS text) FROM {schema}events e
         WHERE e.tenant_id = s.tenant_id AND e.session_id = s.session_id AND e.kind = '{mark}'
         ORDER BY e.event_id DESC LIMIT 1) AS mark
  FROM {schema}sessions s
 WHERE s.tenant_id = :tenant_id AND s.session_id {among}
 ORDER BY s.session_id{lock}
"""

# The calls of a session that wait for their outputs.
_RUNNING = """
SELECT call_position, call_id, tool_name FROM {schema}tool_runs
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND status = 'running'
 ORDER BY call_position
"""

_COUNTERS = """last_position = {from}.last_position, last_event_id = {from}.last_event_id,
       item_count = {from}.item_count, message_count = {from}.message_count, turn_count = {from}.turn_count,
       tool_run_count = {from}.tool_run_count, tool_error_count = {from}.tool_error_count,
       input_tokens = {from}.input_tokens, output_tokens = {from}.output_tokens,
       forked_through = coalesce({from}.forked_through, s.forked_through),
       active_at = {active_at}"""

# Sessions that are new here; a row that nobody has written to yet (a fence, a lease) is taken over.
_NEW_SESSIONS = """
INSERT INTO {schema}sessions AS s (
    tenant_id, session_id, user_id, last_position, last_event_id, item_count, message_count, turn_count,
    tool_run_count, tool_error_count, input_tokens, output_tokens, forked_from, forked_through, forked_at,
    created_at, updated_at, active_at)
{values}
ON CONFLICT (tenant_id, session_id) DO UPDATE SET
       {counters}, user_id = coalesce(excluded.user_id, s.user_id),
       forked_from = excluded.forked_from, forked_at = excluded.forked_at, created_at = excluded.created_at,
       updated_at = excluded.updated_at
 WHERE s.last_position = 0 AND s.last_event_id = 0
RETURNING s.session_id
"""

_SESSION_TYPES = {
    "session_id": "text",
    "user_id": "text",
    **dict.fromkeys(
        (
            "last_position",
            "last_event_id",
            "item_count",
            "message_count",
            "turn_count",
            "tool_run_count",
            "tool_error_count",
            "input_tokens",
            "output_tokens",
        ),
        "bigint",
    ),
    "forked_from": "text",
    "forked_through": "bigint",
    "forked_at": "timestamptz",
    "created_at": "timestamptz",
    "updated_at": "timestamptz",
    "active_at": "timestamptz",
}

_NEW_ON_POSTGRES = _NEW_SESSIONS.replace(
    "{values}",
    f"""SELECT :tenant_id, each.session_id, each.user_id, each.last_position, each.last_event_id, each.item_count,
       each.message_count, each.turn_count, each.tool_run_count, each.tool_error_count, each.input_tokens,
       each.output_tokens, each.forked_from, each.forked_through, each.forked_at, coalesce(each.created_at, now()),
       coalesce(each.updated_at, now()), coalesce(each.active_at, now())
  FROM {_each(**_SESSION_TYPES)}""",
).replace("{counters}", _COUNTERS.replace("{from}", "excluded").replace("{active_at}", "excluded.active_at"))

_NEW_ON_SQLITE = _NEW_SESSIONS.replace(
    "{values}",
    f"""VALUES (:tenant_id, :session_id, :user_id, :last_position, :last_event_id, :item_count, :message_count,
        :turn_count, :tool_run_count, :tool_error_count, :input_tokens, :output_tokens, :forked_from,
        :forked_through, :forked_at, coalesce(:created_at, {NOW}), coalesce(:updated_at, {NOW}),
        coalesce(:active_at, {NOW}))""",
).replace("{counters}", _COUNTERS.replace("{from}", "excluded").replace("{active_at}", "excluded.active_at"))

# Sessions that were imported before, or of which this transaction has written the beginning; their rows are locked.
_KNOWN_ON_POSTGRES = f"""
UPDATE {{schema}}sessions AS s
   SET {_COUNTERS.replace("{from}", "each").replace("{active_at}", "coalesce(each.active_at, s.active_at)")},
       updated_at = greatest(s.updated_at, each.updated_at)
  FROM {_each(**_SESSION_TYPES)}
 WHERE s.tenant_id = :tenant_id AND s.session_id = each.session_id
"""

_KNOWN_ON_SQLITE = """
UPDATE sessions
   SET last_position = :last_position, last_event_id = :last_event_id, item_count = :item_count,
       message_count = :message_count, turn_count = :turn_count, tool_run_count = :tool_run_count,
       tool_error_count = :tool_error_count, input_tokens = :input_tokens, output_tokens = :output_tokens,
       forked_through = coalesce(:forked_through, forked_through), active_at = coalesce(:active_at, active_at),
       updated_at = max(updated_at, coalesce(:updated_at, updated_at))
 WHERE tenant_id = :tenant_id AND session_id = :session_id
"""

_ITEM_COLUMNS = "position, turn, run_id, append_id, type, role, call_id, created_at, item"
_TOOL_RUN_COLUMNS = """call_position, output_position, call_id, tool_name, tool_type, status, run_id, finished_at,
    error, created_at, arguments"""
_EVENT_COLUMNS = "event_id, kind, run_id, created_at, payload"
_RUN_COLUMNS = """run_id, status, requests, input_tokens, cached_tokens, output_tokens, reasoning_tokens, total_tokens,
    turn, started_at, last_seen_at, finished_at"""

# A turn of the source is one run; what it cost may have been told after its items were imported.
_RUN_AGAIN = """
ON CONFLICT (tenant_id, session_id, run_id) DO UPDATE SET
    requests = excluded.requests, input_tokens = excluded.input_tokens, cached_tokens = excluded.cached_tokens,
    output_tokens = excluded.output_tokens, reasoning_tokens = excluded.reasoning_tokens,
    total_tokens = excluded.total_tokens, last_seen_at = excluded.last_seen_at, finished_at = excluded.finished_at
"""

_COUNTS = ("requests", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "total_tokens", "turn")

_ITEMS_ON_POSTGRES = f"""
INSERT INTO {{schema}}items (tenant_id, session_id, {_ITEM_COLUMNS})
SELECT :tenant_id, each.session_id, each.position, each.turn, each.run_id, each.append_id, each.type, each.role,
       each.call_id, coalesce(each.created_at, now()), each.item
  FROM {
    _each(
        session_id="text",
        position="bigint",
        turn="bigint",
        run_id="text",
        append_id="uuid",
        type="text",
        role="text",
        call_id="text",
        created_at="timestamptz",
        item="json",
    )
}
"""

_TOOL_RUNS_ON_POSTGRES = f"""
INSERT INTO {{schema}}tool_runs (tenant_id, session_id, {_TOOL_RUN_COLUMNS})
SELECT :tenant_id, each.session_id, each.call_position, each.output_position, each.call_id, each.tool_name,
       each.tool_type, each.status, each.run_id, each.finished_at, each.error, coalesce(each.created_at, now()),
       CASE WHEN CAST(each.arguments AS text) <> 'null' THEN each.arguments END
  FROM {
    _each(
        session_id="text",
        call_position="bigint",
        output_position="bigint",
        call_id="text",
        tool_name="text",
        tool_type="text",
        status="text",
        run_id="text",
        finished_at="timestamptz",
        error="text",
        created_at="timestamptz",
        arguments="json",
    )
}
"""

_EVENTS_ON_POSTGRES = f"""
INSERT INTO {{schema}}events (tenant_id, session_id, {_EVENT_COLUMNS})
SELECT :tenant_id, each.session_id, each.event_id, each.kind, each.run_id, coalesce(each.created_at, now()),
       CASE WHEN CAST(each.payload AS text) <> 'null' THEN each.payload END
  FROM {
    _each(session_id="text", event_id="bigint", kind="text", run_id="text", created_at="timestamptz", payload="json")
}
"""

_RUNS_ON_POSTGRES = (
    f"""
INSERT INTO {{schema}}runs (tenant_id, session_id, {_RUN_COLUMNS})
SELECT :tenant_id, each.session_id, each.run_id, 'completed', each.requests, each.input_tokens, each.cached_tokens,
       each.output_tokens, each.reasoning_tokens, each.total_tokens, each.turn, coalesce(each.started_at, now()),
       coalesce(each.finished_at, now()), each.finished_at
  FROM {
        _each(
            session_id="text",
            run_id="text",
            **dict.fromkeys(_COUNTS, "bigint"),
            started_at="timestamptz",
            finished_at="timestamptz",
        )
    }"""
    + _RUN_AGAIN
)

# Outputs of calls that are here already.
_ANSWERS_ON_POSTGRES = f"""
UPDATE {{schema}}tool_runs AS t
   SET output_position = each.output_position, status = each.status, error = each.error,
       finished_at = coalesce(each.finished_at, now())
  FROM {
    _each(
        session_id="text",
        call_position="bigint",
        output_position="bigint",
        status="text",
        error="text",
        finished_at="timestamptz",
    )
}
 WHERE t.tenant_id = :tenant_id AND t.session_id = each.session_id AND t.call_position = each.call_position
"""

_ITEMS_ON_SQLITE = f"""
INSERT INTO items (tenant_id, session_id, {_ITEM_COLUMNS})
VALUES (:tenant_id, :session_id, :position, :turn, :run_id, :append_id, :type, :role, :call_id,
        coalesce(:created_at, {NOW}), :item)
"""

_TOOL_RUNS_ON_SQLITE = f"""
INSERT INTO tool_runs (tenant_id, session_id, {_TOOL_RUN_COLUMNS})
VALUES (:tenant_id, :session_id, :call_position, :output_position, :call_id, :tool_name, :tool_type, :status, :run_id,
        :finished_at, :error, coalesce(:created_at, {NOW}), :arguments)
"""

_EVENTS_ON_SQLITE = f"""
INSERT INTO events (tenant_id, session_id, {_EVENT_COLUMNS})
VALUES (:tenant_id, :session_id, :event_id, :kind, :run_id, coalesce(:created_at, {NOW}), :payload)
"""

_RUNS_ON_SQLITE = (
    f"""
INSERT INTO runs (tenant_id, session_id, {_RUN_COLUMNS})
VALUES (:tenant_id, :session_id, :run_id, 'completed', :requests, :input_tokens, :cached_tokens, :output_tokens,
        :reasoning_tokens, :total_tokens, :turn, coalesce(:started_at, {NOW}), coalesce(:finished_at, {NOW}),
        :finished_at)"""
    + _RUN_AGAIN
)

_ANSWERS_ON_SQLITE = f"""
UPDATE tool_runs
   SET output_position = :output_position, status = :status, error = :error,
       finished_at = coalesce(:finished_at, {NOW})
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND call_position = :call_position
"""

_JSON = frozenset({"item", "arguments", "payload"})
_TIMES = frozenset({"created_at", "updated_at", "active_at", "started_at", "finished_at", "forked_at"})


class Target:
    """Our tables for one tenant, through a connection that is in a transaction."""

    def __init__(self, schema: str | None, tenant_id: str) -> None:
        self._postgres = schema is not None
        self._prefix = quoted_prefix(schema)
        self._tenant_id = tenant_id

    def states(self, connection: Connection, session_ids: Sequence[str], *, lock: bool) -> dict[str, Any]:
        """Return what is here of these sessions, and keep them as they are until the transaction ends."""
        if not self._postgres:
            # A list cannot be bound, and SQLite has one lock for all: the transaction holds it.
            sql = _STATES.replace("{among}", "= :session_id").replace("{lock}", "")
            found = [row for each in session_ids for row in self._run(connection, sql, {"session_id": each})]
        else:
            among = "= ANY (CAST(:session_ids AS text[]))"
            locked = "\n   FOR NO KEY UPDATE OF s" if lock else ""
            sql = _STATES.replace("{among}", among).replace("{lock}", locked)
            found = list(self._run(connection, sql, {"session_ids": list(session_ids)}))
        return {row.session_id: row for row in found}

    def running(self, connection: Connection, session_id: str) -> list[Any]:
        """Return the calls of a session that wait for their outputs, oldest first."""
        return list(self._run(connection, _RUNNING, {"session_id": session_id}))

    def write(self, connection: Connection, batch: Batch, new: Sequence[Row], known: Sequence[Row]) -> None:
        """Write the rows of *batch* and the rows of its sessions. Raises `Raced` where a new one is there by now."""
        if self._postgres:
            if new and len(self._insert(connection, _NEW_ON_POSTGRES, new)) < len(new):
                raise Raced
            self._insert(connection, _KNOWN_ON_POSTGRES, known)
            self._insert(connection, _ITEMS_ON_POSTGRES, batch.items)
            self._insert(connection, _TOOL_RUNS_ON_POSTGRES, list(batch.tool_runs.values()))
            self._insert(connection, _ANSWERS_ON_POSTGRES, batch.answers)
            self._insert(connection, _RUNS_ON_POSTGRES, batch.runs)
            self._insert(connection, _EVENTS_ON_POSTGRES, batch.events)
            return
        self._each(connection, _NEW_ON_SQLITE.replace("RETURNING s.session_id", ""), new)
        self._each(connection, _KNOWN_ON_SQLITE, known)
        self._each(connection, _ITEMS_ON_SQLITE, batch.items)
        self._each(connection, _TOOL_RUNS_ON_SQLITE, batch.tool_runs.values())
        self._each(connection, _ANSWERS_ON_SQLITE, batch.answers)
        self._each(connection, _RUNS_ON_SQLITE, batch.runs)
        self._each(connection, _EVENTS_ON_SQLITE, batch.events)

    def _insert(self, connection: Connection, sql: str, rows: Sequence[Row]) -> Any:
        if not rows:
            return ()
        values: dict[str, Any] = {name: _column(name, rows) for name in rows[0]}
        return self._run(connection, sql, values)

    def _each(self, connection: Connection, sql: str, rows: Iterable[Row]) -> None:
        if many := [_for_sqlite(row) for row in rows]:
            connection.execute(clause(sql.replace("{schema}", "")), many)

    def _run(self, connection: Connection, sql: str, values: Mapping[str, Any]) -> Any:
        text = sql.replace("{schema}", self._prefix).replace("{mark}", MARK)
        result = connection.execute(clause(text), {**values, "tenant_id": self._tenant_id})
        return result.all() if result.returns_rows else ()


def _column(name: str, rows: Sequence[Row]) -> Any:
    """Return one column of the rows as PostgreSQL is given it."""
    if name in _JSON:
        return f"[{','.join(row[name] or 'null' for row in rows)}]"
    return [row[name] for row in rows]


def _for_sqlite(row: Row) -> Row:
    return {name: _text(value) if name in _TIMES else value for name, value in row.items()}


def _text(moment: datetime | None) -> str | None:
    """Return a time as all of ours are written on SQLite: UTC, with milliseconds."""
    if moment is None:
        return None
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}"
