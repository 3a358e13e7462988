"""The first start: everybody creates the tables at once."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from agents_pg_session.testing.promises.registry import keeps, promise, unless
from agents_pg_session.testing.promises.trial import Trial, history


@promise("setup", needs="postgres", races=True)
async def tasks_may_create_the_tables_at_once(trial: Trial) -> None:
    """On an empty database, 8 tasks that create the tables and append at the same time all succeed."""
    url = await trial.new_database()

    async def begin() -> None:
        await trial.subject.prepare(url)
        session = await trial.open(url=url)
        await session.add_items(history(1))
        keeps(await session.get_items() == history(1), "what was appended is not there")

    try:
        await asyncio.gather(*(begin() for _ in range(8)))
    finally:
        await trial.close_all()


@promise("setup", needs="postgres", races=True)
async def processes_may_create_the_tables_at_once(trial: Trial) -> None:
    """On an empty database, 6 processes that create the tables and append at the same time all succeed; twice."""
    subject = trial.subject
    names = [_importable(each) for each in (subject.open, subject.create_tables)]
    unless(names[0] is None or not hasattr(os, "fork"), "another process cannot import what opens it")
    urls = [await trial.new_database() for _ in range(2)]
    script = "from agents_pg_session.testing.promises.crowd import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENAI_AGENTS_DISABLE_TRACING": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, json.dumps([*names, urls]), stdout=asyncio.subprocess.PIPE, env=environment
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    failed = output.decode().splitlines()

    keeps(process.returncode == 0 or bool(failed), "the processes ended without a word")
    keeps(not failed, f"{len(failed)} of {6 * len(urls)} failed: {failed[0] if failed else ''}")


def _importable(function: Callable[..., Any] | None) -> str | None:
    """Return `module:name` if another process would find the same function there."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "<>")
    return None if module in (None, "__main__") or "<" in name else f"{module}:{name}"
