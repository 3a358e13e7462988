"""The counters of a session beside a recount of its rows."""

from __future__ import annotations

import asyncpg

__all__ = ["miscounted"]

_COUNTERS = """
SELECT s.item_count, (SELECT count(*) FROM agents.items i WHERE i.session_id = s.session_id),
       s.message_count, (SELECT count(*) FROM agents.items i WHERE i.session_id = s.session_id AND i.type = 'message'),
       s.tool_run_count, (SELECT count(*) FROM agents.tool_runs t WHERE t.session_id = s.session_id),
       s.tool_error_count,
       (SELECT count(*) FROM agents.tool_runs t WHERE t.session_id = s.session_id AND t.status = 'failed'),
       s.last_event_id, (SELECT count(*) FROM agents.events e WHERE e.session_id = s.session_id)
  FROM agents.sessions s WHERE s.session_id = $1
"""


async def miscounted(connection: asyncpg.Connection, session_id: str) -> list[int]:
    """Return each counter and its recount, in turn, if any two differ; a session that is not there has none."""
    row = await connection.fetchrow(_COUNTERS, session_id)
    counts = list(row.values()) if row is not None else []
    return counts if counts[::2] != counts[1::2] else []
