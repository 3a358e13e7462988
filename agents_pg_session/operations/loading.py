"""Writing whole sessions as they were: many rows per statement, in one transaction with all that belongs to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from agents_pg_session.operations.lines import Values
from agents_pg_session.operations.shapes import PARTS, SESSIONS, Field, Kind, Shape
from agents_pg_session.passages import Passage
from agents_pg_session.statements import Key, Step, clause, quoted_prefix

__all__ = ["ALONE", "COUNTS", "Loader", "loader_of", "sqlite_time"]

_KEY = ("tenant_id", "session_id")

# The row of a session that is not there yet. Whoever else is about to write it is waited for.
_OPEN = """
-- Write the row of a session that is not there yet: no row answers where it is.
INSERT INTO {schema}sessions (tenant_id, session_id, {columns})
VALUES (:tenant_id, :session_id, {values})
ON CONFLICT (tenant_id, session_id) DO NOTHING
RETURNING 1 AS opened
"""

_PUT = """
-- Write one row of a session that is being imported.
INSERT INTO {table} (tenant_id, session_id, {columns}) VALUES (:tenant_id, :session_id, {values})
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

    async def open(self, passage: Passage, key: Key, shape: Shape, row: Values) -> bool:
        """Write a session's row; say whether it was not there yet."""
        ...

    async def put(self, passage: Passage, shape: Shape, rows: Sequence[tuple[Key, Values]]) -> None:
        """Write many rows of a table, all in one statement."""
        ...

    async def erase(self, passage: Passage, key: Key) -> None:
        """Take out a session with everything about it, once its other writers are done."""
        ...


def loader_of(schema: str | None) -> Loader:
    return _SQLite() if schema is None else _Postgres(schema)


class _Postgres:
    # A client that vanishes keeps nobody waiting for a session of that name longer than that.
    begin = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = '60s'"

    def __init__(self, schema: str) -> None:
        self._schema = schema

    async def alone(self, passage: Passage, keys: Sequence[Key]) -> bool:
        tenants, sessions = zip(*keys, strict=True)
        step = Step(clause(ALONE), {"tenants": list(tenants), "sessions": list(sessions)})
        return bool((await passage.run(step))[0].alone)

    async def open(self, passage: Passage, key: Key, shape: Shape, row: Values) -> bool:
        fields = _given(shape.fields, row)
        sql = _open_sql(
            self._schema, fields, tuple(f"CAST(CAST(:{each.name} AS text) AS {each.type})" for each in fields)
        )
        values = {
            field.name: _as_text(field, value)
            for field, value in zip(shape.fields, row, strict=True)
            if value is not None
        }
        return bool(await passage.run(Step(clause(sql), {**key._asdict(), **values})))

    async def put(self, passage: Passage, shape: Shape, rows: Sequence[tuple[Key, Values]]) -> None:
        columns = [*_KEY, *(field.name for field in shape.fields)]
        data = "".join([_copied(key, shape.fields, row) for key, row in rows]).encode()
        await passage.copy(self._schema, shape.table, columns, data)

    async def erase(self, passage: Passage, key: Key) -> None:
        prefix = quoted_prefix(self._schema)
        lock = _LOCK.replace("{schema}", prefix).replace("{for_update}", " FOR UPDATE")
        await passage.run(Step(clause(lock), key._asdict()))
        await _erase(passage, prefix, key)


class _SQLite:
    begin = "BEGIN IMMEDIATE"

    async def alone(self, passage: Passage, keys: Sequence[Key]) -> bool:
        return True  # it has one writer

    async def open(self, passage: Passage, key: Key, shape: Shape, row: Values) -> bool:
        fields = _given(shape.fields, row)
        sql = _open_sql(None, fields, tuple(f":{each.name}" for each in fields))
        return bool(await passage.run(Step(clause(sql), {**key._asdict(), **_bound(shape.fields, row)})))

    async def put(self, passage: Passage, shape: Shape, rows: Sequence[tuple[Key, Values]]) -> None:
        sql = _PUT.replace("{table}", shape.table)
        sql = sql.replace("{columns}", ", ".join(field.name for field in shape.fields))
        sql = sql.replace("{values}", ", ".join(f":{field.name}" for field in shape.fields))
        bound: list[Mapping[str, Any]] = [{**key._asdict(), **_bound(shape.fields, row)} for key, row in rows]
        await passage.run(Step(clause(sql), bound))

    async def erase(self, passage: Passage, key: Key) -> None:
        await _erase(passage, "", key)


async def _erase(passage: Passage, prefix: str, key: Key) -> None:
    for table in (*PARTS, SESSIONS):
        sql = _ERASE.replace("{table}", table).replace("{schema}", prefix)
        await passage.run(Step(clause(sql), key._asdict()))


@lru_cache(maxsize=64)
def _open_sql(schema: str | None, fields: tuple[Field, ...], values: tuple[str, ...]) -> str:
    sql = _OPEN.replace("{columns}", ", ".join(field.name for field in fields))
    return sql.replace("{values}", ", ".join(values)).replace("{schema}", quoted_prefix(schema))


def _given(fields: Sequence[Field], row: Values) -> tuple[Field, ...]:
    """The columns that have a value: a row that has none takes the column's default."""
    return tuple(field for field, value in zip(fields, row, strict=True) if value is not None)


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


def _bound(fields: Sequence[Field], row: Values) -> dict[str, Any]:
    return {
        field.name: sqlite_time(value) if field.kind is Kind.TIME and value is not None else value
        for field, value in zip(fields, row, strict=True)
    }


def sqlite_time(text: str) -> str:
    """Return a time as SQLite holds it: milliseconds as our own statements write them, microseconds where there are.

    As text both sort alike, for neither is ever written with three zeros behind it.
    """
    return f"{text[:10]} {text[11:23] if text[23:26] == '000' else text[11:26]}"
