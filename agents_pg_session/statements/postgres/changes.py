"""Everything that changes a session on PostgreSQL beside its items: snapshots, claims, leases, events, its end."""

from __future__ import annotations

from agents_pg_session.statements.postgres.locks import LOCKED, OPENED, OPENED_FRESH

__all__ = [
    "CLAIM",
    "CLAIMED",
    "DELETE",
    "END",
    "EXPIRE",
    "LEASE",
    "LEASED",
    "RECORD",
    "RECORDED",
    "RELEASE",
    "RENEW",
    "SAVE",
    "UNCLAIM",
]

# Without a row the session has come further than was expected, which no waiting would change.
_OPENED_TOLD = """
SELECT EXISTS (SELECT FROM session) AS fresh, (SELECT CAST(payload AS text) FROM event) AS payload
 WHERE CAST(:expected_position AS bigint) IS NULL OR EXISTS (SELECT FROM session)
    OR EXISTS (SELECT FROM seen
                WHERE (last_position, item_count)
                    = (CAST(:expected_position AS bigint), CAST(:expected_count AS bigint)) OR expired)
"""

# Write an event of the caller's own kind.
RECORD = (
    OPENED
    + """, event AS (
    INSERT INTO {schema}events (
        tenant_id, session_id, event_id, kind, run_id, agent, operation_id, created_at, payload)
    SELECT :tenant_id, :session_id, session.event_id + 1, CAST(:kind AS text), CAST(:run_id AS text),
           CAST(:event_agent AS text), CAST(:operation_id AS uuid), now(), CAST(CAST(:payload AS text) AS json)
      FROM session
    RETURNING event_id, created_at
)
SELECT EXISTS (SELECT FROM session) AS fresh, (SELECT event_id FROM event) AS event_id,
       (SELECT created_at FROM event) AS created_at
"""
)

# Save the next version of a snapshot. What goes with it (a pause asks for approvals, and interrupts its run) is told in
# events before the one of the snapshot itself.
SAVE = (
    OPENED_FRESH
    + """, version AS (
    -- A session without any event is a new one: snapshots that are seen were deleted meanwhile.
    SELECT CASE WHEN session.event_id = 0 THEN 1
                ELSE coalesce((SELECT max(version) FROM {schema}snapshots
                                WHERE tenant_id = :tenant_id AND session_id = :session_id AND kind = :kind), 0) + 1
            END AS version
      FROM session
), saved AS (
    INSERT INTO {schema}snapshots (
        tenant_id, session_id, kind, version, through_position, label, created_at, content, metadata)
    SELECT :tenant_id, :session_id, :kind, version.version,
           least(CAST(:through AS bigint), session.last_position), CAST(:label AS text), now(),
           CAST(CAST(:content AS text) AS json), CAST(CAST(:snapshot_metadata AS text) AS json)
      FROM session, version
    RETURNING version, through_position, created_at
), run AS (
    UPDATE {schema}runs AS r SET status = 'interrupted', finished_at = now(), last_seen_at = now()
      FROM session
     WHERE r.tenant_id = :tenant_id AND r.session_id = :session_id AND r.run_id = CAST(:run_id AS text)
       AND r.status = 'running'
), noted AS (
    INSERT INTO {schema}events (
        tenant_id, session_id, event_id, kind, run_id, agent, operation_id, created_at, payload)
    SELECT :tenant_id, :session_id, session.event_id + each.ordinality, each.kind, each.run_id, each.agent,
           CAST(:operation_id AS uuid), now(), CASE WHEN CAST(each.payload AS text) <> 'null' THEN each.payload END
      FROM session,
           ROWS FROM (json_array_elements(CAST(CAST(:payloads AS text) AS json)),
                      unnest(CAST(:kinds AS text[])), unnest(CAST(:event_run_ids AS text[])),
                      unnest(CAST(:event_agents AS text[])))
           WITH ORDINALITY AS each (payload, kind, run_id, agent, ordinality)
), event AS (
    INSERT INTO {schema}events (tenant_id, session_id, event_id, kind, run_id, operation_id, created_at, payload)
    SELECT :tenant_id, :session_id, session.event_id + CAST(:events AS bigint), 'snapshot_saved',
           CAST(:run_id AS text), CAST(:operation_id AS uuid), now(),
           json_build_object('kind', CAST(:kind AS text), 'version', saved.version,
                             'through_position', saved.through_position)
      FROM session, saved
    RETURNING payload
)"""
    + _OPENED_TOLD
)

# Claim the newest snapshot of a kind: nobody holds it, or whoever did has let it expire, and the session still ends
# where the snapshot was taken. The answer says which of these is not so.
CLAIM = (
    LOCKED
    + """, newest AS (
    SELECT version, through_position, claimed_until, CAST(content AS text) AS content
      FROM {schema}snapshots
     WHERE tenant_id = :tenant_id AND session_id = :session_id AND kind = :kind
     ORDER BY version DESC LIMIT 1
), claimed AS (
    UPDATE {schema}snapshots AS n
       SET claimed_at = now(), claimed_by = CAST(CAST(:claim_id AS uuid) AS text),
           claimed_until = now() + make_interval(secs => CAST(:seconds AS double precision))
      FROM newest, fresh
     WHERE n.tenant_id = :tenant_id AND n.session_id = :session_id AND n.kind = :kind
       AND n.version = newest.version
       AND fresh.status = 'waiting' AND fresh.last_position = newest.through_position
       AND (newest.claimed_until IS NULL OR newest.claimed_until <= now())
    RETURNING n.version
), session AS (
    UPDATE {schema}sessions AS s SET updated_at = now(), last_event_id = s.last_event_id + 1
      FROM claimed
     WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
    RETURNING s.last_event_id
), event AS (
    INSERT INTO {schema}events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
    SELECT :tenant_id, :session_id, session.last_event_id, 'snapshot_claimed', CAST(:operation_id AS uuid), now(),
           json_build_object('kind', CAST(:kind AS text), 'version', claimed.version)
      FROM session, claimed
    RETURNING payload
)
SELECT EXISTS (SELECT FROM fresh) AS fresh, newest.version, newest.through_position, newest.content,
       EXISTS (SELECT FROM claimed) AS claimed, locked.last_position, locked.item_count,
       newest.claimed_until > now() AS held,
       locked.status <> 'waiting' OR locked.last_position <> newest.through_position AS moved
  FROM locked LEFT JOIN newest ON true
"""
)

# Did the claim with this id take effect?
CLAIMED = """
SELECT true AS fresh, n.version, n.through_position, CAST(n.content AS text) AS content, true AS claimed,
       s.last_position, s.item_count, true AS held, false AS moved
  FROM {schema}snapshots n
  JOIN {schema}sessions s ON s.tenant_id = n.tenant_id AND s.session_id = n.session_id
 WHERE n.tenant_id = :tenant_id AND n.session_id = :session_id AND n.kind = :kind
   AND s.tenant_id = :tenant_id AND s.session_id = :session_id
   AND n.claimed_by = CAST(CAST(:claim_id AS uuid) AS text)
"""

# Give a claim back.
UNCLAIM = (
    LOCKED
    + """, released AS (
    UPDATE {schema}snapshots AS n SET claimed_at = NULL, claimed_by = NULL, claimed_until = NULL
      FROM locked
     WHERE n.tenant_id = :tenant_id AND n.session_id = :session_id AND n.kind = :kind
       AND n.claimed_by = CAST(CAST(:claim_id AS uuid) AS text)
)
SELECT true AS fresh FROM locked
"""
)

# Take the lease of a session, if nobody holds it or its holder let it run out; the holder itself may take it again. No
# row: it is held. Not fresh: the session has expired, and makes way first.
LEASE = """
WITH taken AS (
    INSERT INTO {schema}sessions AS s (
        tenant_id, session_id, agent, user_id, metadata, created_at, updated_at, active_at, lease_id, lease_until)
    VALUES (:tenant_id, :session_id, CAST(:agent AS text), CAST(:user_id AS text),
            coalesce(CAST(CAST(:metadata AS text) AS jsonb), '{}'), now(), now(), now(),
            CAST(:lease_id AS uuid), now() + make_interval(secs => CAST(:seconds AS double precision)))
    ON CONFLICT (tenant_id, session_id) DO UPDATE SET
        lease_id = excluded.lease_id, lease_until = excluded.lease_until
    WHERE NOT CAST(:operation_id AS uuid) = ANY (s.fenced_ids)
      AND (s.lease_id IS NULL OR s.lease_until < excluded.updated_at OR s.lease_id = excluded.lease_id)
      AND (s.expires_at IS NULL OR s.expires_at > excluded.updated_at)
    RETURNING true AS fresh
), locked AS (
    -- As it is by now, which the snapshot need not show.
    SELECT expires_at <= now() AS expired FROM {schema}sessions
     WHERE tenant_id = :tenant_id AND session_id = :session_id AND NOT EXISTS (SELECT FROM taken)
       FOR UPDATE
)
SELECT fresh FROM taken
UNION ALL
SELECT false FROM locked WHERE expired
"""

# Was the lease taken after all?
LEASED = """
SELECT true AS fresh FROM {schema}sessions
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND lease_id = CAST(:lease_id AS uuid)
"""

# Did the event of the caller's own kind get written?
RECORDED = """
SELECT true AS fresh, event_id, created_at FROM {schema}events
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND operation_id = CAST(:operation_id AS uuid)
"""

# The heartbeat of a lease: no row where somebody else took it.
RENEW = """
UPDATE {schema}sessions
   SET lease_until = now() + make_interval(secs => CAST(:seconds AS double precision))
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND lease_id = CAST(:lease_id AS uuid)
   AND (expires_at IS NULL OR expires_at > now())
RETURNING true AS fresh
"""

# Give a lease back.
RELEASE = """
UPDATE {schema}sessions SET lease_id = NULL, lease_until = NULL
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND lease_id = CAST(:lease_id AS uuid)
RETURNING true AS fresh
"""

# End the session, and say so.
END = (
    LOCKED
    + """, session AS (
    UPDATE {schema}sessions AS s
       SET status = CAST(:status AS text), ended_at = now(), updated_at = now(), last_event_id = s.last_event_id + 1
      FROM locked
     WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
    RETURNING s.last_event_id
), event AS (
    INSERT INTO {schema}events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
    SELECT :tenant_id, :session_id, session.last_event_id, 'session_ended', CAST(:operation_id AS uuid), now(),
           json_build_object('status', CAST(:status AS text))
      FROM session
    RETURNING payload
)
SELECT true AS fresh, (SELECT CAST(payload AS text) FROM event) AS payload FROM locked
"""
)

# Set, move or lift the session's end, and say so: so many seconds from now, or at a moment, or (neither) never.
EXPIRE = (
    LOCKED
    + """, session AS (
    UPDATE {schema}sessions AS s
       SET expires_at = coalesce(now() + make_interval(secs => CAST(:seconds AS double precision)),
                                 CAST(CAST(:moment AS text) AS timestamptz)),
           updated_at = now(), last_event_id = s.last_event_id + 1
      FROM locked
     WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
    RETURNING s.last_event_id, s.expires_at
), event AS (
    INSERT INTO {schema}events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
    SELECT :tenant_id, :session_id, session.last_event_id, 'expiry_set', CAST(:operation_id AS uuid), now(),
           json_build_object('expires_at', session.expires_at)
      FROM session
    RETURNING payload
)
SELECT true AS fresh, (SELECT CAST(payload AS text) FROM event) AS payload FROM locked
"""
)

# Erase the session with everything about it; only the one that was there when the caller asked.
DELETE = """
DELETE FROM {schema}sessions
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND created_at = CAST(:created_at AS timestamptz)
RETURNING true AS fresh
"""
