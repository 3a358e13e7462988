"""The database was configured by somebody else: transactions are stricter than usual, deferrable, or read only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from agents import Runner
from sqlalchemy import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from agents_pg_session import PGSession, SessionStore, StorageUnavailable
from tests.acceptance.agents_for_tests import QUIET, calls, scripted
from tests.items import assistant, call, output, user
from tests.tally import Tally

HARNESS = "Isolation levels"
DRIVERS = ("asyncpg", "psycopg")


@pytest.fixture(scope="module")
def database(migrated_database: Callable[[], str]) -> URL:
    """A database whose settings a test may change, at the newest revision."""
    return make_url(migrated_database())


@pytest.fixture
async def admin(database: URL) -> AsyncIterator[asyncpg.Connection]:
    """A connection to change settings with; the database is as before afterwards."""
    connection = await asyncpg.connect(database.render_as_string(hide_password=False))
    yield connection
    await connection.execute(f"ALTER DATABASE {database.database} RESET ALL")
    await connection.execute(f"ALTER ROLE {database.username} IN DATABASE {database.database} RESET ALL")
    await connection.close()


#: Who is strict, and how it was told: what an administrator says of the database or the role, or what the application's
#: own engine says.
STRICT = {
    "repeatable read by default": ("asyncpg", "ALTER DATABASE {name} SET {isolation} = 'repeatable read'", None),
    "serializable by default": ("psycopg", "ALTER DATABASE {name} SET {isolation} = 'serializable'", None),
    "a serializable, deferrable role": (
        "asyncpg",
        "ALTER ROLE postgres IN DATABASE {name} SET {isolation} = 'serializable';"
        "ALTER ROLE postgres IN DATABASE {name} SET default_transaction_deferrable = on",
        None,
    ),
    "a borrowed engine, repeatable read": ("psycopg", "SELECT", "REPEATABLE READ"),
    "a borrowed engine, serializable": ("asyncpg", "SELECT", "SERIALIZABLE"),
}


@pytest.mark.parametrize("strict", STRICT)
async def test_every_verb_at_once_at_any_level(
    database: URL, admin: asyncpg.Connection, new_id: Callable[[], str], tally: Tally, thorough: bool, strict: str
) -> None:
    """Where the database, the role or the application's engine is stricter than read committed, all verbs at once do
    what they do anywhere: what the server refuses with 40001 is tried again, nothing is lost and nothing doubled.
    """
    driver, told, level = STRICT[strict]
    await admin.execute(told.format(name=database.database, isolation="default_transaction_isolation"))
    refused = 0
    for name in DRIVERS if thorough else [driver]:
        options = {"isolation_level": level} if level else {}
        engine = create_async_engine(database.set(drivername=f"postgresql+{name}"), pool_size=15, **options)
        logging.getLogger("agents_pg_session").addHandler(refusals := Refusals())
        store = SessionStore(engine=engine, retry_for=60)
        if level is None:
            default = "SELECT current_setting('default_transaction_isolation')"
            async with engine.connect() as connection:
                assert (await connection.exec_driver_sql(default)).scalar_one() != "read committed"

        done = await everything_at_once(store, new_id, rounds=20 if thorough else 3)

        wrong = await admin.fetch(RECOUNT)
        assert wrong == []
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        logging.getLogger("agents_pg_session").removeHandler(refusals)
        refused += refusals.count
        tally.add(HARNESS, calls=done, refused_with_40001=refusals.count, lost=0, doubled=0)
        await engine.dispose()
    assert (refused > 0) == (level is None), "on an engine of its own level we are in autocommit"


async def everything_at_once(store: SessionStore, new_id: Callable[[], str], rounds: int) -> int:
    """Do all verbs concurrently, check what the callers can know, and return how many there were."""
    items, cleared, replaced, deleted, waiting = (new_id() for _ in range(5))
    writers, forks, popped, done = range(5), list[PGSession](), list[Any](), 0

    async def verb(call_of_ours: Awaitable[Any]) -> Any:
        nonlocal done
        answer = await call_of_ours
        done += 1
        return answer

    async def write(writer: int) -> None:
        for part in range(rounds):
            label, session = f"{writer}.{part}", store.session(items)
            await verb(session.add_items([user(label), call(label)]))
            await verb(session.add_items([output(label)]))
            popped.append(await verb(session.pop_item()))
            await verb(session.snapshots.save("note", {"of": label}))
            await verb(session.events.record("noted", {"of": label}))
            await verb(store.session(cleared).add_items([user(f"{label}!")] * 2))
            await verb(store.session(replaced).add_items([user(f"<{label}>")]))
            await verb(store.session(deleted).add_items([user(f"{label}!")] * 2))
        async with store.session(items).exclusive(wait=60) as alone:
            await verb(alone.add_items([assistant(f"{writer} alone")]))

    async def meddle(part: int) -> None:
        await verb(store.session(cleared).add_items([user("first")] * 2))
        forks.append(await verb(store.session(cleared).fork(new_id())))
        await verb(store.session(cleared).clear_session())
        await verb(store.session(replaced)._atomic_replace_items([user(f"replaced {part}")]))
        await verb(store.session(deleted).delete())

    agent = scripted(calls("refund", "r1", amount=5))
    session = store.session(waiting)
    await session.pause(await Runner.run(agent, "pay me back", session=session, run_config=QUIET))
    await store.session(replaced).add_items([user("<begin>")])
    claims, *_ = await asyncio.gather(
        asyncio.gather(*(store.session(waiting).resume(agent) for _ in writers), return_exceptions=True),
        *(write(writer) for writer in writers),
        *(meddle(part) for part in range(rounds)),
    )

    labels = [f"{writer}.{part}" for writer in writers for part in range(rounds)]
    told = [each for label in labels for each in (user(label), call(label), output(label))]
    told += [assistant(f"{writer} alone") for writer in writers]
    left = await store.session(items).get_items()
    assert sorted(map(str, [*left, *popped])) == sorted(map(str, told))
    assert len(await store.session(items).snapshots.list("note", limit=1000)) == len(labels)
    noted = await store.session(items).events.list(kind="noted", limit=1000)
    assert sorted(each.payload["of"] for each in noted) == sorted(labels)
    for whole in (store.session(cleared), store.session(deleted), *forks):
        copied = await whole.get_items()
        assert copied[::2] == copied[1::2]
    kept = [*(await store.session(replaced).get_items())]
    kept += [each.content for each in await store.session(replaced).snapshots.list("history", limit=1000)]
    assert all(str(kept).count(f"<{label}>") == 1 for label in (*labels, "begin"))
    assert sorted(type(each).__name__ for each in claims) == ["RunState", *["SessionConflict"] * (len(writers) - 1)]
    return done


async def test_a_role_that_only_reads(database: URL, admin: asyncpg.Connection, new_id: Callable[[], str]) -> None:
    """A role that is read only, serializable and deferrable reads the truth; its writes fail loudly."""
    role = new_id().replace("-", "_")
    await admin.execute(f"CREATE ROLE {role} LOGIN; GRANT pg_read_all_data, pg_write_all_data TO {role}")
    for setting in ("read_only = on", "deferrable = on", "isolation = 'serializable'"):
        await admin.execute(f"ALTER ROLE {role} SET default_transaction_{setting}")
    async with SessionStore.open(database) as store:
        await (session := store.session(new_id())).add_items([user("1"), call("c"), output("c")])
    for driver in DRIVERS:
        url = database.set(drivername=f"postgresql+{driver}", username=role)
        async with (
            PGSession.from_url(session.session_id, url=url) as reader,
            PGSession.from_url(session.session_id, url=url, retry_for=0.5) as writer,  # on the same pool
        ):
            assert await reader.get_items() == [user("1"), call("c"), output("c")]
            assert (await reader.info()).item_count == 3
            assert [each.status for each in await reader.tool_runs.list()] == ["succeeded"]
            with pytest.raises(StorageUnavailable, match="25006"):
                await writer.add_items([user("2")])
            assert len(await reader.get_items()) == 3
    await admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


#: Counters that are not what counting the rows gives, events with gaps, positions beyond the last.
RECOUNT = """
SELECT s.session_id, s.item_count, s.tool_run_count, s.last_event_id FROM agents.sessions s
 WHERE s.item_count <> (SELECT count(*) FROM agents.items i WHERE i.session_id = s.session_id)
    OR s.tool_run_count <> (SELECT count(*) FROM agents.tool_runs t WHERE t.session_id = s.session_id)
    OR s.last_event_id <> (SELECT count(*) FROM agents.events e WHERE e.session_id = s.session_id)
    OR s.last_event_id <> (SELECT coalesce(max(event_id), 0) FROM agents.events e WHERE e.session_id = s.session_id)
    OR s.last_position < (SELECT coalesce(max(position), 0) FROM agents.items i WHERE i.session_id = s.session_id)
"""


class Refusals(logging.Handler):
    """Counts the tries that were refused for the sake of serialization: each is logged before it is repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "40001" in record.getMessage()
