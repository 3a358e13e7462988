"""The conversation: append, latest, pop, clear, and reading it by turns."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from itertools import groupby
from typing import Any, cast
from weakref import WeakKeyDictionary

from agents_pg_session.drivers import Row, Rows
from agents_pg_session.entries import Entry, Guard, compose
from agents_pg_session.labels import checked_number
from agents_pg_session.ledgers.mapping import moment, readable, unreadable
from agents_pg_session.ledgers.scope import PATIENCE, Scope
from agents_pg_session.paging import checked_limit
from agents_pg_session.projection import Item, decode
from agents_pg_session.records import StoredItem, Turn
from agents_pg_session.statements import Key
from agents_pg_session.texts import shown
from agents_pg_session.tracking import TrackedRun
from agents_pg_session.windows import Placed, Window, enough, first_fetch, select

__all__ = ["Items"]

logger = logging.getLogger("agents_pg_session.items")

#: The largest LIMIT both databases take.
_NO_MORE_THAN = 2**63 - 1

#: Characters beyond ASCII, and letters that one of them folds to: the long s, the Kelvin sign, ligatures.
_LOOSE = re.compile("[^ -~]|[sk]|f[fil]", re.IGNORECASE)

#: Characters of a text that the database looks for (SQLite refuses longer patterns); all of them are compared here.
_SOUGHT = 1000

#: What an item says about itself, which nobody said.
_UNSAID = frozenset({"type", "role", "status", "id", "call_id"})


class Items:
    """The items of one session, in the order of their positions."""

    def __init__(self, scope: Scope, *, expect: str | None = None) -> None:
        if expect not in (None, "unchanged"):
            raise ValueError(f'expect must be "unchanged" or None, not {shown(expect)}')
        self._scope = scope
        self._database = scope.database
        self._expecting = expect is not None
        self._extents: dict[Key, tuple[int, int]] = {}  # sessions as this handle knows them: last position, item count
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
        self.lease_id: str | None = None

    async def append(self, key: Key, items: Sequence[Item], run: TrackedRun | None = None) -> None:
        """Append *items* behind all others, with what *run* has to say, together or not at all, exactly once.

        The first append creates the session. Raises `InvalidItem` before anything is written when one of them cannot be
        stored, `SessionConflict` when another writer came first and that matters to this handle, `StorageUnavailable`
        when the database stays away.
        """
        async with run.telling if run is not None else nullcontext(), self._in_turn():
            report = run.report() if run is not None else None
            names = run.names if run is not None else None
            entry = compose(items, self._scope.labels, guard=self._guard(key), report=report, names=names)
            if not entry.batch.rows:
                return

            def landed(rows: Rows) -> None:
                for row in rows:
                    self._know(key, row.last_position, row.item_count)
                    if run is not None and report is not None:
                        run.written(report, entry.taken, (row.last_position, row.item_count))
                        run.saw(items)

            await self._write(key, entry, landed)

    async def flush(self, run: TrackedRun, *, waiting: bool) -> None:
        """Write what *run* still has to say, without an item; a session that is gone by now stays gone."""
        assert run.key is not None, "only runs the session has seen are flushed"
        async with run.telling:
            run.note_last_words()
            report, status = run.report(), "waiting" if waiting else None
            entry = compose(
                (),
                self._scope.labels,
                report=report,
                names=run.names,
                status=status,
                status_at=run.extent[0] if run.extent else None,
            )
            append = self._database.sql.append(run.key, entry)

            def landed(rows: Rows) -> None:
                if rows:
                    run.written(report)

            await self._database.write(append, self._database.budget(), landed)

    async def latest(self, key: Key, limit: int | None = None) -> list[Item]:
        """Return the newest *limit* items, oldest first; all of them without a limit.

        Rows that hold no JSON object (edited by hand) are skipped, logged and not counted. Raises `StorageUnavailable`
        when the database stays away: an empty list always means an empty session.
        """
        if limit == 0:
            return []
        window = limit if limit is None else min(limit, _NO_MORE_THAN)
        while True:
            rows = await self._read(key, window)
            items = [item for row in rows if (item := _decoded(key, row)) is not None]
            if limit is None or window is None or len(items) >= limit or len(rows) < window:
                return items[:limit][::-1]
            window = min(2 * window, _NO_MORE_THAN)

    async def within(self, key: Key, window: Window) -> list[Item]:
        """Return what *window* gives the model: never a call without its output, nor half a response."""
        if window.summary is not None:
            return await self._since_summary(key, window, window.summary)
        fetch = first_fetch(window)
        fetch = None if fetch is None else min(fetch, _NO_MORE_THAN)
        while True:
            rows = await self._read(key, fetch)
            placed = list(self._placed(key, rows))[::-1]
            if fetch is None or enough(window, placed, complete=len(rows) < fetch):
                return select(window, placed)
            fetch = min(2 * fetch, _NO_MORE_THAN)

    async def unsummarised(self, key: Key, kind: str) -> tuple[str | None, list[Placed]]:
        """Return the newest summary's text and every item after what it has seen, oldest first."""
        rows = await self._database.read(self._database.sql.since_summary(key, kind))
        self._saw(key, rows)
        content = rows[0].content
        place = f"session {key.session_id!r}, snapshot {kind!r} version {shown(rows[0].version)}"
        text = None if content is None else _text(readable(place, "content", json.loads, content))
        return text, list(self._placed(key, [row for row in rows if row.position is not None]))[::-1]

    async def pop(self, key: Key) -> Item | None:
        """Take out the newest item and return it; None when there is none. Two callers never get the same item."""
        while (row := await self._scope.change(partial(self._database.sql.pop, key))) is not None:
            if row.payload is None:
                return None
            taken = json.loads(row.payload)
            if (extent := self._extents.get(key)) is not None:
                self._know(key, extent[0], extent[1] - 1)
            if isinstance(item := taken["item"], dict):
                return cast("Item", item)
            logger.warning("session %r: the row at position %s holds no item; taken out", key[1], taken["position"])
        return None

    async def clear(self, key: Key) -> None:
        """Take out all items at one moment: what was appended before is gone, what comes after stays."""
        await self._scope.change(partial(self._database.sql.clear, key))
        if (extent := self._extents.get(key)) is not None:
            self._know(key, extent[0], 0)

    async def turns(self, limit: int | None, before_position: int | None) -> list[Turn]:
        """Return the newest *limit* turns, oldest first, of those before a position if one is given."""
        key = self._scope.key
        fetch = _NO_MORE_THAN if limit is None else max(64, 16 * checked_limit(limit))
        before_position = None if before_position is None else checked_number("before_position", before_position)
        while True:
            rows = await self._database.read(self._database.reads.stored_items(key, before_position, fetch))
            turns = [
                Turn(number, tuple(each))
                for number, each in groupby(self._stored(key, rows[::-1]), key=lambda item: item.turn)
            ]
            if limit is None or len(turns) > limit or len(rows) < fetch:
                return turns if limit is None else turns[-limit:]
            fetch = min(2 * fetch, _NO_MORE_THAN)

    async def find(self, text: str, limit: int) -> list[StoredItem]:
        """Return the newest items in which some text contains *text*, whatever the case, newest first."""
        key, wanted, pattern = self._scope.key, text.casefold(), _pattern(text)
        found: list[StoredItem] = []
        before, fetch = None, limit
        while True:
            rows = await self._database.read(self._database.reads.find(key, pattern, before, fetch))
            stored = self._stored(key, rows)
            found += [item for item in stored if any(wanted in each.casefold() for each in _texts(item.item))]
            if len(found) >= limit or len(rows) < fetch:
                return found[:limit]
            before, fetch = rows[-1].position, 2 * fetch

    def expect(self, key: Key, extent: tuple[int, int]) -> None:
        """Let the next append take effect only if the session still is what it was at *extent*."""
        self._extents[key] = extent

    def forget(self, key: Key) -> None:
        """Expect nothing any more."""
        self._extents.pop(key, None)

    def knows(self, key: Key, last_position: int, item_count: int) -> None:
        """Take note of a change of this handle's own."""
        if key in self._extents:
            self._know(key, last_position, item_count)

    def _know(self, key: Key, last_position: int, item_count: int) -> None:
        # What somebody expected once (a resumed run) holds until its first append; with `expect` it goes on.
        self._extents.pop(key, None)
        if self._expecting:
            self._extents[key] = last_position, item_count

    def _saw(self, key: Key, rows: Rows) -> None:
        if self._expecting:
            self._extents[key] = rows[0].last_position or 0, rows[0].item_count or 0

    def _guard(self, key: Key) -> Guard:
        last_position, item_count = self._extents.get(key) or (None, None)
        return Guard(last_position, item_count, self.lease_id)

    def _in_turn(self) -> AbstractAsyncContextManager[Any]:
        """Appends of a handle that looks at what it knows come one after the other."""
        if not self._expecting:
            return nullcontext()
        return self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    async def _write(self, key: Key, entry: Entry, landed: Callable[[Rows], None]) -> None:
        sql, budget, items = self._database.sql, self._database.budget(), len(entry.batch.rows)
        rows = await self._database.write(write := sql.append(key, entry), budget, landed, items=items)
        for _ in range(1 if entry.conditional else PATIENCE):
            if rows:
                return
            # Outputs look for their calls in the present, and a session that has expired is erased first.
            self._database.overtaken(write.subject)
            rows = await self._database.write(sql.append(key, entry, patient=True), budget, landed, items=items)
        if rows:
            return
        if not self._expecting:
            self.forget(key)  # a resumed run that came too late: what comes next is no part of it
        reasons = []
        if entry.guard.lease_id is not None:
            reasons.append("the lease ran out and another holder took it")
        if entry.guard.last_position is not None:
            reasons.append("another writer came first since this handle last read")
        why = ", or ".join(reasons) or "other writers came first, again and again"
        raise self._database.conflict(
            "append",
            f"session {key.session_id!r}: {why}; nothing was appended. Read the session again and decide anew",
        )

    async def _read(self, key: Key, limit: int | None) -> Rows:
        if not self._expecting:
            return await self._database.read(self._database.sql.latest(key, limit))
        rows = await self._database.read(self._database.sql.extent(key, limit))
        self._saw(key, rows)
        return [row for row in rows if row.position is not None]

    async def _since_summary(self, key: Key, window: Window, kind: str) -> list[Item]:
        text, placed = await self.unsummarised(key, kind)
        return select(window, placed, text)

    def _placed(self, key: Key, rows: Rows) -> Iterator[Placed]:
        for row in rows:
            if (item := _decoded(key, row)) is not None:
                yield Placed(*_places(key, row), item)

    def _stored(self, key: Key, rows: Rows) -> Iterator[StoredItem]:
        for row in rows:
            if (item := _decoded(key, row)) is not None:
                created_at = readable(_place(key, row), "created_at", moment, row.created_at)
                yield StoredItem(*_places(key, row), row.run_id, created_at, item)


def _decoded(key: Key, row: Row) -> Item | None:
    text = row[-1]  # every statement that reads items answers them last
    item = decode(text) if isinstance(text, str) else None
    if item is None:
        logger.warning("session %r: the row at position %s holds no item; skipped", key.session_id, row.position)
    return item


def _places(key: Key, row: Row) -> tuple[int, int]:
    """Where an item stands: its position and its turn."""
    if type(row.position) is int and type(row.turn) is int:
        return row.position, row.turn
    raise unreadable(_place(key, row), "turn" if type(row.position) is int else "position")


def _place(key: Key, row: Row) -> str:
    return f"session {key.session_id!r}, item at position {shown(row.position)}"


def _text(content: object) -> str:
    """A summary as text, whatever JSON its author saved."""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _pattern(text: str) -> str:
    """What to look for in stored JSON; it may find more than `find` wants.

    Characters beyond ASCII match anything: SQLite folds no case there, and an item with a surrogate has them escaped.
    So does what is the folded form of one, as "ss" is of "ß".
    """
    escaped = re.sub("[!%_]", r"!\g<0>", json.dumps(text[:_SOUGHT], ensure_ascii=False)[1:-1])
    return f"%{_LOOSE.sub('%', escaped)}%"


def _texts(value: object) -> Iterator[str]:
    """Every text in a JSON value that somebody or something said: no keys, kinds or ids."""
    match value:
        case str():
            yield value
        case dict():
            for key, each in value.items():
                if key not in _UNSAID:
                    yield from _texts(each)
        case list():
            for each in value:
                yield from _texts(each)
