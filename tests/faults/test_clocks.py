"""Clocks: server and client in different time zones, the server's clock jumping, and this machine's.

The server's clock jumps for real as far as our statements can tell: a schema `clock` before `pg_catalog` in the search
path has a `now()` of its own.
"""

from __future__ import annotations

import ast
import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import astuple
from datetime import UTC, datetime, timedelta, timezone
from itertools import chain
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from agents import Agent, Runner
from sqlalchemy import URL, make_url

import agents_pg_session
from agents_pg_session import SessionConflict, SessionError, SessionStore
from agents_pg_session.migrations import main as migrate
from tests.acceptance.agents_for_tests import QUIET, calls, says, scripted
from tests.items import call, output, user
from tests.tally import Tally

HARNESS = "Clocks"
DRIVERS = ("asyncpg", "psycopg")


@pytest.fixture(scope="module")
def database(new_database: Callable[[], str]) -> URL:
    """A database whose settings a test may change: at the newest revision, and with a clock that can be set.

    The clock is there before the tables, so that their defaults tell its time too.
    """
    url = make_url(new_database())
    asyncio.run(execute(url, CLOCK, f"ALTER DATABASE {url.database} SET search_path = clock, pg_catalog, public"))
    migrate(["-x", f"url={url.render_as_string(hide_password=False)}", "upgrade", "head"])
    return url


@pytest.fixture
async def admin(database: URL) -> AsyncIterator[asyncpg.Connection]:
    """A connection to change settings with; the database is as before afterwards."""
    connection = await asyncpg.connect(database.render_as_string(hide_password=False))
    yield connection
    await connection.execute(f"ALTER DATABASE {database.database} RESET timezone")
    await connection.execute("UPDATE clock.state SET ahead = '0'")
    await connection.close()


@pytest.fixture(params=DRIVERS)
def url(request: pytest.FixtureRequest, database: URL) -> URL:
    return database.set(drivername=f"postgresql+{request.param}")


@pytest.fixture
async def store(url: URL) -> AsyncIterator[SessionStore]:
    async with SessionStore.open(url, retry_for=60) as store:
        yield store
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


# -- time zones

ZONES = [("Asia/Kathmandu", "America/St_Johns"), ("America/St_Johns", "Asia/Kathmandu")]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
def in_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A function that takes this process to another time zone."""

    def move(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(("server", "client"), ZONES)
async def test_time_zones_that_differ(
    url: URL,
    admin: asyncpg.Connection,
    in_zone: Callable[[str], None],
    new_id: Callable[[], str],
    server: str,
    client: str,
) -> None:
    """Whatever zones server and process are in, each time a caller gets is aware, in UTC and the very instant that is
    stored; days are UTC's, cursors and `since` mean instants.
    """
    await admin.execute(f"ALTER DATABASE {url.database} SET timezone = '{server}'")
    in_zone(client)
    tenant = new_id()
    async with SessionStore.open(url) as store:
        for number in range(3):
            session = store.session(f"s{number}", tenant=tenant)
            agent = scripted(calls("weather", "w", city="Rome"), calls("refund", "r", amount=5))
            async with session.recording() as run:
                result = await Runner.run(agent, "hi", session=session, hooks=run.hooks, run_config=QUIET)
                await session.pause(result)
            await session.resume(agent)
            await session.end()
            later = "UPDATE agents.runs SET started_at = '2026-03-01 20:30Z' WHERE tenant_id = $1"
            stored = {name: await admin.fetch(sql, tenant, session.session_id) for name, sql in STORED_TIMES.items()}
            snapshot = await session.snapshots.latest("run_state")
            assert snapshot is not None
            returned: dict[str, list[Any]] = {
                "sessions": [await session.info()],
                "items": [item for turn in await session.turns() for item in turn.items],
                "runs": list(await session.runs.list()),
                "tool_runs": list(await session.tool_runs.list())[::-1],
                "events": list(await session.events.list()),
                "snapshots": [snapshot],
            }
            for name, records in returned.items():
                times = [[each for each in astuple(record) if isinstance(each, datetime)] for record in records]
                assert all(each.tzinfo is UTC for each in chain(*times))
                micros = [[(each - EPOCH) // timedelta(microseconds=1) for each in record] for record in times]
                assert micros == [[each for each in row if each is not None] for row in map(tuple, stored[name])], name

        assert [each.session_id for each in await paged(store.sessions, tenant=tenant)] == ["s2", "s1", "s0"]
        runs = await paged(store.tool_runs, tenant=tenant)
        assert len({(each.session_id, each.position) for each in runs}) == len(runs) == 6
        far = timezone(timedelta(hours=13))
        newest = runs[0].created_at.astimezone(far)
        assert [each.session_id for each in await store.tool_runs(tenant=tenant, since=newest)] == ["s2"]
        assert len(await store.tool_runs(tenant=tenant, since=newest + timedelta(microseconds=1))) == 0
        assert len(await store.tool_runs(tenant=tenant, since=timedelta(hours=1))) == 6
        await admin.execute(later, tenant)
        assert [each.of for each in await store.usage(by="day", tenant=tenant)] == ["2026-03-01"]
        begun = datetime(2026, 3, 2, 9, 30, tzinfo=far)
        assert len(await store.usage(by="day", tenant=tenant, since=begun, until=begun + timedelta(seconds=1))) == 1
        assert await store.usage(by="day", tenant=tenant, until=begun) == []


async def test_a_date_style_of_another_time(url: URL, admin: asyncpg.Connection, new_id: Callable[[], str]) -> None:
    """A server that writes dates in another style is read rightly, or (psycopg cannot) the error says what it was."""
    await admin.execute(f"ALTER DATABASE {url.database} SET datestyle = 'German'")
    async with SessionStore.open(url) as store:
        session = store.session(new_id())
        await session.add_items([user("1")])
        if url.drivername.endswith("psycopg"):
            with pytest.raises(SessionError, match=r"the database refused: .*DateStyle"):
                await session.info()
        else:
            assert (await session.info()).created_at.tzinfo is UTC

        assert await session.get_items() == [user("1")]
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await admin.execute(f"ALTER DATABASE {url.database} RESET datestyle")


# -- clocks that jump

DAYS = (0, 2, -2, 0)
CLOCK = """
CREATE SCHEMA clock;
CREATE TABLE clock.state AS SELECT interval '0' AS ahead;
CREATE FUNCTION clock.now() RETURNS timestamptz STABLE LANGUAGE sql
    AS 'SELECT pg_catalog.now() + (SELECT ahead FROM clock.state)';
CREATE FUNCTION clock.transaction_timestamp() RETURNS timestamptz STABLE LANGUAGE sql AS 'SELECT clock.now()';
CREATE FUNCTION clock.statement_timestamp() RETURNS timestamptz STABLE LANGUAGE sql AS 'SELECT clock.now()';
CREATE FUNCTION clock.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql AS 'SELECT clock.now()';
GRANT USAGE ON SCHEMA clock TO public;
GRANT SELECT ON clock.state TO public;
"""


@pytest.fixture
def jump(admin: asyncpg.Connection) -> Callable[[timedelta], Awaitable[None]]:
    """A function that sets the server's clock so far ahead of, or behind, what it was."""

    async def set_ahead(ahead: timedelta) -> None:
        await admin.execute("UPDATE clock.state SET ahead = $1", ahead)

    return set_ahead


Jump = Callable[[timedelta], Awaitable[None]]


async def test_order_does_not_care_about_the_clock(
    store: SessionStore, jump: Jump, new_id: Callable[[], str], tally: Tally
) -> None:
    """However the server's clock jumps, items, turns, pops, events and their cursors, versions and tool runs keep the
    order they were written in; what hooks measured is never negative.
    """
    session, said, cursor, seen = store.session(new_id()), list[str](), None, list[int]()
    for number, days in enumerate(DAYS):
        await jump(timedelta(days=days))
        agent = scripted(calls("weather", f"w{number}", city="Rome"), says(f"answer {number}"))
        async with session.recording() as run:
            await Runner.run(agent, f"question {number}", session=session, hooks=run.hooks, run_config=QUIET)
        said += [f"question {number}", f"w{number}", "Rome: sunny", f"answer {number}"]
        await session.snapshots.save("note", number)
        page = await session.events.list(after=cursor)
        assert round((page[0].created_at - datetime.now(UTC)) / timedelta(days=1)) == days, "it has jumped"
        cursor, seen = page.cursor, [*seen, *(each.event_id for each in page)]

        assert [turn.number for turn in await session.turns()] == list(range(1, number + 2))
        assert [place.position for turn in await session.turns() for place in turn.items] == list(
            range(1, len(said) + 1)
        )
        assert all(word in str(each) for word, each in zip(said, await session.get_items(), strict=True))
        assert [each.call_id for each in await session.tool_runs.list()] == [f"w{n}" for n in range(number, -1, -1)]
        assert (latest := await session.snapshots.latest("note")) is not None
        assert latest.content == number
        assert f"answer {number}" in str(await session.get_items(limit=1))
    assert seen == list(range(1, (await session.info()).event_count + 1))
    assert [each.event_id for each in await session.events.list(limit=1000)] == seen
    assert all((each.duration or 0) >= 0 for each in await session.tool_runs.list())
    for word in reversed(said):
        assert word in str(await session.pop_item())
    assert await session.pop_item() is None
    tally.add(HARNESS, jumps=len(DAYS), items=len(said), out_of_order=0)


async def test_lists_while_the_clock_jumps(store: SessionStore, jump: Jump, new_id: Callable[[], str]) -> None:
    """A list across sessions that is walked while the server's clock jumps, and others go on, shows each session that
    did not change once. Its order is what the clock said: after a jump back, a new turn may stand below an old one.
    """
    tenant = new_id()
    for number in range(12):
        await jump(timedelta(days=DAYS[number % 4]))
        await store.session(f"s{number:02}", tenant=tenant).add_items([user("hi"), call("c"), output("c")])
    for kind in (store.sessions, store.tool_runs):
        names, cursor, more, step = list[str](), None, True, 0
        while more:
            await jump(timedelta(days=DAYS[step % 4]))
            await store.session(f"s{step % 2:02}", tenant=tenant).add_items([user("again")])
            page: Any = await kind(tenant=tenant, limit=2, after=cursor)
            names, cursor, more, step = [*names, *(each.session_id for each in page)], page.cursor, page.more, step + 1

        assert sorted(name for name in names if name > "s01") == [f"s{number:02}" for number in range(2, 12)]
    await jump(timedelta(days=2, minutes=5))
    late = [each.session_id for each in await store.tool_runs(tenant=tenant, since=timedelta(minutes=10))]
    assert sorted(late) == ["s01", "s05", "s09"], "`since` as a timedelta reaches back by the server's clock"


async def test_what_tells_the_time_tells_the_servers(
    store: SessionStore, admin: asyncpg.Connection, jump: Jump, new_id: Callable[[], str]
) -> None:
    """Runs are listed by when they began as the server's clock had it, and a session's age is what that clock said:
    after a jump back, the newest run may be listed below an older one, and an age may be negative.
    """
    session = store.session(new_id())
    await jump(timedelta(days=2))
    for ahead, question in ((2, "first"), (2, "second"), (0, "third")):
        await jump(timedelta(days=ahead))
        await Runner.run(scripted(says("answer")), question, session=session, run_config=QUIET)

    assert [each.turn for each in await session.runs.list()] == [2, 1, 3]
    assert [each.turn for each in await paged(session.runs.list)] == [2, 1, 3]
    assert (latest := await session.runs.latest()) is not None
    assert latest.turn == 2
    sql = "SELECT duration_seconds FROM agents.session_summary WHERE session_id = $1"
    assert await admin.fetchval(sql, session.session_id) < 0


async def test_a_lease_when_the_clock_jumps_ahead(store: SessionStore, jump: Jump, new_id: Callable[[], str]) -> None:
    """A jump ahead ends a lease early, and then its holder's append is refused: two writers never interleave."""
    first, second = (store.session(name) for name in [new_id()] * 2)

    async def overtaken() -> None:
        async with first.exclusive(lease_for=30):
            await first.add_items([user("first")])
            await jump(timedelta(days=2))
            async with second.exclusive(wait=0):
                await second.add_items([user("second")])
                await first.add_items([user("too late")])

    with pytest.raises(SessionConflict, match="append"):
        await overtaken()
    assert await first.get_items() == [user("first"), user("second")]


async def test_a_lease_when_the_clock_jumps_back(
    store: SessionStore, admin: asyncpg.Connection, jump: Jump, new_id: Callable[[], str]
) -> None:
    """A jump back prolongs the lease of a holder that died by as much as the clock was set back, and not longer; a
    living holder's next heartbeat puts it right.
    """
    first, second = (store.session(name) for name in [new_id()] * 2)
    await jump(timedelta(days=2))
    assert await first.exclusive(lease_for=30)._take(), "and dies: no heartbeat, no release"
    await jump(timedelta(0))
    with pytest.raises(SessionConflict, match="run by somebody else"):
        await second.exclusive(wait=0).__aenter__()
    await jump(timedelta(days=2, seconds=31))
    async with second.exclusive(wait=0, lease_for=0.3):
        await jump(timedelta(days=-2))
        sql = "SELECT lease_until < clock.now() + interval '1 s' FROM agents.sessions WHERE session_id = $1"
        async with asyncio.timeout(30):
            while not await admin.fetchval(sql, first.session_id):
                await asyncio.sleep(0.02)
        await second.add_items([user("still mine")])

    assert await first.get_items() == [user("still mine")]


async def test_a_claim_when_the_clock_jumps(store: SessionStore, jump: Jump, new_id: Callable[[], str]) -> None:
    """A jump ahead ends a claim early: a second worker may resume, and then the first one's append is refused, so the
    tool's output is told once. A jump back prolongs the claim of a worker that died by as much; `release` ends it.
    """

    def agent() -> Agent[None]:
        return scripted(says("done"))

    session = store.session(new_id())
    asking = scripted(calls("refund", "r1", amount=5))
    await session.pause(await Runner.run(asking, "pay me back", session=session, run_config=QUIET))
    first, second, third = (store.session(session.session_id) for _ in range(3))
    early = await first.resume(early_agent := agent())
    await jump(timedelta(days=2))
    await second.resume(agent())
    await jump(timedelta(0))
    with pytest.raises(SessionConflict, match="another worker"):
        await third.resume(agent())
    await second.release()
    late = await third.resume(late_agent := agent())
    for state in (early, late):
        state.approve(state.get_interruptions()[0])
    await Runner.run(late_agent, late, session=third, run_config=QUIET)
    with pytest.raises(SessionConflict, match="append"):
        await Runner.run(early_agent, early, session=first, run_config=QUIET)

    assert [str(each).count("5 refunded") for each in await session.get_items()] == [0, 0, 1, 0]


# -- the clock of this machine


async def test_this_machines_clock_jumps(
    store: SessionStore, new_id: Callable[[], str], monkeypatch: pytest.MonkeyPatch, admin: asyncpg.Connection
) -> None:
    """The clock of the process may jump by days: every time is the database's, and nothing is lost or given up."""
    session, before = store.session(new_id()), await admin.fetchval("SELECT pg_catalog.now()")
    right = time.time
    for days in DAYS:
        monkeypatch.setattr(time, "time", lambda days=days: right() + days * 86400)
        await asyncio.gather(*(session.add_items([user(str(days))]) for _ in range(5)))
        await session.events.record("jumped")
        async with session.exclusive(wait=0):
            await session.add_items([call("c"), output("c")])
    monkeypatch.undo()

    info, after = await session.info(), await admin.fetchval("SELECT pg_catalog.now()")
    assert info.item_count == len(DAYS) * 7
    times = [info.created_at, info.updated_at, *(each.created_at for each in await session.events.list())]
    assert all(before <= each <= after for each in times)


def test_nothing_reads_the_wall_clock() -> None:
    """No line of the package asks this machine what time it is: durations are monotonic, times the database's."""
    asked = []
    package = Path(agents_pg_session.__path__[0])
    for path in sorted(set(package.rglob("*.py")) - set((package / "testing").rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                asked += [f"{path.name}: {node.value.id}.{node.attr}"] * ((node.value.id, node.attr) in WALL_CLOCK)
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                asked += [f"{path.name}: {each.name}" for each in node.names if ("time", each.name) in WALL_CLOCK]

    assert asked == []


# -- what they share

WALL_CLOCK = {(kind, name) for kind in ("datetime", "date") for name in ("now", "utcnow", "today")} | {
    ("time", name) for name in ("time", "time_ns", "localtime", "gmtime", "ctime", "strftime")
}


def _times(table: str, order: str, *columns: str) -> str:
    listed = ", ".join(f"(extract(epoch FROM {each}) * 1000000)::bigint" for each in columns)
    return f"SELECT {listed} FROM agents.{table} WHERE tenant_id = $1 AND session_id = $2 ORDER BY {order}"


#: The columns of times that the records show, in the same order, as microseconds since 1970.
STORED_TIMES = {
    "sessions": _times("sessions", "1", "created_at", "updated_at", "active_at", "ended_at", "expires_at"),
    "items": _times("items", "position", "created_at"),
    "runs": _times("runs", "started_at", "started_at", "last_seen_at", "finished_at"),
    "tool_runs": _times("tool_runs", "call_position", "created_at", "started_at", "finished_at"),
    "events": _times("events", "event_id", "created_at"),
    "snapshots": _times("snapshots", "version", "created_at", "claimed_until"),
}


async def paged(kind: Callable[..., Awaitable[Any]], **options: Any) -> list[Any]:
    """Walk a whole list, one record a page."""
    records, cursor, more = list[Any](), None, True
    while more:
        page = await kind(**options, limit=1, after=cursor)
        records, cursor, more = [*records, *page], page.cursor, page.more
    return records


async def execute(url: URL, *statements: str) -> None:
    connection = await asyncpg.connect(url.render_as_string(hide_password=False))
    for statement in statements:
        await connection.execute(statement)
    await connection.close()
