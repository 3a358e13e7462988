"""Retention: sessions whose time is over are removed, a few at a time.

A purge walks the sessions in the order of their primary key, looks at a page of them, and removes those that are to go
in statements of their own, each with a bounded number of rows. It waits for nobody: a session that is being written to
is passed over. It may stop at any point: what is gone is gone, and the next purge finds the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta

from agents_pg_session.database import Database
from agents_pg_session.drivers import Row, Rows
from agents_pg_session.labels import checked_flag, checked_number, checked_span, checked_text
from agents_pg_session.records import Purged
from agents_pg_session.statements import Key, Write
from agents_pg_session.statements.purges import SLICED, Purges, Rule
from agents_pg_session.texts import shown

__all__ = ["MAX_BATCH", "Progress", "Purge", "rule_of"]

#: Called now and then with what was done so far.
Progress = Callable[[Purged], object]

#: The most sessions that one statement may remove.
MAX_BATCH = 10_000

#: Sessions that are looked at in one statement.
_PAGE = 1000

#: Rows that one statement removes, more or less: an append that wants one of its sessions waits a blink of an eye.
_ROWS = 5000


def rule_of(tenant: str | None, *, older_than: object, status: object, expired: object) -> Rule:
    """Return which sessions are to go, or raise `ValueError` for what says nothing."""
    age = None if older_than is None else checked_span("older_than", older_than)
    named = None if status is None else checked_text("status", status)
    if not checked_flag("expired", expired) and age is None and named is None:
        raise ValueError("nothing to purge: give older_than=timedelta(days=90), or a status, or expired=True")
    return Rule(tenant, bool(expired), named, _seconds(age))


class Purge:
    """One walk over the sessions of a tenant, or of all."""

    def __init__(self, database: Database, rule: Rule, *, batch: object, dry_run: object) -> None:
        self._database = database
        self._sql = Purges(database.schema)
        self._rule = rule
        self._batch = checked_number("batch", batch, least=1)
        if self._batch > MAX_BATCH:
            raise ValueError(f"batch must be at most {MAX_BATCH} sessions, not {self._batch}")
        self._dry_run = checked_flag("dry_run", dry_run)
        self._so_far = Purged(dry_run=self._dry_run)

    async def run(self, progress: Progress | None) -> Purged:
        """Walk to the end, and return what was removed."""
        if progress is not None:
            if not callable(progress):
                raise ValueError(f"progress must be a function, not {shown(progress)}")
            [row] = await self._database.read(self._sql.count(self._rule))
            self._add(total=row.sessions)
            progress(self._so_far)
        after = Key(self._rule.tenant or "", "")
        while rows := await self._database.read(self._sql.next(self._rule, after, _PAGE)):
            after = _key(rows[-1])
            await self._settle([row for row in rows if row.reason is not None], progress)
            self._add(seen=rows[-1].looked_at)
            if progress is not None:
                progress(self._so_far)
            if rows[-1].looked_at < _PAGE:
                break
        return self._so_far

    async def _settle(self, rows: Sequence[Row], progress: Progress | None) -> None:
        """Remove a page's sessions, or only count them."""
        if self._dry_run:
            self._count(rows, rows)
            return
        for batch in _batches(rows, self._batch):
            self._count(batch, await self._remove(batch))
            if progress is not None:
                progress(self._so_far)

    async def _remove(self, batch: Sequence[Row]) -> Rows:
        if _size(batch[0]) > _ROWS:  # then it is alone
            if not await self._write(self._sql.end(self._rule, _key(batch[0]))):
                return ()
            await self._thin(_key(batch[0]))
        return await self._write(self._sql.remove(self._rule, [_key(row) for row in batch]))

    async def _thin(self, key: Key) -> None:
        """Take the rows of a session that has ended, until few enough are left to go with it."""
        for table in SLICED:
            while True:
                [row] = await self._write(self._sql.slice(key, table, _ROWS))
                if row.removed < _ROWS:
                    break

    async def _write(self, write: Write) -> Rows:
        return await self._database.write(write, self._database.budget())

    def _count(self, meant: Sequence[Row], gone: Iterable[Row]) -> None:
        """Take note of what is gone; a row that only held a lease or a fence was no session."""
        reasons = {_key(row): row.reason for row in meant}
        real = [row for row in gone if row.last_position + row.last_event_id > 0]
        why = [reasons[_key(row)] for row in real]
        self._add(
            sessions=len(real),
            items=sum(row.item_count for row in real),
            tool_runs=sum(row.tool_run_count for row in real),
            events=sum(row.last_event_id for row in real),
            expired=why.count("expired"),
            old=why.count("old"),
            passed_over=sum(row.last_position + row.last_event_id > 0 for row in meant) - len(real),
        )

    def _add(self, **more: int) -> None:
        self._so_far = replace(self._so_far, **{name: getattr(self._so_far, name) + more[name] for name in more})


def _seconds(age: timedelta | None) -> float | None:
    return None if age is None else age.total_seconds()


def _key(row: Row) -> Key:
    return Key(row.tenant_id, row.session_id)


def _size(row: Row) -> int:
    """How many rows go with a session, as its counters tell; runs and snapshots are fewer."""
    size: int = row.item_count + row.tool_run_count + row.last_event_id
    return size


def _batches(rows: Sequence[Row], most: int) -> Iterator[Sequence[Row]]:
    """Yield so many sessions that a statement removes neither too many of them nor too many rows."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        if batch and (len(batch) == most or size + _size(row) > _ROWS):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += _size(row)
    if batch:
        yield batch
