"""How a change on PostgreSQL knows that it sees the present, and what becomes of one whose answer was lost.

All parts of one statement see one snapshot, taken before it waits for the session row's lock. A change that depends on
more than the row compares the version of the row as the snapshot saw it (`seen`) with the one it locked (`locked`), and
does nothing where the two differ. The caller then asks again, patiently: `LOCK` first, the statement after it.
"""

from __future__ import annotations

__all__ = ["FENCE", "FENCE_LENGTH", "LOCK", "LOCKED", "LOCK_OR_ERASE", "OPENED", "OPENED_FRESH", "TOLD"]

#: Ids a session's fence remembers. An older one could only matter to a statement that spent the whole time since, and
#: this many other lost connections on the same session, in a network buffer.
FENCE_LENGTH = 256

# The version of the session's row (`xmin`: the transaction that wrote it) before and after the wait for its lock. Equal
# means that nobody wrote to the session in between: whoever does takes this row first. (The row that a fence leaves
# where no session is does not make one, and one that has expired is none any more.)
LOCKED = """
WITH seen AS (
    SELECT xmin AS version FROM {schema}sessions
     WHERE tenant_id = :tenant_id AND session_id = :session_id
), locked AS (
    SELECT xmin AS version, last_position, item_count, status, ended_at FROM {schema}sessions
     WHERE tenant_id = :tenant_id AND session_id = :session_id
       AND NOT CAST(:operation_id AS uuid) = ANY (fenced_ids)
       AND NOT (last_position = 0 AND last_event_id = 0 AND cardinality(fenced_ids) > 0)
       AND (expires_at IS NULL OR expires_at > now())
       FOR UPDATE
), fresh AS (
    SELECT locked.* FROM locked JOIN seen USING (version)
)"""

# The answer of a change: was it fresh, and what does its event say.
TOLD = """
SELECT EXISTS (SELECT FROM fresh) AS fresh, (SELECT CAST(payload AS text) FROM event) AS payload FROM locked
"""

# The same for a change that creates the session where there is none: the row is locked by taking its next event id. One
# that has expired makes way first: the caller asks again, patiently.
OPENED = """
WITH seen AS (
    SELECT xmin AS version, last_position, item_count, expires_at <= now() AS expired FROM {schema}sessions
     WHERE tenant_id = :tenant_id AND session_id = :session_id
), session AS (
    INSERT INTO {schema}sessions AS s (
        tenant_id, session_id, agent, user_id, metadata, status, last_event_id, created_at, updated_at, active_at,
        expires_at)
    VALUES (:tenant_id, :session_id, CAST(:agent AS text), CAST(:user_id AS text),
            coalesce(CAST(CAST(:metadata AS text) AS jsonb), '{}'), coalesce(CAST(:status AS text), 'active'),
            :events, now(), now(), now(), now() + make_interval(secs => CAST(:expires_after AS double precision)))
    ON CONFLICT (tenant_id, session_id) DO UPDATE SET
        status = coalesce(CAST(:status AS text), s.status),
        last_event_id = s.last_event_id + excluded.last_event_id, updated_at = excluded.updated_at,
        -- Where only a lease or a fence was, this begins the session.
        expires_at = CASE WHEN s.last_position + s.last_event_id = 0 THEN excluded.expires_at ELSE s.expires_at END
    WHERE NOT CAST(:operation_id AS uuid) = ANY (s.fenced_ids){fresh}
      AND (s.expires_at IS NULL OR s.expires_at > excluded.updated_at)
      AND (CAST(:expected_position AS bigint) IS NULL
           OR (s.last_position, s.item_count)
            = (CAST(:expected_position AS bigint), CAST(:expected_count AS bigint)))
    RETURNING s.last_position, s.last_event_id - CAST(:events AS bigint) AS event_id
)"""

# What looks at more than the row wants to see the present, too.
OPENED_FRESH = OPENED.replace("{fresh}", "\n      AND s.xmin = (SELECT version FROM seen)")
OPENED = OPENED.replace("{fresh}", "")

# Wait for the session's other writers. The statement after it in the same transaction sees all they did. Should our
# connection vanish between the two, the server lets go of the lock by itself instead of waiting for TCP to notice.
# (Also where there is no row yet: the statement after this one may make it. `count` answers a row in any case.)
LOCK = """
SELECT set_config('idle_in_transaction_session_timeout', '5s', true)
  FROM (SELECT count(*) FROM (
            SELECT FROM {schema}sessions
             WHERE tenant_id = :tenant_id AND session_id = :session_id
               FOR UPDATE) AS session) AS locked
"""

# The same for what may begin a session: one that has expired is erased, with everything about it. What was fenced off
# stays so, for a lost try is not to take effect in the session that begins next.
LOCK_OR_ERASE = (
    """
WITH erased AS (
    DELETE FROM {schema}sessions
     WHERE tenant_id = :tenant_id AND session_id = :session_id AND expires_at <= now()
    RETURNING fenced_ids
), fenced AS (
    INSERT INTO {schema}sessions (tenant_id, session_id, fenced_ids)
    SELECT :tenant_id, :session_id, fenced_ids FROM erased WHERE cardinality(fenced_ids) > 0
)"""
    + LOCK
)

# Wait until the try with this id is over, and leave its id so that it can never take effect later. The row is created
# where it is missing: the lost try may be the one that was about to create it.
FENCE = """
INSERT INTO {schema}sessions AS s (tenant_id, session_id, fenced_ids)
VALUES (:tenant_id, :session_id, ARRAY[CAST(:operation_id AS uuid)])
ON CONFLICT (tenant_id, session_id) DO UPDATE SET
    fenced_ids = (s.fenced_ids || excluded.fenced_ids)[greatest(1, cardinality(s.fenced_ids) + 2 - :fence_length):]
"""
