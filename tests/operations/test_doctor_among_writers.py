"""The doctor while others work on the same sessions, over every driver."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from agents_pg_session import SessionStore
from agents_pg_session.operations.doctor.repairs import REPAIRS
from tests.items import call, user
from tests.operations.ailing import by_hand, found, healthy_session, mended, new_tenant

PAST = datetime(2020, 1, 1, tzinfo=UTC)

on_postgres = pytest.mark.parametrize("backend", ["asyncpg", "psycopg"], indirect=True)


@on_postgres
async def test_what_is_broken_is_found_and_mended_over_each_driver(store: SessionStore) -> None:
    """A wrong counter and a tool run without its output are found, mended, and found no more."""
    tenant = new_tenant()
    await healthy_session(store, tenant)
    await by_hand(
        store,
        tenant,
        "UPDATE {}sessions SET message_count = 0",
        "UPDATE {}tool_runs SET status = 'running', output_position = NULL WHERE call_position = 2",
    )
    before = {finding.examination for finding in (await found(store, tenant)).findings}
    changes = [change.what for each in await mended(store, tenant) for change in each.changes]

    assert before >= {"counters"}
    assert sorted(changes) == ["message_count", "tool run at 2"]
    assert (await found(store, tenant)).findings == ()


@pytest.mark.parametrize("backend", ["sqlite", "asyncpg", "psycopg"], indirect=True)
async def test_repairs_among_those_who_end_and_erase(store: SessionStore) -> None:
    """Repairs of sessions that are deleted, purged, ended and begun anew meanwhile mend what is left, refuse nobody,
    and bring nothing back.
    """
    tenant = new_tenant()
    names = [f"s{number}" for number in range(12)]
    for name in names:
        await store.session(name, tenant=tenant).add_items([user("one"), user("two")])
        await by_hand(store, tenant, "UPDATE {}sessions SET message_count = 0", session_id=name)

    async def disturb(name: str, way: int) -> None:
        session = store.session(name, tenant=tenant)
        if way == 0:
            await session.delete()
        else:
            await session.expire(PAST)
        if way == 2:
            await session.add_items([user("anew")])
            await session.expire(timedelta(days=1))

    await asyncio.gather(
        mended(store, tenant),
        mended(store, tenant),
        *(disturb(name, number % 3) for number, name in enumerate(names)),
        *(store.purge(tenant=tenant) for _ in range(2)),
    )
    await store.purge(tenant=tenant)

    left = {info.session_id: info.item_count for info in await store.sessions(tenant=tenant)}
    assert left == dict.fromkeys(names[2::3], 1)
    assert [finding.examination for finding in (await found(store, tenant)).findings] == []


@pytest.mark.parametrize("backend", ["sqlite", "asyncpg", "psycopg"], indirect=True)
async def test_a_session_that_has_expired_stays_gone(store: SessionStore) -> None:
    """Nothing is appended to what has expired, nor is it begun anew or erased; its counters are mended."""
    tenant = new_tenant()
    session = await healthy_session(store, tenant)
    await session.add_items([user("and"), call("c9")])
    await session.expire(PAST)
    await by_hand(store, tenant, "UPDATE {}sessions SET message_count = 0")
    changes = [change.what for each in await mended(store, tenant, *REPAIRS) for change in each.changes]

    assert changes == ["message_count"]
    assert await session.get_items() == []
    assert (await store.purge(tenant=tenant)).sessions == 1
