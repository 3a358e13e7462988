"""How a command reaches its database: the text in the driver's style, the values in its order, rows by name.

SQLAlchemy makes, sets up and pools the connections, and renders each text, once. What runs it is the driver itself:
SQLAlchemy's way of executing would cost the client more than asyncpg's own (docs/benchmarks.md). Listeners to an
engine's pool hear of our connections as ever; listeners to its statements do not.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from io import BytesIO
from typing import Any, NamedTuple, Protocol, cast

from sqlalchemy import Dialect, TextClause, make_url

from agents_pg_session.statements import Command, Step
from agents_pg_session.urls import WRITE_A_URL

__all__ = ["Driver", "Rendered", "Row", "Rows", "driver_of"]


class Row(Protocol):
    """A row as every driver here gives it: by place, by name, or as a dict."""

    def __getattr__(self, name: str) -> Any: ...

    def __getitem__(self, place: int) -> Any: ...

    def _asdict(self) -> dict[str, Any]: ...


Rows = Sequence[Row]


class Rendered(NamedTuple):
    """A statement in its driver's style, and the names of the values it takes, in order."""

    text: str
    names: tuple[str, ...]


class Driver(Protocol):
    """Runs commands on a driver's own connection, which nobody else uses meanwhile and which is in autocommit."""

    async def run(self, connection: Any, command: Command) -> Rows:
        """Run the steps, more than one (or any write on SQLite) in one transaction; return the last one's rows."""
        ...

    async def answer(self, connection: Any, step: Step) -> Rows:
        """Run one step inside the transaction that `say` began; return its rows."""
        ...

    async def say(self, connection: Any, sql: str) -> None:
        """Run a statement without values or rows: BEGIN, COMMIT."""
        ...

    async def copy(self, connection: Any, schema: str, table: str, columns: Sequence[str], rows: bytes) -> None:
        """Write rows in the text format of PostgreSQL's COPY, which takes any number as they are."""
        ...

    def is_idle(self, connection: Any) -> bool:
        """Say whether the connection is between transactions, so that somebody else may use it."""
        ...

    @property
    def rendered(self) -> Callable[[TextClause], Rendered]:
        """Renders a statement for this driver, each text once."""
        ...


def driver_of(dialect: Dialect) -> Driver:
    """Return what runs commands over *dialect*'s driver. Raises `ValueError` for a driver we do not know."""
    return _driver(f"{dialect.name}+{dialect.driver}")


@cache
def _driver(name: str) -> Driver:
    match name:
        case "postgresql+asyncpg":
            return _Asyncpg(name)
        case "postgresql+psycopg":
            return _Psycopg(name)
        case "sqlite+aiosqlite":
            return _SQLite(name)
        case _:
            raise ValueError(f"an engine over {name} is not supported; {WRITE_A_URL}")


class _Rendering:
    """Renders each text once for a driver."""

    def __init__(self, name: str) -> None:
        self._dialect = make_url(f"{name}://").get_dialect()()
        self.rendered = lru_cache(maxsize=1024)(self._render)

    def _render(self, clause: TextClause) -> Rendered:
        compiled = clause.compile(dialect=self._dialect)
        return Rendered(str(compiled), tuple(getattr(compiled, "positiontup", None) or ()))


class _Postgres(_Rendering, ABC):
    """One statement commits itself; several see what committed before each of them, whatever the server's default."""

    async def run(self, connection: Any, command: Command) -> Rows:
        if len(command.steps) == 1:
            return await self.answer(connection, command.steps[0])
        await self.say(connection, "BEGIN ISOLATION LEVEL READ COMMITTED")
        try:
            rows: Rows = ()
            for step in command.steps:
                rows = await self.answer(connection, step)
                if step.decisive and not rows:
                    break
        except BaseException:
            with suppress(Exception):  # a connection that cannot do even that is not idle, and thrown away
                await self.say(connection, "ROLLBACK")
            raise
        await self.say(connection, "COMMIT")
        return rows

    @abstractmethod
    async def answer(self, connection: Any, step: Step) -> Rows:
        """Run one statement and return its rows."""

    @abstractmethod
    async def say(self, connection: Any, sql: str) -> None:
        """Run a statement without values or rows."""


class _Asyncpg(_Postgres):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._record_class = _record_class()

    async def answer(self, connection: Any, step: Step) -> Rows:
        text, names = self.rendered(step.clause)
        values = step.values
        assert isinstance(values, Mapping), "on PostgreSQL many rows are one statement with lists of values"
        rows: Rows = await connection.fetch(text, *[values[name] for name in names], record_class=self._record_class)
        if rows and type(rows[0]) is not self._record_class:  # asyncpg forgot it when it made a stale plan anew
            names = tuple(cast("Any", rows[0]).keys())
            return [_row_class(names)._make(row) for row in cast("Sequence[Any]", rows)]
        return rows

    async def say(self, connection: Any, sql: str) -> None:
        await connection.execute(sql)

    async def copy(self, connection: Any, schema: str, table: str, columns: Sequence[str], rows: bytes) -> None:
        await connection.copy_to_table(
            table, source=BytesIO(rows), columns=columns, schema_name=schema, format="text", encoding="UTF8"
        )

    def is_idle(self, connection: Any) -> bool:
        return not connection.is_closed() and not connection.is_in_transaction()


@cache
def _record_class() -> type:
    import asyncpg  # here: who uses another driver does not load it

    class Record(asyncpg.Record):
        def __getattr__(self, name: str) -> Any:
            try:
                return self[name]
            except KeyError:
                raise AttributeError(name) from None

        def _asdict(self) -> dict[str, Any]:
            return dict(self.items())

    return Record


class _Psycopg(_Postgres):
    def __init__(self, name: str) -> None:
        from psycopg.pq import TransactionStatus  # here: who uses another driver does not load it
        from psycopg.rows import namedtuple_row

        super().__init__(name)
        self._row_factory, self._idle = namedtuple_row, TransactionStatus.IDLE

    async def answer(self, connection: Any, step: Step) -> Rows:
        async with connection.cursor(row_factory=self._row_factory) as cursor:
            await cursor.execute(self.rendered(step.clause).text, step.values)
            rows: Rows = await cursor.fetchall() if cursor.description else ()
            return rows

    async def say(self, connection: Any, sql: str) -> None:
        await connection.execute(sql, prepare=False)

    async def copy(self, connection: Any, schema: str, table: str, columns: Sequence[str], rows: bytes) -> None:
        names = ", ".join(map(_quoted, columns))
        sql = f"COPY {_quoted(schema)}.{_quoted(table)} ({names}) FROM STDIN (FORMAT text, ENCODING 'UTF8')"
        async with connection.cursor() as cursor, cursor.copy(sql) as copying:
            await copying.write(rows)

    def is_idle(self, connection: Any) -> bool:
        return bool(connection.pgconn.transaction_status == self._idle)


class _SQLite(_Rendering):
    """All steps in one visit to the connection's thread: each visit costs more than the statement it brings.

    aiosqlite has no public way to do more than one thing in one; `_execute` and `_conn` are what its own methods use.
    """

    async def run(self, connection: Any, command: Command) -> Rows:
        steps = [(*self.rendered(step.clause), step) for step in command.steps]
        rows: Rows = await connection._execute(_visit, connection._conn, steps, command.subject.writes)
        return rows

    async def answer(self, connection: Any, step: Step) -> Rows:
        rows: Rows = await connection._execute(_step, connection._conn, *self.rendered(step.clause), step)
        return rows

    async def say(self, connection: Any, sql: str) -> None:
        await connection._execute(_say, connection._conn, sql)

    async def copy(self, connection: Any, schema: str, table: str, columns: Sequence[str], rows: bytes) -> None:
        raise NotImplementedError("SQLite has no COPY: many rows are a step with a list of values")

    def is_idle(self, connection: Any) -> bool:
        made = connection._connection  # none where it was closed
        return made is None or not made.in_transaction


def _visit(connection: sqlite3.Connection, steps: list[tuple[str, tuple[str, ...], Step]], writes: bool) -> Rows:
    """Run the steps; writes take the lock at once, where a later BEGIN would find its snapshot stale."""
    rows: Rows = ()
    cursor = connection.cursor()
    try:
        if writes:
            cursor.execute("BEGIN IMMEDIATE")
        for text, names, step in steps:
            values = step.values
            if isinstance(values, list):
                cursor.executemany(text, [[each[name] for name in names] for each in values])
                continue
            cursor.execute(text, [values[name] for name in names])
            rows = _named(cursor)
            if step.decisive and not rows:
                break
        if writes:
            cursor.execute("COMMIT")
    finally:
        # Not left to the pool: an engine may be told not to roll back in autocommit.
        if connection.in_transaction:
            cursor.execute("ROLLBACK")
        cursor.close()
    return rows


def _step(connection: sqlite3.Connection, sql: str, names: tuple[str, ...], step: Step) -> Rows:
    """Run one step in whatever transaction there is."""
    cursor = connection.cursor()
    try:
        if isinstance(step.values, list):
            cursor.executemany(sql, [[each[name] for name in names] for each in step.values])
            return ()
        cursor.execute(sql, [step.values[name] for name in names])
        return _named(cursor)
    finally:
        cursor.close()


def _say(connection: sqlite3.Connection, sql: str) -> None:
    connection.execute(sql).close()


def _named(cursor: sqlite3.Cursor) -> Rows:
    if cursor.description is None:
        return ()
    make = _row_class(tuple(column[0] for column in cursor.description))._make
    return [make(row) for row in cursor]


@lru_cache(maxsize=256)
def _row_class(names: tuple[str, ...]) -> Any:
    return namedtuple("Row", names, rename=True)


def _quoted(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))
