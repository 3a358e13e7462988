"""All examinations, one after the other: first what the rest stands on, then the rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, replace
from datetime import timedelta

from agents_pg_session.errors import SchemaOutdated, SessionError, StorageUnavailable
from agents_pg_session.labels import checked_id
from agents_pg_session.operations.doctor import file, items, schema, server, sessions
from agents_pg_session.operations.doctor.asking import Asked, Asking, Progress, Range
from agents_pg_session.operations.doctor.findings import KINDS, SHOWN, Complaint, Finding, gathered
from agents_pg_session.store import SessionStore
from agents_pg_session.texts import shown

__all__ = ["EXAMINATIONS", "QUICK", "Diagnosis", "asked_for", "complaints", "examine"]

#: Everything that is examined, in this order. `file` is for SQLite, `server`, `activity` and `bloat` for PostgreSQL.
EXAMINATIONS = (
    "schema",
    "server",
    "activity",
    "bloat",
    "file",
    "counters",
    "orphans",
    "items",
    "tool_runs",
    "leases",
    "claims",
    "runs",
    "expired",
    "waiting",
)

#: What a quick look leaves out is what reads the items, or all of a file.
QUICK = tuple(name for name in EXAMINATIONS if name not in items.EXAMINED | {"file"})

#: How far back a quick look goes, unless it is told.
_RECENT = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What an examination found, the worst first, and how many sessions it looked at."""

    findings: tuple[Finding, ...]
    sessions: int

    @property
    def is_healthy(self) -> bool:
        """Whether there is nothing worse than a note."""
        return all(finding.severity == "note" for finding in self.findings)


async def examine(
    store: SessionStore,
    *,
    tenant: str | None = None,
    session_id: str | None = None,
    only: Collection[str] = (),
    since: timedelta | None = None,
    quick: bool = False,
    progress: Progress | None = None,
) -> Diagnosis:
    """Examine a store: all tenants, or one, or one session of it; *only* some of `EXAMINATIONS`.

    *since* looks at sessions only that were written to since then. *quick* leaves out whatever reads items, and looks
    at the sessions of the last day unless *since* says otherwise. *progress* is called with the number of sessions
    examined so far. Needs no more than the right to read.

    Raises `ValueError` for an examination there is none of, `StorageUnavailable` when the database stays away.
    """
    names = _chosen(only, quick)
    asked = asked_for(tenant, session_id, _RECENT if quick and since is None else since)
    asking = Asking(store)
    findings = await _groundwork(asking, names)
    count = 0
    if not any(finding.severity == "fault" and "no rows were examined" in finding.why for finding in findings):
        tally = _Tally()
        try:
            async for sessions_seen, found in _rows(asking, asked, names):
                tally.take(found)
                count += sessions_seen
                if progress is not None and sessions_seen:
                    progress(count)
        except SchemaOutdated as error:
            findings.append(_not_examined(error))
        findings += gathered(tally.found)
    order = ("fault", "warning", "note")
    return Diagnosis(tuple(sorted(findings, key=lambda finding: order.index(finding.severity))), count)


def asked_for(tenant: str | None, session_id: str | None, since: timedelta | None) -> Asked:
    """Return what to look at; a session without a tenant is one of the tenant "". Raises `ValueError`."""
    if session_id is not None:
        tenant = checked_id("tenant", tenant or "")
        session_id = checked_id("session_id", session_id)
    elif tenant is not None:
        tenant = checked_id("tenant", tenant)
    if since is not None and (not isinstance(since, timedelta) or since <= timedelta(0)):
        raise ValueError(f"since must be a timedelta that reaches back, not {shown(since)}")
    return replace(
        Asked(), tenant=tenant, session_id=session_id, since=None if since is None else since.total_seconds()
    )


async def complaints(
    asking: Asking, asked: Asked, sessions_in: Range, names: frozenset[str]
) -> AsyncIterator[tuple[int, list[Complaint]]]:
    """Yield how many sessions were examined and what is to be said of them, for one range."""
    try:
        if names & sessions.EXAMINED:
            facts = await sessions.facts_of(asking, sessions_in, asked)
            yield 0, [each for row in facts for each in sessions.misleading(row) if _wanted(each, names)]
        if names & items.EXAMINED:
            async for complaint in items.looked_through(asking, sessions_in, asked, names):
                yield 0, [complaint] if _wanted(complaint, names) else []
    except (StorageUnavailable, SchemaOutdated):
        raise
    except SessionError as error:
        alone = sessions_in.first == sessions_in.last
        upto = "" if alone else f" (this session, or one up to {sessions_in.last.session_id!r})"
        yield 0, [Complaint("unreadable", sessions_in.first, f"{error}"[:200] + upto)]
    yield sessions_in.sessions, []


async def _rows(asking: Asking, asked: Asked, names: frozenset[str]) -> AsyncIterator[tuple[int, list[Complaint]]]:
    if not names & (sessions.EXAMINED | items.EXAMINED):
        return
    async for each in asking.sessions(asked):
        async for found in complaints(asking, asked, each, names):
            yield found


async def _groundwork(asking: Asking, names: frozenset[str]) -> list[Finding]:
    """Examine what is not rows."""
    findings: list[Finding] = []
    if "schema" in names:
        findings += await schema.schema_findings(asking)
        if not asking.on_postgres and not findings:
            findings += await file.catalog_findings(asking)
    if not asking.on_postgres and "file" in names:
        findings += await file.file_findings(asking)
    if asking.on_postgres:
        for name, examination in (
            ("server", server.server_findings),
            ("activity", server.activity_findings),
            ("bloat", server.bloat_findings),
        ):
            if name in names:
                findings += await examination(asking)
    return findings


class _Tally:
    """How often each kind of trouble was met, and where first."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, list[Complaint]]] = {}

    def take(self, complaints: list[Complaint]) -> None:
        for each in complaints:
            count, first = self.found.get(each.kind, (0, []))
            self.found[each.kind] = count + 1, first if len(first) >= SHOWN else [*first, each]


def _chosen(only: Collection[str], quick: bool) -> frozenset[str]:
    if unknown := [name for name in only if name not in EXAMINATIONS]:
        raise ValueError(f"there is no examination {shown(unknown[0])}; there are: {', '.join(EXAMINATIONS)}")
    return frozenset(only or EXAMINATIONS) & frozenset(QUICK if quick else EXAMINATIONS)


def _wanted(complaint: Complaint, names: frozenset[str]) -> bool:
    return complaint.kind == "unreadable" or KINDS[complaint.kind].examination in names


def _not_examined(error: SchemaOutdated) -> Finding:
    return Finding(
        "fault",
        "schema",
        "rows could not be examined",
        "A table or column that this version reads is not there, and verbs fail in the same way.",
        str(error),
    )
