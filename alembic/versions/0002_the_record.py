"""The record: what leases, claims and the runs' own figures need.

Only adds columns, with defaults the server keeps in its catalog: no row is rewritten, and each lock is held for an
instant. Code of revision 0001 keeps working on this schema; it writes neither runs nor tool runs nor snapshots.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from agents_pg_session.revising import execute, on_postgres, schema

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

UUID = sa.Uuid(as_uuid=False).with_variant(sa.Text(), "sqlite")
TIME = sa.DateTime(timezone=True)

TOOL_RUN_DETAILS = """
        SELECT t.tenant_id, t.session_id, t.call_position, t.output_position, t.call_id, t.tool_name, t.tool_type,
               t.agent, t.run_id, t.status, t.error, {times}
               t.arguments, c.item AS call_item, o.item AS output_item
          FROM {schema}tool_runs t
          LEFT JOIN {schema}items c ON c.tenant_id = t.tenant_id AND c.session_id = t.session_id
                             AND c.position = t.call_position
          LEFT JOIN {schema}items o ON o.tenant_id = t.tenant_id AND o.session_id = t.session_id
                             AND o.position = t.output_position"""
TIMES_BEFORE = "t.started_at, t.finished_at,"
TIMES = "t.created_at, t.started_at, t.finished_at,\n               {tool_duration} AS duration_seconds,"
TOOL_DURATION = {
    "postgresql": "CAST(extract(epoch FROM t.finished_at - t.started_at) AS double precision)",
    "sqlite": "(julianday(t.finished_at) - julianday(t.started_at)) * 86400.0",
}


def upgrade() -> None:
    execute("DROP VIEW {schema}tool_run_details")
    op.add_column("sessions", sa.Column("lease_id", UUID), schema=schema())
    op.add_column("sessions", sa.Column("lease_until", TIME), schema=schema())
    op.add_column("sessions", sa.Column("cleared_through", sa.BigInteger()), schema=schema())
    op.add_column("runs", _zero("turn", sa.BigInteger()), schema=schema())
    op.add_column("runs", _zero("model_seconds", sa.Double()), schema=schema())
    op.add_column("snapshots", sa.Column("claimed_until", TIME), schema=schema())
    created_at = sa.Column("created_at", TIME, server_default=sa.func.now(), nullable=False)
    if on_postgres():
        op.add_column("tool_runs", created_at, schema=schema())
    else:
        _rebuild_tool_runs(created_at)
    _create_details(TIMES)


def downgrade() -> None:
    execute("DROP VIEW {schema}tool_run_details")
    # The sessions first, as on the way up and in every append: nobody holds one of the others and waits for them.
    for table, column in (
        ("sessions", "cleared_through"),
        ("sessions", "lease_until"),
        ("sessions", "lease_id"),
        ("runs", "model_seconds"),
        ("runs", "turn"),
        ("snapshots", "claimed_until"),
        ("tool_runs", "created_at"),
    ):
        op.drop_column(table, column, schema=schema())
    _create_details(TIMES_BEFORE)


def _rebuild_tool_runs(created_at: sa.Column[Any]) -> None:
    """SQLite cannot add a column whose default is the present time; revision 0001 wrote nothing into this table."""
    running = "CREATE INDEX ix_tool_runs_running ON tool_runs (tenant_id, session_id, call_position) "
    running += "WHERE status = 'running'"
    op.drop_table("tool_runs")
    op.create_table(
        "tool_runs",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
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
        sa.Column("arguments", sa.Text()),
        created_at,
        sa.PrimaryKeyConstraint("tenant_id", "session_id", "call_position", name=op.f("pk_tool_runs")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "session_id"],
            ["sessions.tenant_id", "sessions.session_id"],
            name=op.f("fk_tool_runs_sessions"),
            ondelete="CASCADE",
        ),
        sa.CheckConstraint(
            "status IN ('running', 'succeeded', 'failed', 'rejected')", name=op.f("ck_tool_runs_status")
        ),
    )
    op.execute(sa.text(running))


def _create_details(times: str) -> None:
    """The view of tool runs, with the times this revision knows."""
    duration = TOOL_DURATION["postgresql" if on_postgres() else "sqlite"]
    body = TOOL_RUN_DETAILS.replace("{times}", times).replace("{tool_duration}", duration)
    execute(f"CREATE VIEW {{schema}}tool_run_details AS{body}")


def _zero(name: str, kind: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
    return sa.Column(name, kind, server_default=sa.text("0"), nullable=False)
