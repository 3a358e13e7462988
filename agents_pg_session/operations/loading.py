"""Writing many rows per statement, in one transaction with all that belongs to their sessions.

What comes in, from an archive or from the Agents SDK's tables, comes in this way. The session's row comes first, as in
an append: it is the lock.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from agents_pg_session.database import Database
from agents_pg_session.operations.shapes import PARTS, SESSIONS, Field, Kind, Shape, Values
from agents_pg_session.passages import Passage
from agents_pg_session.statements import Key, Step, Subject, clause, quoted_prefix

__all__ = ["ALONE", "COUNTS", "Loader", "RowOf", "change_sql", "loader_of", "open_sql", "sqlite_time", "undisturbed"]

#: A row and whose it is.
RowOf = tuple[Key, Values]

_T = TypeVar("_T")

_KEY = ("tenant_id", "session_id")

# Rows of sessions that are not there yet. Whoever else is about to write one is waited for.
_OPEN = """
-- Write the rows of sessions that are not there yet: no row answers for one that is.
INSERT INTO {schema}sessions (tenant_id, session_id, {columns})
{rows}
ON CONFLICT (tenant_id, session_id) DO NOTHING
RETURNING tenant_id, session_id
"""

_PUT = """
-- Write one row of a session that is being imported.
INSERT INTO {table} (tenant_id, session_id, {columns}) VALUES (:tenant_id, :session_id, {values})
"""

_CHANGE = """
-- Write new values into rows that are there, each found by its primary key.
UPDATE {schema}{table}{as_t}
   SET {sets}{rows}
 WHERE {found}
"""

COUNTS = (
    """
-- How many rows of each table one session has, by primary key.
SELECT """
    + ",\n       ".join(
        f"(SELECT count(*) FROM {{schema}}{table} t\n"
        f"         WHERE t.tenant_id = :tenant_id AND t.session_id = :session_id) AS {table}"
        for table in PARTS
    )
    + "\n"
)

ALONE = """
-- Keep other imports away from these sessions: one that waited for a long session of ours would run out of time.
SELECT bool_and(pg_try_advisory_xact_lock(hashtextextended(each.session_id, hashtextextended(each.tenant_id, 0))))
       AS alone
  FROM unnest(CAST(:tenants AS text[]), CAST(:sessions AS text[])) AS each (tenant_id, session_id)
"""

_LOCK = """
-- Wait for the other writers of one session.
SELECT 1 FROM {schema}sessions WHERE tenant_id = :tenant_id AND session_id = :session_id{for_update}
"""

_ERASE = """
-- Erase what one session has in {table}: foreign keys may be off on an engine of the caller's.
DELETE FROM {schema}{table} WHERE tenant_id = :tenant_id AND session_id = :session_id
"""


class Loader(Protocol):
    """How one dialect takes rows in."""

    begin: str

    async def alone(self, passage: Passage, keys: Sequence[Key]) -> bool:
        """Keep other imports away from these sessions until the transaction ends; False: one is at them already."""
        ...

    async def open(self, passage: Passage, shape: Shape, rows: Sequence[RowOf]) -> int:
        """Write the rows of sessions, each another; return how many were not there yet."""
        ...

    async def put(self, passage: Passage, shape: Shape, rows: Sequence[RowOf]) -> None:
        """Write many rows of a table, all in one statement."""
        ...

    async def change(self, passage: Passage, shape: Shape, rows: Sequence[RowOf]) -> None:
        """Write the shape's columns of rows that are there, all in one statement."""
        ...

    async def erase(self, passage: Passage, key: Key) -> None:
        """Take out a session with everything about it, once its other writers are done."""
        ...


def loader_of(schema: str | None) -> Loader:
    return _SQLite() if schema is None else _Postgres(schema)


async def undisturbed(
    database: Database,
    loader: Loader,
    subject: Subject,
    keys: Sequence[Key],
    work: Callable[[Passage], Awaitable[_T]],
) -> _T:
    """Run *work* in one transaction while no other import is at these sessions; wait for one that is."""

    async def alone(passage: Passage) -> tuple[_T] | None:
        return (await work(passage),) if not keys or await loader.alone(passage, keys) else None

    while True:
        done = await database.passage(subject, alone, begin=loader.begin)
        if done is not None:
            return done[0]
        await asyncio.sleep(random.uniform(0.05, 0.3))  # noqa: S311 - nobody has to guess it


class _Postgres:
    # A client that vanishes keeps nobody waiting for a session of that name longer than that.
    begin = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = '60s'"

    def __init__(self, schema: str) -> None:
        self._schema = schema

    async def alone(self, passage: Passage, keys: Sequence[Key]) -> bool:
        tenants, sessions = zip(*keys, strict=True)
        step = Step(clause(ALONE), {"tenants": list(tenants), "sessions": list(sessions)})
        return bool((await passage.run(step))[0].alone)

    async def open(self, passage: Passage, shape: Shape, rows: Sequence[RowOf]) -> int:
        return len(await passage.run(Step(clause(open_sql(self._schema, shape)), _columns(shape, rows))))

    async def put(self, passage: Passage, shape: Shape, rows: Sequence[RowOf]) -> None:
        columns = [*_KEY, *(field.name for field in shape.fields)]
        data = "".join([_copied(key, shape.fields, row) for key, row in rows]).encode()
        await passage.copy(self._schema, shape.table, columns, data)

    async def change(self, passage: Passage, shape: Shape, rows: Sequence[RowOf]) -> None:
        await passage.run(Step(clause(change_sql(self._schema, shape)), _columns(shape, rows)))

    async def erase(self, passage: Passage, key: Key) -> None:
        prefix = quoted_prefix(self._schema)
        lock = _LOCK.replace("{schema}", prefix).replace("{for_update}", " FOR UPDATE")
        await passage.run(Step(clause(lock), key._asdict()))
        await _erase(passage, prefix, key)


class _SQLite:
    begin = "BEGIN IMMEDIATE"

    async def alone(self, passage: Passage, keys: Sequence[Key]) -> bool:
        return True  # it has one writer

    async def open(self, passage: Passage, shape: Shape, rows: Sequence[RowOf]) -> int:
        sql = clause(open_sql(None, shape))  # one by one: of many at once it tells no rows
        return sum([len(await passage.run(Step(sql, values))) for values in _bound(shape, rows)])

    async def put(self, passage: Passage, shape: Shape, rows: Sequence[RowOf]) -> None:
        sql = _PUT.replace("{table}", shape.table)
        sql = sql.replace("{columns}", ", ".join(field.name for field in shape.fields))
        sql = sql.replace("{values}", ", ".join(f":{field.name}" for field in shape.fields))
        await passage.run(Step(clause(sql), _bound(shape, rows)))

    async def change(self, passage: Passage, shape: Shape, rows: Sequence[RowOf]) -> None:
        await passage.run(Step(clause(change_sql(None, shape)), _bound(shape, rows)))

    async def erase(self, passage: Passage, key: Key) -> None:
        await _erase(passage, "", key)


async def _erase(passage: Passage, prefix: str, key: Key) -> None:
    for table in (*PARTS, SESSIONS):
        sql = _ERASE.replace("{table}", table).replace("{schema}", prefix)
        await passage.run(Step(clause(sql), key._asdict()))


@lru_cache(maxsize=64)
def open_sql(schema: str | None, shape: Shape) -> str:
    """Return the statement that writes rows of sessions: on PostgreSQL any number of them, on SQLite one."""
    names = [field.name for field in shape.fields]
    if schema is None:
        rows = f"VALUES (:tenant_id, :session_id, {', '.join(f':{name}' for name in names)})"
    else:
        typed = ", ".join(_typed(field) for field in shape.fields)
        rows = f"SELECT each.tenant_id, each.session_id, {typed}\n  FROM {_each(shape)}"
    sql = _OPEN.replace("{columns}", ", ".join(names)).replace("{rows}", rows)
    return sql.replace("{schema}", quoted_prefix(schema))


@lru_cache(maxsize=64)
def change_sql(schema: str | None, shape: Shape) -> str:
    """Return the statement that changes rows: on PostgreSQL any number of them, on SQLite one."""
    changing = [field for field in shape.fields if field not in shape.key]
    if schema is None:
        sets = [f"{field.name} = :{field.name}" for field in changing]
        found = [f"{name} = :{name}" for name in (*_KEY, *(field.name for field in shape.key))]
    else:
        sets = [f"{field.name} = {_typed(field)}" for field in changing]
        found = [f"t.{name} = each.{name}" for name in _KEY]
        found += [f"t.{field.name} = {_typed(field)}" for field in shape.key]
    filled = {
        "sets": ", ".join(sets),
        "found": " AND ".join(found),
        "as_t": "" if schema is None else " AS t",
        "rows": "" if schema is None else f"\n  FROM {_each(shape)}",
        "table": shape.table,
        "schema": quoted_prefix(schema),
    }
    sql = _CHANGE
    for name, meaning in filled.items():
        sql = sql.replace("{" + name + "}", meaning)
    return sql


def _each(shape: Shape) -> str:
    """Return the rows that lists of texts make, one list per column."""
    names = [*_KEY, *(field.name for field in shape.fields)]
    return f"unnest({', '.join(f'CAST(:{name} AS text[])' for name in names)})\n       AS each ({', '.join(names)})"


def _typed(field: Field) -> str:
    return f"CAST(each.{field.name} AS {field.type})"


def _columns(shape: Shape, rows: Sequence[RowOf]) -> dict[str, Any]:
    """Return the rows as PostgreSQL is given them in a statement: a list of texts per column."""
    columns: dict[str, Any] = {name: [key[place] for key, _ in rows] for place, name in enumerate(_KEY)}
    for place, field in enumerate(shape.fields):
        columns[field.name] = [None if row[place] is None else _as_text(field, row[place]) for _, row in rows]
    return columns


def _as_text(field: Field, value: object) -> str:
    if field.kind is Kind.TRUTH:
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


# What COPY's text format gives a meaning of its own.
_ESCAPES = (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"))


def _escaped(text: str) -> str:
    for character, escape in _ESCAPES:
        if character in text:
            text = text.replace(character, escape)
    return text


def _copied(key: Key, fields: Sequence[Field], row: Values) -> str:
    """Return a row in the text format of COPY."""
    cells = [_escaped(key.tenant_id), _escaped(key.session_id)]
    for field, value in zip(fields, row, strict=True):
        if value is None:
            cells.append("\\N")
        elif isinstance(value, str):
            cells.append(value if field.kind is Kind.TIME else _escaped(value))
        else:
            cells.append(_as_text(field, value))
    return "\t".join(cells) + "\n"


def _bound(shape: Shape, rows: Sequence[RowOf]) -> list[Mapping[str, Any]]:
    """Return the rows as SQLite is given them."""
    times = [field.kind is Kind.TIME for field in shape.fields]
    names = [field.name for field in shape.fields]
    return [
        key._asdict()
        | {
            name: sqlite_time(value) if is_time and value is not None else value
            for name, is_time, value in zip(names, times, row, strict=True)
        }
        for key, row in rows
    ]


def sqlite_time(text: str) -> str:
    """Return a time as SQLite holds it: milliseconds as our own statements write them, microseconds where there are.

    As text both sort alike, for neither is ever written with three zeros behind it.
    """
    return f"{text[:10]} {text[11:23] if text[23:26] == '000' else text[11:26]}"
