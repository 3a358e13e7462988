"""A database that is written to from another process, and the recount afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from tests.migrations.actions import environment
from tests.recount import miscounted

__all__ = ["Load", "differences", "writing"]

PROGRAM = Path(__file__).parent / "writers.py"


class Load:
    """What the writers have been told so far."""

    def __init__(self) -> None:
        self.acknowledged: list[dict[str, Any]] = []
        self.failed: list[dict[str, Any]] = []
        self._told = asyncio.Condition()

    async def listen(self, lines: asyncio.StreamReader) -> None:
        async for line in lines:
            told = json.loads(line)
            async with self._told:
                (self.acknowledged if told.pop("kind") == "acknowledged" else self.failed).append(told)
                self._told.notify_all()

    async def more(self, count: int = 48) -> None:
        """Wait until so many more appends have been acknowledged, or one has failed."""
        wanted = len(self.acknowledged) + count
        async with asyncio.timeout(60), self._told:
            await self._told.wait_for(lambda: self.failed or len(self.acknowledged) >= wanted)


@asynccontextmanager
async def writing(url: str, code: Path) -> AsyncIterator[Load]:
    """Sixteen writers on *url*, with the package that lies in the folder *code*."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", PROGRAM, url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(PYTHONPATH=os.fspath(code), PYTHONDONTWRITEBYTECODE="1"),
        cwd=code,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    load = Load()
    listening = asyncio.create_task(load.listen(process.stdout))
    try:
        yield load
    finally:
        process.stdin.close()
        ended = await process.wait()
        await listening
    assert ended == 0, "the writers fell over"


async def differences(url: str, load: Load) -> list[object]:
    """Return each acknowledged append that is not there once, whole, in one piece; and each counter that is wrong."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            """
            SELECT session_id, append_id, count(*) AS items, max(position) - min(position) + 1 AS span,
                   array_agg(DISTINCT coalesce(item ->> 'call_id', item ->> 'content')) AS tags
              FROM agents.items GROUP BY session_id, append_id
            """
        )
        stored = Counter((row["session_id"], *row["tags"], row["items"], row["span"]) for row in rows)
        told = Counter((each["session"], each["tag"], each["items"], each["items"]) for each in load.acknowledged)
        sessions = {each["session"] for each in load.acknowledged}
        wrong = [(session, found) for session in sessions if (found := await miscounted(connection, session))]
        return [*((stored - told) + (told - stored)), *wrong]
    finally:
        await connection.close()
