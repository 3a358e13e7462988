"""Retention: a purge removes whole sessions whose time is over, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from agents_pg_session import PGSession, Purged, SessionStore, purging
from agents_pg_session.statements.purges import Purges
from tests.contract.test_expiry import PAST, TALK, lived, paused, rows_of
from tests.items import user

DAY = timedelta(days=1)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def tenant(new_id: Callable[[], str]) -> str:
    """A tenant of the test's own: a purge removes all that it is told to."""
    return new_id()


async def aged(store: SessionStore, tenant: str, session_id: str, *columns: str) -> None:
    """Let nothing have been written to a session for years."""
    postgres = store.engine.dialect.name != "sqlite"
    moment = LONG_AGO.strftime("%Y-%m-%d %H:%M:%S.000") + ("+00" if postgres else "")
    names = columns or ("created_at", "updated_at", "active_at")
    changes = ", ".join(f"{name} = '{moment}'" for name in names)
    async with store.engine.begin() as connection:
        await connection.execute(
            text(
                f"UPDATE {'agents.' if postgres else ''}sessions SET {changes} "
                "WHERE tenant_id = :tenant AND session_id = :session_id"
            ),
            {"tenant": tenant, "session_id": session_id},
        )


async def begun(store: SessionStore, tenant: str, name: str, *, old: bool = True) -> PGSession:
    session = store.session(name, tenant=tenant)
    await session.add_items(TALK)
    if old:
        await aged(store, tenant, name)
    return session


async def there(store: SessionStore, tenant: str) -> set[str]:
    return {each.session_id for each in await store.sessions(tenant=tenant, limit=1000)}


async def test_what_has_expired_is_removed_with_everything_about_it(
    store: SessionStore, tenant: str, new_id: Callable[[], str]
) -> None:
    """No row of an expired session is left in any table; a session that has not expired stays, and so do its rows."""
    name = new_id()
    await lived(store.session(name, tenant=tenant))
    await store.session("stays", tenant=tenant, expires_after=DAY).add_items(TALK)

    purged = await store.purge(tenant=tenant)

    assert purged == Purged(sessions=1, expired=1, items=5, tool_runs=2, events=2, seen=2)
    assert set((await rows_of(store, name)).values()) == {0}
    assert await there(store, tenant) == {"stays"}
    assert await store.session("stays", tenant=tenant).get_items() == TALK


@pytest.mark.parametrize(
    ("asked", "gone"),
    [
        ({}, {"expired"}),
        ({"older_than": DAY}, {"expired", "old", "old ended"}),
        ({"older_than": DAY, "expired": False}, {"old", "old ended"}),
        ({"older_than": DAY, "status": "ended"}, {"expired", "old ended"}),
        ({"older_than": DAY, "status": "waiting", "expired": False}, {"old waiting"}),
        ({"status": "ended", "expired": False}, {"old ended", "new ended"}),
        ({"older_than": timedelta(days=36500)}, {"expired"}),
    ],
    ids=str,
)
async def test_who_is_to_go(store: SessionStore, tenant: str, asked: dict[str, Any], gone: set[str]) -> None:
    """Age and status are both asked of a session; who waits has to be named, and who is run alone now is kept."""
    for name in ("old", "old ended", "old waiting", "old leased", "new", "new ended", "written", "expired"):
        session = await begun(store, tenant, name, old=False)
        if "ended" in name:
            await session.end()
        if "waiting" in name:
            await paused(session)
        if name.startswith("old"):
            await aged(store, tenant, name)
    await aged(store, tenant, "written", "active_at", "created_at")  # its turn goes on
    await store.session("expired", tenant=tenant).expire(PAST)
    async with store.session("old leased", tenant=tenant).exclusive():
        before = await there(store, tenant) | {"expired"}
        trial = await store.purge(tenant=tenant, dry_run=True, **asked)
        assert await there(store, tenant) | {"expired"} == before
        purged = await store.purge(tenant=tenant, **asked)
        again = await store.purge(tenant=tenant, **asked)

    assert await there(store, tenant) == before - gone - {"expired"}
    assert (purged.sessions, purged.expired, purged.old) == (len(gone), "expired" in gone, len(gone - {"expired"}))
    assert trial == Purged(**{**_fields(purged), "dry_run": True})
    assert again.sessions == 0


def _fields(purged: Purged) -> dict[str, Any]:
    return {name: getattr(purged, name) for name in purged.__slots__}


async def test_a_purge_stays_within_its_tenant(store: SessionStore, tenant: str, new_id: Callable[[], str]) -> None:
    """One tenant's purge removes nothing of another's; one of all tenants has to be asked for by name."""
    other = new_id()
    for each in (tenant, other):
        await (await begun(store, each, "expired")).expire(PAST)
    await store.purge(tenant=tenant)
    left = await store.purge(tenant=other, dry_run=True)
    await store.purge(all_tenants=True)

    assert left.sessions == 1
    assert (await store.purge(tenant=other, dry_run=True)).seen == 0


async def test_pages_batches_and_slices_add_up(
    store: SessionStore, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the pages, batches and slices, every session is seen once, and what stays is untouched."""
    monkeypatch.setattr(purging, "_PAGE", 3)
    monkeypatch.setattr(purging, "_ROWS", 10)
    for number in range(11):
        session = store.session(f"s{number:02}", tenant=tenant)
        await session.add_items(TALK * (5 if number == 4 else 1))
        if number % 5:
            await session.expire(PAST)
    told: list[Purged] = []

    purged = await store.purge(tenant=tenant, batch=2, progress=told.append)

    assert (purged.sessions, purged.expired, purged.seen, purged.total) == (8, 8, 11, 11)
    assert (purged.items, purged.tool_runs, purged.events) == (7 * 5 + 25, 7 * 2 + 10, 8)
    assert await there(store, tenant) == {"s00", "s05", "s10"}
    assert told[0] == Purged(total=11)
    assert told[-1] == purged
    assert [each.sessions for each in told] == sorted(each.sessions for each in told)


async def test_a_long_session_is_gone_before_its_rows_are(
    store: SessionStore, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session too long for one statement is never seen half: a purge that stops in its middle leaves it expired, and
    the next one finds it, also one that only looks for the expired."""
    session = await begun(store, tenant, "long")
    monkeypatch.setattr(purging, "_ROWS", 2)
    told, remove = [], Purges.slice

    def stopping(*arguments: Any) -> Any:
        told.append(arguments)
        if len(told) == 2:
            raise KeyError("a crash")
        return remove(*arguments)

    with monkeypatch.context() as crashing:
        crashing.setattr(Purges, "slice", stopping)
        with pytest.raises(KeyError, match="a crash"):
            await store.purge(tenant=tenant, older_than=DAY)

    assert (await session.get_items(), await there(store, tenant)) == ([], set())
    assert (await store.purge(tenant=tenant)).sessions == 1
    assert (await store.purge(tenant=tenant, older_than=DAY)).seen == 0


async def test_a_row_without_a_session_goes_with_age(store: SessionStore, tenant: str) -> None:
    """What a lease leaves where nothing was ever appended is removed when it is old, and counts as no session."""
    async with store.session("never", tenant=tenant).exclusive():
        pass
    await aged(store, tenant, "never")

    purged = await store.purge(tenant=tenant, older_than=DAY)

    assert purged == Purged(seen=1)
    assert (await store.purge(tenant=tenant, older_than=DAY)).seen == 0


async def test_a_cancelled_purge_leaves_the_rest(
    store: SessionStore, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled in the middle, the batch under way settles; what is left is whole, and the next purge removes it."""
    for number in range(6):
        await begun(store, tenant, f"s{number}")

    def stop(so_far: Purged) -> None:
        if so_far.sessions == 2:
            task.cancel()

    task = asyncio.ensure_future(store.purge(tenant=tenant, older_than=DAY, batch=2, progress=stop))
    with pytest.raises(asyncio.CancelledError):
        await task

    left = await there(store, tenant)
    assert len(left) in (2, 4)
    for name in left:
        assert await store.session(name, tenant=tenant).get_items() == TALK
    assert (await store.purge(tenant=tenant, older_than=DAY)).sessions == len(left)


async def test_a_purged_id_is_free(store: SessionStore, tenant: str) -> None:
    """An append after a purge begins the session anew, at position 1."""
    session = await begun(store, tenant, "again")
    await store.purge(tenant=tenant, older_than=DAY)
    await session.add_items([user("hello again")])

    info = await session.info()
    assert (info.item_count, info.last_position) == (1, 1)


@pytest.mark.parametrize(
    "asked",
    [
        {"expired": False},
        {"older_than": timedelta(0)},
        {"older_than": -DAY},
        {"older_than": 90},
        {"status": ""},
        {"status": 5},
        {"expired": None},
        {"dry_run": "no"},
        {"batch": 0},
        {"batch": 10**6},
        {"batch": True},
        {"progress": "bar"},
        {"tenant": "t", "all_tenants": True},
    ],
    ids=str,
)
async def test_what_says_nothing_purges_nothing(store: SessionStore, tenant: str, asked: dict[str, Any]) -> None:
    """An argument that cannot be meant raises `ValueError`, and nothing is removed."""
    await (await begun(store, tenant, "expired")).expire(PAST)
    with pytest.raises(ValueError, match=r"must|nothing to purge|exclude"):
        await store.purge(**{"tenant": tenant, **asked})

    assert (await store.purge(tenant=tenant, dry_run=True)).sessions == 1
