"""What an operator's own SQL does to the verbs: docs/locks.md says so, and here it is so."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from agents_pg_session import PGSession
from tests.items import user
from tests.postgres.races.lines import ROW, dsn_of, until_waiting, watching

#: A command, the lock it takes, and whether it lets verbs write and read meanwhile.
COMMANDS = [
    ("SELECT count(*) FROM agents.items", "AccessShareLock", True, True),
    ("UPDATE agents.items SET type = type WHERE session_id = 'nobody'", "RowExclusiveLock", True, True),
    ("ANALYZE agents.items", "ShareUpdateExclusiveLock", True, True),
    ("VACUUM agents.items", "ShareUpdateExclusiveLock", True, True),
    ("CREATE INDEX CONCURRENTLY by_hand ON agents.items (type)", "ShareUpdateExclusiveLock", True, True),
    ("CREATE INDEX by_hand ON agents.items (type)", "ShareLock", False, True),
    ("VACUUM FULL agents.items", "AccessExclusiveLock", False, False),
    ("REINDEX TABLE agents.items", "ShareLock", False, True),
    ("ALTER TABLE agents.items ADD COLUMN by_hand text", "AccessExclusiveLock", False, False),
    ("TRUNCATE agents.items", "AccessExclusiveLock", False, False),
    ("LOCK TABLE agents.items", "AccessExclusiveLock", False, False),
]
MODES = {
    "AccessShareLock": "ACCESS SHARE",
    "RowExclusiveLock": "ROW EXCLUSIVE",
    "ShareUpdateExclusiveLock": "SHARE UPDATE EXCLUSIVE",
    "ShareLock": "SHARE",
    "AccessExclusiveLock": "ACCESS EXCLUSIVE",
}
ASKED_FOR = """
SELECT mode FROM pg_locks WHERE NOT granted AND relation = 'agents.items'::regclass
"""


@pytest.mark.parametrize(("command", "lock"), [each[:2] for each in COMMANDS], ids=lambda value: str(value)[:32])
async def test_what_a_command_locks(session: PGSession, observer: asyncpg.Connection, command: str, lock: str) -> None:
    """A command that finds the table of the items locked asks for the lock that docs/locks.md names."""
    async with watching(dsn_of(session)) as watcher, watching(dsn_of(session)) as operator:
        held = observer.transaction()
        await held.start()
        # VACUUM and ANALYZE look the table up under a weaker lock than the one they work with: let that through.
        blocking = "ACCESS EXCLUSIVE" if lock in ("AccessShareLock", "RowExclusiveLock") else "SHARE UPDATE EXCLUSIVE"
        await observer.execute(f"LOCK TABLE agents.items IN {blocking} MODE")
        working = asyncio.ensure_future(_run_and_undo(operator, command))
        while not (asked := await watcher.fetch(ASKED_FOR)):
            await asyncio.sleep(0.002)
        await watcher.execute("SELECT pg_cancel_backend($1)", operator.get_server_pid())
        await asyncio.wait([working])
        await held.rollback()

    assert [row["mode"] for row in asked] == [lock]
    assert isinstance(working.exception(), asyncpg.QueryCanceledError)


async def _run_and_undo(operator: asyncpg.Connection, command: str) -> None:
    """Run a command that never gets its lock; some cannot run in a transaction, and LOCK TABLE runs only there."""
    if command.startswith("LOCK"):
        async with operator.transaction():
            await operator.execute(command)
    await operator.execute(command)


@pytest.mark.parametrize(("mode", "writes", "reads"), sorted({each[1:] for each in COMMANDS}))
async def test_who_waits_for_a_lock_of_a_table(
    session: PGSession, observer: asyncpg.Connection, mode: str, writes: bool, reads: bool
) -> None:
    """While an operator holds a lock of that kind, appends and reads go on or wait as docs/locks.md says."""
    await session.add_items([user("1")])
    async with watching(dsn_of(session)) as watcher:
        for goes_on, verb in ((writes, lambda: session.add_items([user("2")])), (reads, session.get_items)):
            held = observer.transaction()
            await held.start()
            await observer.execute(f"LOCK TABLE agents.items IN {MODES[mode]} MODE")
            working = asyncio.ensure_future(verb())
            if goes_on:
                async with asyncio.timeout(60):
                    await working
            else:
                await until_waiting(watcher)
            await held.rollback()
            await working

    assert await session.get_items() == [user("1"), user("2")]


async def test_an_item_that_an_operator_holds_delays_only_who_takes_it(
    session: PGSession, observer: asyncpg.Connection
) -> None:
    """An item updated by hand: appends and reads go on; its pop waits, and with it, behind it, the next append."""
    await session.add_items([user("1")])
    held = observer.transaction()
    await held.start()
    await observer.execute("UPDATE agents.items SET type = type WHERE session_id = $1", session.session_id)
    async with asyncio.timeout(60), watching(dsn_of(session)) as watcher:
        await session.events.record("goes on")
        assert await session.get_items() == [user("1")]
        popping = asyncio.ensure_future(session.pop_item())
        await until_waiting(watcher)
        appending = asyncio.ensure_future(session.add_items([user("2")]))
        await until_waiting(watcher, 2)
        await held.rollback()
        await appending

    assert await popping == user("1")
    assert await session.get_items() == [user("2")]


async def test_an_operator_in_the_wrong_order_costs_a_deadlock_and_no_data(
    session: PGSession, observer: asyncpg.Connection
) -> None:
    """An item first, its session's row afterwards: PostgreSQL ends one of the two, and a verb tries again."""
    await session.add_items([user("1")])
    await observer.execute("SET deadlock_timeout = '1h'")  # so that the verb is the one that is ended
    held = observer.transaction()
    await held.start()
    await observer.execute("UPDATE agents.items SET type = type WHERE session_id = $1", session.session_id)
    async with watching(dsn_of(session)) as watcher:
        popping = asyncio.ensure_future(session.pop_item())
        await until_waiting(watcher)
        await observer.execute(ROW, session.session_id)
        await held.commit()

    assert await popping == user("1")
    assert await session.get_items() == []
