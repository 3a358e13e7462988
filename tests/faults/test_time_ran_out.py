"""A verb is stopped while its connection is made or prepared: the next verb finds nothing of that."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time
from collections.abc import Callable, Iterator

import asyncpg
import pytest
import sqlalchemy
from sqlalchemy import event, make_url

from agents_pg_session import SessionStore, StorageUnavailable
from tests.items import user

OURS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_an_append_after_a_verb_that_never_began_is_stored(
    postgres_url: str, driver: str, new_id: Callable[[], str]
) -> None:
    """A verb that was stopped while its connection was set to a transaction's isolation level leaves no such connection
    behind: the next append on it would be acknowledged, and then rolled back."""
    url = make_url(postgres_url).set(drivername=f"postgresql+{driver}")
    async with SessionStore.open(url, engine_kwargs={"pool_size": 1}) as store:
        session = store.session(new_id())
        await session.add_items([user("1")])
        listening = (store.engine.sync_engine, "set_connection_execution_options", _cancel_soon)
        event.listen(*listening)
        with pytest.raises(asyncio.CancelledError):
            await store.check()
        event.remove(*listening)
        await session.add_items([user("2")])

    async with SessionStore.open(url) as afterwards:
        assert await afterwards.session(session.session_id).get_items() == [user("1"), user("2")]


@pytest.mark.skipif(
    sqlalchemy.__version__ < "2.1",
    reason="SQLAlchemy 2.0 leaves it to the garbage collector when its own set-up is cut",
)
async def test_a_connection_there_was_no_time_for_is_closed(
    postgres_url: str, observer: asyncpg.Connection, new_id: Callable[[], str]
) -> None:
    """Verbs whose time runs out at any moment of connecting leave nothing open on the server, also before the next
    garbage collection."""
    mine = new_id()
    url = make_url(postgres_url).set(drivername="postgresql+psycopg", query={"application_name": mine})
    with _without_garbage_collection():
        for _ in range(60):
            async with SessionStore.open(url, retry_for=random.uniform(0.001, 0.02)) as store:
                with contextlib.suppress(StorageUnavailable):
                    await store.session("nobody").get_items()

        async with asyncio.timeout(30):
            while await observer.fetchval(OURS, mine):
                await asyncio.sleep(0.01)


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _cancel_soon(*_: object) -> None:
    """Cancel the task under way at its next pause, as the end of its time does; psycopg pauses in a busy loop."""
    time.sleep(0.1)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
