"""Expiry and purge among writers: nothing is lost, nothing comes back, nobody waits long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import asyncpg
import pytest

from agents_pg_session import Purged, SessionStore, purging
from agents_pg_session.drivers import driver_of
from agents_pg_session.entries import compose
from agents_pg_session.labels import checked_labels
from agents_pg_session.statements import Key
from agents_pg_session.statements.postgres import PostgresStatements
from agents_pg_session.testing.proxy import Proxy
from tests.items import call, output, user
from tests.overheard import overheard
from tests.postgres.races.lines import dsn_of, in_line, lined_up, until_waiting, watching
from tests.recount import miscounted

PAST = datetime(2020, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
ROW = "SELECT FROM agents.sessions WHERE tenant_id = $1 AND session_id = $2 FOR UPDATE"


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[SessionStore]:
    async with SessionStore.open(postgres_url) as store:
        yield store
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.fixture
def tenant(new_id: Callable[[], str]) -> str:
    return new_id()


@pytest.fixture
def own_url(migrated_database: Callable[[], str]) -> str:
    """A database of the test's own."""
    return migrated_database()


async def crowd(observer: asyncpg.Connection, tenant: str, sessions: int, expires_at: datetime | None = PAST) -> None:
    """Make sessions of two items each that nothing was written to for years."""
    sql = """
    WITH s AS (
        INSERT INTO agents.sessions (tenant_id, session_id, last_position, item_count, message_count, turn_count,
                                     created_at, updated_at, active_at, expires_at)
        SELECT $1, 's' || n, 2, 2, 2, 2, $3, $3, $3, $4 FROM generate_series(1, $2) n
        RETURNING session_id)
    INSERT INTO agents.items (tenant_id, session_id, position, turn, append_id, type, role, item)
    SELECT $1, session_id, p, p, gen_random_uuid(), 'message', 'user', '{"role": "user", "content": "old"}'
      FROM s, generate_series(1, 2) p
    """
    async with observer.transaction():
        await observer.execute("SET LOCAL session_replication_role = replica")
        await observer.execute(sql, tenant, sessions, PAST, expires_at)


# -- appends after the end


@pytest.mark.parametrize("items", [[user("new")], [output("c1"), user("new")]], ids=["items", "late output"])
async def test_two_appends_begin_it_anew_together(
    store: SessionStore, observer: asyncpg.Connection, new_id: Callable[[], str], items: list[Any]
) -> None:
    """Of many appends to an expired session at once each is there once, in one new session, and nothing of the old."""
    session = store.session(new_id())
    await session.add_items([user("old"), call("c1")])
    await session.expire(PAST)
    answers = await in_line(observer, session, *[lambda: session.add_items(items) for _ in range(6)])

    assert answers == [None] * 6
    assert await session.get_items() == items * 6
    assert (await session.info()).last_position == 6 * len(items)
    assert await miscounted(observer, session.session_id) == []


async def test_an_append_of_a_living_session_is_one_round_trip(
    proxied_url: str, proxy: Proxy, new_id: Callable[[], str]
) -> None:
    """Moving the end costs no round trip, nor does setting it; only beginning anew costs a transaction."""
    async with SessionStore.open(proxied_url, engine_kwargs={"pool_size": 1}) as store:
        marks = []
        for _ in range(2):  # the first time prepares the statements
            session = store.session(new_id(), expires_after=DAY)
            marks = [proxy.round_trips]
            await session.add_items([user("hi")])
            marks.append(proxy.round_trips)
            await session.expire(PAST)
            marks.append(proxy.round_trips)
            await session.add_items([user("new")])
            marks.append(proxy.round_trips)

    assert [later - earlier for earlier, later in pairwise(marks)] == [1, 1, 5]


async def test_what_was_fenced_stays_fenced(
    store: SessionStore, observer: asyncpg.Connection, new_id: Callable[[], str]
) -> None:
    """A try of an append that was lost on the way takes no effect either in the session that begins after the end."""
    session = store.session(new_id())
    await session.add_items([user("old")])
    await session.expire(PAST)
    key, sql = Key("", session.session_id), PostgresStatements("agents")
    write = sql.append(key, compose([user("lost")], checked_labels(None, None, None)))
    assert write.fence is not None
    lost = "00000000-0000-4000-8000-00000000000f"
    database = store._database
    await database.read(write.fence(lost))
    await session.add_items([user("new")])

    assert await database.read(write.attempt(lost)) == []
    assert await session.get_items() == [user("new")]


@pytest.mark.parametrize("there", [True, False], ids=["there", "gone by now"])
async def test_who_vanishes_while_it_begins_a_session_lets_go_of_it(
    store: SessionStore, observer: asyncpg.Connection, new_id: Callable[[], str], there: bool
) -> None:
    """Between two statements of a patient append the server waits five seconds for us, also where there was no row to
    lock: the next statement makes one, and TCP may take hours to notice that nobody comes back.
    """
    session = store.session(new_id())
    if there:
        await session.add_items([user("old")])
    write = PostgresStatements("agents").append(
        Key("", session.session_id), compose([user("new")], checked_labels(None, None, None)), patient=True
    )
    lock, *_ = write.attempt("00000000-0000-4000-8000-00000000000e").steps
    async with observer.transaction():
        sql, names = driver_of(store.engine.dialect).rendered(lock.clause)
        assert isinstance(lock.values, Mapping)
        await observer.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        await observer.fetch(sql, *(lock.values[name] for name in names))

        assert await observer.fetchval("SHOW idle_in_transaction_session_timeout") == "5s"


async def test_appends_stay_hot_while_they_move_the_end(own_url: str) -> None:
    """No index holds the end, so moving it writes none."""
    async with SessionStore.open(own_url) as store:
        sessions = [store.session(f"s{number}", expires_after=DAY) for number in range(20)]
        for session in sessions:
            await session.add_items([user("hi")])
        for step in range(6):
            for session in sessions:
                await session.add_items([call(f"c{step}"), output(f"c{step}")])
    connection = await asyncpg.connect(own_url)
    sql = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'sessions'"
    [(updates, in_place)] = await connection.fetch(sql)
    await connection.close()

    assert updates == 120
    assert in_place / updates >= 0.95


# -- purges among writers


async def test_a_session_that_is_written_to_is_passed_over(
    store: SessionStore, observer: asyncpg.Connection, tenant: str
) -> None:
    """A purge waits for no append: while one holds a session's row, the others are removed and that one is left."""
    await crowd(observer, tenant, 5)
    lock = observer.transaction()
    await lock.start()
    await observer.execute(ROW, tenant, "s3")
    purged = await store.purge(tenant=tenant)
    await lock.rollback()

    assert (purged.sessions, purged.passed_over) == (4, 1)
    assert (await store.purge(tenant=tenant)).sessions == 1


async def test_a_session_that_became_active_again_is_kept(
    store: SessionStore, observer: asyncpg.Connection, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found old is asked again under its lock: an append that came between keeps the session, whole."""
    await crowd(observer, tenant, 3, None)
    remove = purging.Purge._remove

    async def late(self: purging.Purge, batch: Any) -> Any:
        await store.session("s2", tenant=tenant).add_items([user("still here")])
        await observer.execute("UPDATE agents.sessions SET expires_at = NULL WHERE tenant_id = $1", tenant)
        return await remove(self, batch)

    monkeypatch.setattr(purging.Purge, "_remove", late)
    purged = await store.purge(tenant=tenant, older_than=DAY)

    assert (purged.sessions, purged.passed_over) == (2, 1)
    assert len(await store.session("s2", tenant=tenant).get_items()) == 3


async def test_an_append_behind_a_purge_begins_anew(
    store: SessionStore, observer: asyncpg.Connection, tenant: str
) -> None:
    """An append that waits while its session is removed is there once, alone, in a new session."""
    await crowd(observer, tenant, 1, None)
    session = store.session("s1", tenant=tenant)
    async with watching(dsn_of(session)) as watcher:
        removal = observer.transaction()
        await removal.start()
        await observer.execute("DELETE FROM agents.sessions WHERE tenant_id = $1", tenant)
        [waiting] = await lined_up(watcher, [lambda: session.add_items([user("new")])])
        await until_waiting(watcher)
        await removal.commit()
        await waiting

    assert await session.get_items() == [user("new")]
    assert (await session.info()).last_position == 1


async def test_two_purges_remove_each_session_once(
    store: SessionStore, postgres_url: str, observer: asyncpg.Connection, tenant: str
) -> None:
    """Purges of four processes at once remove every session, and together count each of them once."""
    await crowd(observer, tenant, 1500)
    async with SessionStore.open(postgres_url) as other:
        purges = [each.purge(tenant=tenant, batch=7) for each in (store, other, store, other)]
        purged = await asyncio.gather(*purges)

    again = await store.purge(tenant=tenant)
    assert sum(each.sessions for each in purged) + again.sessions == 1500
    assert sum(each.items for each in purged) + again.items == 3000
    assert await observer.fetchval("SELECT count(*) FROM agents.items WHERE tenant_id = $1", tenant) == 0


async def test_writers_go_on_while_sessions_end_and_are_purged(
    store: SessionStore, postgres_url: str, observer: asyncpg.Connection, tenant: str
) -> None:
    """Eight writers append to sessions that expire all the time and are purged: no append is lost or refused, and what
    a session held before it began anew is never read again, nor beside what is new.
    """
    names = [f"w{number}" for number in range(4)]
    over = asyncio.Event()
    resurrected: list[object] = []

    async def write(number: int) -> int:
        session = store.session(names[number % 4], tenant=tenant, expires_after=timedelta(milliseconds=40))
        for step in range(40):
            await session.add_items([user(f"{number}-{step}"), call(f"c{number}-{step}")])
            if step % 8 == 7:
                await asyncio.sleep(0.05)
        return 40

    async def read(name: str) -> None:
        session, gone, before = store.session(name, tenant=tenant), set[str](), list[str]()
        while not over.is_set():
            stored = [item for turn in await session.turns() for item in turn.items]
            now = [str(item.item) for item in stored]
            resurrected.extend(gone.intersection(now))
            resurrected.extend(item for place, item in enumerate(stored, 1) if item.position != place)
            if now and now[:1] != before[:1]:  # another first item: it has begun anew
                gone.update(before)
            before = now or before

    async def purge() -> int:
        removed = 0
        async with SessionStore.open(postgres_url) as other:
            while not over.is_set():
                removed += (await other.purge(tenant=tenant, batch=2)).sessions
        return removed

    readers = [asyncio.ensure_future(read(name)) for name in names]
    purger = asyncio.ensure_future(purge())
    written = await asyncio.gather(*map(write, range(8)))
    over.set()
    await asyncio.gather(*readers)
    removed = await purger

    assert sum(written) == 320
    assert resurrected == []
    assert removed > 0
    for name in names:
        assert await miscounted(observer, name) == []


async def test_a_purge_walks_the_primary_key(
    store: SessionStore, observer: asyncpg.Connection, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every page is a piece of the primary key, read in its order: nothing is sorted, nothing read twice."""
    await crowd(observer, tenant, 3000, None)
    await observer.execute("ANALYZE agents.sessions")
    monkeypatch.setattr(purging, "_PAGE", 100)
    with overheard(store) as statements:
        purged = await store.purge(tenant=tenant, older_than=DAY, dry_run=True)
        everywhere = await store.purge(all_tenants=True, dry_run=True)
    assert purged == Purged(sessions=3000, old=3000, items=6000, seen=3000, dry_run=True)
    assert everywhere.seen >= 3000
    for statement in (statements[15], statements[-15]):
        plan = "\n".join(
            row[0] for row in await observer.fetch(f"EXPLAIN (ANALYZE, COSTS OFF) {statement.sql}", *statement.values)
        )

        assert "using pk_sessions" in plan
        assert "Seq Scan" not in plan
        assert "rows=100" in next(line for line in plan.splitlines() if "using pk_sessions" in line)
        assert plan.count("Sort Key") <= 1  # of what is to go, once more
