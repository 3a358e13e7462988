"""All SQL, built and never run: the same verbs in two dialects.

A `Command` is what one verb asks of the database. A command of one step is one statement in autocommit: one network
round trip on PostgreSQL. A command of several steps is one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from sqlalchemy import TextClause, text

from agents_pg_session.entries import Entry, Labels
from agents_pg_session.projection import Batch
from agents_pg_session.reports import Note

__all__ = [
    "Command",
    "Key",
    "Snapshotted",
    "Statements",
    "Step",
    "Subject",
    "Write",
    "clause",
    "quoted_prefix",
    "steps",
]

Values = Mapping[str, Any]


class Key(NamedTuple):
    """What every statement about a session names in each of its parts."""

    tenant_id: str
    session_id: str


@dataclass(frozen=True, slots=True)
class Step:
    """One statement and its values; a list of values runs it once for each.

    A *decisive* step that answers no row ends its command: nothing after it runs.
    """

    clause: TextClause
    values: Values | list[Values]
    decisive: bool = False


class Subject(NamedTuple):
    """What a command is about: for logs and errors, and to know whether it changes anything."""

    verb: str
    key: Key | None = None
    writes: bool = False

    def __str__(self) -> str:
        if self.key is None:
            return self.verb
        tenant = f" of tenant {self.key.tenant_id!r}" if self.key.tenant_id else ""
        return f"{self.verb} on session {self.key.session_id!r}{tenant}"


@dataclass(frozen=True, slots=True)
class Command:
    """What one verb asks: its steps, of which the last one's rows are the answer."""

    subject: Subject
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Write:
    """A mutation that takes effect at most once, although each try of it may get lost on the way.

    Each try carries an id of its own. A try whose answer was lost is *fenced*: the fence waits for the session row's
    lock and leaves the id there, so from then on that try has taken effect or never will, even if it is still sitting
    in a network buffer. Then *outcome* tells which: rows like those of the attempt itself if it took effect, none if
    not. Without a fence (SQLite, and what may safely happen twice) a try is never in doubt.
    """

    subject: Subject
    attempt: Callable[[str], Command]
    fence: Callable[[str], Command] | None = None
    outcome: Callable[[str], Command] | None = None


@dataclass(frozen=True, slots=True)
class Snapshotted:
    """A version of remembered state on its way in."""

    kind: str
    content: str  #: JSON text
    through: int | None = None  #: None: as far as the session has come
    label: str | None = None
    metadata: str | None = None  #: JSON text
    status: str | None = None  #: what the session becomes
    expected: tuple[int, int] | None = None  #: only if these still are its last position and item count
    run_id: str | None = None  #: the run that this interrupts
    notes: tuple[Note, ...] = ()


class Statements(Protocol):
    """The verbs both dialects speak; `Database` runs what they return.

    A change answers one row with *fresh*: false means that another writer came first (or, where the change may begin a
    session, that the one there has expired), so nothing was done and the caller asks again with *patient*, which waits
    for the other writers first, erases what has expired, and costs a transaction. No row means that there is no such
    session; one that has expired is none.
    """

    def append(self, key: Key, entry: Entry, *, patient: bool = False) -> Write:
        """Append. Answers one row (position, last_position, item_count), or none: stale, the guard did not hold, or the
        session has expired, which *patient* erases first."""
        ...

    def latest(self, key: Key, limit: int | None) -> Command:
        """Read the newest items. Answers rows (position, turn, item), newest first."""
        ...

    def extent(self, key: Key, limit: int | None) -> Command:
        """The same with (last_position, item_count) of the session on each row, and at least one row."""
        ...

    def since_summary(self, key: Key, kind: str) -> Command:
        """Read the newest snapshot of *kind* and every item after it: at least one row (last_position,
        item_count, version, through_position, content, position, turn, item), newest item first."""
        ...

    def pop(self, key: Key, *, patient: bool = False) -> Write:
        """Take the newest item out. Answers (fresh, payload): the JSON text of its event with the item in it, or None
        where there was no item."""
        ...

    def clear(self, key: Key, *, patient: bool = False) -> Write:
        """Take all items out. Answers like `pop`, without an item in the payload."""
        ...

    def replace(
        self, key: Key, batch: Batch, first_position: int, expected: tuple[int, int] | None, *, patient: bool = False
    ) -> Write:
        """Replace the items from a position on. *expected* is (count, last position) of what the caller saw there.

        Answers (fresh, payload); payload None: they are something else by now.
        """
        ...

    def restore(self, key: Key, version: int, *, patient: bool = False) -> Write:
        """Bring a `history` snapshot back. Answers (fresh, payload, found)."""
        ...

    def fork(
        self, key: Key, source_id: str, before_turn: int | None, labels: Labels, *, patient: bool = False
    ) -> Write:
        """Copy session *source_id* into *key*. Answers (fresh, found, created)."""
        ...

    def save(self, key: Key, snapshot: Snapshotted, labels: Labels, *, patient: bool = False) -> Write:
        """Save the next version of a snapshot. Answers (fresh, payload); no row: it has come further than expected."""
        ...

    def claim(self, key: Key, kind: str, claim_id: str, seconds: float, *, patient: bool = False) -> Write:
        """Claim the newest snapshot of *kind*.

        Answers (fresh, version, through_position, content, claimed, held, moved, last_position, item_count): *held* by
        somebody else, or the session has *moved* on since.
        """
        ...

    def unclaim(self, key: Key, kind: str, claim_id: str) -> Write:
        """Give a claim back."""
        ...

    def lease(self, key: Key, lease_id: str, seconds: float, labels: Labels, *, patient: bool = False) -> Write:
        """Take the session's lease. Answers (fresh) if it was to be had."""
        ...

    def renew(self, key: Key, lease_id: str, seconds: float) -> Write:
        """Keep a lease. Answers a row if it is still held."""
        ...

    def release(self, key: Key, lease_id: str) -> Write:
        """Give a lease back."""
        ...

    def record(self, key: Key, note: Note, labels: Labels, *, patient: bool = False) -> Write:
        """Write an event. Answers (fresh, event_id, created_at)."""
        ...

    def end(self, key: Key, status: str, *, patient: bool = False) -> Write:
        """End the session. Answers (fresh, payload)."""
        ...

    def expire(self, key: Key, end: timedelta | datetime | None, *, patient: bool = False) -> Write:
        """Set the session's end, so long from now or a moment, or lift it. Answers (fresh, payload)."""
        ...

    def delete(self, key: Key, created_at: object) -> Write:
        """Erase the session that was created at that moment. Answers a row if it was there."""
        ...

    def ping(self) -> Command:
        """Ask for the server's version. Answers one row (version)."""
        ...


@lru_cache(maxsize=1024)
def clause(sql: str) -> TextClause:
    """Return *sql* as a clause, the same object each time, so that SQLAlchemy compiles it once."""
    return text(sql)


def steps(*clauses: TextClause, values: Values) -> tuple[Step, ...]:
    """Return steps that all take the same values."""
    return tuple(Step(each, values) for each in clauses)


def quoted_prefix(schema: str | None) -> str:
    """Return what stands before a table's name: `"schema".`, quoted whatever it contains, or nothing on SQLite.

    A colon is escaped, because `text` would otherwise read a name behind it as a value.
    """
    if schema is None:
        return ""
    return '"{}".'.format(schema.replace('"', '""').replace(":", "\\:"))
