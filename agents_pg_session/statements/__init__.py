"""All SQL, built and never run: the same verbs in two dialects.

A `Command` is what one verb asks of the database. A command of one step is one statement in autocommit: one network
round trip on PostgreSQL. A command of several steps is one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from sqlalchemy import TextClause, text

from agents_pg_session.projection import Batch

__all__ = ["Command", "Key", "Labels", "Statements", "Step", "Subject", "Write", "clause", "quoted_prefix", "steps"]

Values = Mapping[str, Any]


class Key(NamedTuple):
    """What every statement about a session names in each of its parts."""

    tenant_id: str
    session_id: str


@dataclass(frozen=True, slots=True)
class Labels:
    """What a handle says of its session.

    It reaches the session's row with the appends. None leaves the row as it is.
    """

    agent: str | None = None
    user_id: str | None = None
    metadata: str | None = None  #: a JSON object as text


@dataclass(frozen=True, slots=True)
class Step:
    """One statement and its values; a list of values runs it once for each."""

    clause: TextClause
    values: Values | list[Values]


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
    not. Without a fence (SQLite) a try is never in doubt.
    """

    subject: Subject
    attempt: Callable[[str], Command]
    fence: Callable[[str], Command] | None = None
    outcome: Callable[[str], Command] | None = None


class Statements(Protocol):
    """The verbs both dialects speak; `Database` runs what they return."""

    def append(self, key: Key, batch: Batch, labels: Labels) -> Write:
        """Append a batch. Answers one row."""
        ...

    def latest(self, key: Key, limit: int | None) -> Command:
        """Read the newest items. Answers rows (position, item), newest first."""
        ...

    def pop(self, key: Key, *, patient: bool = False) -> Write:
        """Take the newest item out.

        Answers no row where there is no session, else one row (fresh, payload): *fresh* false means another writer
        came first and nothing was done; *payload* is the JSON text of the event written, with the item in it, or None
        where there was no item. *patient* waits for the other writers first: it cannot come out stale, and costs a
        transaction.
        """
        ...

    def clear(self, key: Key, *, patient: bool = False) -> Write:
        """Take all items out. Answers like `pop`, without an item in the payload."""
        ...

    def ping(self) -> Command:
        """Ask for the server's version. Answers one row (version)."""
        ...


@lru_cache(maxsize=512)
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
