"""Between SQLAlchemy's pools and the drivers: which connections are used, and that nothing is left on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event, make_url
from sqlalchemy.dialects.postgresql import pg8000
from sqlalchemy.ext.asyncio import create_async_engine

from agents_pg_session import PGSession, SessionError, SessionStore
from agents_pg_session.drivers import driver_of
from agents_pg_session.testing.proxy import Proxy
from tests.items import user
from tests.overheard import overheard


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def store(proxied_url: str, driver: str) -> AsyncIterator[SessionStore]:
    url = make_url(proxied_url).set(drivername=f"postgresql+{driver}")
    async with SessionStore.open(url, command_timeout=0.3) as store:
        yield store
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_where_one_connection_was_lost_the_others_are_not_tried(
    store: SessionStore, proxy: Proxy, new_id: Callable[[], str]
) -> None:
    """Eight idle connections fall silent at once: one verb fails a try, and the next eight fail none."""
    sessions = [store.session(new_id()) for _ in range(8)]
    await asyncio.gather(*(session.add_items([user("hi")]) for session in sessions))
    assert proxy.open >= 8
    proxy.stall_all()  # they do not even say that they are gone
    await sessions[0].get_items()

    with overheard(store) as tries:
        read = await asyncio.gather(*(session.get_items() for session in sessions))

    assert read == [[user("hi")]] * 8
    assert len(tries) == 8


async def test_a_connection_inside_a_transaction_is_not_written_on(
    postgres_url: str, observer: asyncpg.Connection, new_id: Callable[[], str]
) -> None:
    """Somebody's listener leaves a transaction open on a connection: an append is committed, on another one.

    (Over psycopg such a connection cannot be put into autocommit, which is an error, as below.)
    """
    engine = create_async_engine(make_url(postgres_url).set(drivername="postgresql+asyncpg"))
    session, left = PGSession(new_id(), engine=engine), 2

    @event.listens_for(engine.sync_engine, "checkout")
    def leave_a_transaction(connection: Any, *_: object) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            connection.run_async(lambda theirs: theirs.execute("BEGIN"))

    await session.add_items([user("kept")])

    count = "SELECT count(*) FROM agents.items WHERE session_id = $1"
    assert await observer.fetchval(count, session.session_id) == 1
    assert left < 0
    await engine.dispose()


async def test_connections_that_always_come_inside_a_transaction(
    postgres_url: str, driver: str, observer: asyncpg.Connection, new_id: Callable[[], str]
) -> None:
    """Where every connection comes inside a transaction, an append says so, and nothing was written."""
    engine = create_async_engine(
        make_url(postgres_url).set(drivername=f"postgresql+{driver}"), isolation_level="AUTOCOMMIT"
    )
    session = PGSession(new_id(), engine=engine, retry_for=0.3)
    begin = lambda connection, *_: connection.run_async(lambda theirs: theirs.execute("BEGIN"))  # noqa: E731
    event.listen(engine.sync_engine, "checkout", begin)

    with pytest.raises(SessionError, match=r"left a transaction open|INTRANS"):
        await session.add_items([user("lost?")])

    count = "SELECT count(*) FROM agents.items WHERE session_id = $1"
    assert await observer.fetchval(count, session.session_id) == 0
    await engine.dispose()


def test_an_unknown_driver_is_refused() -> None:
    """A driver this package does not know is an error that names those it knows."""
    with pytest.raises(ValueError, match=r"pg8000 is not supported; write postgresql\+asyncpg"):
        driver_of(pg8000.dialect())  # type: ignore[no-untyped-call]


async def test_a_store_closes_although_its_server_says_nothing_any_more(
    proxied_url: str, driver: str, proxy: Proxy, new_id: Callable[[], str]
) -> None:
    """Closing hangs up connections whose server does not answer a polite goodbye, and so does the loop's end."""
    store = SessionStore.open(make_url(proxied_url).set(drivername=f"postgresql+{driver}"))
    await asyncio.gather(*(store.session(new_id()).add_items([user("hi")]) for _ in range(4)))
    proxy.stall_all()

    async with asyncio.timeout(30):
        await store.close()

    async with asyncio.timeout(30):
        while proxy.open:
            proxy.heal()
            await asyncio.sleep(0.01)
