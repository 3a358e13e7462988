"""The story of the tables.

A **session** is one conversation. Its row is the control plane: whoever writes to the session locks this row first,
takes the next positions from `last_position` and advances the counters, so the row always says what the session is
now without reading anything else.

**Items** are what the Agents SDK stores: one row per input item, verbatim as `json`, in the order of `position`.
Positions are handed out under the session row's lock, without gaps and never twice; a popped position stays empty.

A **run** is one `Runner.run`, a **tool run** one execution of a tool call, an **event** one thing that happened beside
the items, a **snapshot** one version of remembered state. They are written in the same statement as the items.

Every table begins with `(tenant_id, session_id)`: it is the key, the tenant boundary, the shard key and the partition
key at once. Both are compared by bytes (`COLLATE "C"`), so an index never depends on a locale.

This module is what `create_tables` creates; `alembic/versions` arrives at the same catalog step by step, and a test
compares the two object by object.
"""

from __future__ import annotations

from functools import lru_cache

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import TypeEngine

__all__ = ["SUPPORT_VIEW", "TABLES", "VERSION_TABLE", "VIEWS", "metadata_for", "storage_statements", "view_statements"]

#: Where Alembic keeps the revision, inside our schema: an application's own `alembic_version` is never touched.
VERSION_TABLE = "agents_pg_session_version"

#: The view that tells code older than the database whether it may work there.
SUPPORT_VIEW = "agents_pg_session_support"

TABLES = ("sessions", "items", "tool_runs", "runs", "events", "snapshots")
VIEWS = (
    "agent_current_state",
    "session_summary",
    "agent_task_progress",
    "tool_run_details",
    SUPPORT_VIEW,
)

_NAMING = {
    "pk": "pk_%(table_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_sessions",
}

_BYTES = Text().with_variant(Text(collation="C"), "postgresql")
_UUID = Uuid(as_uuid=False).with_variant(Text(), "sqlite")
_UUIDS = ARRAY(Uuid(as_uuid=False)).with_variant(Text(), "sqlite")
# Text on SQLite: a column called JSON is numeric there, and would turn the text 1.0 into 1.
_JSON = JSON().with_variant(Text(), "sqlite")
_JSONB = JSONB().with_variant(Text(), "sqlite")  # jsonb only where we search inside: the session's metadata
_TIME = DateTime(timezone=True)


@lru_cache(maxsize=64)
def metadata_for(schema: str | None) -> MetaData:
    """Return the six tables in *schema*; None is for SQLite, which has no schemas."""
    metadata = MetaData(schema=schema, naming_convention=_NAMING)
    sessions = _sessions(metadata)
    for table in (_items, _tool_runs, _runs, _events, _snapshots):
        table(metadata, sessions)
    return metadata


def _key() -> tuple[Column[str], Column[str]]:
    return Column("tenant_id", _BYTES, nullable=False), Column("session_id", _BYTES, nullable=False)


def _primary_key(*more: str) -> PrimaryKeyConstraint:
    return PrimaryKeyConstraint("tenant_id", "session_id", *more)


def _of_session(sessions: Table) -> ForeignKeyConstraint:
    """The columns themselves, not their names: SQLAlchemy 2.0 would take a name apart at the dot in a schema's."""
    key = ("tenant_id", "session_id")
    return ForeignKeyConstraint(key, [sessions.c[column] for column in key], ondelete="CASCADE")


def _count(name: str, kind: type[TypeEngine[int]] = BigInteger) -> Column[int]:
    return Column(name, kind, nullable=False, server_default=text("0"))


def _time(name: str) -> Column[object]:
    """A time the database writes itself; `func.now()` so that each dialect renders its own form."""
    return Column(name, _TIME, nullable=False, server_default=func.now())


def _sessions(metadata: MetaData) -> Table:
    return Table(
        "sessions",
        metadata,
        *_key(),
        Column("agent", Text),
        Column("user_id", Text),
        Column("status", Text, nullable=False, server_default=text("'active'")),
        _count("last_position"),
        _count("last_event_id"),
        _count("item_count"),
        _count("message_count"),
        _count("turn_count"),
        _count("tool_run_count"),
        _count("tool_error_count"),
        _count("input_tokens"),
        _count("output_tokens"),
        Column("forked_from", Text),
        Column("forked_through", BigInteger),
        Column("forked_at", _TIME),
        Column("expires_at", _TIME),
        _time("created_at"),
        _time("updated_at"),
        _time("active_at"),
        Column("ended_at", _TIME),
        Column("fenced_ids", _UUIDS, nullable=False, server_default=text("'{}'")),
        Column("metadata", _JSONB, nullable=False, server_default=text("'{}'")),
        # Who runs alone, if anybody asked for that, and until when without another heartbeat.
        Column("lease_id", _UUID),
        Column("lease_until", _TIME),
        # The last position that a clear took out: what summaries say of it is over.
        Column("cleared_through", BigInteger),
        _primary_key(),
        # Lists of sessions, newest activity first. Only an append that starts a turn changes an indexed column.
        Index("ix_sessions_active", "tenant_id", "active_at", "session_id"),
        Index("ix_sessions_agent", "tenant_id", "agent", "active_at", "session_id"),
        Index("ix_sessions_user", "tenant_id", "user_id", "active_at", "session_id"),
        Index("ix_sessions_status", "tenant_id", "status", "active_at", "session_id"),
        CheckConstraint(
            "item_count >= 0 AND message_count >= 0 AND turn_count >= 0 AND last_position >= item_count",
            name="counts",
        ),
    )


def _items(metadata: MetaData, sessions: Table) -> Table:
    return Table(
        "items",
        metadata,
        *_key(),
        Column("position", BigInteger, nullable=False),
        Column("turn", BigInteger, nullable=False, server_default=text("0")),
        Column("run_id", Text),
        Column("append_id", _UUID, nullable=False),
        Column("type", Text),
        Column("role", Text),
        Column("call_id", Text),
        _time("created_at"),
        Column("item", _JSON, nullable=False),
        _primary_key("position"),
        _of_session(sessions),
        CheckConstraint("position > 0", name="position"),
    )


def _tool_runs(metadata: MetaData, sessions: Table) -> Table:
    return Table(
        "tool_runs",
        metadata,
        *_key(),
        Column("call_position", BigInteger, nullable=False),
        Column("output_position", BigInteger),
        Column("call_id", Text),
        Column("tool_name", Text),
        Column("tool_type", Text, nullable=False),
        Column("agent", Text),
        Column("status", Text, nullable=False, server_default=text("'running'")),
        Column("run_id", Text),
        Column("started_at", _TIME),
        Column("finished_at", _TIME),
        Column("error", Text),
        Column("arguments", _JSON),
        _time("created_at"),
        # Not the call id: some providers use the same one again within a conversation.
        _primary_key("call_position"),
        _of_session(sessions),
        CheckConstraint("status IN ('running', 'succeeded', 'failed', 'rejected')", name="status"),
        Index(
            "ix_tool_runs_running",
            "tenant_id",
            "session_id",
            "call_position",
            postgresql_where=text("status = 'running'"),
            sqlite_where=text("status = 'running'"),
        ),
        # Across sessions, newest first: all of them, those of one tool, and the few that did not succeed.
        Index("ix_tool_runs_recent", "tenant_id", "created_at", "session_id", "call_position"),
        Index("ix_tool_runs_named", "tenant_id", "tool_name", "created_at", "session_id", "call_position"),
        Index(
            "ix_tool_runs_troubled",
            "tenant_id",
            "status",
            "created_at",
            "session_id",
            "call_position",
            postgresql_where=text("status <> 'succeeded'"),
            sqlite_where=text("status <> 'succeeded'"),
        ),
    )


def _runs(metadata: MetaData, sessions: Table) -> Table:
    return Table(
        "runs",
        metadata,
        *_key(),
        Column("run_id", Text, nullable=False),
        Column("status", Text, nullable=False, server_default=text("'running'")),
        Column("agent", Text),
        Column("trace_id", Text),
        _count("requests"),
        _count("input_tokens"),
        _count("cached_tokens"),
        _count("output_tokens"),
        _count("reasoning_tokens"),
        _count("total_tokens"),
        _time("started_at"),
        _time("last_seen_at"),
        Column("finished_at", _TIME),
        Column("error", Text),
        Column("usage_details", _JSON),
        _count("turn"),
        Column("model_seconds", Double, nullable=False, server_default=text("0")),
        _primary_key("run_id"),
        _of_session(sessions),
        Index("ix_runs_session", "tenant_id", "session_id", "started_at", "run_id"),
        Index("ix_runs_recent", "tenant_id", "started_at"),
        CheckConstraint("status IN ('running', 'completed', 'failed', 'interrupted', 'cancelled')", name="status"),
    )


def _events(metadata: MetaData, sessions: Table) -> Table:
    return Table(
        "events",
        metadata,
        *_key(),
        # Counts from 1 per session, under the session row's lock: a reader's cursor never skips a late commit.
        Column("event_id", BigInteger, nullable=False),
        Column("kind", Text, nullable=False),
        Column("run_id", Text),
        Column("agent", Text),
        # The call that wrote the event: how a retry finds out that the first try took effect.
        Column("operation_id", _UUID),
        _time("created_at"),
        Column("payload", _JSON),
        _primary_key("event_id"),
        _of_session(sessions),
    )


def _snapshots(metadata: MetaData, sessions: Table) -> Table:
    return Table(
        "snapshots",
        metadata,
        *_key(),
        Column("kind", _BYTES, nullable=False),
        Column("version", Integer, nullable=False),
        Column("through_position", BigInteger),
        Column("label", Text),
        Column("claimed_at", _TIME),
        Column("claimed_by", Text),
        _time("created_at"),
        Column("content", _JSON, nullable=False),
        Column("metadata", _JSON),
        Column("claimed_until", _TIME),
        _primary_key("kind", "version"),
        _of_session(sessions),
        CheckConstraint("version > 0", name="version"),
    )


_VIEWS = {
    # Per session: which agent has it, what it did last, and when.
    "agent_current_state": """
        SELECT s.tenant_id, s.session_id, s.agent, s.status, s.turn_count,
               (SELECT e.kind FROM {events} e
                 WHERE e.tenant_id = s.tenant_id AND e.session_id = s.session_id
                 ORDER BY e.event_id DESC LIMIT 1) AS last_event,
               (SELECT e.created_at FROM {events} e
                 WHERE e.tenant_id = s.tenant_id AND e.session_id = s.session_id
                 ORDER BY e.event_id DESC LIMIT 1) AS last_event_at,
               (SELECT i.type FROM {items} i
                 WHERE i.tenant_id = s.tenant_id AND i.session_id = s.session_id
                 ORDER BY i.position DESC LIMIT 1) AS last_item,
               (SELECT i.created_at FROM {items} i
                 WHERE i.tenant_id = s.tenant_id AND i.session_id = s.session_id
                 ORDER BY i.position DESC LIMIT 1) AS last_item_at,
               s.active_at, s.updated_at
          FROM {sessions} s""",
    # Per session: how much happened, how often it went wrong, how long it took, what it cost.
    "session_summary": """
        SELECT s.tenant_id, s.session_id, s.agent, s.user_id, s.status,
               s.last_event_id AS event_count, s.item_count, s.message_count, s.turn_count,
               s.tool_run_count, s.tool_error_count,
               {duration} AS duration_seconds,
               s.input_tokens, s.output_tokens, s.input_tokens + s.output_tokens AS total_tokens,
               s.created_at, s.updated_at, s.ended_at
          FROM {sessions} s""",
    # Per session: how far the agent is in its task, and what it is doing right now.
    "agent_task_progress": """
        SELECT s.tenant_id, s.session_id, s.agent, s.status, s.turn_count, s.tool_run_count,
               s.tool_error_count,
               (SELECT count(*) FROM {tool_runs} t
                 WHERE t.tenant_id = s.tenant_id AND t.session_id = s.session_id
                   AND t.status = 'running') AS tool_running_count,
               (SELECT t.tool_name FROM {tool_runs} t
                 WHERE t.tenant_id = s.tenant_id AND t.session_id = s.session_id
                   AND t.status = 'running'
                 ORDER BY t.call_position DESC LIMIT 1) AS running_tool,
               s.active_at, s.updated_at, s.ended_at
          FROM {sessions} s""",
    # Per tool run: what it was asked, what it answered, and how long that took.
    "tool_run_details": """
        SELECT t.tenant_id, t.session_id, t.call_position, t.output_position, t.call_id, t.tool_name, t.tool_type,
               t.agent, t.run_id, t.status, t.error, t.created_at, t.started_at, t.finished_at,
               {tool_duration} AS duration_seconds,
               t.arguments, c.item AS call_item, o.item AS output_item
          FROM {tool_runs} t
          LEFT JOIN {items} c ON c.tenant_id = t.tenant_id AND c.session_id = t.session_id
                             AND c.position = t.call_position
          LEFT JOIN {items} o ON o.tenant_id = t.tenant_id AND o.session_id = t.session_id
                             AND o.position = t.output_position""",
    # The oldest revision whose code works on this schema: what a rolling deploy's older processes look at.
    SUPPORT_VIEW: " SELECT CAST('0001' AS text) AS oldest_revision",
}

_DURATIONS = {
    "postgresql": {
        "duration": "CAST(extract(epoch FROM coalesce(s.ended_at, s.updated_at) - s.created_at) AS double precision)",
        "tool_duration": "CAST(extract(epoch FROM t.finished_at - t.started_at) AS double precision)",
    },
    "sqlite": {
        "duration": "(julianday(coalesce(s.ended_at, s.updated_at)) - julianday(s.created_at)) * 86400.0",
        "tool_duration": "(julianday(t.finished_at) - julianday(t.started_at)) * 86400.0",
    },
}


def storage_statements(prefix: str) -> list[str]:
    """Return what PostgreSQL has to know about storage; SQLAlchemy's tables say it from version 2.1 on only.

    Every append updates the session's row: room on its page keeps the update HOT, which writes no index.
    """
    return [
        f"ALTER TABLE {prefix}sessions SET (fillfactor = 80)",
        # Containment (`metadata @> …`) is the only question asked of it.
        f"CREATE INDEX ix_sessions_metadata ON {prefix}sessions USING gin (metadata jsonb_path_ops)",
    ]


def view_statements(prefix: str, dialect: str) -> dict[str, str]:
    """Return one CREATE VIEW per view, its tables and itself behind *prefix* (a quoted schema and a dot, or nothing).

    The views read the counters of `sessions` and probe primary keys from behind: on a session of any length they cost
    a handful of pages.
    """
    values = {name: f"{prefix}{name}" for name in TABLES} | _DURATIONS[dialect]
    return {view: f"CREATE VIEW {prefix}{view} AS{_render(body, values)}" for view, body in _VIEWS.items()}


def _render(template: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        template = template.replace("{" + name + "}", value)
    return template
