"""What these tests do to a database, in few words: through the package, by hand, or from another process."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg

from agents_pg_session import SessionStore, StoreCheck
from tests.items import assistant, user

ROOT = Path(__file__).parents[2]
MIGRATIONS = ("-m", "agents_pg_session.migrations")
ALEMBIC = ("-m", "alembic.config")


async def create_tables(url: str, schema: str = "agents") -> None:
    async with SessionStore.open(url, schema=schema) as store:
        await store.create_tables()


async def check(url: str, schema: str = "agents") -> StoreCheck:
    async with SessionStore.open(url, schema=schema) as store:
        return await store.check()


async def use(url: str, schema: str = "agents") -> None:
    """Do each thing a session can do once, and fail where it did not happen."""
    async with SessionStore.open(url, schema=schema) as store:
        session = store.session("s")
        await session.add_items([user("hello"), assistant("hi")])
        assert await session.pop_item() == assistant("hi")
        assert await session.get_items() == [user("hello")]
        await session.clear_session()
        assert await session.get_items() == []


async def execute(url: str, *statements: str) -> list[Any]:
    """Run statements by hand and return the rows of the last one."""
    connection = await asyncpg.connect(url)
    try:
        rows: list[Any] = []
        for sql in statements:
            rows = [tuple(row) for row in await connection.fetch(sql)]
        return rows
    finally:
        await connection.close()


def execute_sqlite(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)


def environment(**more: str) -> dict[str, str]:
    """The environment for another process: without our settings, and with bytecode written.

    Interpreters that each compile the Agents SDK anew would take most of a minute.
    """
    ours = ("AGENTS_PG_URL", "AGENTS_PG_SCHEMA", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if name not in ours} | more


def run(*command: str | Path, cwd: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command in another process to its end, with *settings* as environment variables."""
    return subprocess.run(
        command, cwd=cwd or ROOT.parent, env=environment(**settings), capture_output=True, text=True, timeout=100
    )


def complaints(printed: str) -> list[str]:
    """What a crowd printed, but for the steps its upgrades took and that they waited for each other."""
    said = (
        "upgrade ",
        "building index ",
        "another upgrade of this database is at work",
        "waiting for ",
        "create_tables: LockNotAvail",
    )
    return [line for line in printed.splitlines() if not line.startswith(said)]
