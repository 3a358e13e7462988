"""The limit: asyncpg alone, with the very statements the library sends, and the least a client has to do around them.

The statements and their values are overheard from a store at work, once; afterwards only what differs from turn to
turn is replaced. Items are encoded and decoded by the fastest exact means, and connections wait in a queue. With the
full record, the objects that the Runner makes for each turn are made here too, for hooks that do nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast
from uuid import uuid4

import asyncpg
from agents import RunContextWrapper, RunHooks
from pydantic_core import from_json, to_json

from agents_pg_session.projection import Item
from benchmarks.contenders.base import Contender, Ports
from benchmarks.contenders.ours import FullRecord, Plain, play
from benchmarks.workload import READ, USUAL, fresh_id
from tests.overheard import Heard, overheard

__all__ = ["Raw"]

_ITEMS = 4  #: of a turn


class Raw(Contender):
    """asyncpg with our statements for a read of the newest items, for one of all, and for an append."""

    def __init__(
        self, name: str, connections: Sequence[asyncpg.Connection], reads: Sequence[Heard], write: Heard, *, full: bool
    ) -> None:
        super().__init__(name)
        self._full = full
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
        with overheard(contender.store) as heard:
            await contender.turn(session_id, USUAL.turn(2))
            await contender.latest(session_id, None)
        latest, write, everything = heard
        await contender.close()
        connections = [await asyncpg.connect(ports.url(database)) for _ in range(ports.pool_size)]
        return cls(name, connections, (latest, everything), write, full=full)

    async def append(self, session_id: str, items: list[Item]) -> None:
        if self._full:
            await play(RunHooks[Any](), RunContextWrapper(context=None), items)
        # The statement was overheard for one turn, whose counts and columns it carries.
        for first in range(0, len(items), _ITEMS):
            await self._append(session_id, items[first : first + _ITEMS])

    async def _append(self, session_id: str, items: list[Item]) -> None:
        values = list(self._write.values)
        values[self._places["session_id"]] = session_id
        values[self._places["operation_id"]] = str(uuid4())
        values[self._places["items"]] = to_json(items).decode()
        run_id = uuid4().hex
        for index in self._of_run:
            values[index] = run_id
        for index, length in self._lists_of_run:
            values[index] = [run_id] * length
        await self._fetch(self._write.sql, values)

    async def latest(self, session_id: str, limit: int | None) -> Sequence[object]:
        heard = self._everything if limit is None else self._latest
        rows = await self._fetch(heard.sql, heard.with_values(session_id=session_id, limit=limit or READ))
        items = [from_json(row[2]) for row in rows]
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
