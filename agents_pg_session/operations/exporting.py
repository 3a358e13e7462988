"""Exporting: whole sessions into an archive, while others write to them.

Each session is read from one snapshot, in a transaction of its own: no snapshot is held for longer than one session
takes, so vacuum goes on. A session that is deleted meanwhile is left out, one that begins meanwhile may be.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO

from agents_pg_session.database import Database
from agents_pg_session.errors import SessionNotFound
from agents_pg_session.labels import checked_flag, checked_id, checked_text
from agents_pg_session.operations.archive import IN_MEMORY, ArchiveWriter, Header, Told
from agents_pg_session.operations.loading import sqlite_time
from agents_pg_session.operations.pages import SNAPSHOT, pages, row_line
from agents_pg_session.operations.shapes import SESSIONS, shapes
from agents_pg_session.passages import Passage
from agents_pg_session.schema import newest_revision
from agents_pg_session.statements import Command, Key, Step, Subject, clause, quoted_prefix
from agents_pg_session.store import SessionStore

__all__ = ["Exported", "Selection", "export_sessions"]

#: Keys of sessions that one statement answers.
_AT_ONCE = 500

# A lease or a fence alone is no conversation, and what has expired is gone to every reader.
_SELECTED = """
  FROM {schema}sessions s
 WHERE s.last_position + s.last_event_id > 0 AND (s.expires_at IS NULL OR s.expires_at > {now}){conditions}
"""

_COUNT = (
    """
-- How many sessions an export will tell.
SELECT count(*) AS sessions"""
    + _SELECTED
)

_KEYS = (
    """
-- The next sessions of an export, in the order of the primary key.
SELECT s.tenant_id, s.session_id"""
    + _SELECTED.rstrip()
    + """{after}
 ORDER BY s.tenant_id, s.session_id
 LIMIT :limit
"""
)

_DIALECTS = {
    "postgresql": {
        "now": "now()",
        "since": "CAST(CAST(:since AS text) AS timestamptz)",
        "seconds": "now() - make_interval(secs => CAST(:seconds AS double precision))",
        "ids": "= ANY (CAST(:ids AS text[]))",
    },
    "sqlite": {
        "now": "strftime('%Y-%m-%d %H\\:%M\\:%f', 'now')",
        "since": ":since",
        "seconds": "strftime('%Y-%m-%d %H\\:%M\\:%f', 'now', printf('-%.3f seconds', :seconds))",
        "ids": "IN (SELECT value FROM json_each(:ids))",
    },
}


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export told so far."""

    sessions: int
    of: int  #: sessions there were when it began
    items: int
    tool_runs: int
    runs: int
    events: int
    snapshots: int
    bytes: int  #: before compression
    sha256: str | None = None  #: of all lines but the last, once they are written


@dataclass(frozen=True, slots=True)
class Selection:
    """Which sessions: those of a tenant, or of all; with these ids, this status, written to since then."""

    tenant: str = ""
    all_tenants: bool = False
    session_ids: Sequence[str] = ()
    status: str | None = None
    since: datetime | timedelta | None = None

    def __post_init__(self) -> None:
        if checked_flag("all_tenants", self.all_tenants) and self.tenant:
            raise ValueError("tenant and all_tenants exclude each other")
        checked_id("tenant", self.tenant)
        for session_id in self.session_ids:
            checked_text("session_id", session_id)
        if self.status is not None:
            checked_text("status", self.status)
        if isinstance(self.since, datetime) and self.since.utcoffset() is None:
            raise ValueError("since must be an aware datetime, with a time zone: datetime.now(timezone.utc)")

    def asked(self) -> dict[str, Any]:
        """Return it as the first line of the archive tells it."""
        asked: dict[str, Any] = {"all_tenants": True} if self.all_tenants else {"tenant": self.tenant}
        if self.session_ids:
            asked["sessions"] = sorted(set(self.session_ids))
        if self.status is not None:
            asked["status"] = self.status
        if isinstance(self.since, datetime):
            asked["since"] = self.since.astimezone(UTC).isoformat()
        elif self.since is not None:
            asked["since_seconds"] = self.since.total_seconds()
        return asked


async def export_sessions(
    store: SessionStore,
    file: BinaryIO,
    selection: Selection | None = None,
    *,
    progress: Callable[[Exported], None] | None = None,
) -> Exported:
    """Write the selected sessions with everything about them to *file*, one after the other; return what was written.

    The same sessions give the same bytes, on PostgreSQL and on SQLite. *progress* is called after each session.
    Raises `SessionNotFound` before the first session if one that is named is not there. Memory stays as it is however
    long a session is: what is more than a few megabytes of it waits in a temporary file until all of it was read, so
    that a lost connection costs a second try and not the file.
    """
    selection = selection or Selection()
    database = store._database
    await database.require_current()
    of = await _count(database, selection)
    writer = ArchiveWriter(file, Header.of_ours(newest_revision(), selection.asked()))

    def state(sha256: str | None = None) -> Exported:
        counts = {name: count for name, count in writer.counts.items() if name != SESSIONS}
        return Exported(writer.counts[SESSIONS], of, **counts, bytes=writer.size, sha256=sha256)

    async for key in _keys(database, selection):
        told = Told()
        try:
            if await read_session(database, key, told):
                # A short one is written at once; a long one may take as long as its disk.
                await asyncio.to_thread(writer.add, key, told) if told.size > IN_MEMORY else writer.add(key, told)
        finally:
            told.close()
        if progress is not None:
            progress(state())
    return state(writer.finish())


async def read_session(database: Database, key: Key, told: Told) -> bool:
    """Fill *told* with a session's lines, of one moment; say whether there is such a session."""

    async def read(passage: Passage) -> bool:
        told.again()
        row = await row_line(passage, database.schema, shapes()[SESSIONS], key, key)
        if row is None:
            return False
        told.add(f"{row}\n".encode())
        async for table, count, lines in pages(passage, database.schema, shapes(), key, key):
            told.add(lines, **{table: count})
        return True

    return await database.passage(Subject("export", key), read, begin=SNAPSHOT[_dialect(database)])


async def _count(database: Database, selection: Selection) -> int:
    [row] = await database.read(_command(database, _COUNT, selection))
    if selection.session_ids and row.sessions < len(set(selection.session_ids)):
        found = {key.session_id async for key in _keys(database, selection)}
        missing = sorted(set(selection.session_ids) - found)
        if missing:
            whose = "any tenant" if selection.all_tenants else f"tenant {selection.tenant!r}"
            raise SessionNotFound(f"there is no session {missing[0]!r} of {whose} among those that were asked for")
    return int(row.sessions)


async def _keys(database: Database, selection: Selection) -> AsyncIterator[Key]:
    last: Key | None = None
    while True:
        rows = await database.read(_command(database, _KEYS, selection, last))
        for row in rows:
            yield Key(row.tenant_id, row.session_id)
        if len(rows) < _AT_ONCE:
            return
        last = Key(rows[-1].tenant_id, rows[-1].session_id)


def _command(database: Database, sql: str, selection: Selection, last: Key | None = None) -> Command:
    dialect = _dialect(database)
    words, values, conditions = _DIALECTS[dialect], dict[str, Any](), ""
    if not selection.all_tenants:
        conditions += "\n   AND s.tenant_id = :tenant_id"
        values["tenant_id"] = selection.tenant
    if selection.session_ids:
        conditions += f"\n   AND s.session_id {words['ids']}"
        ids = sorted(set(selection.session_ids))
        values["ids"] = ids if dialect == "postgresql" else json.dumps(ids)
    if selection.status is not None:
        conditions += "\n   AND s.status = :status"
        values["status"] = selection.status
    if isinstance(selection.since, timedelta):
        conditions += f"\n   AND s.updated_at >= {words['seconds']}"
        values["seconds"] = selection.since.total_seconds()
    elif selection.since is not None:
        conditions += f"\n   AND s.updated_at >= {words['since']}"
        utc = selection.since.astimezone(UTC)
        iso = utc.isoformat(timespec="microseconds")
        values["since"] = iso if dialect == "postgresql" else sqlite_time(iso)
    if "{after}" in sql:
        values["limit"] = _AT_ONCE
        after = "\n   AND (s.tenant_id, s.session_id) > (:last_tenant, :last_session)" if last is not None else ""
        values |= {"last_tenant": last.tenant_id, "last_session": last.session_id} if last is not None else {}
        sql = sql.replace("{after}", after)
    sql = sql.replace("{conditions}", conditions).replace("{now}", words["now"])
    sql = sql.replace("{schema}", quoted_prefix(database.schema))
    return Command(Subject("export"), (Step(clause(sql), values),))


def _dialect(database: Database) -> str:
    return "sqlite" if database.schema is None else "postgresql"
