"""Databases that the Agents SDK itself has written: its sessions, through real `Runner` runs, and rows by hand."""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from agents import Agent, RunConfig, Runner, function_tool
from agents.extensions.memory import AdvancedSQLiteSession, SQLAlchemySession
from agents.memory import Session, SQLiteSession
from agents.testing import ScriptedModel, assistant_message, function_call
from agents.usage import Usage
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from agents_pg_session import PGSession
from agents_pg_session.projection import Item

__all__ = ["KINDS", "QUIET", "Source", "converse", "record"]

QUIET = RunConfig(tracing_disabled=True)
KINDS = ("SQLAlchemySession on PostgreSQL", "SQLAlchemySession on SQLite", "SQLiteSession", "AdvancedSQLiteSession")
USAGE = Usage(requests=1, input_tokens=100, output_tokens=7, total_tokens=107)


@dataclass
class Source:
    """One database of the SDK's, with tables of a name of their own."""

    kind: str
    url: str
    sessions_table: str
    messages_table: str

    @classmethod
    def of(cls, kind: str, folder: Path, postgres_url: str) -> Source:
        if kind == KINDS[0]:
            name = secrets.token_hex(4)
            url = make_url(postgres_url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)
            return cls(kind, url, f"Sessions-{name}", f"messages_{name}")
        path = folder / f"sdk-{secrets.token_hex(4)}.db"
        return cls(kind, f"sqlite+aiosqlite:///{path}", "agent_sessions", "agent_messages")

    @property
    def path(self) -> str:
        return str(make_url(self.url).database)

    @property
    def options(self) -> dict[str, Any]:
        """What `import_sdk` has to be told."""
        return {"source": self.url, "sessions_table": self.sessions_table, "messages_table": self.messages_table}

    @asynccontextmanager
    async def session(self, session_id: str) -> AsyncIterator[Any]:
        """Open a session of the SDK here."""
        tables: dict[str, Any] = {"sessions_table": self.sessions_table, "messages_table": self.messages_table}
        if self.kind.startswith("SQLAlchemySession"):
            engine = create_async_engine(self.url)
            yield SQLAlchemySession(session_id, engine=engine, create_tables=True, ensure_ascii=False, **tables)
            await engine.dispose()
            return
        session: SQLiteSession
        if self.kind == "SQLiteSession":
            session = SQLiteSession(session_id, self.path, **tables)
        else:
            session = AdvancedSQLiteSession(session_id=session_id, db_path=self.path, create_tables=True, **tables)
        yield session
        session.close()

    async def items(self, session_id: str) -> list[Item]:
        """What the SDK's own session gives."""
        async with self.session(session_id) as session:
            return list(await session.get_items())

    async def add(self, session_id: str, *batches: Sequence[Item]) -> None:
        async with self.session(session_id) as session:
            for batch in batches:
                await session.add_items(list(batch))

    async def write(self, sql: str, *values: object) -> None:
        """Do something to the rows that no session would; {messages} and {sessions} are the tables."""
        sql = sql.format(sessions=f'"{self.sessions_table}"', messages=f'"{self.messages_table}"')
        if self.kind != KINDS[0]:
            return await asyncio.to_thread(self._write, sql, values)
        connection = await asyncpg.connect(make_url(self.url).set(drivername="postgresql").render_as_string(False))
        try:
            await connection.execute(sql, *values)
        finally:
            await connection.close()

    def _write(self, sql: str, values: Iterable[object]) -> None:
        connection = sqlite3.connect(self.path)
        try:
            for number in range(9, 0, -1):
                sql = sql.replace(f"${number}", f"?{number}")
            connection.execute(sql, tuple(values))
            connection.commit()
        finally:
            connection.close()

    async def row(self, session_id: str, data: object, created_at: str) -> None:
        """Insert one row as it is, at a time."""
        text = data if isinstance(data, str | bytes) else json.dumps(data)
        cast = "CAST(CAST($3 AS text) AS timestamp)" if self.kind == KINDS[0] else "$3"
        await self.write(
            f"INSERT INTO {{messages}} (session_id, message_data, created_at) VALUES ($1, $2, {cast})",
            session_id,
            text,
            created_at,
        )


@function_tool
def find_parcel(order: str) -> str:
    """Say where a parcel is."""
    if order == "A-0":
        raise LookupError(f"nobody knows {order}")
    return f"{order}: in Zürich, 明日 🚚"


def agents() -> tuple[Agent[None], Agent[None]]:
    """A desk that looks twice at once, fails once and hands over, and a specialist."""
    specialist = Agent[None](
        name="Specialist", model=ScriptedModel([[assistant_message("Übergeben ✅")]] * 3, default_usage=USAGE)
    )
    script = [
        [
            function_call("find_parcel", {"order": "A-1"}, call_id="call_1"),
            function_call("find_parcel", {"order": "A-0"}, call_id="call_2"),
        ],
        [assistant_message("Zürich, and one is lost")],
        [function_call("transfer_to_specialist", {}, call_id="call_3")],
    ]
    model = ScriptedModel(script, default_usage=USAGE)
    return Agent[None](name="Desk", model=model, tools=[find_parcel], handoffs=[specialist]), specialist


async def converse(session: Session) -> None:
    """Two runs: tool calls that succeed and fail, then a hand-off."""
    desk, _ = agents()
    for question in ("Wo ist A-1, und A-0?", "Ein Mensch, bitte \u2764\ufe0f"):
        result = await Runner.run(desk, question, session=session, run_config=QUIET)
        if isinstance(session, AdvancedSQLiteSession):
            await session.store_run_usage(result)


async def record(session: PGSession) -> dict[str, Any]:
    """What our tables say of a session, but for when and by which run."""
    info = await session.info()
    turns = await session.turns()
    tools = await session.tool_runs.list()
    counters = ("item_count", "message_count", "turn_count", "tool_run_count", "tool_error_count", "last_position")
    return {
        "items": [(turn.number, item.position, item.item) for turn in turns for item in turn.items],
        "counters": {name: getattr(info, name) for name in counters},
        "tool runs": [
            (each.position, each.output_position, each.tool_name, each.call_id, each.status, each.error, each.arguments)
            for each in tools
        ],
    }
