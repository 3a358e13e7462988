"""One verb, one statement, one network round trip: counted between client and server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from agents_pg_session import PGSession, SessionStore
from agents_pg_session.testing.proxy import Proxy
from tests.items import assistant, call, output, user

TURN = [call("c1"), output("c1"), call("c2"), assistant("done")]
VERBS: dict[str, Callable[[SessionStore, PGSession], Awaitable[object]]] = {
    "first append": lambda store, session: store.session(f"{session.session_id} more").add_items(TURN),
    "append": lambda _, session: session.add_items(TURN),
    "append of 300 items": lambda _, session: session.add_items(TURN * 75),
    "latest": lambda _, session: session.get_items(limit=3),
    "whole history": lambda _, session: session.get_items(),
    "pop": lambda _, session: session.pop_item(),
    "clear": lambda _, session: session.clear_session(),
    "pop from nothing": lambda store, _: store.session("nobody").pop_item(),
    "nothing to append": lambda _, session: session.add_items([]),
}


@pytest.fixture(params=["asyncpg", "psycopg"])
async def warm(request: pytest.FixtureRequest, proxied_url: str) -> AsyncIterator[SessionStore]:
    """A store whose single connection has prepared the test's statements."""
    url = make_url(proxied_url).set(drivername=f"postgresql+{request.param}")
    async with SessionStore.open(url, engine_kwargs={"pool_size": 1}) as store:
        session = store.session(f"warm-up {request.node.name}")
        for _ in range(7):  # psycopg prepares a statement at its sixth use
            await session.add_items(TURN)
            await VERBS[request.node.callspec.params["verb"]](store, session)
        yield store


@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_is_one_round_trip(warm: SessionStore, proxy: Proxy, new_id: Callable[[], str], verb: str) -> None:
    """Warm, each verb costs one round trip, the first append of a session too; nothing to append costs none."""
    session = warm.session(new_id())
    await session.add_items([user("hi"), *TURN])
    before = proxy.round_trips

    await VERBS[verb](warm, session)

    assert proxy.round_trips - before == (0 if verb == "nothing to append" else 1)


async def test_a_borrowed_engine_costs_no_more(proxied_url: str, proxy: Proxy, new_id: Callable[[], str]) -> None:
    """An engine in SQLAlchemy's default mode, with a new handle for each call: still one round trip each."""
    engine = create_async_engine(make_url(proxied_url).set(drivername="postgresql+asyncpg"))
    name = new_id()
    for _ in range(2):
        await PGSession(name, engine=engine).add_items([user("hi")])
        await PGSession(name, engine=engine).get_items()
    before = proxy.round_trips

    await PGSession(name, engine=engine).add_items([user("hi")])
    await PGSession(name, engine=engine).get_items()

    assert proxy.round_trips - before == 2
    await engine.dispose()


async def test_a_turn_is_one_connection(proxied_url: str, proxy: Proxy, new_id: Callable[[], str]) -> None:
    """Verbs one after the other use one warm connection: last in, first out."""
    async with SessionStore.open(proxied_url) as store:
        session = store.session(new_id())
        for _ in range(5):
            await session.get_items(limit=50)
            await session.add_items(TURN)

    assert proxy.accepted == 1
