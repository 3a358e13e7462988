"""Removing sessions whose time is over, in small statements: which of the next ones are to go, and removing them.

One text for both dialects where they speak alike. What goes is asked twice: when it is found, and again under its lock,
for a session may have become active meanwhile. Sessions are removed whole. One with very many rows is first marked as
expired, so that no verb shows it any more, and then loses its rows in slices.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agents_pg_session.statements import Command, Key, Step, Subject, Write, clause, quoted_prefix
from agents_pg_session.statements.sqlite.words import NOW

__all__ = ["Purges", "Rule"]

SUBJECT = Subject("purge", writes=True)

# The next sessions in the order of the primary key: those that are to go, each with why, and the last one in any case,
# which tells how many were looked at and where to go on.
_NEXT = """
SELECT tenant_id, session_id, item_count, tool_run_count, last_event_id, last_position, reason, looked_at
  FROM (SELECT page.*, row_number() OVER (ORDER BY tenant_id, session_id) AS place, count(*) OVER () AS looked_at
          FROM (SELECT s.tenant_id, s.session_id, s.item_count, s.tool_run_count, s.last_event_id, s.last_position,
                       {reason} AS reason
                  FROM {schema}sessions s
                 WHERE {from}
                 ORDER BY s.tenant_id, s.session_id
                 LIMIT :page) AS page) AS page
 WHERE reason IS NOT NULL OR place = looked_at
 ORDER BY tenant_id, session_id
"""

# How many sessions there are to look at.
_COUNT = "SELECT count(*) AS sessions FROM {schema}sessions s WHERE {whose}"

# Lock those that are still to go. Whoever writes to one of them, or removes it, has it locked: it is passed over.
_DOOMED = """
WITH doomed AS (
    SELECT s.tenant_id, s.session_id
      FROM unnest(CAST(:tenants AS text[]), CAST(:sessions AS text[])) AS each (tenant_id, session_id)
      JOIN {schema}sessions s ON s.tenant_id = each.tenant_id AND s.session_id = each.session_id
     WHERE {reason} IS NOT NULL
       FOR UPDATE OF s SKIP LOCKED
)"""

# Remove them with everything about them.
_REMOVE = (
    _DOOMED
    + """
DELETE FROM {schema}sessions s USING doomed
 WHERE s.tenant_id = doomed.tenant_id AND s.session_id = doomed.session_id
RETURNING s.tenant_id, s.session_id, s.item_count, s.tool_run_count, s.last_event_id, s.last_position
"""
)

# End one now: for every verb it is gone.
_END = (
    _DOOMED
    + """
UPDATE {schema}sessions s SET expires_at = least(s.expires_at, now()) FROM doomed
 WHERE s.tenant_id = doomed.tenant_id AND s.session_id = doomed.session_id
RETURNING s.tenant_id, s.session_id, s.item_count, s.tool_run_count, s.last_event_id, s.last_position
"""
)

# Take some rows from a session that has ended. An append that begins it anew has it locked, or has erased these rows.
_SLICE = """
WITH session AS (
    SELECT FROM {schema}sessions
     WHERE tenant_id = :tenant_id AND session_id = :session_id AND expires_at <= now()
       FOR UPDATE SKIP LOCKED
), slice AS (
    SELECT {place} FROM {schema}{table}
     WHERE tenant_id = :tenant_id AND session_id = :session_id AND EXISTS (SELECT FROM session)
     ORDER BY {place} LIMIT :rows
), removed AS (
    DELETE FROM {schema}{table} t USING slice
     WHERE t.tenant_id = :tenant_id AND t.session_id = :session_id AND t.{place} = slice.{place}
    RETURNING 1
)
SELECT (SELECT count(*) FROM removed) AS removed
"""

# On SQLite the steps of one transaction take turns, and time goes on between them: those that are to go are marked.
# (Nothing else writes `fenced_ids` there.)
_SQLITE_MARK = """
UPDATE sessions AS s SET fenced_ids = :operation_id
 WHERE (s.tenant_id, s.session_id) IN (SELECT value ->> 0, value ->> 1 FROM json_each(:keys)) AND {reason} IS NOT NULL
"""
_SQLITE_MARKED = """(tenant_id, session_id) IN (
    SELECT s.tenant_id, s.session_id FROM json_each(:keys) each
      JOIN sessions s ON s.tenant_id = each.value ->> 0 AND s.session_id = each.value ->> 1
     WHERE s.fenced_ids = :operation_id)"""
_SQLITE_TOLD = "tenant_id, session_id, item_count, tool_run_count, last_event_id, last_position"
_SQLITE_REMOVE = (
    _SQLITE_MARK,
    *(
        f"DELETE FROM {table} WHERE {_SQLITE_MARKED}"  # on an engine of the caller's, foreign keys may be off
        for table in ("items", "tool_runs", "runs", "events", "snapshots")
    ),
    f"DELETE FROM sessions AS s WHERE {_SQLITE_MARKED} RETURNING {_SQLITE_TOLD}",
)
_SQLITE_END = (
    f"""
UPDATE sessions AS s SET expires_at = min(coalesce(s.expires_at, {NOW}), {NOW})
 WHERE (s.tenant_id, s.session_id) IN (SELECT value ->> 0, value ->> 1 FROM json_each(:keys)) AND {{reason}} IS NOT NULL
RETURNING {_SQLITE_TOLD}
""",
)
_SQLITE_SLICE = (
    f"""
DELETE FROM {{table}}
 WHERE tenant_id = :tenant_id AND session_id = :session_id
   AND {{place}} IN (SELECT {{place}} FROM {{table}} WHERE tenant_id = :tenant_id AND session_id = :session_id
                    ORDER BY {{place}} LIMIT :rows)
   AND EXISTS (SELECT 1 FROM sessions
                WHERE tenant_id = :tenant_id AND session_id = :session_id AND expires_at <= {NOW})
""",
    "SELECT changes() AS removed",
)

#: What a session can have very many of, and the column that orders them.
SLICED = {"items": "position", "tool_runs": "call_position", "events": "event_id"}


@dataclass(frozen=True, slots=True)
class Rule:
    """Which sessions are to go."""

    tenant: str | None  #: None: of all tenants
    expired: bool  #: those that have expired
    status: str | None  #: those of this status …
    older_than: float | None  #: … that nothing was written to for so many seconds

    @property
    def values(self) -> dict[str, Any]:
        given = {"tenant_id": self.tenant, "status": self.status, "older_than": self.older_than}
        return {name: value for name, value in given.items() if value is not None}


class Purges:
    """The statements of a purge, for one schema of PostgreSQL, or (None) for SQLite."""

    def __init__(self, schema: str | None) -> None:
        self._on_sqlite = schema is None
        self._prefix = quoted_prefix(schema)

    def count(self, rule: Rule) -> Command:
        """How many sessions there are to look at. Answers one row (sessions)."""
        values = {} if rule.tenant is None else {"tenant_id": rule.tenant}
        return Command(Subject("purge"), (Step(self._sql(_COUNT, rule), values),))

    def next(self, rule: Rule, after: Key, page: int) -> Command:
        """Look at the next sessions behind *after*.

        Answers rows (tenant_id, session_id, item_count, tool_run_count, last_event_id, last_position, reason,
        looked_at), *reason* None for the last one if it is to stay.
        """
        values = {**rule.values, "after_session": after.session_id, "page": page}
        if rule.tenant is None:
            values["after_tenant"] = after.tenant_id
        return Command(Subject("purge"), (Step(self._sql(_NEXT, rule), values),))

    def remove(self, rule: Rule, keys: Sequence[Key]) -> Write:
        """Remove those of *keys* that are still to go and that nobody has locked. Answers their rows."""
        return self._of_keys(rule, keys, _SQLITE_REMOVE if self._on_sqlite else (_REMOVE,))

    def end(self, rule: Rule, key: Key) -> Write:
        """End a session now, if it is still to go and nobody has it locked. Answers the same."""
        return self._of_keys(rule, [key], _SQLITE_END if self._on_sqlite else (_END,))

    def slice(self, key: Key, table: str, rows: int) -> Write:
        """Take some rows from a session that has ended. Answers one row (removed)."""
        values, subject = {**key._asdict(), "rows": rows}, Subject("purge", key, writes=True)

        def step(sql: str) -> Step:
            sql = sql.replace("{table}", table).replace("{place}", SLICED[table])
            return Step(clause(sql.replace("{schema}", self._prefix)), values)

        command = Command(subject, tuple(map(step, _SQLITE_SLICE if self._on_sqlite else (_SLICE,))))
        return Write(subject, lambda _operation_id: command)

    def _of_keys(self, rule: Rule, keys: Sequence[Key], texts: Sequence[str]) -> Write:
        """A write without a fence: done twice, it finds nothing the second time."""
        if self._on_sqlite:
            named: dict[str, Any] = {"keys": json.dumps(keys)}
        else:
            named = {"tenants": [key.tenant_id for key in keys], "sessions": [key.session_id for key in keys]}
        values = {name: value for name, value in rule.values.items() if name != "tenant_id"}
        clauses = [self._sql(sql, rule) for sql in texts]

        def attempt(operation_id: str) -> Command:
            bound = {**values, **named, "operation_id": operation_id}
            return Command(SUBJECT, tuple(Step(each, bound) for each in clauses))

        return Write(SUBJECT, attempt)

    def _sql(self, template: str, rule: Rule) -> Any:
        whose = "s.tenant_id = :tenant_id" if rule.tenant is not None else "true"
        behind = "s.session_id > CAST(:after_session AS text)"
        if rule.tenant is None:
            behind = "(s.tenant_id, s.session_id) > (CAST(:after_tenant AS text), CAST(:after_session AS text))"
        sql = template.replace("{reason}", self._reason(rule)).replace("{whose}", whose)
        return clause(sql.replace("{from}", f"{whose} AND {behind}").replace("{schema}", self._prefix))

    def _reason(self, rule: Rule) -> str:
        """Why a session is to go; NULL for one that is to stay."""
        now = NOW if self._on_sqlite else "now()"
        cases = []
        if rule.expired:
            cases.append(f"WHEN s.expires_at <= {now} THEN 'expired'")
        if rule.status is not None or rule.older_than is not None:
            cases.append(f"WHEN {' AND '.join(self._conditions(rule, now))} THEN 'old'")
        return f"CASE {' '.join(cases)} END" if cases else "CASE WHEN false THEN '' END"

    def _conditions(self, rule: Rule, now: str) -> list[str]:
        # Whoever runs it alone is about to write.
        conditions = [f"(s.lease_until IS NULL OR s.lease_until <= {now})"]
        if rule.status is None:
            conditions.append("s.status <> 'waiting'")
        else:
            conditions.append("s.status = CAST(:status AS text)")
        if rule.older_than is not None:
            then = "now() - make_interval(secs => CAST(:older_than AS double precision))"
            if self._on_sqlite:
                then = "strftime('%Y-%m-%d %H\\:%M\\:%f', 'now', printf('-%.3f seconds', :older_than))"
            # Both: an import may have brought one of them along.
            conditions.append(f"s.updated_at < {then} AND s.active_at < {then}")
        return conditions
