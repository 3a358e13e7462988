"""What a verb costs the network and the database: statements, bytes, prepared statements, updates in place."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
from agents import RunContextWrapper, Runner
from agents.testing import assistant_message
from sqlalchemy import make_url, text

from agents_pg_session import PGSession, SessionStore
from agents_pg_session.projection import Item
from agents_pg_session.testing.proxy import Proxy
from tests.acceptance.agents_for_tests import QUIET, calls, scripted
from tests.items import assistant, call, item, output, user
from tests.overheard import overheard

#: Uses of a statement until the driver has prepared it: psycopg does so at its sixth.
UNTIL_WARM = 7

TURN: list[Item] = [user("Where is my order?" * 9), call("c1", arguments='{"id": 7}'), output("c1"), assistant("Here.")]


@pytest.fixture(params=["asyncpg", "psycopg"])
async def store(request: pytest.FixtureRequest, proxied_url: str) -> AsyncIterator[SessionStore]:
    """A store of one connection, seen through the proxy."""
    url = make_url(proxied_url).set(drivername=f"postgresql+{request.param}")
    async with SessionStore.open(url, engine_kwargs={"pool_size": 1}) as store:
        yield store


async def append(session: PGSession, items: list[Item]) -> None:
    """Append with a run's wrapper, as the Runner does."""
    await session.add_items(items, wrapper=RunContextWrapper(context=None))


async def test_a_recorded_run_sends_a_statement_per_append(store: SessionStore, new_id: Callable[[], str]) -> None:
    """A run with a tool call, hooks and recording is its read and its three appends: four statements in all."""
    session = store.session(new_id())
    agent = scripted(calls("weather", "c1", city="Oslo"), assistant_message("sunny"))

    with overheard(store) as statements:
        async with session.recording() as run:
            await Runner.run(agent, "and Oslo?", session=session, hooks=run.hooks, run_config=QUIET)

    kinds = ["append" if "INSERT" in statement.sql else "read" for statement in statements]
    assert kinds == ["read", "append", "append", "append"]
    [record] = await session.runs.list()
    assert record.status == "completed"


@pytest.mark.parametrize("turns", [1, 75])
async def test_an_append_sends_little_beside_its_items(
    store: SessionStore, proxy: Proxy, new_id: Callable[[], str], turns: int
) -> None:
    """Warm, an append with its record sends its items once, and per item not more than 300 bytes beside them."""
    items = TURN * turns
    for _ in range(UNTIL_WARM):
        await append(store.session(new_id()), items)
    sent = proxy.asked_bytes

    await append(store.session(new_id()), items)

    payload = len(json.dumps(items, separators=(",", ":")).encode())
    assert payload < proxy.asked_bytes - sent < payload + 1500 + 300 * len(items)


async def test_prepared_statements_do_not_grow_with_the_batch(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Appends of 1 to 60 items and reads of 1 to 60 are the same few prepared statements."""

    async def prepared() -> int:
        async with store.engine.connect() as connection:
            found = await connection.execute(text("SELECT count(*) FROM pg_prepared_statements"))
            return int(found.scalar_one())

    async def use(size: int) -> None:
        session = store.session(new_id())
        for _ in range(UNTIL_WARM):
            await session.add_items([user(str(number)) for number in range(size)])
            await session.add_items(TURN * size)
            await session.get_items(limit=size)

    await use(1)
    for _ in range(UNTIL_WARM):  # of the question itself
        before = await prepared()
    for size in (2, 3, 7, 20, 60):
        await use(size)

    assert await prepared() == before


async def test_appends_within_a_turn_update_the_session_in_place(new_database_url: str) -> None:
    """Of appends that start no turn, at least 95 in 100 update the session's row without touching an index (HOT).

    The row is left with room for that by its table's fillfactor, and no index holds what such an append changes.
    """
    async with SessionStore.open(new_database_url) as store:
        await store.create_tables()
        sessions = [store.session(f"s{number}", agent="a", metadata={"n": number}) for number in range(50)]
        for session in sessions:
            await session.add_items([user("hi"), call("c0")])
    before = await _updates(new_database_url)
    async with SessionStore.open(new_database_url) as store:
        for step in range(8):
            for number in range(50):
                items = [output(f"c{step}"), call(f"c{step + 1}"), item(type="reasoning", summary=[])]
                await append(store.session(f"s{number}"), items)
    updates, in_place = (now - then for now, then in zip(await _updates(new_database_url), before, strict=True))

    assert updates == 400
    assert in_place / updates >= 0.95


async def _updates(url: str) -> tuple[int, int]:
    """How many updates the table has seen, and how many of them were HOT; connections that ended have told all."""
    connection = await asyncpg.connect(url)
    try:
        row: Any = await connection.fetchrow(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = 'agents' "
            "AND relname = 'sessions'"
        )
        return row[0], row[1]
    finally:
        await connection.close()
