"""PostgreSQL crashes, or ends connections, under 32 writers: what was acknowledged is there, exactly once and whole."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AsyncExitStack

import asyncpg
import pytest
from sqlalchemy import URL, make_url

from agents_pg_session import SessionStore
from agents_pg_session.testing.server import Server
from tests.faults.load import Load
from tests.tally import Tally

SESSIONS = 6

#: Two in three are patient. The third gives up soon, so that there are callers who were told "in doubt".
BUDGETS = (60, 60, 0.3)

TERMINATE_SOME = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
 WHERE application_name = 'agents_pg_session' AND datname = current_database() AND random() < 0.3
"""

pytestmark = pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])


@pytest.mark.timeout(600)
async def test_a_killed_server_loses_nothing_it_acknowledged(
    own_server: Server, driver: str, new_id: Callable[[], str], thorough: bool, tally: Tally
) -> None:
    """`kill -9` of the postmaster under 32 writers, and a restart, again and again: every acknowledged write is there
    once and whole, one in doubt once or not at all, in each writer's order, and all counters equal a recount."""
    crashes = 20 if thorough else 1
    async with AsyncExitStack() as stack:
        load = await _load(stack, make_url(own_server.url).set(drivername=f"postgresql+{driver}"), new_id)
        async with load:
            for _ in range(crashes):
                await load.further(random.randint(30, 90))
                await asyncio.to_thread(own_server.crash)
                await asyncio.to_thread(own_server.start)
            await load.further(50)
    recount = await load.recount(own_server.url)

    tally.add("Crash", crashes=crashes, **recount.numbers)
    assert recount.faults == []


@pytest.mark.timeout(600)
async def test_terminated_backends_lose_nothing(
    postgres_url: str,
    observer: asyncpg.Connection,
    driver: str,
    new_id: Callable[[], str],
    thorough: bool,
    tally: Tally,
) -> None:
    """`pg_terminate_backend` on a third of the connections at random moments under 32 writers: the same recount."""
    rounds, terminated = (200 if thorough else 6), 0
    async with AsyncExitStack() as stack:
        load = await _load(stack, make_url(postgres_url).set(drivername=f"postgresql+{driver}"), new_id)
        async with load:
            for _ in range(rounds):
                await load.further(random.randint(1, 20))
                terminated += await observer.fetchval(TERMINATE_SOME)
            await load.further(50)
    recount = await load.recount(postgres_url)

    tally.add("Terminated backends", terminated=terminated, **recount.numbers)
    assert terminated > 0
    assert recount.faults == []


async def _load(stack: AsyncExitStack, url: URL, new_id: Callable[[], str]) -> Load:
    """Return a load of three processes' stores on the same sessions."""
    pool = {"pool_size": 5}
    opened = [SessionStore.open(url, retry_for=budget, engine_kwargs=pool) for budget in BUDGETS]
    stores = [await stack.enter_async_context(store) for store in opened]
    for store in stores:
        stack.push_async_callback(_nothing_is_left, store)
    return Load(stores, [new_id() for _ in range(SESSIONS)])


async def _nothing_is_left(store: SessionStore) -> None:
    assert store.engine.pool.checkedout() == 0, "a connection was left checked out"  # type: ignore[attr-defined]
