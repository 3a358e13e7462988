"""What goes wrong while sessions are moved: each arrives whole and once, or not at all."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import make_url, text

from agents_pg_session import SessionStore, StorageUnavailable
from agents_pg_session.operations import importing, pages
from agents_pg_session.operations.loading import ALONE
from agents_pg_session.passages import Reach
from agents_pg_session.testing.proxy import STALL, Fault, Proxy, Side
from tests.items import call, user
from tests.operations.archives import erase, exported, imported

Stores = dict[str, SessionStore]

SIDES: tuple[Side, ...] = ("client", "server")


async def test_a_long_session_is_loaded_in_batches_and_seen_whole(
    stores: Stores, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads during an import sees nothing of the session, then all of it."""
    await stores["sqlite"].session("a", tenant=tenant).add_items([user(f"{number}") for number in range(60)])
    archive = await exported(stores["sqlite"], tenant)
    monkeypatch.setattr(importing, "_ROWS", 3)
    seen: set[int] = set()
    reader = stores["asyncpg"].session("a", tenant=tenant)

    task = asyncio.create_task(imported(stores["asyncpg"], archive))
    while not task.done():
        seen.add(len(await reader.get_items()))
    await task

    assert seen <= {0, 60}
    assert 0 in seen
    assert len(await reader.get_items()) == 60


@pytest.mark.parametrize("target", ["asyncpg", "psycopg", "sqlite"])
async def test_two_imports_at_once_both_succeed(stores: Stores, tenant: str, target: str) -> None:
    """Each session is written by one of them and skipped by the other, and nothing is there twice."""
    for number in range(12):
        await stores["sqlite"].session(f"s{number:02}", tenant=tenant).add_items([user("hi"), call("c")])
    archive = await exported(stores["sqlite"], tenant)
    await erase(stores["sqlite"], tenant)

    one, other = await asyncio.gather(imported(stores[target], archive), imported(stores[target], archive))

    assert one.sessions + other.sessions == one.skipped + other.skipped == 12
    assert await exported(stores[target], tenant) == archive


@pytest.mark.parametrize("target", ["asyncpg", "psycopg", "sqlite"])
async def test_a_cancelled_import_leaves_whole_sessions(
    stores: Stores, tenant: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a session takes it back, and beginning anew brings the rest."""
    for name in ("a", "b", "c"):
        await stores["sqlite"].session(name, tenant=tenant).add_items([user(str(n)) for n in range(40)])
    archive = await exported(stores["sqlite"], tenant)
    await erase(stores["sqlite"], tenant)
    monkeypatch.setattr(importing, "_ROWS", 1)
    monkeypatch.setattr(importing, "_TOGETHER", 1)
    first = asyncio.Event()

    task = asyncio.create_task(imported(stores[target], archive, progress=lambda _: first.set()))
    await first.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    there = {each.session_id: each.item_count for each in await stores[target].sessions(tenant=tenant)}
    assert "a" in there
    assert "c" not in there
    assert set(there.values()) == {40}
    await imported(stores[target], archive)
    assert await exported(stores[target], tenant) == archive


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_lost_connections_cost_a_second_try(
    stores: Stores, postgres_url: str, tenant: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network breaks in the middle of sessions, both ways: everything arrives once, and the file is the same."""
    url = make_url(postgres_url)
    monkeypatch.setattr(importing, "_ROWS", 2)
    monkeypatch.setattr(importing, "_TOGETHER", 2)
    monkeypatch.setattr(pages, "ROWS", 2)
    for number in range(6):
        await stores["sqlite"].session(f"s{number}", tenant=tenant).add_items([user("x" * 500)] * 10)
    archive = await exported(stores["sqlite"], tenant)
    async with Proxy(url.port or 5432) as proxy:
        through = url.set(drivername=f"postgresql+{driver}", port=proxy.port)
        async with SessionStore.open(through) as store:
            await store.check()
            proxy.fault, *proxy.later = [Fault(side=side, passed=n) for n in (3, 24) for side in SIDES]
            done = await imported(store, archive)
            broken = proxy.faults
            proxy.fault, *proxy.later = [Fault(side="server", passed=passed) for passed in (60, 90)]
            again = await exported(store, tenant)

    assert (broken, proxy.faults) == (4, 6)
    assert (done.sessions, done.skipped, done.items) == (6, 0, 60)
    assert again == archive


async def test_a_lost_answer_to_a_commit_counts_once(stores: Stores, postgres_url: str, tenant: str) -> None:
    """A try that took effect although its answer was lost is found, and its sessions count as imported."""
    await stores["sqlite"].session("a", tenant=tenant).add_items([user("hi")])
    archive = await exported(stores["sqlite"], tenant)
    url = make_url(postgres_url)
    async with Proxy(url.port or 5432) as proxy, SessionStore.open(url.set(port=proxy.port)) as store:
        await store.check()
        await imported(store, archive, tenant=f"{tenant}-1")
        proxy.watched = []
        await imported(store, archive, tenant=f"{tenant}-2")
        said = sum(message.side == "server" for message in proxy.watched)
        proxy.fault = Fault(side="server", passed=said - 2)  # all but "COMMIT" and "ready"
        done = await imported(store, archive)

        assert proxy.faults == 1
        assert (done.sessions, done.skipped) == (1, 0)
        assert await exported(store, tenant) == archive


async def test_a_database_that_stays_away_ends_the_import(stores: Stores, postgres_url: str, tenant: str) -> None:
    """It is given up within the time of a verb, and nothing is there by halves."""
    await stores["sqlite"].session("a", tenant=tenant).add_items([user("hi")])
    archive = await exported(stores["sqlite"], tenant)
    url = make_url(postgres_url)
    async with (
        Proxy(url.port or 5432) as proxy,
        SessionStore.open(url.set(port=proxy.port), retry_for=0.5, command_timeout=0.3) as store,
    ):
        await store.check()
        proxy.fault, proxy.later = Fault("stall", passed=25), [STALL] * 10
        with pytest.raises(StorageUnavailable, match="Nothing was imported"):
            await imported(store, archive)

    assert not await stores["asyncpg"].sessions(tenant=tenant)


async def test_an_import_waits_for_another_one_as_long_as_it_takes(
    stores: Stores, postgres_url: str, tenant: str
) -> None:
    """While somebody else's import writes a long session, this one neither fails nor gives up, and then skips it."""
    await stores["sqlite"].session("a", tenant=tenant).add_items([user("hi")])
    archive = await exported(stores["sqlite"], tenant)
    async with SessionStore.open(postgres_url, retry_for=0.3, command_timeout=0.2) as store:
        await store.check()
        async with stores["asyncpg"].engine.connect() as somebody:
            transaction = await somebody.execution_options(isolation_level="READ COMMITTED")
            async with transaction.begin():
                lock = text(ALONE.replace(":tenants", f"ARRAY['{tenant}']").replace(":sessions", "ARRAY['a']"))
                await transaction.execute(lock)
                task = asyncio.create_task(imported(store, archive))
                finished, _ = await asyncio.wait({task}, timeout=1)
        done = await task

    assert not finished
    assert done.sessions == 1


def test_patience_comes_back_with_progress_only() -> None:
    """A try that fails where the one before failed has no more time; one that comes further begins it anew."""
    reach = Reach(15)

    first = [reach.further() for _ in range(3)]
    reach.again()
    second = [reach.further() for _ in range(4)]

    assert first == [True, True, True]
    assert second == [False, False, False, True]
