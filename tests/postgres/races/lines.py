"""Standing in line: a lock that a test holds, verbs that wait behind it in a known order, and what they left behind."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from agents import Runner

from agents_pg_session import PGSession
from tests.acceptance.agents_for_tests import QUIET, calls, scripted
from tests.recount import miscounted

#: What the SDK's default tells the model of a tool that raised: such an output is an error of its tool run.
FAILED = "An error occurred while running the tool. Please try again."

#: Takes the session's row, as whoever writes does.
ROW = "SELECT FROM agents.sessions WHERE session_id = $1 FOR UPDATE"

_WAITING = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND wait_event_type = 'Lock'
"""

#: All that is known of a session. Runs are in the order of what they say: their ids are random.
_EVERYTHING = """
SELECT json_build_array(
    (SELECT to_jsonb(s) - 'fenced_ids' FROM agents.sessions s WHERE session_id = $1),
    (SELECT json_agg(i ORDER BY position) FROM agents.items i WHERE session_id = $1),
    (SELECT json_agg(t ORDER BY call_position) FROM agents.tool_runs t WHERE session_id = $1),
    (SELECT json_agg(r ORDER BY turn, status, total_tokens, agent) FROM agents.runs r WHERE session_id = $1),
    (SELECT json_agg(e ORDER BY event_id) FROM agents.events e WHERE session_id = $1),
    (SELECT json_agg(n ORDER BY kind, version) FROM agents.snapshots n WHERE session_id = $1))
"""
_SESSION = re.compile(r"session-[0-9a-f]{16}")
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|call_id_[0-9a-f]+|trace_[0-9a-f]{32}")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:[+-]\d\d:?\d\d|Z)?")
_SECONDS = re.compile(r'("model_seconds": ?)[\d.e-]+')


@asynccontextmanager
async def watching(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that looks on; one that holds locks itself can look too, but it may be in a transaction."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def in_line(observer: asyncpg.Connection, session: PGSession, *verbs: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Line *verbs* up behind the lock of the session's row, let them go, and return what each answered or raised."""
    async with watching(dsn_of(session)) as watcher:
        lock = observer.transaction()
        await lock.start()
        await observer.execute(ROW, session.session_id)
        waiting = await lined_up(watcher, verbs)
        await lock.commit()
    return list(await asyncio.gather(*waiting, return_exceptions=True))


async def lined_up(
    watcher: asyncpg.Connection, verbs: Sequence[Callable[[], Awaitable[Any]]]
) -> list[asyncio.Future[Any]]:
    """Start *verbs* one after the other, each when the one before it waits for a lock or has finished without."""
    waiting: list[asyncio.Future[Any]] = []
    for verb in verbs:
        waiting.append(asyncio.ensure_future(verb()))
        while await watcher.fetchval(_WAITING) + sum(each.done() for each in waiting) < len(waiting):
            await asyncio.sleep(0.002)
    return waiting


async def until_waiting(watcher: asyncpg.Connection, count: int = 1) -> None:
    """Return when *count* connections of this database wait for a lock."""
    while await watcher.fetchval(_WAITING) < count:
        await asyncio.sleep(0.002)


def dsn_of(session: PGSession) -> str:
    return session.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


async def counters_hold(observer: asyncpg.Connection, session: PGSession) -> bool:
    """Say whether the counters of a session equal a recount."""
    return not await miscounted(observer, session.session_id)


async def is_gone(observer: asyncpg.Connection, session: PGSession) -> bool:
    found = await observer.fetchval("SELECT count(*) FROM agents.sessions WHERE session_id = $1", session.session_id)
    return bool(found == 0)


async def known(observer: asyncpg.Connection, *session_ids: str) -> object:
    """Return all that is known of some sessions, beside which those of a twin must be the same."""
    return masked([json.loads(await observer.fetchval(_EVERYTHING, each)) for each in session_ids])


def masked(value: object) -> object:
    """Put names for what is never the same twice: ids in the order they appear, so links between rows still count."""
    text, ids = json.dumps(_counted(value), sort_keys=True), dict[str, str]()
    text = _SECONDS.sub(r"\g<1>0", _TIME.sub("a time", _SESSION.sub("a session", text)))
    return json.loads(_ID.sub(lambda found: ids.setdefault(found[0], f"id {len(ids)}"), text))


def _counted(value: object) -> object:
    """Leave of `append_ids` how many there are: they stand in the order of their random values."""
    match value:
        case dict():
            return {key: len(each) if key == "append_ids" and each else _counted(each) for key, each in value.items()}
        case list():
            return [_counted(each) for each in value]
    return value


def own(session: PGSession) -> PGSession:
    """Another handle on the same session, which knows nothing of this one."""
    return PGSession(session.session_id, engine=session.engine)


async def paused(session: PGSession) -> None:
    """Leave a run that waits for an approval."""
    result = await Runner.run(scripted(calls("refund", "r1", amount=5)), "refund", session=session, run_config=QUIET)
    await session.pause(result)
