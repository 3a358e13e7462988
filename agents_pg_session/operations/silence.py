"""Runs that never said how they ended: the process died, or nobody recorded the end.

Reads the runs of a time and no others, as `statistics.py` does, and the newest item of each that fell silent.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from agents_pg_session.labels import checked_number, checked_span
from agents_pg_session.ledgers.mapping import moment
from agents_pg_session.operations.statistics import Scope, Since
from agents_pg_session.store import SessionStore

__all__ = ["SilentRun", "silent_runs"]

_SILENT = """
-- Runs that are still "running" and of which nothing was heard for a while, the newest first, with their last item.
SELECT r.tenant_id, r.session_id, r.run_id, r.agent, r.started_at, r.last_seen_at, {silence} AS silent_for,
       {last} AS last_item
  FROM {runs} AS r
 WHERE r.status = 'running' AND {silence} >= :silent_for
   AND ((SELECT s.expires_at FROM {schema}sessions s
          WHERE s.tenant_id = r.tenant_id AND s.session_id = r.session_id) <= {present}) IS NOT TRUE
 ORDER BY r.started_at DESC, r.session_id, r.run_id
 LIMIT :limit
"""

_LAST = """(SELECT coalesce(i.role || ' ', '') || coalesce(i.type, 'item') FROM {schema}items i
         WHERE i.tenant_id = r.tenant_id AND i.session_id = r.session_id AND i.run_id = r.run_id
         ORDER BY i.position DESC LIMIT 1)"""

_SILENCE = {
    "postgresql": "CAST(extract(epoch FROM now() - r.last_seen_at) AS double precision)",
    "sqlite": "(julianday('now') - julianday(r.last_seen_at)) * 86400.0",
}


@dataclass(frozen=True, slots=True)
class SilentRun:
    """A run that is "running" although nothing was heard of it for a while."""

    tenant: str
    session_id: str
    run_id: str
    agent: str | None
    started_at: datetime
    last_seen_at: datetime
    silent_for: float  #: seconds
    last_item: str | None  #: "assistant message": it has answered, and nobody recorded its end

    @property
    def has_answered(self) -> bool:
        """Whether the last thing it stored was the agent's words."""
        return self.last_item == "assistant message"


async def silent_runs(
    store: SessionStore,
    *,
    since: Since,
    silent_for: timedelta = timedelta(minutes=10),
    tenant: str = "",
    all_tenants: bool = False,
    limit: int = 50,
) -> list[SilentRun]:
    """Return the runs since then, the newest first, that are "running" and were not heard of for *silent_for*."""
    scope = Scope(store, since, tenant, all_tenants)
    words = {"last": _LAST, "silence": _SILENCE[scope.dialect]}
    spans = {"silent_for": checked_span("silent_for", silent_for).total_seconds()}
    rows = await scope.ask("silent runs", _SILENT, words, limit=checked_number("limit", limit), **spans)
    return [
        SilentRun(
            tenant=row.tenant_id,
            session_id=row.session_id,
            run_id=row.run_id,
            agent=row.agent,
            started_at=moment(row.started_at),
            last_seen_at=moment(row.last_seen_at),
            silent_for=row.silent_for,
            last_item=row.last_item,
        )
        for row in rows
    ]
