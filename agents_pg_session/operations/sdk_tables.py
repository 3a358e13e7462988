"""The Agents SDK's own tables, as they are read: which there are, in which order they mean their rows, pages of them.

The order is what the SDK's session itself gives, for that is what the agent saw: `SQLAlchemySession` sorts by
`created_at` and then by `id`, `SQLiteSession` by `id`, and `AdvancedSQLiteSession` has a sequence number per branch.
Where the clock went back, or two transactions overlapped, these differ from the order of the ids.

Everything is read in pages behind a key, never through a cursor that stays open: other writers go on meanwhile, and on
SQLite the target may be the same file. Nothing is ever written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from agents_pg_session.errors import StorageUnavailable
from agents_pg_session.failures import describe
from agents_pg_session.statements import clause

__all__ = [
    "MAIN",
    "PAGE_BYTES",
    "PAGE_ROWS",
    "Layout",
    "SourceRow",
    "SourceSession",
    "TurnUsage",
    "present",
]

#: How much of one session is read at once.
PAGE_ROWS, PAGE_BYTES = 2000, 4_000_000

#: The branch that an `AdvancedSQLiteSession` is on when it is opened.
MAIN = "main"

Values = Mapping[str, Any]


class SourceSession(NamedTuple):
    """A session of the source, or one branch of it, and how much it holds."""

    session_id: str
    branch: str | None  #: None where there are no branches
    row_count: int
    ids: int  #: the sum of the rows' ids: taking out or putting in a row changes it
    last_id: int
    bytes: int
    newest: str | None
    created_at: datetime | None
    updated_at: datetime | None
    usages: int  #: turns whose tokens are known …
    tokens: int  #: … and those tokens


class SourceRow(NamedTuple):
    """One row of the source, which holds one item or something that is none."""

    id: int
    key: tuple[Any, int]  #: its place in the order of its session
    created_at: datetime | None
    stamp: str | None  #: the same, as the source has it
    data: str | bytes
    user_turn: int | None  #: the turn's number in the source


class TurnUsage(NamedTuple):
    """What one turn has cost."""

    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    total_tokens: int
    created_at: datetime | None


class Extent(NamedTuple):
    """What a session holds up to a key."""

    row_count: int
    ids: int
    newest: str | None


# The next sessions behind one, with how much each holds.
_SESSIONS = """
SELECT t.*, {session_created_at} AS created_at, {session_updated_at} AS updated_at, {usages} AS usages,
       {tokens} AS tokens
  FROM (SELECT {session_id} AS session_id, {branch} AS branch, count(*) AS row_count, CAST(sum({id}) AS bigint) AS ids,
               max({id}) AS last_id, CAST(sum({size}) AS bigint) AS bytes, CAST(max(m.created_at) AS text) AS newest
          FROM {rows}
         WHERE {of}
         GROUP BY {group}
         ORDER BY {group}
         LIMIT :limit) t
  LEFT JOIN {sessions} c ON c.session_id = t.session_id
 ORDER BY t.session_id, t.branch
"""

# All rows of some sessions, each in its own order.
_ROWS = """
SELECT {session_id} AS session_id, {branch} AS branch, {id} AS id, {key} AS k1, {tie} AS k2, {created_at} AS created_at,
       CAST(m.created_at AS text) AS stamp, {data} AS data, {user_turn} AS user_turn, {size} AS size
  FROM {rows}
 WHERE {of}
 ORDER BY {group}, {order}
"""

# One page of a large session behind a key: at most so many rows, and not many more bytes.
_PAGE = """
SELECT *
  FROM (SELECT p.*, sum(size) OVER (ORDER BY k1, k2 ROWS UNBOUNDED PRECEDING) - size AS bytes_before
          FROM ({page} LIMIT :limit) p) q
 WHERE bytes_before < :bytes
 ORDER BY k1, k2
"""

# What a session holds up to a key: whether that still is what was imported.
_EXTENT = """
SELECT count(*) AS row_count, CAST(coalesce(sum({id}), 0) AS bigint) AS ids, CAST(max(m.created_at) AS text) AS newest
  FROM {rows}
 WHERE {of}
"""

# What there is in all, what belongs to no branch, and sessions that hold nothing.
_TOTALS = """
SELECT (SELECT count(*) FROM {rows} WHERE {of}) AS row_count, {unlisted} AS unlisted,
       (SELECT count(*) FROM {sessions} c
         WHERE NOT EXISTS (SELECT 1 FROM {messages} m WHERE m.session_id = c.session_id)) AS empty
"""

# How far a branch is a copy of the one it left.
_SHARED = """
SELECT max(b.sequence_number) AS through
  FROM message_structure b
 WHERE b.session_id = :session_id AND b.branch_id = :branch
   AND b.message_id IN (SELECT message_id FROM message_structure
                         WHERE session_id = :session_id AND branch_id = 'main')
"""

# What the turns of a branch have cost.
_USAGE = """
SELECT user_turn_number AS turn, requests, input_tokens, output_tokens, total_tokens, input_tokens_details,
       output_tokens_details, created_at
  FROM turn_usage
 WHERE session_id = :session_id AND branch_id = :branch
"""


@dataclass(frozen=True)
class Layout:
    """How one kind of session of the SDK lays out its rows; reads them over a connection."""

    kind: str
    order_words: str  #: for people
    postgres: bool
    names: Mapping[str, str]  #: what the statements' templates are filled with
    after_session: str
    after_row: str
    until_row: str
    one: str
    among: str
    rest: str = ""  #: of which sessions it is, where another layout has the others
    branched: bool = False

    def sessions(
        self, connection: Connection, *, after: tuple[str, str | None] | None, only: str | None, limit: int
    ) -> list[SourceSession]:
        """Return the next sessions behind *after*, in the database's own order of their ids."""
        conditions = [self.after_session] if after else []
        conditions += ["m.session_id = :only"] if only is not None else []
        session_id, branch = after or (None, None)
        values = {"after_session": session_id, "after_branch": branch, "only": only, "limit": limit}
        found = self._ask(connection, _SESSIONS, values, conditions)
        return [
            SourceSession(
                row.session_id,
                row.branch,
                row.row_count,
                row.ids,
                row.last_id,
                row.bytes,
                row.newest,
                _time(row.created_at),
                _time(row.updated_at),
                row.usages,
                row.tokens,
            )
            for row in found
        ]

    def rows(self, connection: Connection, keys: Sequence[tuple[str, str | None]]) -> list[tuple[Any, SourceRow]]:
        """Return all rows of these sessions with whose they are; each session's come together, in its order."""
        among = json.dumps([[session_id for session_id, _ in keys], [branch for _, branch in keys]])
        found = self._ask(connection, _ROWS, {"among": among}, [self.among])
        return [((row.session_id, row.branch), _row(row)) for row in found]

    def page(
        self, connection: Connection, key: tuple[str, str | None], after: tuple[Any, int] | None
    ) -> list[SourceRow]:
        """Return the next rows of one session behind a key; none at its end."""
        conditions = [self.one, *([self.after_row] if after else [])]
        values = {**_values(key, after), "limit": PAGE_ROWS, "bytes": PAGE_BYTES}
        return [_row(row) for row in self._ask(connection, _PAGE.replace("{page}", _ROWS), values, conditions)]

    def extent(self, connection: Connection, key: tuple[str, str | None], until: tuple[Any, int]) -> Extent:
        """Return what a session holds up to a key."""
        [row] = self._ask(connection, _EXTENT, _values(key, until), [self.one, self.until_row])
        return Extent(row.row_count, row.ids, row.newest)

    def totals(self, connection: Connection) -> tuple[int, int, int]:
        """Return how many rows there are to read, rows that belong to no branch, and sessions without a row."""
        [row] = self._ask(connection, _TOTALS, {}, [])
        return row.row_count, row.unlisted, row.empty

    def shared_through(self, connection: Connection, key: tuple[str, str | None]) -> int:
        """Return the place in the order up to which a branch is a copy of the main one; 0 for no branch."""
        if not self.branched or key[1] == MAIN:
            return 0
        [row] = self._ask(connection, _SHARED, {"session_id": key[0], "branch": key[1]}, [])
        return row.through or 0

    def usage(self, connection: Connection, key: tuple[str, str | None]) -> dict[int, TurnUsage]:
        """Return what the turns of a session have cost, by their number in the source; nothing where nobody tells."""
        if not self.branched:
            return {}
        rows = self._ask(connection, _USAGE, {"session_id": key[0], "branch": key[1]}, [])
        return {row.turn: _usage(row) for row in rows}

    def read_key(self, stored: Sequence[Any]) -> tuple[Any, int]:
        """Return a row's place in the order from the form that JSON has it in."""
        first, tie = stored
        return (datetime.fromisoformat(first) if self.postgres and isinstance(first, str) else first), tie

    def _ask(self, connection: Connection, sql: str, values: Values, conditions: Sequence[str]) -> Sequence[Any]:
        of = " AND ".join([*conditions, *([self.rest] if self.rest else [])]) or "true"
        for name, text in {**self.names, "of": of}.items():
            sql = sql.replace("{" + name + "}", text)
        try:
            return connection.execute(clause(sql), values).all()
        except (DBAPIError, OSError, EOFError) as error:
            raise StorageUnavailable(
                f"reading the SDK's tables: {describe(error)}; the sessions that were imported are complete: run the "
                "same command again, it goes on"
            ) from None


def present(connection: Connection) -> datetime:
    """Return what time it is for the source."""
    now = _time(connection.execute(clause("SELECT CURRENT_TIMESTAMP AS now")).scalar_one())
    assert now is not None, "a database knows the time"
    return now


def _values(key: tuple[str, str | None], place: tuple[Any, int] | None) -> dict[str, Any]:
    first, tie = place or (None, None)
    return {"session_id": key[0], "branch": key[1], "k1": first, "k2": tie}


def _row(row: Any) -> SourceRow:
    return SourceRow(row.id, (row.k1, row.k2), _time(row.created_at), row.stamp, row.data, row.user_turn)


def _usage(row: Any) -> TurnUsage:
    return TurnUsage(
        requests=row.requests or 0,
        input_tokens=row.input_tokens or 0,
        cached_tokens=_detail(row.input_tokens_details, "cached_tokens"),
        output_tokens=row.output_tokens or 0,
        reasoning_tokens=_detail(row.output_tokens_details, "reasoning_tokens"),
        total_tokens=row.total_tokens or 0,
        created_at=_time(row.created_at),
    )


def _detail(text: object, name: str) -> int:
    try:
        value = json.loads(text)[name] if isinstance(text, str) else 0
    except (ValueError, KeyError, TypeError):
        return 0
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _time(value: object) -> datetime | None:
    """Return a time of the source in UTC; None for what is none. SQLite's are text, in UTC without saying so."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime) or not 1 < value.year < 9999:
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
