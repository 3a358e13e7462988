"""The verbs on SQLite: each one short transaction that takes the write lock at its start (`BEGIN IMMEDIATE`).

One writer at a time, so nothing a statement reads can be stale. The file is local, so a try that failed did not commit:
nothing is ever in doubt, and a fence has nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from agents_pg_session.entries import Entry, Labels
from agents_pg_session.projection import Batch
from agents_pg_session.reports import Note
from agents_pg_session.statements import Command, Key, Snapshotted, Step, Subject, Write, clause, steps
from agents_pg_session.statements.sqlite import changes, forks, history, items
from agents_pg_session.statements.sqlite.append import append_steps, note_steps
from agents_pg_session.statements.sqlite.words import ERASE, OPENED, THERE, after
from agents_pg_session.statements.values import label_values, record_values, snapshot_values

__all__ = ["SQLiteStatements"]

PING = "SELECT sqlite_version() AS version"

Values = dict[str, Any]


class SQLiteStatements:
    """The verbs over the tables of one SQLite file; nothing is stale here, so none has to be *patient*."""

    def append(self, key: Key, entry: Entry, *, patient: bool = False) -> Write:
        return self._composed("append", key, lambda bound: append_steps(bound, entry, erase=patient))

    def latest(self, key: Key, limit: int | None) -> Command:
        return self._read(key, items.LATEST, limit=-1 if limit is None else limit)

    def extent(self, key: Key, limit: int | None) -> Command:
        return self._read(key, items.EXTENT, limit=-1 if limit is None else limit)

    def since_summary(self, key: Key, kind: str) -> Command:
        return self._read(key, items.SINCE_SUMMARY, kind=kind)

    def pop(self, key: Key, *, patient: bool = False) -> Write:
        return self._change("pop", key, items.POP)

    def clear(self, key: Key, *, patient: bool = False) -> Write:
        return self._change("clear", key, items.CLEAR)

    def replace(
        self, key: Key, batch: Batch, first_position: int, expected: tuple[int, int] | None, *, patient: bool = False
    ) -> Write:
        values = {
            "first_position": first_position,
            "expected_count": expected and expected[0],
            "expected_position": expected and expected[1],
        }

        def compose(bound: Values) -> Iterable[Step]:
            yield Step(clause(THERE), bound, decisive=True)
            yield from history.replace_steps({**bound, **values}, batch)

        return self._composed("replace", key, compose)

    def restore(self, key: Key, version: int, *, patient: bool = False) -> Write:
        return self._change("restore", key, history.RESTORE, version=version)

    def fork(
        self, key: Key, source_id: str, before_turn: int | None, labels: Labels, *, patient: bool = False
    ) -> Write:
        values = {**_labels(labels), "source_id": source_id, "before_turn": before_turn}
        return self._write("fork", key, (*ERASE, *forks.FORK), **values)

    def save(self, key: Key, snapshot: Snapshotted, labels: Labels, *, patient: bool = False) -> Write:
        def compose(bound: Values) -> Iterable[Step]:
            values = {**bound, **snapshot_values(snapshot, labels), **_labels(labels)}
            yield from _each(ERASE, values)
            yield Step(clause(OPENED), values, decisive=True)
            yield from _each(changes.SNAPSHOT, values)
            yield from note_steps({**bound, "events": values["events"]}, snapshot.notes)
            yield from _each(changes.SAVED, values)

        return self._composed("save", key, compose)

    def claim(self, key: Key, kind: str, claim_id: str, seconds: float, *, patient: bool = False) -> Write:
        return self._change("claim", key, changes.CLAIM, kind=kind, claim_id=claim_id, until=after(seconds))

    def unclaim(self, key: Key, kind: str, claim_id: str) -> Write:
        return self._change("unclaim", key, changes.UNCLAIM, kind=kind, claim_id=claim_id)

    def lease(self, key: Key, lease_id: str, seconds: float, labels: Labels, *, patient: bool = False) -> Write:
        values = {**_labels(labels), "lease_id": lease_id, "until": after(seconds)}
        return self._write("lease", key, (*ERASE, *changes.LEASE), **values)

    def renew(self, key: Key, lease_id: str, seconds: float) -> Write:
        return self._write("renew", key, changes.RENEW, lease_id=lease_id, until=after(seconds))

    def release(self, key: Key, lease_id: str) -> Write:
        return self._write("release", key, changes.RELEASE, lease_id=lease_id)

    def record(self, key: Key, note: Note, labels: Labels, *, patient: bool = False) -> Write:
        values = {**record_values(note, labels), **_labels(labels)}
        return self._write("record", key, (*ERASE, OPENED, *changes.RECORD), **values)

    def end(self, key: Key, status: str, *, patient: bool = False) -> Write:
        return self._change("end", key, changes.END, status=status)

    def expire(self, key: Key, end: timedelta | datetime | None, *, patient: bool = False) -> Write:
        values = {
            "in": after(end.total_seconds()) if isinstance(end, timedelta) else None,
            "moment": end.astimezone(UTC).isoformat(" ") if isinstance(end, datetime) else None,
        }
        return self._change("expire", key, changes.EXPIRE, **values)

    def delete(self, key: Key, created_at: object) -> Write:
        if isinstance(created_at, datetime):
            created_at = created_at.astimezone(UTC).isoformat(" ")
        return self._write("delete", key, changes.DELETE, created_at=created_at)

    def ping(self) -> Command:
        return Command(Subject("check"), steps(clause(PING), values={}))

    def _read(self, key: Key, sql: str, **values: object) -> Command:
        return Command(Subject("latest", key), steps(clause(sql), values={**key._asdict(), **values}))

    def _change(self, verb: str, key: Key, sql: Sequence[str], **values: object) -> Write:
        """Return a change to a session that has to be there."""

        def compose(bound: Values) -> Iterable[Step]:
            yield Step(clause(THERE), bound, decisive=True)
            yield from _each(sql, {**bound, **values})

        return self._composed(verb, key, compose)

    def _write(self, verb: str, key: Key, sql: Sequence[str], **values: object) -> Write:
        """Return statements that all take the same values as one write."""
        return self._composed(verb, key, lambda bound: _each(sql, {**bound, **values}))

    def _composed(self, verb: str, key: Key, compose: Callable[[Values], Iterable[Step]]) -> Write:
        subject = Subject(verb, key, writes=True)

        def attempt(operation_id: str) -> Command:
            return Command(subject, tuple(compose({**key._asdict(), "operation_id": operation_id})))

        return Write(subject, attempt)


def _labels(labels: Labels) -> Values:
    return {**label_values(labels), "expires_in": after(labels.expires_after)}


def _each(sql: Sequence[str], values: Values) -> tuple[Step, ...]:
    return steps(*map(clause, sql), values=values)
