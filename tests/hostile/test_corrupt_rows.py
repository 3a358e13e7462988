"""Rows that somebody edited by hand: an error of ours that names the session, or the right answer for what is left."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterator
from itertools import cycle, product
from typing import Any

import pytest
from agents import Runner
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from agents_pg_session import PGSession, SessionConflict, SessionStore, SnapshotNotFound, Window
from agents_pg_session.tables import metadata_for
from tests.acceptance.agents_for_tests import QUIET, calls, scripted
from tests.conftest import BACKENDS
from tests.hostile.law import Refused, judged
from tests.items import call, output, user
from tests.sampling import DRIVERS
from tests.tally import Tally

pytestmark = pytest.mark.timeout(900)  # with --thorough

#: What a hand may write where something else belongs.
SCRAWLS = [
    "not json",
    "{",
    "",
    "5",
    '"text"',
    "[1]",
    "null",
    '{"a": NaN}',
    "[" * 3000,
    "-1",
    str(2**63 - 1),
    "1.5",
    "\\xff",
]
SCRAWLS += [
    "2026-13-45",
    "infinity",
    '{"approvals": 5}',
    '{"approvals": [5]}',
    '{"approvals": [{"x": 1}]}',
    '{"rows": 5}',
]
#: What a driver cannot hand over or the database cannot add up, with a row among many: it does not say which one.
UNREADABLE = ("Could not decode to UTF-8 column", "timestamp too", "JSON cannot hold BLOB", "integer overflow")
#: The same for SQLite alone, which keeps values of any type in any column.
TYPED = [5, -1, 2**63 - 1, 1.5, b"\xff\xfe\x00", b"{}", "\0", None]

COLUMNS = [
    (table.name, column.name)
    for table in metadata_for(None).sorted_tables
    for column in table.columns
    if column.name not in ("tenant_id", "session_id")
]
TABLES = sorted({table for table, _ in COLUMNS})


async def furnished(store: SessionStore, name: str, tenant: str) -> PGSession:
    """A session with rows in every table: replaced history, a summary, tool runs, a run that waits for an approval."""
    session = store.session(name, tenant=tenant, user_id=name, metadata={"of": name})
    await session.add_items([user(f"{name} 1"), call("c0"), output("c0", "An error")])
    await session._atomic_replace_items([user(f"{name} 2")])
    await session.snapshots.save("summary", f"summary of {name}")
    agent = scripted(calls("refund", "c1", amount=1))
    await session.pause(await Runner.run(agent, f"{name} 3", session=session, run_config=QUIET))
    return session


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every table on every backend, thoroughly; in the suite the drivers of PostgreSQL take turns."""
    if "table" not in metafunc.fixturenames:
        metafunc.parametrize("backend", BACKENDS, indirect=True)
        return
    drivers = product(DRIVERS, TABLES) if metafunc.config.option.thorough else zip(cycle(DRIVERS), TABLES, strict=False)
    metafunc.parametrize(("backend", "table"), [*product(["sqlite"], TABLES), *drivers], indirect=["backend"])


Call = Callable[[], Awaitable[Any]]


def reads(store: SessionStore, session: PGSession) -> Iterator[tuple[str, Call]]:
    """Every read of one session."""
    tenant, name = session.tenant, session.session_id
    yield "get_items", session.get_items
    yield "get_items(limit)", lambda: session.get_items(limit=2)
    for window in (Window(items=2), Window(turns=1), Window(summary="summary")):
        yield f"{window}", store.session(name, tenant=tenant, window=window, expect="unchanged").get_items
    yield "info", session.info
    yield "turns", session.turns
    yield "usage", session.usage
    yield "find", lambda: session.find(name)
    for kind in ("run_state", "summary", "history"):
        yield "snapshots.latest", lambda kind=kind: session.snapshots.latest(kind)  # type: ignore[misc]
        yield "snapshots.get", lambda kind=kind: session.snapshots.get(kind, 1)  # type: ignore[misc]
    yield "snapshots.diff", lambda: session.snapshots.diff("summary", 1, 1)
    for ledger in (session.runs, session.tool_runs, session.events, session.snapshots):
        yield f"{ledger}.list", ledger.list
    yield "runs.latest", session.runs.latest
    yield "tool_runs.get", lambda: session.tool_runs.get(2)
    yield "events.get", lambda: session.events.get(1)
    yield "events.latest", session.events.latest
    yield "compaction", lambda: session._get_compaction_snapshot(10)


def lists(store: SessionStore, tenant: str, name: str) -> Iterator[tuple[str, Call]]:
    """Every list across the sessions of a tenant, as one that looks for session *name* where it can."""
    yield "sessions", lambda: store.sessions(tenant=tenant)
    yield "sessions of a user", lambda: store.sessions(tenant=tenant, user_id=name)
    yield "sessions with metadata", lambda: store.sessions(tenant=tenant, metadata={"of": name})
    yield "tool_runs", lambda: store.tool_runs(tenant=tenant)
    yield "waiting", lambda: store.waiting(tenant=tenant)
    for by in ("agent", "user", "tenant", "day"):
        yield f"usage by {by}", lambda by=by: store.usage(by=by, tenant=tenant)  # type: ignore[misc]


async def _write(_items: list[Any]) -> str:
    return "said"


def verbs(store: SessionStore, session: PGSession) -> Iterator[tuple[str, Call]]:
    """Every verb that changes a session."""
    yield "resume", lambda: session.resume(scripted())
    yield "fork", lambda: session.fork(f"{session.session_id}-copy")
    yield "record", lambda: session.events.record("note", {"a": 1})
    yield "save", lambda: session.snapshots.save("summary", "more")
    yield "summarize", lambda: session.summarize(_write)
    yield "append", lambda: session.add_items([output("c1"), user("more")])
    yield "pop", session.pop_item
    yield "restore", lambda: session.restore(1)
    yield "replace", lambda: session._atomic_replace_items([user("less")])
    yield "end", session.end
    yield "clear", session.clear_session
    yield "delete", session.delete
    yield "append again", lambda: session.add_items([user("again")])


async def told(store: SessionStore, session: PGSession) -> list[str]:
    """Everything that reads of one session answer."""
    return [repr(await read()) for what, read in reads(store, session) if what != "compaction"]


async def faults(store: SessionStore, broken: PGSession, healthy: PGSession) -> tuple[int, list[str]]:
    """Make every call on the broken session; return how many there were, and what they did wrong."""
    count, name, other, found = 0, broken.session_id, healthy.session_id, list[str]()
    before = await told(store, healthy)
    across = list(lists(store, broken.tenant, name))
    for what, use in [*reads(store, broken), *across, *verbs(store, broken)]:
        count += 1
        try:
            answer = await judged(use, name, scrawled=True)
        except AssertionError as error:
            found.append(f"{what}: {error}")
            continue
        except Exception as error:
            found.append(f"{what}: {error!r}")
            continue
        if isinstance(answer, Refused):
            said = str(answer.error)
            if name not in said and not any(each in said for each in UNREADABLE):
                found.append(f"{what} does not say which session: {said}")
        elif other in repr(answer) and (what, use) not in across:
            found.append(f"{what} tells of another session")
    if await told(store, healthy) != before:
        found.append("another session changed")
    if [each.session_id for each in await store.sessions(tenant=healthy.tenant, user_id=other)] != [other]:
        found.append("a broken row hides another one")
    return count, found


async def edited(
    store: SessionStore, session: PGSession, sql: str, value: object = None, *, where: str = "true"
) -> bool:
    """Edit rows of a session by hand; False where the database does not let anybody do that, or there is none."""
    prefix = "" if store.engine.dialect.name == "sqlite" else "agents."
    statement = text(
        sql.replace("TABLE ", prefix) + f" WHERE tenant_id = :tenant_id AND session_id = :session_id AND {where}"
    )
    values = {"tenant_id": session.tenant, "session_id": session.session_id}
    async with store.engine.connect() as connection:
        if prefix == "":
            await connection.execute(text("PRAGMA foreign_keys = OFF"))
        try:
            result = await connection.execute(statement, values | ({"value": value} if ":value" in sql else {}))
            return result.rowcount > 0
        except DBAPIError:
            return False
        finally:
            if prefix == "":
                await connection.execute(text("PRAGMA foreign_keys = ON"))


async def test_scrawled_rows(store: SessionStore, table: str, thorough: bool, tally: Tally) -> None:
    """Whatever stands in whichever column, each call answers or names the session, and its neighbours are unharmed."""
    tenant = f"corrupt-{secrets.token_hex(6)}"
    healthy = await furnished(store, f"healthy-{secrets.token_hex(6)}", tenant)
    on_sqlite = store.engine.dialect.name == "sqlite"
    edits: list[tuple[str, object]] = [(f"UPDATE TABLE {table} SET {column} = :value", value)
        for of, column in COLUMNS if of == table for value in (SCRAWLS + TYPED if on_sqlite else ())]  # fmt: skip
    if not on_sqlite:
        edits = [(f"UPDATE TABLE {table} SET {column} = '{value}'".replace(":", "\\:"), None)
            for of, column in COLUMNS if of == table for value in SCRAWLS]  # fmt: skip
    # Co-prime with the number of scrawls, so that each column and each scrawl has its turn; PostgreSQL refuses most.
    every = (7 if on_sqlite else 11) if thorough else (166 if on_sqlite else 46)
    cases, wrong, broken = 0, list[str](), None
    for sql, value in edits[::every]:
        broken = broken or await furnished(store, f"broken-{secrets.token_hex(6)}", tenant)
        if not await edited(store, broken, sql, value):
            continue
        count, found = await faults(store, broken, healthy)
        cases, wrong = cases + count, wrong + [f"{sql} [{repr(value)[:40]}]: {each}" for each in found]
        for session in (broken, store.session(f"{broken.session_id}-copy", tenant=tenant)):
            for each in ("sessions", "items", "tool_runs", "runs", "events", "snapshots"):
                await edited(store, session, f"DELETE FROM TABLE {each}")
        broken = None

    assert wrong == [], "\n".join(wrong)
    assert cases > 0 or not on_sqlite, "nothing could be edited"
    tally.add("Corrupt rows", cases=cases, foreign_errors=0, neighbours_harmed=0)


async def test_deleted_rows(store: SessionStore, table: str, tally: Tally) -> None:
    """Rows of a table that are gone leave a session that can be read, or an error that names it."""
    tenant = f"corrupt-{secrets.token_hex(6)}"
    healthy = await furnished(store, f"healthy-{secrets.token_hex(6)}", tenant)
    broken = await furnished(store, f"broken-{secrets.token_hex(6)}", tenant)
    assert await edited(store, broken, f"DELETE FROM TABLE {table}")

    cases, wrong = await faults(store, broken, healthy)

    assert wrong == [], "\n".join(wrong)
    tally.add("Corrupt rows", cases=cases, foreign_errors=0, neighbours_harmed=0)


async def test_an_item_that_is_gone(store: SessionStore) -> None:
    """Without a row that was deleted by hand the rest is read as it stands, and what needs it whole says so."""
    tenant = f"corrupt-{secrets.token_hex(6)}"
    session = await furnished(store, "s", tenant)
    items = [item for turn in await session.turns() for item in turn.items]
    assert await edited(store, session, "DELETE FROM TABLE items", where=f"position = {items[0].position}")

    assert await session.get_items() == [item.item for item in items[1:]]
    with pytest.raises(SessionConflict, match="session 's'"):
        await session.restore(1)
    with pytest.raises(SnapshotNotFound, match="session 's'"):
        await session.restore(7)
