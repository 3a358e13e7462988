"""Moving history out of the Agents SDK's own tables into ours.

Sessions go in whole or not at all: many small ones in one transaction, a large one in a transaction of its own, read
and written page by page. What was imported is marked in the session's own record, as an event `imported`. So running
it again skips what is done, adds what has come since, and leaves alone, as a conflict, what went on here as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from agents_pg_session.errors import StorageUnavailable
from agents_pg_session.failures import describe
from agents_pg_session.labels import checked_id, checked_text
from agents_pg_session.operations.sdk_layouts import find_layouts, source_engine
from agents_pg_session.operations.sdk_marks import Mark
from agents_pg_session.operations.sdk_report import Conflict, Orphan, SDKImport, count
from agents_pg_session.operations.sdk_rows import Batch, Growing, RunningCall
from agents_pg_session.operations.sdk_tables import MAIN, PAGE_BYTES, PAGE_ROWS, Layout, SourceSession, present
from agents_pg_session.operations.sdk_target import Raced, Target
from agents_pg_session.store import SessionStore

__all__ = ["Conflict", "Orphan", "SDKImport", "import_sdk"]

#: Sessions asked for at once.
_SESSIONS = 500

_IS_HERE = "a session of that name is here already, and was not imported"
_IS_OTHER = "the session of that name here was imported from elsewhere"
_WENT_ON = "it went on here and in the source since it was imported"
_CHANGED = (
    "what was imported is no longer in the source as it was: taken out, compacted, or other items came in between"
)

_Key = tuple[str, str | None]


async def import_sdk(
    store: SessionStore,
    *,
    source: str,
    source_schema: str | None = None,
    sessions_table: str = "agent_sessions",
    messages_table: str = "agent_messages",
    tenant: str = "",
    user_from: str | None = None,
    session_id: str | None = None,
    since: datetime | timedelta | None = None,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SDKImport:
    """Bring the SDK's sessions at the URL *source* into *store*; run it again, and it brings what has come since.

    *user_from* is a regular expression that finds the user in a session's id: its first group, or all of it. With
    *since*, only sessions that changed since then. With *dry_run* nothing is written. *progress* is told the rows done
    and the rows there are. Raises `ValueError` where the tables are not there, naming those that look right, and
    `StorageUnavailable` when one of the databases goes away: the sessions reported until then are complete.
    """
    await store.check()
    chosen = _Chosen(
        tenant=checked_id("tenant", tenant),
        user=_pattern(user_from),
        only=None if session_id is None else checked_text("session", session_id),
        dry_run=dry_run,
    )
    engine = source_engine(source)
    try:
        async with engine.connect() as connection:
            layouts = await connection.run_sync(find_layouts, source_schema, sessions_table, messages_table)
            moving = _Moving(store, connection, chosen, {"sessions": sessions_table, "messages": messages_table})
            return await moving.all(layouts, await _moment(connection, since), progress)
    except (DBAPIError, OSError) as error:
        raise StorageUnavailable(f"the SDK's database cannot be reached: {describe(error)}; check --from") from None
    finally:
        await engine.dispose()


class _Chosen(NamedTuple):
    """What the caller chose."""

    tenant: str
    user: re.Pattern[str] | None
    only: str | None
    dry_run: bool

    def user_of(self, session_id: str) -> str | None:
        found = self.user.search(session_id) if self.user is not None else None
        if found is None:
            return None
        return checked_id("user_id", found[1] if found.re.groups else found[0]) or None


class _Moving:
    """One import on its way."""

    def __init__(
        self, store: SessionStore, source: AsyncConnection, chosen: _Chosen, tables: Mapping[str, str]
    ) -> None:
        self._database = store._database
        self._source = source
        self._chosen = chosen
        self._tables = tables
        self._target = Target(self._database.schema, chosen.tenant)

    async def all(
        self, layouts: Sequence[Layout], since: datetime | None, progress: Callable[[int, int], None] | None
    ) -> SDKImport:
        totals = [await self._source.run_sync(layout.totals) for layout in layouts]
        used = [layout for layout, (rows, _, _) in zip(layouts, totals, strict=True) if rows] or layouts[:1]
        words = [f"{layout.kind} (in the order of {layout.order_words})" for layout in used]
        report = SDKImport(source=", ".join(words), dry_run=self._chosen.dry_run)
        total, done = sum(each[0] for each in totals), 0
        if self._chosen.only is None:
            report.unlisted, report.empty = totals[0][1], totals[0][2]
        if progress is not None:
            progress(0, total)
        for layout in layouts:
            after: _Key | None = None
            while sessions := await self._next(layout, after):
                after = sessions[-1].session_id, sessions[-1].branch
                for group in _groups([each for each in sessions if _is_recent(each, since)]):
                    report.add(await self._carry(layout, group))
                    done += sum(each.row_count for each in group)
                    if progress is not None:
                        progress(done, max(done, total))
        return report

    async def _next(self, layout: Layout, after: _Key | None) -> list[SourceSession]:
        return await self._source.run_sync(layout.sessions, after=after, only=self._chosen.only, limit=_SESSIONS)

    async def _carry(self, layout: Layout, group: Sequence[SourceSession]) -> SDKImport:
        """Bring a group of sessions in one transaction; again where another import came first."""
        rows = sum(each.row_count for each in group)
        while True:
            try:
                return await self._database.transaction(
                    "import_sdk",
                    lambda connection: self._within(connection, layout, group),
                    writes=not self._chosen.dry_run,
                    lasting=60 + rows / 500,  # hundreds of rows a second is what a slow disk does
                )
            except Raced:
                continue

    def _within(self, target: Connection, layout: Layout, group: Sequence[SourceSession]) -> SDKImport:
        """Decide about each session on what is here now, then bring what is to be brought. May be repeated."""
        report = SDKImport()
        source = self._source.sync_connection
        assert source is not None, "connected by import_sdk"
        batch = Batch()
        names = {(each.session_id, each.branch): _name(each) for each in group}
        usable = [name for name in names.values() if _fault(name) is None]
        states = self._target.states(target, usable, lock=not self._chosen.dry_run)
        new: dict[_Key, Growing] = {}
        known: list[Growing] = []
        for each in group:
            name = names[each.session_id, each.branch]
            state = states.get(name)
            mark = Mark.read(state.mark) if state is not None else None
            decision = self._decide(source, layout, each, name, state, mark)
            if isinstance(decision, Conflict):
                report.conflict_count += 1
                report.conflicts.append(decision)
            elif not decision:
                report.skipped += 1
            elif state is None or mark is None:
                new[each.session_id, each.branch] = self._begin(source, layout, each, name, batch)
            else:
                known.append(self._go_on(source, target, layout, each, state, mark, batch))
        self._bring(source, target, layout, new, batch, report)
        for growing in known:
            self._bring_pages(source, target, layout, growing, batch, report)
        return report

    def _decide(
        self,
        source: Connection,
        layout: Layout,
        session: SourceSession,
        name: str,
        state: Any,
        mark: Mark | None,
    ) -> bool | Conflict:
        """Say whether there is something to bring, or why it must not be brought."""
        if (fault := _fault(name)) is not None:
            return Conflict(name, fault)
        if state is None or (state.last_position == 0 and state.last_event_id == 0):
            return True
        if mark is None:
            return Conflict(name, _IS_HERE)
        if not mark.is_of(session, self._described(layout, session)):
            return Conflict(name, _IS_OTHER)
        moved = (state.last_position, state.item_count) != (mark.last_position, mark.item_count)
        if mark.is_all(session):
            return not moved and not mark.has_usage(session)
        key = (session.session_id, session.branch)
        if layout.extent(source, key, layout.read_key(mark.key)) != (mark.row_count, mark.ids, mark.newest):
            return Conflict(name, _CHANGED)
        return Conflict(name, _WENT_ON) if moved else True

    def _begin(self, source: Connection, layout: Layout, session: SourceSession, name: str, batch: Batch) -> Growing:
        key = (session.session_id, session.branch)
        return Growing(
            tenant_id=self._chosen.tenant,
            session_id=name,
            source=session,
            described=self._described(layout, session),
            batch=batch,
            user_id=self._chosen.user_of(session.session_id),
            usage=layout.usage(source, key),
            shared_through=layout.shared_through(source, key),
            forked_from=session.session_id if session.branch not in (None, MAIN) else None,
        )

    def _go_on(
        self,
        source: Connection,
        target: Connection,
        layout: Layout,
        session: SourceSession,
        state: Any,
        mark: Mark,
        batch: Batch,
    ) -> Growing:
        growing = self._begin(source, layout, session, state.session_id, batch)
        growing.is_new, growing.mark, growing.forked_from = False, mark, None
        for name in _COUNTERS:
            setattr(growing, name, getattr(state, name))
        for call in self._target.running(target, state.session_id):
            if call.call_id is not None:
                growing.waits(call.call_id, RunningCall(call.call_position, call.tool_name))
        return growing

    def _bring(
        self,
        source: Connection,
        target: Connection,
        layout: Layout,
        new: dict[_Key, Growing],
        batch: Batch,
        report: SDKImport,
    ) -> None:
        if len(new) == 1 and _is_large(next(iter(new.values())).source):
            self._bring_pages(source, target, layout, next(iter(new.values())), batch, report)
            return
        if not new:
            return
        found = layout.rows(source, list(new))
        finished = []
        for key, rows in groupby(found, key=lambda pair: pair[0]):
            growing = new[key]
            growing.add([row for _, row in rows])
            growing.finish()
            finished.append(growing)
        self._write(target, batch, finished)
        for growing in finished:
            count(report, growing, None)

    def _bring_pages(
        self,
        source: Connection,
        target: Connection,
        layout: Layout,
        growing: Growing,
        batch: Batch,
        report: SDKImport,
    ) -> None:
        before = growing.row() if not growing.is_new else None
        key = (growing.source.session_id, growing.source.branch)
        after = layout.read_key(growing.mark.key) if growing.mark is not None else None
        was_known = not growing.is_new
        while page := layout.page(source, key, after):
            after = page[-1].key
            growing.add(page)
            self._write(target, batch, [growing])
        if growing.rows_read == 0 and not was_known:
            return  # it is gone meanwhile
        growing.finish()
        self._write(target, batch, [growing])
        count(report, growing, before)

    def _write(self, target: Connection, batch: Batch, sessions: Sequence[Growing]) -> None:
        """Write the rows gathered so far, unless it is only asked what would be."""
        if not self._chosen.dry_run:
            new = [growing.row() for growing in sessions if growing.is_new]
            known = [growing.row() for growing in sessions if not growing.is_new]
            self._target.write(target, batch, new, known)
        batch.empty()
        for growing in sessions:
            growing.is_new = False

    def _described(self, layout: Layout, session: SourceSession) -> dict[str, Any]:
        """What the mark says of where a session came from."""
        return {"kind": layout.kind, **self._tables, "session_id": session.session_id, "branch": session.branch}


_COUNTERS = (
    "last_position",
    "last_event_id",
    "item_count",
    "message_count",
    "turn_count",
    "tool_run_count",
    "tool_error_count",
    "input_tokens",
    "output_tokens",
)


def _groups(sessions: Sequence[SourceSession]) -> Iterator[list[SourceSession]]:
    """Cut sessions into groups of one transaction each; what is large is one of its own."""
    group: list[SourceSession] = []
    rows = size = 0
    for each in sessions:
        if group and (rows + each.row_count > PAGE_ROWS or size + each.bytes > PAGE_BYTES):
            yield group
            group, rows, size = [], 0, 0
        group.append(each)
        rows, size = rows + each.row_count, size + each.bytes
    if group:
        yield group


def _is_large(session: SourceSession) -> bool:
    return session.row_count > PAGE_ROWS or session.bytes > PAGE_BYTES


def _is_recent(session: SourceSession, since: datetime | None) -> bool:
    return since is None or session.updated_at is None or session.updated_at >= since


def _name(session: SourceSession) -> str:
    """What a session is called here: a branch that is not the main one gets a session of its own."""
    return session.session_id if session.branch in (None, MAIN) else f"{session.session_id}/{session.branch}"


def _fault(name: str) -> str | None:
    try:
        checked_text("its id", name)
    except ValueError as error:
        return str(error)
    return None


def _pattern(text: str | None) -> re.Pattern[str] | None:
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise ValueError(f"--user-from is no regular expression: {error}") from None


async def _moment(connection: AsyncConnection, since: datetime | timedelta | None) -> datetime | None:
    """Return since when; a duration reaches back from the present of the source."""
    if not isinstance(since, timedelta):
        return since
    return await connection.run_sync(present) - since
