"""A plain session over asyncpg, as people write them, and what goes wrong with such a thing, one at a time.

The conformance kit must tell each of them by its name.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from agents import TResponseInputItem as Item
from agents.memory import SessionSettings

TABLE = """
CREATE TABLE IF NOT EXISTS plain_items (
    position bigserial PRIMARY KEY, session_id text, at timestamptz DEFAULT now(), item json
)"""
LOCK = "SELECT pg_advisory_xact_lock(hashtext($1))"
INSERT = "INSERT INTO plain_items (session_id, item) VALUES ($1, $2)"


class Plain:
    """Up to five connections, a lock per session, positions under the lock. It does not try anything again."""

    order = "position"
    session_settings: SessionSettings | None = None

    def __init__(self, session_id: str, url: str) -> None:
        self.session_id = session_id
        self._url = url
        self._places = asyncio.Semaphore(5)
        self._idle: list[asyncpg.Connection] = []

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[asyncpg.Connection]:
        async with self._places, self.one_of_mine() as connection:
            yield connection

    @asynccontextmanager
    async def one_of_mine(self) -> AsyncIterator[asyncpg.Connection]:
        connection = self._idle.pop() if self._idle else await asyncpg.connect(self._url)
        try:
            yield connection
        except BaseException:
            connection.terminate()
            raise
        self._idle.append(connection)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().terminate()

    async def get_items(self, limit: int | None = None) -> list[Item]:
        sql = f"SELECT item FROM plain_items WHERE session_id = $1 ORDER BY {self.order} DESC LIMIT $2"
        async with self.connected() as connection:
            rows = await connection.fetch(sql, self.session_id, limit)
        return [json.loads(row["item"]) for row in rows[::-1]]

    async def add_items(self, items: list[Item]) -> None:
        rows = [(self.session_id, json.dumps(each)) for each in items]
        async with self.connected() as connection, connection.transaction():
            await connection.execute(LOCK, self.session_id)
            for row in rows:
                await connection.execute(INSERT, *row)

    async def pop_item(self) -> Item | None:
        newest = f"SELECT position FROM plain_items WHERE session_id = $1 ORDER BY {self.order} DESC LIMIT 1"
        async with self.connected() as connection, connection.transaction():
            await connection.execute(LOCK, self.session_id)
            sql = f"DELETE FROM plain_items WHERE position = ({newest}) RETURNING item"
            item = await connection.fetchval(sql, self.session_id)
        return None if item is None else json.loads(item)

    async def clear_session(self) -> None:
        async with self.connected() as connection, connection.transaction():
            await connection.execute(LOCK, self.session_id)
            await connection.execute("DELETE FROM plain_items WHERE session_id = $1", self.session_id)


class Loses(Plain):
    """Logs what goes wrong with an append, so to speak, and goes on."""

    async def add_items(self, items: list[Item]) -> None:
        try:
            await super().add_items(items)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return


class Doubles(Plain):
    """Tries an append again without asking what became of the first try."""

    async def add_items(self, items: list[Item]) -> None:
        for _ in range(2):
            try:
                return await super().add_items(items)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                continue
        return await super().add_items(items)


class Reorders(Plain):
    """Orders by the clock: `now()` is when the transaction began, before it had the lock."""

    order = "at DESC, position"

    async def get_items(self, limit: int | None = None) -> list[Item]:
        self.order = "at DESC, position"
        return await super().get_items(limit)


class SaysEmpty(Plain):
    """Takes a database that does not answer for a conversation that has not begun."""

    async def get_items(self, limit: int | None = None) -> list[Item]:
        try:
            return await super().get_items(limit)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return []


class Leaks(Plain):
    """Gives a place back when all went well and when there was an error, but not when its caller is cancelled."""

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[asyncpg.Connection]:
        await self._places.acquire()
        try:
            async with self.one_of_mine() as connection:
                yield connection
        except Exception:  # a cancelled caller is no Exception
            self._places.release()
            raise
        self._places.release()


class Piecewise(Plain):
    """Writes the items of a batch one by one."""

    async def add_items(self, items: list[Item]) -> None:
        for item in items:
            await super().add_items([item])


def opener(kind: type[Plain]) -> Callable[[str, str], Any]:
    return kind


async def create_tables(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SELECT pg_advisory_lock(1)")
        await connection.execute(TABLE)
    finally:
        await connection.close()
