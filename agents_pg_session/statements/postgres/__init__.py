"""The verbs on PostgreSQL: each one statement, pasteable into psql with its named values.

Every part of a statement names the session's key, so it routes to one shard of a cluster or one hash partition, and
`DO UPDATE SET` calls no function (times come in through the inserted row), which a distributed table would refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import TextClause

from agents_pg_session.entries import Entry, Labels
from agents_pg_session.projection import Batch
from agents_pg_session.reports import Note
from agents_pg_session.statements import Command, Key, Snapshotted, Step, Subject, Write, clause, quoted_prefix, steps
from agents_pg_session.statements.postgres import changes, history, items
from agents_pg_session.statements.postgres.append import append_sql
from agents_pg_session.statements.postgres.locks import FENCE, FENCE_LENGTH, LOCK, LOCK_OR_ERASE
from agents_pg_session.statements.values import (
    append_values,
    batch_values,
    label_values,
    note_values,
    record_values,
    snapshot_values,
)

__all__ = ["PostgresStatements"]

PING = "SELECT current_setting('server_version') AS version"


class PostgresStatements:
    """The verbs over the tables of one PostgreSQL schema."""

    def __init__(self, schema: str) -> None:
        self._prefix = quoted_prefix(schema)

    def append(self, key: Key, entry: Entry, *, patient: bool = False) -> Write:
        return self._write(
            "append",
            key,
            append_sql(entry),
            lambda: append_values(entry),
            outcome=items.APPENDED,
            patient=patient,
            opens=True,
        )

    def latest(self, key: Key, limit: int | None) -> Command:
        values = key._asdict() if limit is None else {**key._asdict(), "limit": limit}
        sql = self._sql(items.EVERYTHING if limit is None else items.LATEST)
        return Command(Subject("latest", key), steps(sql, values=values))

    def extent(self, key: Key, limit: int | None) -> Command:
        values = {**key._asdict(), "limit": limit}
        return Command(Subject("latest", key), steps(self._sql(items.EXTENT), values=values))

    def since_summary(self, key: Key, kind: str) -> Command:
        values = {**key._asdict(), "kind": kind}
        return Command(Subject("latest", key), steps(self._sql(items.SINCE_SUMMARY), values=values))

    def pop(self, key: Key, *, patient: bool = False) -> Write:
        return self._write("pop", key, items.POP, dict, outcome=items.HAPPENED, patient=patient)

    def clear(self, key: Key, *, patient: bool = False) -> Write:
        return self._write("clear", key, items.CLEAR, dict, outcome=items.HAPPENED, patient=patient)

    def replace(
        self, key: Key, batch: Batch, first_position: int, expected: tuple[int, int] | None, *, patient: bool = False
    ) -> Write:
        values = {
            **batch_values(batch),
            "first_position": first_position,
            "expected_count": expected and expected[0],
            "expected_position": expected and expected[1],
        }
        return self._write("replace", key, history.REPLACE, lambda: values, outcome=items.HAPPENED, patient=patient)

    def restore(self, key: Key, version: int, *, patient: bool = False) -> Write:
        outcome = items.HAPPENED.replace("AS payload", "AS payload, true AS found")
        return self._write(
            "restore", key, history.RESTORE, lambda: {"version": version}, outcome=outcome, patient=patient
        )

    def fork(
        self, key: Key, source_id: str, before_turn: int | None, labels: Labels, *, patient: bool = False
    ) -> Write:
        values = {**label_values(labels), "source_id": source_id, "before_turn": before_turn}
        return self._write(
            "fork", key, history.FORK, lambda: values, outcome=history.FORKED, patient=patient, opens=True
        )

    def save(self, key: Key, snapshot: Snapshotted, labels: Labels, *, patient: bool = False) -> Write:
        values = {**snapshot_values(snapshot, labels), **note_values(snapshot.notes)}
        return self._write(
            "save", key, changes.SAVE, lambda: values, outcome=items.HAPPENED, patient=patient, opens=True
        )

    def claim(self, key: Key, kind: str, claim_id: str, seconds: float, *, patient: bool = False) -> Write:
        values = {"kind": kind, "claim_id": claim_id, "seconds": seconds}
        return self._write("claim", key, changes.CLAIM, lambda: values, outcome=changes.CLAIMED, patient=patient)

    def unclaim(self, key: Key, kind: str, claim_id: str) -> Write:
        return self._write("unclaim", key, changes.UNCLAIM, lambda: {"kind": kind, "claim_id": claim_id})

    def lease(self, key: Key, lease_id: str, seconds: float, labels: Labels, *, patient: bool = False) -> Write:
        values = {**label_values(labels), "lease_id": lease_id, "seconds": seconds}
        return self._write(
            "lease", key, changes.LEASE, lambda: values, outcome=changes.LEASED, patient=patient, opens=True
        )

    def renew(self, key: Key, lease_id: str, seconds: float) -> Write:
        return self._write("renew", key, changes.RENEW, lambda: {"lease_id": lease_id, "seconds": seconds})

    def release(self, key: Key, lease_id: str) -> Write:
        return self._write("release", key, changes.RELEASE, lambda: {"lease_id": lease_id})

    def record(self, key: Key, note: Note, labels: Labels, *, patient: bool = False) -> Write:
        values = record_values(note, labels)
        return self._write(
            "record", key, changes.RECORD, lambda: values, outcome=changes.RECORDED, patient=patient, opens=True
        )

    def end(self, key: Key, status: str, *, patient: bool = False) -> Write:
        return self._write("end", key, changes.END, lambda: {"status": status}, outcome=items.HAPPENED, patient=patient)

    def expire(self, key: Key, end: timedelta | datetime | None, *, patient: bool = False) -> Write:
        values = {
            "seconds": end.total_seconds() if isinstance(end, timedelta) else None,
            "moment": end.isoformat() if isinstance(end, datetime) else None,
        }
        return self._write("expire", key, changes.EXPIRE, lambda: values, outcome=items.HAPPENED, patient=patient)

    def delete(self, key: Key, created_at: object) -> Write:
        return self._write("delete", key, changes.DELETE, lambda: {"created_at": created_at})

    def ping(self) -> Command:
        return Command(Subject("check"), steps(self._sql(PING), values={}))

    def _write(
        self,
        verb: str,
        key: Key,
        sql: str,
        values: Callable[[], dict[str, Any]],
        *,
        outcome: str | None = None,
        patient: bool = False,
        opens: bool = False,
    ) -> Write:
        """Return one statement as a write; without an *outcome* to ask for it may safely happen twice.

        One that *opens* a session begins it anew where it has expired.
        """
        subject = Subject(verb, key, writes=True)
        lock = LOCK_OR_ERASE if opens else LOCK
        clauses = (self._sql(lock), self._sql(sql)) if patient else (self._sql(sql),)

        def attempt(operation_id: str) -> Command:
            bound = {**values(), **key._asdict(), "operation_id": operation_id}
            return Command(subject, steps(*clauses, values=bound))

        def fence(operation_id: str) -> Command:
            bound = {**key._asdict(), "operation_id": operation_id, "fence_length": FENCE_LENGTH}
            return Command(subject, (Step(self._sql(FENCE), bound),))

        def ask(operation_id: str) -> Command:
            assert outcome is not None
            bound = {**values(), **key._asdict(), "operation_id": operation_id}
            return Command(subject, (Step(self._sql(outcome), bound),))

        return Write(subject, attempt, fence, ask) if outcome else Write(subject, attempt)

    def _sql(self, template: str) -> TextClause:
        return _in_schema(template, self._prefix)


@lru_cache(maxsize=1024)
def _in_schema(template: str, prefix: str) -> TextClause:
    return clause(template.replace("{schema}", prefix))
