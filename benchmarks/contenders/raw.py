"""The limit: asyncpg alone, with the very statements the library sends, and the least a client has to do around them.

The statements and their values are overheard from a store at work, once; afterwards only what differs from turn to
turn is replaced. Items are encoded and decoded as JSON, and connections wait in a queue.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import asyncpg
from sqlalchemy import event

from agents_pg_session import SessionStore
from agents_pg_session.projection import Item
from benchmarks.contenders.base import Contender, Ports
from benchmarks.contenders.ours import FullRecord, Plain
from benchmarks.workload import READ, USUAL, fresh_id

__all__ = ["Heard", "Raw", "overhear"]

_ITEMS = 4  #: of a turn

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Heard:
    """A statement as it was sent to the driver, and its values in order, each with its name."""

    sql: str
    names: tuple[str, ...]
    values: tuple[Any, ...]

    def with_values(self, **fresh: Any) -> list[Any]:
        """Return the values with some replaced by name."""
        return [fresh.get(name, value) for name, value in zip(self.names, self.values, strict=True)]


async def overhear(store: SessionStore, work: Callable[[], Awaitable[object]]) -> list[Heard]:
    """Return the statements that *work* sends through the store."""
    heard: list[Heard] = []

    def note(_connection: object, _cursor: object, sql: str, values: Any, context: Any, _many: object) -> None:
        heard.append(Heard(sql, tuple(context.compiled.positiontup or ()), tuple(values)))

    event.listen(store.engine.sync_engine, "before_cursor_execute", note)
    try:
        await work()
    finally:
        event.remove(store.engine.sync_engine, "before_cursor_execute", note)
    return heard


class Raw(Contender):
    """asyncpg with our statements for a read of the newest items, for one of all, and for an append."""

    def __init__(self, name: str, connections: Sequence[asyncpg.Connection], reads: Sequence[Heard], write: Heard):
        super().__init__(name)
        self._connections = connections
        self._free: asyncio.LifoQueue[asyncpg.Connection] = asyncio.LifoQueue()
        for connection in connections:
            self._free.put_nowait(connection)
        self._latest, self._everything = reads
        self._write = write
        run_id = write.values[write.names.index("run_id")]
        self._of_run = [index for index, value in enumerate(write.values) if run_id is not None and value == run_id]
        self._lists_of_run = [
            (index, len(value))
            for index, value in enumerate(write.values)
            if run_id is not None and isinstance(value, list) and run_id in value
        ]
        self._places = {name: write.names.index(name) for name in ("session_id", "operation_id", "items")}

    @classmethod
    async def open(cls, ports: Ports, database: str, name: str, *, full: bool) -> Raw:
        contender = await (FullRecord if full else Plain).open(ports, database, name)
        session_id = fresh_id()
        await contender.turn(session_id, USUAL.turn(1))
        latest, write = await overhear(contender.store, lambda: contender.turn(session_id, USUAL.turn(2)))
        [everything] = await overhear(contender.store, lambda: contender.latest(session_id, None))
        await contender.close()
        connections = [await asyncpg.connect(ports.url(database)) for _ in range(ports.pool_size)]
        return cls(name, connections, (latest, everything), write)

    async def append(self, session_id: str, items: list[Item]) -> None:
        # The statement was overheard for one turn, whose counts and columns it carries.
        for first in range(0, len(items), _ITEMS):
            await self._append(session_id, items[first : first + _ITEMS])

    async def _append(self, session_id: str, items: list[Item]) -> None:
        values = list(self._write.values)
        values[self._places["session_id"]] = session_id
        values[self._places["operation_id"]] = str(uuid4())
        values[self._places["items"]] = f"[{','.join(map(_ENCODER.encode, items))}]"
        run_id = uuid4().hex
        for index in self._of_run:
            values[index] = run_id
        for index, length in self._lists_of_run:
            values[index] = [run_id] * length
        await self._fetch(self._write.sql, values)

    async def latest(self, session_id: str, limit: int | None) -> Sequence[object]:
        heard = self._everything if limit is None else self._latest
        rows = await self._fetch(heard.sql, heard.with_values(session_id=session_id, limit=limit or READ))
        items = [json.loads(row[2]) for row in rows]
        items.reverse()
        return items

    async def texts(self, session_id: str) -> list[str]:
        """Return all items as the database has them: what remains is decoding."""
        rows = await self._fetch(self._everything.sql, self._everything.with_values(session_id=session_id))
        return [row[2] for row in rows]

    async def pop(self, session_id: str) -> None:
        raise NotImplementedError

    async def clear(self, session_id: str) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    async def _fetch(self, sql: str, values: list[Any]) -> list[Any]:
        connection = await self._free.get()
        try:
            return cast("list[Any]", await connection.fetch(sql, *values))
        finally:
            self._free.put_nowait(connection)
