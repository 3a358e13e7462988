"""Words the statements on SQLite share: the time, and how the steps of one change know of each other.

A change writes its event first, behind the last one the session knows, if it is to happen at all. The session's row
then takes that event in and corrects its counters, while the rows they count are still there. Everything else happens
only where the session's last event is the one of this call; and so does the answer.
"""

from __future__ import annotations

__all__ = [
    "ALIVE",
    "APPEND_IDS",
    "ERASE",
    "HAPPENING",
    "HAPPENS",
    "ITEM_JSON",
    "NOT_EXPIRED",
    "NOW",
    "OPENED",
    "THERE",
    "TOLD",
    "after",
    "before",
    "moment",
    "shifted",
]

_TIME = "'%Y-%m-%d %H\\:%M\\:%f'"

#: Times are text with milliseconds (CURRENT_TIMESTAMP ends at seconds), so comparing them as text is right.
NOW = f"strftime({_TIME}, 'now')"


def shifted(name: str) -> str:
    """Return the SQL of the time that `before` or `after`, bound as *name*, tells; NULL where that is None."""
    return f"strftime({_TIME}, 'now', {name})"


def moment(value: str) -> str:
    """Return the SQL of a time in the form all of ours have, whatever form *value* has it in."""
    return f"strftime({_TIME}, {value})"


def before(seconds: float | None) -> str | None:
    """Return the modifier of SQLite's date functions that goes back by as many seconds."""
    return None if seconds is None else f"{-seconds:+.3f} seconds"


def after(seconds: float | None) -> str | None:
    """Return the modifier that goes forward."""
    return None if seconds is None else f"{seconds:+.3f} seconds"


# Of a session's row: it has not expired.
ALIVE = f"(expires_at IS NULL OR expires_at > {NOW})"

# The first step of a change to a session that has to be there: no row, and nothing after it runs, where it is not.
THERE = f"""
SELECT 1 FROM sessions
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND {ALIVE}
"""

# Of anything of a session: that one has not expired. Asked once.
NOT_EXPIRED = f"""NOT EXISTS (SELECT 1 FROM sessions
                    WHERE tenant_id = :tenant_id AND session_id = :session_id AND expires_at <= {NOW})"""

# Erase the session if it has expired.
_ERASE_SESSION = f"""
DELETE FROM sessions WHERE tenant_id = :tenant_id AND session_id = :session_id AND expires_at <= {NOW}
"""

# Then everything about it: on an engine of the caller's, foreign keys may be off.
_ERASE_ROWS = """
DELETE FROM {table}
 WHERE tenant_id = :tenant_id AND session_id = :session_id
   AND NOT EXISTS (SELECT 1 FROM sessions WHERE tenant_id = :tenant_id AND session_id = :session_id)
"""

# The first steps of what may begin a session: one that has expired makes way.
ERASE = (
    _ERASE_SESSION,
    *(_ERASE_ROWS.replace("{table}", table) for table in ("items", "tool_runs", "runs", "events", "snapshots")),
)

# The session and the event of this call, where it has taken effect.
HAPPENING = """sessions s JOIN events e ON e.tenant_id = s.tenant_id AND e.session_id = s.session_id
                        AND e.event_id = s.last_event_id AND e.operation_id = :operation_id"""

# Whether it has.
HAPPENS = f"""EXISTS (SELECT 1 FROM {HAPPENING}
                WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id)"""

# The answer of a change: what its event says. There is always a row where there is a session.
TOLD = """
SELECT 1 AS fresh,
       (SELECT CAST(e.payload AS text) FROM events e
         WHERE e.tenant_id = s.tenant_id AND e.session_id = s.session_id
           AND e.event_id = s.last_event_id AND e.operation_id = :operation_id) AS payload
  FROM sessions s
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
"""

# Create the session where there is none, and take its next event ids. Where only a lease was, this begins it.
OPENED = f"""
INSERT INTO sessions AS s (
    tenant_id, session_id, agent, user_id, metadata, status, last_event_id, created_at, updated_at, active_at,
    expires_at)
VALUES (:tenant_id, :session_id, :agent, :user_id, coalesce(:metadata, '{{}}'), coalesce(:status, 'active'), :events,
        {NOW}, {NOW}, {NOW}, {shifted(":expires_in")})
ON CONFLICT (tenant_id, session_id) DO UPDATE SET
    status = coalesce(:status, s.status),
    last_event_id = s.last_event_id + excluded.last_event_id, updated_at = excluded.updated_at,
    expires_at = CASE WHEN s.last_position + s.last_event_id = 0 THEN excluded.expires_at ELSE s.expires_at END
WHERE :expected_position IS NULL OR (s.last_position, s.item_count) = (:expected_position, :expected_count)
RETURNING 1
"""

# A stored item within JSON. It is not parsed, for that may rewrite numbers; a row that was edited by hand may hold
# anything, so what is no JSON becomes a JSON string.
ITEM_JSON = """CASE WHEN json_valid(CAST(item AS text)) THEN CAST(item AS text)
                    ELSE json_quote(CAST(item AS text)) END"""

# The ids of the appends that brought the items which *{range}* selects, as JSON: null where there are none.
APPEND_IDS = """json((SELECT CASE WHEN count(*) > 0 THEN json_group_array(append_id) END
                       FROM (SELECT DISTINCT append_id FROM items
                              WHERE tenant_id = :tenant_id AND session_id = :session_id AND {range}
                              ORDER BY append_id)))"""
