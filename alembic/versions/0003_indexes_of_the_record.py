"""The indexes behind the lists across sessions.

Each is built while the application writes, outside of any transaction: an upgrade that is interrupted goes on with the
index it was at. Code of revision 0001 keeps working on this schema.
"""

from __future__ import annotations

from agents_pg_session.revising import create_index, drop_index, on_postgres

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_index("ix_sessions_active", "sessions", "tenant_id, active_at, session_id")
    create_index("ix_sessions_agent", "sessions", "tenant_id, agent, active_at, session_id")
    create_index("ix_sessions_user", "sessions", "tenant_id, user_id, active_at, session_id")
    create_index("ix_sessions_status", "sessions", "tenant_id, status, active_at, session_id")
    create_index("ix_tool_runs_recent", "tool_runs", "tenant_id, created_at, session_id, call_position")
    create_index("ix_tool_runs_named", "tool_runs", "tenant_id, tool_name, created_at, session_id, call_position")
    create_index(
        "ix_tool_runs_troubled",
        "tool_runs",
        "tenant_id, status, created_at, session_id, call_position",
        where="status <> 'succeeded'",
    )
    create_index("ix_runs_session", "runs", "tenant_id, session_id, started_at, run_id")
    create_index("ix_runs_recent", "runs", "tenant_id, started_at")
    if on_postgres():
        # Containment (`metadata @> …`) is the only question asked of it.
        create_index("ix_sessions_metadata", "sessions", "metadata jsonb_path_ops", using="gin")


def downgrade() -> None:
    if on_postgres():
        drop_index("ix_sessions_metadata")
    drop_index("ix_runs_recent")
    drop_index("ix_runs_session")
    drop_index("ix_tool_runs_troubled")
    drop_index("ix_tool_runs_named")
    drop_index("ix_tool_runs_recent")
    drop_index("ix_sessions_status")
    drop_index("ix_sessions_user")
    drop_index("ix_sessions_agent")
    drop_index("ix_sessions_active")
