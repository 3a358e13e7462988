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
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from agents_pg_session.errors import StorageUnavailable
from agents_pg_session.failures import describe
from agents_pg_session.labels import checked_id, checked_text
from agents_pg_session.operations.loading import loader_of, undisturbed
from agents_pg_session.operations.pages import SNAPSHOT
from agents_pg_session.operations.sdk_layouts import find_layouts, source_engine
from agents_pg_session.operations.sdk_marks import Mark
from agents_pg_session.operations.sdk_report import Conflict, Orphan, SDKImport, count
from agents_pg_session.operations.sdk_rows import Batch, Growing
from agents_pg_session.operations.sdk_tables import MAIN, PAGE_BYTES, PAGE_ROWS, Layout, SourceSession, present
from agents_pg_session.operations.sdk_target import Raced, Target
from agents_pg_session.passages import Passage
from agents_pg_session.statements import Key, Subject
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
_T = TypeVar("_T")
_P = ParamSpec("_P")


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
        self._loader = loader_of(self._database.schema)
        self._target = Target(self._database.schema, chosen.tenant, self._loader)

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
        """Bring a group of sessions in one transaction; again where somebody else created one of them meanwhile."""
        bringing = _Bringing(self._source, self._target, self._chosen, layout, self._tables)
        subject = Subject("import_sdk", writes=not self._chosen.dry_run)

        async def bring(passage: Passage) -> SDKImport:
            return await bringing.all(passage, group)

        if self._chosen.dry_run:
            begin = SNAPSHOT["sqlite" if self._database.schema is None else "postgresql"]
            return await self._database.passage(subject, bring, begin=begin)
        keys = [Key(self._chosen.tenant, name) for name in map(_name, group) if _fault(name) is None]
        while True:
            try:
                return await undisturbed(self._database, self._loader, subject, keys, bring)
            except Raced:
                continue


class _Bringing:
    """A group of sessions on its way, in tries that each may fail; what the last of them wrote may be there all the
    same, if only its answer was lost."""

    def __init__(
        self, source: AsyncConnection, target: Target, chosen: _Chosen, layout: Layout, tables: Mapping[str, str]
    ) -> None:
        self._source = source
        self._target = target
        self._chosen = chosen
        self._layout = layout
        self._tables = tables
        self._marks: dict[str, str] = {}  # that the last try has written
        self._report = SDKImport()

    async def all(self, passage: Passage, group: Sequence[SourceSession]) -> SDKImport:
        """Decide about each session on what is here now, then bring what is to be brought."""
        names = [_name(each) for each in group]
        usable = [name for name in names if _fault(name) is None]
        now = await self._target.now(passage)
        states = await self._target.states(passage, usable, lock=not self._chosen.dry_run)
        if self._marks and all(name in states and states[name].mark == mark for name, mark in self._marks.items()):
            return self._report
        self._marks, self._report, batch = {}, SDKImport(), Batch()
        new: dict[_Key, Growing] = {}
        known: list[Growing] = []
        for each, name in zip(group, names, strict=True):
            state = states.get(name)
            mark = Mark.read(state.mark) if state is not None else None
            twice = any(growing.session_id == name for growing in new.values())
            decision = Conflict(name, _IS_OTHER) if twice else await self._decide(passage, each, name, state, mark)
            if isinstance(decision, Conflict):
                self._report.conflict_count += 1
                self._report.conflicts.append(decision)
            elif not decision:
                self._report.skipped += 1
            else:
                growing = await self._begin(passage, each, name, batch, now)
                if state is not None:
                    await self._target.take_up(passage, growing, state, mark)
                if mark is None:
                    new[each.session_id, each.branch] = growing
                else:
                    known.append(growing)
        if len(new) == 1 and _is_large(next(iter(new.values())).source):
            known += new.values()
        elif new:
            await self._bring(passage, new, batch)
        for growing in known:
            await self._bring_pages(passage, growing, batch)
        return self._report

    async def _decide(
        self, passage: Passage, session: SourceSession, name: str, state: Any, mark: Mark | None
    ) -> bool | Conflict:
        """Say whether there is something to bring, or why it must not be brought."""
        if (fault := _fault(name)) is not None:
            return Conflict(name, fault)
        if state is None or (state.last_position == 0 and state.last_event_id == 0):
            return True
        if mark is None:
            return Conflict(name, _IS_HERE)
        if not mark.is_of(session, self._described(session)):
            return Conflict(name, _IS_OTHER)
        moved = (state.last_position, state.item_count) != (mark.last_position, mark.item_count)
        if mark.is_all(session):
            return not moved and not mark.has_usage(session)
        key, until = (session.session_id, session.branch), self._layout.read_key(mark.key)
        if await self._ask(passage, self._layout.extent, key, until) != (mark.row_count, mark.ids, mark.newest):
            return Conflict(name, _CHANGED)
        return Conflict(name, _WENT_ON) if moved else True

    async def _begin(self, passage: Passage, session: SourceSession, name: str, batch: Batch, now: datetime) -> Growing:
        key = (session.session_id, session.branch)
        return Growing(
            session_id=name,
            source=session,
            described=self._described(session),
            batch=batch,
            now=now,
            user_id=self._chosen.user_of(session.session_id),
            usage=await self._ask(passage, self._layout.usage, key),
            shared_through=await self._ask(passage, self._layout.shared_through, key),
            forked_from=session.session_id if session.branch not in (None, MAIN) else None,
        )

    async def _bring(self, passage: Passage, new: Mapping[_Key, Growing], batch: Batch) -> None:
        """Bring small sessions, all at once."""
        found = await self._ask(passage, self._layout.rows, list(new))
        finished = []
        for key, rows in groupby(found, key=lambda pair: pair[0]):
            growing = new[key]
            growing.add([row for _, row in rows])
            self._finish(growing)
            finished.append(growing)
        await self._write(passage, batch, finished)
        for growing in finished:
            count(self._report, growing, None)

    async def _bring_pages(self, passage: Passage, growing: Growing, batch: Batch) -> None:
        """Bring one session, page by page."""
        mark = growing.mark
        before = growing.row() if mark is not None else None
        key = (growing.source.session_id, growing.source.branch)
        after = self._layout.read_key(mark.key) if mark is not None else None
        while page := await self._ask(passage, self._layout.page, key, after):
            after = page[-1].key
            growing.add(page)
            await self._write(passage, batch, [] if growing.is_here else [growing])
        if growing.rows_read == 0 and mark is None:
            return  # it is gone meanwhile
        self._finish(growing)
        await self._write(passage, batch, [growing])
        count(self._report, growing, before)

    def _finish(self, growing: Growing) -> None:
        self._marks[growing.session_id] = growing.finish()

    async def _write(self, passage: Passage, batch: Batch, sessions: Sequence[Growing]) -> None:
        """Write the rows gathered so far, unless it is only asked what would be."""
        if not self._chosen.dry_run:
            await self._target.write(passage, batch, sessions)
        batch.empty()

    async def _ask(
        self,
        passage: Passage,
        question: Callable[Concatenate[Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Ask the source, while our transaction waits."""
        return await passage.aside(self._source.run_sync(question, *args, **kwargs))

    def _described(self, session: SourceSession) -> dict[str, Any]:
        """What the mark says of where a session came from."""
        return {"kind": self._layout.kind, **self._tables, "session_id": session.session_id, "branch": session.branch}


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
