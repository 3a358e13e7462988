"""The server says no, goes away, or was configured by somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest
from sqlalchemy import make_url

from agents_pg_session import SessionError, SessionStore, StorageUnavailable
from tests.items import item, user


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[SessionStore]:
    async with SessionStore.open(postgres_url) as store:
        yield store
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_a_statement_the_server_cancels_is_tried_again(
    store: SessionStore, new_id: Callable[[], str], observer: asyncpg.Connection, postgres_url: str
) -> None:
    """A `lock_timeout` or `statement_timeout` of the server's own is a reason to try again, not to fail."""
    url = make_url(postgres_url).update_query_dict({"options": "-c lock_timeout=50ms"})
    async with SessionStore.open(url) as hasty:
        session = hasty.session(new_id())
        await session.add_items([user("1")])
        lock = observer.transaction()
        await lock.start()
        await observer.execute("SELECT FROM agents.sessions WHERE session_id = $1 FOR UPDATE", session.session_id)
        appending = asyncio.ensure_future(session.add_items([user("2")]))
        await asyncio.sleep(0.4)
        await lock.commit()
        await appending

        assert await session.get_items() == [user("1"), user("2")]


async def test_a_deadlock_is_tried_again(
    store: SessionStore, new_id: Callable[[], str], observer: asyncpg.Connection
) -> None:
    """The server ends a deadlock by refusing one side; if it is ours, we come again."""
    session = store.session(new_id())
    await session.add_items([user("1")])
    await observer.execute("SET deadlock_timeout = '10s'")  # the other side waits patiently, so ours is refused
    deadlock = observer.transaction()
    await deadlock.start()
    await observer.execute("LOCK TABLE agents.items IN EXCLUSIVE MODE")
    appending = asyncio.ensure_future(session.add_items([user("2")]))
    await asyncio.sleep(0.2)  # ours holds the session's row now and waits for the table
    await observer.execute("SELECT FROM agents.sessions WHERE session_id = $1 FOR UPDATE", session.session_id)
    await deadlock.commit()
    await appending

    assert await session.get_items() == [user("1"), user("2")]


async def test_a_read_only_server_never_swallows_a_write(postgres_url: str, new_id: Callable[[], str]) -> None:
    """On a standby, or a primary just demoted, an append fails loudly when the budget is spent."""
    url = make_url(postgres_url).update_query_dict({"options": "-c default_transaction_read_only=on"})
    async with SessionStore.open(url, retry_for=0.5) as store:
        with pytest.raises(StorageUnavailable, match="25006"):
            await store.session(new_id()).add_items([user("1")])


async def test_a_wrong_login_fails_at_once(postgres_url: str, new_id: Callable[[], str]) -> None:
    """An unknown role or database is not waited for, and the message holds no password."""
    for wrong in (
        make_url(postgres_url).set(username="nobody_here", password="hunter2"),
        make_url(postgres_url).set(database="no_such_database", password="hunter2"),
    ):
        async with SessionStore.open(wrong, retry_for=60) as store:
            with pytest.raises(StorageUnavailable, match="check the database URL") as failure:
                async with asyncio.timeout(10):
                    await store.session(new_id()).get_items()
        assert "hunter2" not in str(failure.value)


async def test_a_refusal_names_the_reason_and_never_the_row(
    migrated_database: Callable[[], str], new_id: Callable[[], str]
) -> None:
    """A constraint somebody added: our error says which, without quoting what was to be stored."""
    url = await asyncio.to_thread(migrated_database)
    admin = await asyncpg.connect(url)
    await admin.execute("ALTER TABLE agents.items ADD CONSTRAINT no_x CHECK (type <> 'x')")
    await admin.close()
    async with SessionStore.open(url) as store:
        session = store.session(new_id())
        with pytest.raises(SessionError, match=r'refused.*23514.*"no_x"') as failure:
            await session.add_items([user("1"), item(type="x", secret="hunter2")])

        assert failure.value.sqlstate == "23514"
        assert await session.get_items() == []
    told = []
    error: BaseException | None = failure.value
    while error is not None:
        told.append(str(error))
        error = error.__cause__
    assert "hunter2" not in " ".join(told)
