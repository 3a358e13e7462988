"""Importing: whole sessions out of an archive, each as it was, or not at all.

Each session is read to its end and found unchanged before anything of it is written, and written in one transaction.
Short ones share a transaction, a long one has its own, of any length: nobody ever sees half a session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import BinaryIO, Literal

from agents_pg_session.database import Database
from agents_pg_session.errors import SessionConflict, SessionError, StorageUnavailable
from agents_pg_session.labels import checked_id
from agents_pg_session.operations.archive import ArchiveReader, BadArchive, Header, Parcel, Told, open_archive
from agents_pg_session.operations.archive_lines import LineReader, Unfit, named, table_of
from agents_pg_session.operations.loading import COUNTS, RowOf, loader_of, undisturbed
from agents_pg_session.operations.pages import pages, row_line
from agents_pg_session.operations.shapes import PARTS, SESSIONS, Shape, Values, shapes
from agents_pg_session.passages import Passage
from agents_pg_session.statements import Key, Step, Subject, clause, quoted_prefix
from agents_pg_session.store import SessionStore

__all__ = ["Imported", "OnConflict", "import_sessions"]

OnConflict = Literal["fail", "skip", "replace"]

#: Sessions that share a transaction, and bytes of their lines after which the next ones get another.
_TOGETHER = 100
_BYTES_TOGETHER = 2 << 20

#: Rows of a table that one statement writes, and bytes of their lines after which it writes fewer.
_ROWS = 2000
_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of the sessions of an archive so far."""

    sessions: int = 0  #: written
    items: int = 0
    tool_runs: int = 0
    runs: int = 0
    events: int = 0
    snapshots: int = 0
    skipped: int = 0  #: were there already, the same
    replaced: int = 0  #: of those written: were there, and were different
    conflicts: tuple[Key, ...] = ()  #: are there, are different, and were left alone: (tenant_id, session_id)

    @property
    def complete(self) -> bool:
        """Whether the archive's sessions are all there now, as they are in it."""
        return not self.conflicts


async def import_sessions(
    store: SessionStore,
    file: BinaryIO,
    *,
    tenant: str | None = None,
    on_conflict: OnConflict = "fail",
    verify: bool = False,
    progress: Callable[[Imported], None] | None = None,
) -> Imported:
    """Write the sessions of an archive, plain or compressed with gzip, in its order; return what became of them.

    A session that is there already, the same, is skipped: so an import that was interrupted is simply begun anew. One
    that is there and different is a conflict: "fail" raises `SessionConflict` before anything of it is written, "skip"
    leaves it as it is, "replace" puts the archive's in its place. The same means: every column of the session's row,
    which whatever changes a session changes, and as many rows in the other tables; with *verify*, every byte. *tenant*
    moves all sessions into that tenant.

    Leases, claims and fences stay behind: a paused run can be taken up at once. Raises `BadArchive` for a file that is
    not ours, cut off, damaged or changed; the sessions before that place are there by then, whole. *progress* is called
    after each transaction.
    """
    if on_conflict not in ("fail", "skip", "replace"):
        raise ValueError('on_conflict must be "fail", "skip" or "replace"')
    if tenant is not None:
        checked_id("tenant", tenant)
    database = store._database
    await database.require_current()
    reader = ArchiveReader(open_archive(file))
    header = await asyncio.to_thread(lambda: reader.header)
    work = _Import(database, header, tenant, on_conflict, verify)
    groups = _Groups(reader.parcels())
    try:
        while group := await asyncio.to_thread(groups.next):
            await work.take(group)
            if progress is not None:
                progress(work.done)
    except SessionError as error:
        error.args = (f"{error}{_so_far(work.done)}",)
        raise
    finally:
        groups.close()
    return work.done


def _so_far(done: Imported) -> str:
    there = done.sessions + done.skipped
    return f". {there} of its sessions are there by now, whole" if there else ". Nothing was imported"


class _Groups:
    """Sessions that share a transaction. What is wrong with the archive is told when those before it are taken."""

    def __init__(self, parcels: Iterator[Parcel]) -> None:
        self._parcels = parcels
        self._error: BadArchive | None = None
        self._group: list[Parcel] = []

    def next(self) -> list[Parcel]:
        """Return the next group, empty at the end of the archive; the one before is over."""
        self.close()
        if self._error is not None:
            raise self._error
        size = 0
        try:
            for parcel in islice(self._parcels, _TOGETHER):
                self._group.append(parcel)
                size += parcel.told.size
                if size >= _BYTES_TOGETHER:
                    break
        except BadArchive as error:
            if not self._group:
                raise
            self._error = error
        return self._group

    def close(self) -> None:
        for parcel in self._group:
            parcel.close()
        self._group = []


@dataclass
class _Import:
    """One import on its way."""

    database: Database
    header: Header
    tenant: str | None
    on_conflict: OnConflict
    verify: bool
    done: Imported = field(default_factory=Imported)

    def __post_init__(self) -> None:
        self._shapes = {name: shape.only(self.header.columns[name]) for name, shape in shapes().items()}
        self._readers = {name: LineReader(shape) for name, shape in self._shapes.items()}
        self._loader = loader_of(self.database.schema)

    async def take(self, group: Sequence[Parcel]) -> None:
        """Import a group; each by itself where together it does not work, so that those before the bad one arrive."""
        if len(group) > 1:
            try:
                return await self._together(group)
            except StorageUnavailable:
                raise
            except SessionError:
                pass
        for parcel in group:
            await self._together([parcel])
        return None

    async def _together(self, group: Sequence[Parcel]) -> None:
        committing: set[Key] = set()  # by tries whose answer may have been lost

        async def write(passage: Passage) -> Imported:
            done, fresh = self.done, list[Parcel]()
            for parcel in group:
                outcome = await self._open(passage, parcel)
                if outcome == "same" and parcel.key in committing:
                    done = _counted(done, parcel)  # it was this very import
                elif outcome == "same":
                    done = replace(done, skipped=done.skipped + 1)
                elif outcome == "different":
                    done = replace(done, conflicts=(*done.conflicts, self._key(parcel)))
                else:
                    fresh.append(parcel)
                    done = _counted(done, parcel)
                    done = replace(done, replaced=done.replaced + (outcome == "replaced"))
            await self._fill(passage, fresh)
            committing.update(parcel.key for parcel in fresh)
            return done

        keys = [self._key(parcel) for parcel in group]
        subject = Subject("import", keys[0] if len(keys) == 1 else None, writes=True)
        self.done = await undisturbed(self.database, self._loader, subject, keys, write)

    def _key(self, parcel: Parcel) -> Key:
        return parcel.key if self.tenant is None else Key(self.tenant, parcel.key.session_id)

    async def _open(self, passage: Passage, parcel: Parcel) -> Literal["new", "replaced", "same", "different"]:
        """Write the session's row, or find out how it compares with the one that is there."""
        key, shape = self._key(parcel), self._shapes[SESSIONS]
        number, line = next(parcel.lines())
        row = self._row(SESSIONS, number, line, parcel.key)
        given = _given(shape, row)  # a column that has no value takes its default
        outcome: Literal["new", "replaced"] = "new"
        while not await self._loader.open(passage, given, [(key, [value for value in row if value is not None])]):
            there = await row_line(passage, self.database.schema, shape, key, parcel.key)
            if there is None:
                continue  # deleted meanwhile
            if difference := await self._difference(passage, parcel, there, line):
                if self.on_conflict == "skip":
                    return "different"
                if self.on_conflict == "fail":
                    raise self._conflict(key, difference)
                outcome = "replaced"
                await self._loader.erase(passage, key)
            else:
                return "same"
        return outcome

    async def _difference(self, passage: Passage, parcel: Parcel, there: str, line: str) -> str | None:
        """Return in what the session that is there differs from the archive's; None for nothing."""
        fields = self._shapes[SESSIONS].fields
        reader = self._readers[SESSIONS]
        pairs = zip(fields, reader(there, parcel.key), reader(line, parcel.key), strict=True)
        if (different := next((each for each in pairs if each[1] != each[2]), None)) is not None:
            each, here, brought = different
            return each.name if each.is_json else f"{each.name} is {here!r}, not {brought!r}"
        key = self._key(parcel)
        counts = clause(COUNTS.replace("{schema}", quoted_prefix(self.database.schema)))
        [row] = await passage.run(Step(counts, key._asdict()))
        for place, table in enumerate(PARTS):  # by place: `items` is something else of asyncpg's rows
            if (here := row[place]) != (brought := parcel.told.counts[table]):
                return f"it has {here} {table}, not {brought}"
        return await self._difference_in_bytes(passage, parcel, there) if self.verify else None

    async def _difference_in_bytes(self, passage: Passage, parcel: Parcel, there: str) -> str | None:
        """Tell the session that is there anew, and compare the checksums."""
        told = Told()
        try:
            told.add(f"{there}\n".encode())
            async for _, _, lines in pages(passage, self.database.schema, self._shapes, self._key(parcel), parcel.key):
                told.add(lines)
            return None if told.sha256 == parcel.told.sha256 else "its rows are not the same"
        finally:
            told.close()

    def _conflict(self, key: Key, difference: str) -> SessionConflict:
        return self.database.conflict(
            "import",
            f"{named(key)} is there already and differs from the archive's ({difference}); nothing of it was written. "
            'On conflict, "skip" leaves such a session as it is and "replace" puts the archive\'s in its place',
        )

    async def _fill(self, passage: Passage, parcels: Sequence[Parcel]) -> None:
        """Write everything the sessions have beside their rows, a batch of one table at a time."""
        batches = {name: _Batch(shape) for name, shape in self._shapes.items() if name != SESSIONS}
        for parcel in parcels:
            key = self._key(parcel)
            for number, line in islice(parcel.lines(), 1, None):
                table = table_of(line) or SESSIONS
                batch = batches[table]
                batch.add(key, self._row(table, number, line, parcel.key), len(line))
                if batch.is_full:
                    await self._put(passage, batch)
        for batch in batches.values():
            if batch.rows:
                await self._put(passage, batch)

    async def _put(self, passage: Passage, batch: _Batch) -> None:
        await self._loader.put(passage, batch.shape, batch.rows)
        batch.clear()

    def _row(self, table: str, number: int, line: str, key: Key) -> Values:
        try:
            return self._readers[table](line, key)
        except Unfit as unfit:
            raise BadArchive(f"line {number}: {unfit}") from None


class _Batch:
    """Rows of a table on their way."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.rows: list[RowOf] = []
        self._size = 0

    def add(self, key: Key, row: Values, size: int) -> None:
        self.rows.append((key, row))
        self._size += size

    @property
    def is_full(self) -> bool:
        return len(self.rows) >= _ROWS or self._size >= _BYTES

    def clear(self) -> None:
        self.rows.clear()
        self._size = 0


def _given(shape: Shape, row: Values) -> Shape:
    pairs = zip(shape.fields, row, strict=True)
    return shape.only(frozenset(field.name for field, value in pairs if value is not None))


def _counted(done: Imported, parcel: Parcel) -> Imported:
    sums = {name: getattr(done, name) + parcel.told.counts[name] for name in PARTS}
    return replace(done, sessions=done.sessions + 1, **sums)
