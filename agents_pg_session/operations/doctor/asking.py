"""How the doctor asks: short statements by keyset, in autocommit, without a lock or a snapshot that lasts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from agents_pg_session.database import Database
from agents_pg_session.drivers import Row, Rows
from agents_pg_session.statements import Command, Key, Step, Subject, clause, quoted_prefix
from agents_pg_session.store import SessionStore

__all__ = ["IN_RANGE", "Asked", "Asking", "Progress", "Range"]

#: Sessions a walk takes in one statement, and rows of theirs that one statement counts.
PAGE = 500
ROWS = 20_000

#: Called with how many sessions were examined so far.
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """What to look at, and from when on something is old; times in seconds."""

    tenant: str | None = None  #: None: all
    session_id: str | None = None  #: of that tenant
    since: float | None = None  #: only sessions that were written to since then
    quiet_for: float = 600.0  #: a call without output is nobody's work any more
    stale_after: float = 3600.0  #: leases and claims that ran out so long ago
    silent_for: float = 86_400.0  #: runs nothing was heard of
    waiting_for: float = 7 * 86_400.0


class Range(NamedTuple):
    """Sessions next to each other by key, both ends included."""

    first: Key
    last: Key
    size: int  #: rows they have by their own account
    sessions: int

    def values(self) -> dict[str, str]:
        return {
            "first_tenant": self.first.tenant_id,
            "first_session": self.first.session_id,
            "last_tenant": self.last.tenant_id,
            "last_session": self.last.session_id,
        }


# Sessions of a range; {t} is the alias of their table.
IN_RANGE = """({t}.tenant_id, {t}.session_id) >= (:first_tenant, :first_session)
   AND ({t}.tenant_id, {t}.session_id) <= (:last_tenant, :last_session)"""

# The next sessions by key, with how many rows they have by their own account.
_SESSIONS = """
-- The next sessions by key.
SELECT s.tenant_id, s.session_id, s.item_count + s.tool_run_count AS size, {recent} AS recent
  FROM {schema}sessions s
 WHERE {after}
 ORDER BY s.tenant_id, s.session_id
 LIMIT :page
"""

_WORDS: Mapping[bool, Mapping[str, str]] = {
    True: {"now": "now()", "ago": "(now() - make_interval(secs => CAST(:{} AS double precision)))"},
    False: {
        "now": "strftime('%Y-%m-%d %H\\:%M\\:%f', 'now')",
        "ago": "strftime('%Y-%m-%d %H\\:%M\\:%f', 'now', printf('-%.3f seconds', :{}))",
    },
}


class Asking:
    """Asks one store; says what is dialect and what is schema in a statement's text."""

    def __init__(self, store: SessionStore) -> None:
        self.database: Database = store._database
        self.store = store
        self.schema = self.database.schema
        self.on_postgres = self.schema is not None
        self._words = _WORDS[self.on_postgres]

    def text(self, sql: str) -> str:
        """Return *sql* for this database: `{now}`, `{ago:name}` (a moment *name* seconds ago) and `{schema}`."""
        for name in ("since", "quiet_for", "stale_after", "silent_for", "waiting_for"):
            sql = sql.replace("{ago:" + name + "}", self._words["ago"].format(name))
        return sql.replace("{now}", self._words["now"]).replace("{schema}", quoted_prefix(self.schema))

    async def rows(self, sql: str, **values: Any) -> Rows:
        """Ask one statement."""
        step = Step(clause(self.text(sql)), values)
        return await self.database.read(Command(Subject("doctor"), (step,)))

    async def sessions(self, asked: Asked) -> AsyncIterator[Range]:
        """Walk all sessions that are asked for, in ranges that one statement can count."""
        last: Row | None = None
        while True:
            sql, values = self._page(asked, last)
            rows = await self.rows(sql, **values)
            for each in _ranges(rows):
                yield each
            if len(rows) < PAGE:
                return
            last = rows[-1]

    def _page(self, asked: Asked, last: Row | None) -> tuple[str, dict[str, Any]]:
        conditions, values = ["true"], dict[str, Any](page=PAGE)
        if last is not None:
            conditions.append("(s.tenant_id, s.session_id) > (:tenant_id, :session_id)")
            values |= {"tenant_id": last.tenant_id, "session_id": last.session_id}
        if asked.tenant is not None:
            conditions.append("s.tenant_id = :only_tenant")
            values["only_tenant"] = asked.tenant
        if asked.session_id is not None:
            conditions.append("s.session_id = :only_session")
            values["only_session"] = asked.session_id
        recent = "true"
        if asked.since is not None:
            recent, values["since"] = "s.updated_at >= {ago:since}", asked.since
        return _SESSIONS.replace("{recent}", recent).replace("{after}", " AND ".join(conditions)), values


def _ranges(rows: Rows) -> list[Range]:
    """Cut a page into ranges: where sessions are left out, and before they have too many rows for one statement."""
    ranges: list[Range] = []
    for before, row in pairwise([None, *rows]):
        assert row is not None
        if not row.recent:
            continue
        key, size = Key(row.tenant_id, row.session_id), row.size if isinstance(row.size, int) else 0
        if ranges and before is not None and before.recent and ranges[-1].size + size <= ROWS:
            ranges[-1] = Range(ranges[-1].first, key, ranges[-1].size + size, ranges[-1].sessions + 1)
        else:
            ranges.append(Range(key, key, size, 1))
    return ranges
