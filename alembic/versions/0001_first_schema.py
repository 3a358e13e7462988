"""First schema: the six tables and the four views.

The whole design at once, so that later revisions only add. `agents_pg_session/tables.py` tells the story of the tables.
Written for PostgreSQL and SQLite; nothing here depends on the package's own models, which will have moved on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from agents_pg_session import revising

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BYTES = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
UUID = sa.Uuid(as_uuid=False).with_variant(sa.Text(), "sqlite")
UUIDS = postgresql.ARRAY(sa.Uuid(as_uuid=False)).with_variant(sa.Text(), "sqlite")
# Text on SQLite: a column called JSON is numeric there, and would turn the text 1.0 into 1.
JSON = sa.JSON().with_variant(sa.Text(), "sqlite")
JSONB = postgresql.JSONB().with_variant(sa.Text(), "sqlite")
TIME = sa.DateTime(timezone=True)

VIEWS = {
    "agent_current_state": """
        SELECT s.tenant_id, s.session_id, s.agent, s.status, s.turn_count,
               (SELECT e.kind FROM {schema}events e
                 WHERE e.tenant_id = s.tenant_id AND e.session_id = s.session_id
                 ORDER BY e.event_id DESC LIMIT 1) AS last_event,
               (SELECT e.created_at FROM {schema}events e
                 WHERE e.tenant_id = s.tenant_id AND e.session_id = s.session_id
                 ORDER BY e.event_id DESC LIMIT 1) AS last_event_at,
               (SELECT i.type FROM {schema}items i
                 WHERE i.tenant_id = s.tenant_id AND i.session_id = s.session_id
                 ORDER BY i.position DESC LIMIT 1) AS last_item,
               (SELECT i.created_at FROM {schema}items i
                 WHERE i.tenant_id = s.tenant_id AND i.session_id = s.session_id
                 ORDER BY i.position DESC LIMIT 1) AS last_item_at,
               s.active_at, s.updated_at
          FROM {schema}sessions s""",
    "session_summary": """
        SELECT s.tenant_id, s.session_id, s.agent, s.user_id, s.status,
               s.last_event_id AS event_count, s.item_count, s.message_count, s.turn_count,
               s.tool_run_count, s.tool_error_count,
               {duration} AS duration_seconds,
               s.input_tokens, s.output_tokens, s.input_tokens + s.output_tokens AS total_tokens,
               s.created_at, s.updated_at, s.ended_at
          FROM {schema}sessions s""",
    "agent_task_progress": """
        SELECT s.tenant_id, s.session_id, s.agent, s.status, s.turn_count, s.tool_run_count,
               s.tool_error_count,
               (SELECT count(*) FROM {schema}tool_runs t
                 WHERE t.tenant_id = s.tenant_id AND t.session_id = s.session_id
                   AND t.status = 'running') AS tool_running_count,
               (SELECT t.tool_name FROM {schema}tool_runs t
                 WHERE t.tenant_id = s.tenant_id AND t.session_id = s.session_id
                   AND t.status = 'running'
                 ORDER BY t.call_position DESC LIMIT 1) AS running_tool,
               s.active_at, s.updated_at, s.ended_at
          FROM {schema}sessions s""",
    "tool_run_details": """
        SELECT t.tenant_id, t.session_id, t.call_position, t.output_position, t.call_id, t.tool_name, t.tool_type,
               t.agent, t.run_id, t.status, t.error, t.started_at, t.finished_at,
               t.arguments, c.item AS call_item, o.item AS output_item
          FROM {schema}tool_runs t
          LEFT JOIN {schema}items c ON c.tenant_id = t.tenant_id AND c.session_id = t.session_id
                             AND c.position = t.call_position
          LEFT JOIN {schema}items o ON o.tenant_id = t.tenant_id AND o.session_id = t.session_id
                             AND o.position = t.output_position""",
}
DURATION = {
    "postgresql": "CAST(extract(epoch FROM coalesce(s.ended_at, s.updated_at) - s.created_at) AS double precision)",
    "sqlite": "(julianday(coalesce(s.ended_at, s.updated_at)) - julianday(s.created_at)) * 86400.0",
}


def upgrade() -> None:
    schema = _schema()
    op.create_table(
        "sessions",
        *_key(),
        sa.Column("agent", sa.Text()),
        sa.Column("user_id", sa.Text()),
        sa.Column("status", sa.Text(), server_default=sa.text("'active'"), nullable=False),
        _count("last_position"),
        _count("last_event_id"),
        _count("item_count"),
        _count("message_count"),
        _count("turn_count"),
        _count("tool_run_count"),
        _count("tool_error_count"),
        _count("input_tokens"),
        _count("output_tokens"),
        sa.Column("forked_from", sa.Text()),
        sa.Column("forked_through", sa.BigInteger()),
        sa.Column("forked_at", TIME),
        sa.Column("expires_at", TIME),
        _time("created_at"),
        _time("updated_at"),
        _time("active_at"),
        sa.Column("ended_at", TIME),
        sa.Column("fenced_ids", UUIDS, server_default=sa.text("'{}'"), nullable=False),
        sa.Column("metadata", JSONB, server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "session_id", name=op.f("pk_sessions")),
        sa.CheckConstraint(
            "item_count >= 0 AND message_count >= 0 AND turn_count >= 0 AND last_position >= item_count",
            name=op.f("ck_sessions_counts"),
        ),
        schema=schema,
    )
    if op.get_context().dialect.name == "postgresql":
        # Every append updates this row: room on its page keeps the update HOT, which writes no index.
        op.execute(sa.text(_in_schema("ALTER TABLE {schema}sessions SET (fillfactor = 80)")))
    op.create_table(
        "items",
        *_key(),
        sa.Column("position", sa.BigInteger(), nullable=False),
        _count("turn"),
        sa.Column("run_id", sa.Text()),
        sa.Column("append_id", UUID, nullable=False),
        sa.Column("type", sa.Text()),
        sa.Column("role", sa.Text()),
        sa.Column("call_id", sa.Text()),
        _time("created_at"),
        sa.Column("item", JSON, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "session_id", "position", name=op.f("pk_items")),
        _of_session("items"),
        sa.CheckConstraint("position > 0", name=op.f("ck_items_position")),
        schema=schema,
    )
    op.create_table(
        "tool_runs",
        *_key(),
        sa.Column("call_position", sa.BigInteger(), nullable=False),
        sa.Column("output_position", sa.BigInteger()),
        sa.Column("call_id", sa.Text()),
        sa.Column("tool_name", sa.Text()),
        sa.Column("tool_type", sa.Text(), nullable=False),
        sa.Column("agent", sa.Text()),
        sa.Column("status", sa.Text(), server_default=sa.text("'running'"), nullable=False),
        sa.Column("run_id", sa.Text()),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME),
        sa.Column("error", sa.Text()),
        sa.Column("arguments", JSON),
        sa.PrimaryKeyConstraint("tenant_id", "session_id", "call_position", name=op.f("pk_tool_runs")),
        _of_session("tool_runs"),
        sa.CheckConstraint(
            "status IN ('running', 'succeeded', 'failed', 'rejected')", name=op.f("ck_tool_runs_status")
        ),
        schema=schema,
    )
    op.create_index(
        "ix_tool_runs_running",
        "tool_runs",
        ["tenant_id", "session_id", "call_position"],
        schema=schema,
        postgresql_where=sa.text("status = 'running'"),
        sqlite_where=sa.text("status = 'running'"),
    )
    op.create_table(
        "runs",
        *_key(),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default=sa.text("'running'"), nullable=False),
        sa.Column("agent", sa.Text()),
        sa.Column("trace_id", sa.Text()),
        _count("requests"),
        _count("input_tokens"),
        _count("cached_tokens"),
        _count("output_tokens"),
        _count("reasoning_tokens"),
        _count("total_tokens"),
        _time("started_at"),
        _time("last_seen_at"),
        sa.Column("finished_at", TIME),
        sa.Column("error", sa.Text()),
        sa.Column("usage_details", JSON),
        sa.PrimaryKeyConstraint("tenant_id", "session_id", "run_id", name=op.f("pk_runs")),
        _of_session("runs"),
        sa.CheckConstraint(
            "status IN ('running', 'completed', 'failed', 'interrupted', 'cancelled')", name=op.f("ck_runs_status")
        ),
        schema=schema,
    )
    op.create_table(
        "events",
        *_key(),
        sa.Column("event_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text()),
        sa.Column("agent", sa.Text()),
        sa.Column("operation_id", UUID),
        _time("created_at"),
        sa.Column("payload", JSON),
        sa.PrimaryKeyConstraint("tenant_id", "session_id", "event_id", name=op.f("pk_events")),
        _of_session("events"),
        schema=schema,
    )
    op.create_table(
        "snapshots",
        *_key(),
        sa.Column("kind", BYTES, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("through_position", sa.BigInteger()),
        sa.Column("label", sa.Text()),
        sa.Column("claimed_at", TIME),
        sa.Column("claimed_by", sa.Text()),
        _time("created_at"),
        sa.Column("content", JSON, nullable=False),
        sa.Column("metadata", JSON),
        sa.PrimaryKeyConstraint("tenant_id", "session_id", "kind", "version", name=op.f("pk_snapshots")),
        _of_session("snapshots"),
        sa.CheckConstraint("version > 0", name=op.f("ck_snapshots_version")),
        schema=schema,
    )
    for name, body in VIEWS.items():
        op.execute(sa.text(_in_schema(f"CREATE VIEW {{schema}}{name} AS{body}")))


def downgrade() -> None:
    schema = _schema()
    for name in reversed(VIEWS):
        op.execute(sa.text(_in_schema(f"DROP VIEW {{schema}}{name}")))
    for table in ("snapshots", "events", "runs", "tool_runs", "items", "sessions"):
        op.drop_table(table, schema=schema)


def _schema() -> str | None:
    """The tables live where the version table lives."""
    return revising.schema()


def _in_schema(template: str) -> str:
    schema = _schema()
    # A colon is escaped, because `text` would otherwise read a name behind it as a value.
    prefix = "" if schema is None else '"{}".'.format(schema.replace('"', '""').replace(":", "\\:"))
    return template.replace("{duration}", DURATION[op.get_context().dialect.name]).replace("{schema}", prefix)


def _key() -> tuple[sa.Column[str], sa.Column[str]]:
    return sa.Column("tenant_id", BYTES, nullable=False), sa.Column("session_id", BYTES, nullable=False)


def _of_session(table: str) -> sa.ForeignKeyConstraint:
    # The columns of a stand-in, not their names: SQLAlchemy 2.0 would take a name apart at the dot in a schema's.
    sessions = sa.Table("sessions", sa.MetaData(), *_key(), schema=_schema())
    return sa.ForeignKeyConstraint(
        ["tenant_id", "session_id"], list(sessions.c), name=op.f(f"fk_{table}_sessions"), ondelete="CASCADE"
    )


def _count(name: str, kind: type[TypeEngine[int]] = sa.BigInteger) -> sa.Column[int]:
    return sa.Column(name, kind, server_default=sa.text("0"), nullable=False)


def _time(name: str) -> sa.Column[object]:
    """`func.now()` renders each dialect's own form; autogenerate's text('now()') would break SQLite."""
    return sa.Column(name, TIME, server_default=sa.func.now(), nullable=False)
