"""Everything that changes a session on SQLite beside its items: snapshots, claims, leases, events, its end."""

from __future__ import annotations

from agents_pg_session.statements.sqlite.words import ALIVE, HAPPENING, NOW, TOLD, moment, shifted

__all__ = ["CLAIM", "DELETE", "END", "EXPIRE", "LEASE", "RECORD", "RELEASE", "RENEW", "SAVED", "SNAPSHOT", "UNCLAIM"]

# Write an event of the caller's own kind, after the session's row has made room for it.
_RECORD_EVENT = f"""
INSERT INTO events (tenant_id, session_id, event_id, kind, run_id, agent, operation_id, created_at, payload)
SELECT s.tenant_id, s.session_id, s.last_event_id, :kind, :run_id, :event_agent, :operation_id, {NOW}, :payload
  FROM sessions s
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
"""

# The answer: which event it became, and when.
_RECORDED = f"""
SELECT 1 AS fresh, e.event_id, e.created_at
  FROM {HAPPENING}
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
"""

RECORD = (_RECORD_EVENT, _RECORDED)

# Save the next version of a snapshot.
_SAVE = f"""
INSERT INTO snapshots (
    tenant_id, session_id, kind, version, through_position, label, created_at, content, metadata)
SELECT s.tenant_id, s.session_id, :kind,
       (SELECT coalesce(max(version), 0) + 1 FROM snapshots
         WHERE tenant_id = :tenant_id AND session_id = :session_id AND kind = :kind),
       min(coalesce(:through, s.last_position), s.last_position), :label, {NOW}, :content, :snapshot_metadata
  FROM sessions s
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
"""

# A pause interrupts its run.
_INTERRUPT = f"""
UPDATE runs SET status = 'interrupted', finished_at = {NOW}, last_seen_at = {NOW}
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND run_id = :run_id AND status = 'running'
"""

SNAPSHOT = (_SAVE, _INTERRUPT)

# Say so in the last of the events that the session's row has made room for.
_SAVE_EVENT = f"""
INSERT INTO events (tenant_id, session_id, event_id, kind, run_id, operation_id, created_at, payload)
SELECT s.tenant_id, s.session_id, s.last_event_id, 'snapshot_saved', :run_id, :operation_id, {NOW},
       json_object('kind', n.kind, 'version', n.version, 'through_position', n.through_position)
  FROM sessions s,
       (SELECT kind, version, through_position FROM snapshots
         WHERE tenant_id = :tenant_id AND session_id = :session_id AND kind = :kind
         ORDER BY version DESC LIMIT 1) AS n
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
"""

SAVED = (_SAVE_EVENT, TOLD)

# The newest snapshot of a kind.
_NEWEST = """(SELECT version, through_position, content, claimed_by, claimed_until FROM snapshots
         WHERE tenant_id = :tenant_id AND session_id = :session_id AND kind = :kind
         ORDER BY version DESC LIMIT 1)"""

# Say that it is claimed, if nobody holds it, or whoever did has let it expire, and the session still ends where the
# snapshot was taken.
_CLAIM_EVENT = f"""
INSERT INTO events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
SELECT s.tenant_id, s.session_id, s.last_event_id + 1, 'snapshot_claimed', :operation_id, {NOW},
       json_object('kind', :kind, 'version', newest.version)
  FROM sessions s,
       {_NEWEST} AS newest
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
   AND s.status = 'waiting' AND s.last_position = newest.through_position
   AND (newest.claimed_until IS NULL OR newest.claimed_until <= {NOW})
"""

# The session takes the event in.
_CLAIM_SESSION = f"""
UPDATE sessions AS s SET updated_at = {NOW}, last_event_id = s.last_event_id + 1
  FROM events e
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
   AND e.tenant_id = :tenant_id AND e.session_id = :session_id
   AND e.event_id = s.last_event_id + 1 AND e.operation_id = :operation_id
"""

# Claim it.
_CLAIM_SNAPSHOT = f"""
UPDATE snapshots
   SET claimed_at = {NOW}, claimed_by = :claim_id, claimed_until = {shifted(":until")}
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND kind = :kind
   AND version = (SELECT json_extract(e.payload, '$.version')
                    FROM {HAPPENING}
                   WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id)
"""

# The answer says whether it was to be had and, if not, why. A session that ends where the snapshot was taken leaves one
# reason only, although the time may have moved on since.
_CLAIMED = f"""
SELECT 1 AS fresh, n.version, n.through_position, CAST(n.content AS text) AS content, s.claimed,
       s.last_position, s.item_count,
       NOT s.claimed AND n.claimed_until IS NOT NULL
       AND (n.claimed_until > {NOW} OR (s.status = 'waiting' AND n.through_position = s.last_position)) AS held,
       s.status <> 'waiting' OR s.last_position <> n.through_position AS moved
  FROM (SELECT last_position, item_count, status,
               EXISTS (SELECT 1 FROM events e
                        WHERE e.tenant_id = :tenant_id AND e.session_id = :session_id
                          AND e.event_id = sessions.last_event_id AND e.operation_id = :operation_id) AS claimed
          FROM sessions
         WHERE tenant_id = :tenant_id AND session_id = :session_id) AS s
  LEFT JOIN {_NEWEST} AS n ON true
"""

CLAIM = (_CLAIM_EVENT, _CLAIM_SESSION, _CLAIM_SNAPSHOT, _CLAIMED)

# Give a claim back.
_UNCLAIM = """
UPDATE snapshots SET claimed_at = NULL, claimed_by = NULL, claimed_until = NULL
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND kind = :kind AND claimed_by = :claim_id
"""

# A row where there is a session.
_UNCLAIMED = """
SELECT 1 AS fresh FROM sessions WHERE tenant_id = :tenant_id AND session_id = :session_id
"""

UNCLAIM = (_UNCLAIM, _UNCLAIMED)

# Take the lease of a session, if nobody holds it or its holder let it expire; the holder itself may take it again.
LEASE = (
    f"""
INSERT INTO sessions AS s (
    tenant_id, session_id, agent, user_id, metadata, created_at, updated_at, active_at, lease_id, lease_until)
VALUES (:tenant_id, :session_id, :agent, :user_id, coalesce(:metadata, '{{}}'), {NOW}, {NOW}, {NOW},
        :lease_id, {shifted(":until")})
ON CONFLICT (tenant_id, session_id) DO UPDATE SET
    lease_id = excluded.lease_id, lease_until = excluded.lease_until
WHERE s.lease_id IS NULL OR s.lease_until < excluded.updated_at OR s.lease_id = excluded.lease_id
RETURNING 1 AS fresh
""",
)

# The heartbeat of a lease: no row where somebody else took it.
RENEW = (
    f"""
UPDATE sessions SET lease_until = {shifted(":until")}
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND lease_id = :lease_id AND {ALIVE}
RETURNING 1 AS fresh
""",
)

# Give a lease back.
RELEASE = (
    """
UPDATE sessions SET lease_id = NULL, lease_until = NULL
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND lease_id = :lease_id
RETURNING 1 AS fresh
""",
)

# End the session.
_END = f"""
UPDATE sessions
   SET status = :status, ended_at = {NOW}, updated_at = {NOW}, last_event_id = last_event_id + 1
 WHERE tenant_id = :tenant_id AND session_id = :session_id
"""

# Say so.
_END_EVENT = f"""
INSERT INTO events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
SELECT s.tenant_id, s.session_id, s.last_event_id, 'session_ended', :operation_id, {NOW},
       json_object('status', s.status)
  FROM sessions s
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
"""

END = (_END, _END_EVENT, TOLD)

# Set, move or lift its end: so long from now, or at a moment, or (neither) never.
_EXPIRE = f"""
UPDATE sessions
   SET expires_at = coalesce({shifted(":in")}, {moment(":moment")}), updated_at = {NOW},
       last_event_id = last_event_id + 1
 WHERE tenant_id = :tenant_id AND session_id = :session_id
"""

# Say so.
_EXPIRE_EVENT = f"""
INSERT INTO events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
SELECT s.tenant_id, s.session_id, s.last_event_id, 'expiry_set', :operation_id, {NOW},
       json_object('expires_at', s.expires_at)
  FROM sessions s
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
"""

EXPIRE = (_EXPIRE, _EXPIRE_EVENT, TOLD)

# Only the session that was there when the caller asked.
_ASKED_FOR = f"tenant_id = :tenant_id AND session_id = :session_id AND {moment('created_at')} = {moment(':created_at')}"

# Erase everything about it: on an engine of the caller's, foreign keys may be off.
_DELETE_ROWS = f"""
DELETE FROM {{table}}
 WHERE tenant_id = :tenant_id AND session_id = :session_id
   AND EXISTS (SELECT 1 FROM sessions WHERE {_ASKED_FOR})
"""

# Erase the session itself.
_DELETE_SESSION = f"""
DELETE FROM sessions WHERE {_ASKED_FOR}
RETURNING 1 AS fresh
"""

DELETE = (
    *(_DELETE_ROWS.replace("{table}", table) for table in ("items", "tool_runs", "runs", "events", "snapshots")),
    _DELETE_SESSION,
)
