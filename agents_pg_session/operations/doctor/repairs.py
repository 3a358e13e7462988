"""Mending: one session at a time, its row first, what was found looked at again under the lock, and an event of it.

What is mended without being named is what follows from the rows alone: counters, the state of tool runs, leases and
claims that ran out long ago, indexes. A tool call that nobody answered is answered only where that is asked for by
name, because it changes what the model reads. Nothing is ever deleted, and runs that nobody recorded stay "running".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from agents_pg_session.operations.doctor import answers, file, indexes, locked
from agents_pg_session.operations.doctor.asking import Asked, Asking, Progress
from agents_pg_session.operations.doctor.examining import asked_for, complaints
from agents_pg_session.operations.doctor.findings import KINDS
from agents_pg_session.operations.doctor.locked import Change
from agents_pg_session.statements import Key
from agents_pg_session.store import SessionStore
from agents_pg_session.texts import shown

__all__ = ["BY_NAME", "REPAIRS", "SAFE", "Change", "Mended", "repair"]

#: What is mended unless something else is named.
SAFE = ("indexes", "counters", "tool_runs", "leases", "claims")

#: What is mended only where it is named.
BY_NAME = ("orphans",)

REPAIRS = SAFE + BY_NAME


@dataclass(frozen=True, slots=True)
class Mended:
    """What was changed in one place; with *dry_run*, what would be."""

    changes: tuple[Change, ...]
    tenant: str | None = None  #: None: no session, but an index
    session_id: str | None = None


class _Work(NamedTuple):
    """What is to be mended in a session."""

    key: Key
    repairs: frozenset[str]


async def repair(
    store: SessionStore,
    names: Collection[str] = SAFE,
    *,
    tenant: str | None = None,
    session_id: str | None = None,
    since: timedelta | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> AsyncIterator[Mended]:
    """Mend what `examine` finds, *names* of `REPAIRS` only, and yield what was changed, session by session.

    Each session is mended in one transaction that takes its row first and looks again; an event `repaired` says what
    was before and what is after. Others may append meanwhile. What is mended already is left alone, so an interrupted
    repair is begun anew. With *dry_run* nothing is locked or written.

    Raises `ValueError` for a repair there is none of, `StorageUnavailable` when the database stays away.
    """
    if unknown := [name for name in names if name not in REPAIRS]:
        raise ValueError(f"there is no repair {shown(unknown[0])}; there are: {', '.join(REPAIRS)}")
    asked, asking = asked_for(tenant, session_id, since), Asking(store)
    if "indexes" in names and tenant is None and session_id is None:
        build = indexes.rebuilt if asking.on_postgres else file.rebuilt
        async for change in build(asking, dry_run):
            yield Mended((change,))
    wanted = frozenset(names) - {"indexes"}
    seen = 0
    async for sessions_seen, work in _to_mend(asking, asked, wanted):
        if work is not None and (changes := await _mended(asking, asked, work, dry_run)):
            yield Mended(changes, *work.key)
        seen += sessions_seen
        if progress is not None and sessions_seen:
            progress(seen)


async def _to_mend(asking: Asking, asked: Asked, wanted: frozenset[str]) -> AsyncIterator[tuple[int, _Work | None]]:
    """Walk the sessions; yield what is to be mended once a range was looked at whole."""
    if not wanted:
        return
    async for each in asking.sessions(asked):
        found: dict[Key, set[str]] = {}
        async for sessions_seen, told in complaints(asking, asked, each, wanted):
            yield sessions_seen, None
            for complaint in told:
                name = KINDS[complaint.kind].mended_by
                if name in wanted:
                    found.setdefault(complaint.key, set()).add(name)
        for key, names in found.items():
            yield 0, _Work(key, frozenset(names))


async def _mended(asking: Asking, asked: Asked, work: _Work, dry_run: bool) -> tuple[Change, ...]:
    changes: list[Change] = []
    if repairs := work.repairs - {"orphans"}:
        changes += await locked.mended(asking, asked, work.key, repairs, dry_run)
    if "orphans" in work.repairs:
        changes += await answers.answered(asking, asked, work.key, dry_run)
    return tuple(changes)
