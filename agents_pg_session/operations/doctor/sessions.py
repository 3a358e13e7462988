"""What sessions say of themselves beside what their rows say: counters, leases, claims, runs, expiry, approvals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agents_pg_session.drivers import Row, Rows
from agents_pg_session.operations.doctor.asking import IN_RANGE, Asked, Asking, Range
from agents_pg_session.operations.doctor.findings import Complaint
from agents_pg_session.statements import Key

__all__ = ["EXAMINED", "FACTS", "fact_values", "facts_of", "miscounted", "misleading"]

#: The examinations that one look at a session's facts answers.
EXAMINED = frozenset({"counters", "leases", "claims", "runs", "expired", "waiting"})

_SAME = "{t}.tenant_id = s.tenant_id AND {t}.session_id = s.session_id"


def _of(alias: str) -> str:
    return _SAME.replace("{t}", alias)


def _grouped(columns: str, table: str) -> str:
    return f"""
  LEFT JOIN (SELECT t.tenant_id, t.session_id, {columns}
               FROM {{schema}}{table} t
              WHERE {IN_RANGE.replace("{t}", "t")}
              GROUP BY t.tenant_id, t.session_id)"""


# Each session of a range beside a recount of its rows, in one snapshot: only that tells a wrong counter from a writer
# at work.
FACTS = f"""
-- Each session of a range beside a recount of its rows.
SELECT s.tenant_id, s.session_id, s.item_count, s.message_count, s.turn_count, s.tool_run_count, s.tool_error_count,
       s.last_position, s.last_event_id, s.input_tokens, s.output_tokens,
       coalesce(i.found, 0) AS item_rows, coalesce(i.messages, 0) AS message_rows,
       coalesce((SELECT n.turn FROM {{schema}}items n WHERE {
    _of("n")
} ORDER BY n.position DESC LIMIT 1), 0) AS turn_rows,
       coalesce(c.found, 0) AS tool_run_rows, coalesce(c.failed, 0) AS tool_error_rows,
       coalesce(i.reach, 0) AS item_reach, coalesce(c.reach, 0) AS call_reach,
       coalesce((SELECT max(e.event_id) FROM {{schema}}events e WHERE {_of("e")}), 0) AS event_reach,
       coalesce(r.input_sum, 0) AS input_rows, coalesce(r.output_sum, 0) AS output_rows,
       coalesce(r.silent, 0) AS silent_runs, CAST(r.silent_since AS text) AS silent_since,
       s.lease_id IS NOT NULL AND s.lease_until < {{ago:stale_after}} AS lease_is_stale,
       CAST(s.lease_until AS text) AS lease_until,
       s.expires_at < {{now}} AS has_expired, CAST(s.expires_at AS text) AS expires_at,
       s.status = 'waiting' AS is_waiting,
       s.status = 'waiting' AND s.updated_at < {{ago:waiting_for}} AS waits_long,
       CAST(s.updated_at AS text) AS updated_at,
       (SELECT CAST(n.claimed_until AS text) FROM {{schema}}snapshots n
         WHERE {_of("n")} AND n.kind = 'run_state' AND s.status = 'waiting'
           AND n.through_position = s.last_position AND n.claimed_until < {{ago:stale_after}}
           AND n.version = (SELECT max(m.version) FROM {{schema}}snapshots m
                             WHERE {_of("m")} AND m.kind = 'run_state')) AS claimed_until
  FROM {{schema}}sessions s
{
    _grouped(
        "count(*) AS found, max(t.position) AS reach, count(CASE WHEN t.type = 'message' THEN 1 END) AS messages",
        "items",
    )
} AS i ON {_of("i")}{
    _grouped(
        "count(*) AS found, max(t.call_position) AS reach, count(CASE WHEN t.status = 'failed' THEN 1 END) AS failed",
        "tool_runs",
    )
} AS c ON {_of("c")}{
    _grouped(
        "CAST(sum(t.input_tokens) AS bigint) AS input_sum, CAST(sum(t.output_tokens) AS bigint) AS output_sum,"
        " count(CASE WHEN t.status = 'running' AND t.last_seen_at < {ago:silent_for} THEN 1 END) AS silent,"
        " min(CASE WHEN t.status = 'running' AND t.last_seen_at < {ago:silent_for} THEN t.last_seen_at END)"
        " AS silent_since",
        "runs",
    )
} AS r ON {_of("r")}
 WHERE {IN_RANGE.replace("{t}", "s")}
 ORDER BY s.tenant_id, s.session_id
"""

#: Counters, and what the recount calls them.
_COUNTED: Mapping[str, str] = {
    "item_count": "item_rows",
    "message_count": "message_rows",
    "turn_count": "turn_rows",
    "tool_run_count": "tool_run_rows",
    "tool_error_count": "tool_error_rows",
    "input_tokens": "input_rows",
    "output_tokens": "output_rows",
}


def fact_values(asked: Asked) -> dict[str, Any]:
    """Return the values of `FACTS` beside its range."""
    return {
        "stale_after": asked.stale_after,
        "silent_for": asked.silent_for,
        "waiting_for": asked.waiting_for,
    }


async def facts_of(asking: Asking, sessions: Range, asked: Asked) -> Rows:
    """Return the facts of the sessions of a range."""
    return await asking.rows(FACTS, **sessions.values(), **fact_values(asked))


def miscounted(facts: Row) -> dict[str, tuple[Any, int]]:
    """Return the counters that are wrong: what they say, and what they have to say.

    Positions and event ids are never handed out twice, so those two only ever have to be raised: items that were
    popped are gone, but their positions stay taken.
    """
    counted = {name: (getattr(facts, name), getattr(facts, rows)) for name, rows in _COUNTED.items()}
    wrong = {name: pair for name, pair in counted.items() if pair[0] != pair[1]}
    reach = max(facts.item_reach, facts.call_reach, facts.item_rows)
    for name, least in (("last_position", reach), ("last_event_id", facts.event_reach)):
        told = getattr(facts, name)
        if not isinstance(told, int) or told < least:
            wrong[name] = (told, least)
    return wrong


def misleading(facts: Row) -> Iterator[Complaint]:
    """Yield what is to be said of one session by its facts."""
    key = Key(facts.tenant_id, facts.session_id)
    if wrong := miscounted(facts):
        said = ", ".join(f"{name} says {told}, is {counted}" for name, (told, counted) in wrong.items())
        yield Complaint("counters", key, said)
    elif facts.last_event_id > facts.event_reach:
        yield Complaint(
            "events_gone", key, f"last_event_id is {facts.last_event_id}, the newest event {facts.event_reach}"
        )
    if facts.lease_is_stale:
        yield Complaint("lease", key, f"ran out {facts.lease_until}")
    if facts.claimed_until is not None:
        yield Complaint("claim", key, f"claim ran out {facts.claimed_until}")
    if facts.silent_runs:
        runs = "1 run" if facts.silent_runs == 1 else f"{facts.silent_runs} runs"
        yield Complaint("silent_run", key, f"{runs}, silent since {facts.silent_since}")
    if facts.has_expired:
        yield Complaint("expired", key, f"expired {facts.expires_at}")
    if facts.waits_long:
        yield Complaint("waiting", key, f"waits since {facts.updated_at}")
