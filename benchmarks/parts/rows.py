"""Rows that the server makes itself, by the million, as turns of the usual profile would have left them."""

from __future__ import annotations

import asyncpg

from benchmarks.workload import templates

__all__ = ["analyze", "crowd", "long_session", "long_session_of_sdk"]

#: Item number $1 of a session, with a call id of its own.
_TEXT = "replace(($1::text[])[1 + (g - 1) % 4], 'call_00000000', 'call_' || lpad(((g - 1) / 4)::text, 8, '0'))"
_ITEM = f"""
       1 + (g - 1) / 4, gen_random_uuid(), ($2::text[])[1 + (g - 1) % 4], ($3::text[])[1 + (g - 1) % 4],
       replace(($4::text[])[1 + (g - 1) % 4], 'call_00000000', 'call_' || lpad(((g - 1) / 4)::text, 8, '0')),
       {_TEXT}::json"""
_COLUMNS = "tenant_id, session_id, position, turn, append_id, type, role, call_id, item"

ITEMS_PER_SESSION = 10

_SESSIONS = """
INSERT INTO agents.sessions (tenant_id, session_id, agent, user_id, status, metadata, last_position, last_event_id,
                             item_count, message_count, turn_count, tool_run_count, created_at, updated_at, active_at)
SELECT '', 's' || n, 'agent-' || n % 7, 'user-' || n / 40,
       CASE WHEN n % 97 = 0 THEN 'waiting' WHEN n % 11 = 0 THEN 'ended' ELSE 'active' END,
       jsonb_build_object('plan', CASE WHEN n % 2 = 0 THEN 'pro' ELSE 'free' END, 'ticket', n),
       10, 1, 10, 6, 3, 2, at, at, at
  FROM (SELECT n, now() - n * interval '7 milliseconds' AS at FROM generate_series($1::bigint, $2::bigint) n) AS each
"""
_ITEMS = f"""
INSERT INTO agents.items ({_COLUMNS})
SELECT '', 's' || n, g, {_ITEM} FROM generate_series($5::bigint, $6::bigint) n, generate_series(1, 10) g
"""
_RECORD = (
    """
INSERT INTO agents.tool_runs (tenant_id, session_id, call_position, output_position, call_id, tool_name, tool_type,
                              status, created_at)
SELECT '', 's' || n, k * 4 - 2, k * 4 - 1, 'c' || k, 'tool-' || (n + k) % 23, 'function',
       CASE WHEN (n + k) % 101 = 0 THEN 'failed' ELSE 'succeeded' END, now() - n * interval '7 milliseconds'
  FROM generate_series($1::bigint, $2::bigint) n, generate_series(1, 2) k
""",
    """
INSERT INTO agents.runs (tenant_id, session_id, run_id, status, agent, input_tokens, started_at, last_seen_at, turn)
SELECT '', 's' || n, 'run-' || n, 'completed', 'agent-' || n % 7, 10, now(), now(), 1
  FROM generate_series($1::bigint, $2::bigint) n
""",
    """
INSERT INTO agents.events (tenant_id, session_id, event_id, kind)
SELECT '', 's' || n, 1, 'run_started' FROM generate_series($1::bigint, $2::bigint) n
""",
    """
INSERT INTO agents.snapshots (tenant_id, session_id, kind, version, through_position, content, metadata)
SELECT '', 's' || n, 'run_state', 1, 10, '{}', '{"approvals": []}'
  FROM generate_series($1::bigint, $2::bigint) n WHERE n % 97 = 0
""",
)
_AT_ONCE = 50_000


async def crowd(connection: asyncpg.Connection, first: int, last: int) -> None:
    """Add sessions number *first* to *last*, ten items each, with tool runs, runs and events."""
    # The foreign keys hold by construction.
    await connection.execute("SET session_replication_role = replica")
    for begin in range(first, last + 1, _AT_ONCE):
        end = min(begin + _AT_ONCE - 1, last)
        async with connection.transaction():
            await connection.execute(_SESSIONS, begin, end)
            await connection.execute(_ITEMS, *_template_columns(), begin, end)
            for statement in _RECORD:
                await connection.execute(statement, begin, end)
    await connection.execute("RESET session_replication_role")


async def long_session(connection: asyncpg.Connection, session_id: str, length: int) -> None:
    """Make one session of ours with that many items."""
    await connection.execute(
        "INSERT INTO agents.sessions (tenant_id, session_id, last_position, item_count, message_count, turn_count) "
        "VALUES ('', $1, $2, $2, $3, $4)",
        session_id, length, length // 2, -(-length // 4),
    )  # fmt: skip
    await connection.execute(
        f"INSERT INTO agents.items ({_COLUMNS}) SELECT '', $5, g, {_ITEM} FROM generate_series(1, $6::bigint) g",
        *_template_columns(), session_id, length,
    )  # fmt: skip
    await analyze(connection)


async def long_session_of_sdk(connection: asyncpg.Connection, session_id: str, length: int) -> None:
    """Make one session of the SDK's `SQLAlchemySession` with that many items."""
    await connection.execute("INSERT INTO agent_sessions (session_id) VALUES ($1)", session_id)
    await connection.execute(
        f"INSERT INTO agent_messages (session_id, message_data) SELECT $2, {_TEXT} "
        "FROM generate_series(1, $3::bigint) g ORDER BY g",
        _template_columns()[0], session_id, length,
    )  # fmt: skip
    await analyze(connection)


async def analyze(connection: asyncpg.Connection) -> None:
    await connection.execute("VACUUM ANALYZE")


def _template_columns() -> list[list[str | None]]:
    """The templates as arrays: texts, types, roles, call ids."""
    return [list(column) for column in zip(*templates(), strict=True)]
