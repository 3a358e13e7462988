"""One lock order: whatever writes takes the session's row first, and holds nothing else while it waits for it.

Every statement that writes is run while another connection holds the session's row. A third connection then takes each
row of the session in every other table, without waiting: none is held.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import TextClause

from agents_pg_session import PGSession, SessionStore
from agents_pg_session.entries import Guard, Labels, compose
from agents_pg_session.projection import project
from agents_pg_session.reports import Note
from agents_pg_session.statements import Command, Key, Snapshotted, Write
from agents_pg_session.statements.postgres import PostgresStatements
from tests.items import assistant, call, output, user
from tests.postgres.races.lines import FAILED, ROW, dsn_of, lined_up, paused, until_waiting, watching

SQL = PostgresStatements("agents")
OTHER_TABLES = ("items", "tool_runs", "runs", "events", "snapshots")
LABELS = Labels("Support", "ada", '{"plan": "pro"}')
ID = "00000000-0000-4000-8000-000000000000"
CREATED_AT = datetime(2026, 1, 1, tzinfo=UTC)
SAVED = Snapshotted("note", '"x"', None, None, None, "waiting", None, ID, (Note("asked", "{}", "Support", ID),))
HISTORY = [user("hi"), call("c3"), output("c3", FAILED), output("c2")]

#: One or more writes of each verb of the statements, on a session.
WRITES: dict[str, list[Callable[[Key], Write]]] = {
    "append": [
        lambda key: SQL.append(key, compose(HISTORY[:3], LABELS)),
        lambda key: SQL.append(key, compose(HISTORY, LABELS)),
        lambda key: SQL.append(key, compose(HISTORY, LABELS), patient=True),
        lambda key: SQL.append(key, compose(HISTORY, LABELS, guard=Guard(7, 7, ID))),
    ],
    "pop": [SQL.pop, lambda key: SQL.pop(key, patient=True)],
    "clear": [SQL.clear, lambda key: SQL.clear(key, patient=True)],
    "replace": [
        lambda key: SQL.replace(key, project([assistant("ok")]), 0, None),
        lambda key: SQL.replace(key, project([assistant("ok")]), 0, None, patient=True),
    ],
    "restore": [lambda key: SQL.restore(key, 1), lambda key: SQL.restore(key, 1, patient=True)],
    "fork": [
        lambda key: SQL.fork(key, f"{key.session_id} source", None, LABELS),
        lambda key: SQL.fork(key, f"{key.session_id} source", None, LABELS, patient=True),
    ],
    "save": [lambda key: SQL.save(key, SAVED, LABELS), lambda key: SQL.save(key, SAVED, LABELS, patient=True)],
    "claim": [
        lambda key: SQL.claim(key, "run_state", ID, 60),
        lambda key: SQL.claim(key, "run_state", ID, 60, patient=True),
    ],
    "unclaim": [lambda key: SQL.unclaim(key, "run_state", ID)],
    "lease": [lambda key: SQL.lease(key, ID, 30, LABELS), lambda key: SQL.lease(key, ID, 30, LABELS, patient=True)],
    "renew": [lambda key: SQL.renew(key, ID, 30)],
    "release": [lambda key: SQL.release(key, ID)],
    "record": [
        lambda key: SQL.record(key, Note("note", "{}"), LABELS),
        lambda key: SQL.record(key, Note("note", "{}"), LABELS, patient=True),
    ],
    "end": [lambda key: SQL.end(key, "closed"), lambda key: SQL.end(key, "closed", patient=True)],
    "expire": [
        lambda key: SQL.expire(key, CREATED_AT),
        lambda key: SQL.expire(key, CREATED_AT, patient=True),
    ],
    "delete": [lambda key: SQL.delete(key, CREATED_AT)],
}


def test_each_verb_that_writes_is_here() -> None:
    """No statement that writes is left out of the proof of the lock order."""
    verbs = {
        name
        for name, verb in vars(PostgresStatements).items()
        if not name.startswith("_") and inspect.signature(verb).return_annotation == "Write"
    }

    assert verbs == set(WRITES)


async def prepared(session: PGSession, by_hand: asyncpg.Connection) -> Key:
    """Leave rows in every table, a run that waits, a lease that is held, and a session to fork from."""
    await PGSession(f"{session.session_id} source", engine=session._database).add_items([user("1")])
    await session.add_items([user("1"), call("c1"), output("c1")])
    await session._atomic_replace_items([user("2")])
    await session.add_items([call("c2")])
    await paused(session)
    held = "UPDATE agents.sessions SET lease_id = $2, lease_until = 'infinity', created_at = $3 WHERE session_id = $1"
    await by_hand.execute(held, session.session_id, ID, CREATED_AT)
    return Key("", session.session_id)


async def run(store: SessionStore, command: Command) -> None:
    async with store.engine.connect() as connection:
        if len(command.steps) > 1:
            await connection.execution_options(isolation_level="READ COMMITTED")
        for step in command.steps:
            await connection.execute(step.clause, step.values)
        await connection.commit()


@pytest.mark.parametrize("verb", WRITES)
async def test_a_write_takes_the_sessions_row_first(
    store: SessionStore, session: PGSession, observer: asyncpg.Connection, verb: str
) -> None:
    """While a verb waits for the session's row it holds no row of another table: all of them can be had at once."""
    key, held = await prepared(session, observer), 0
    async with watching(dsn_of(session)) as watcher:
        for write in [write(key) for write in WRITES[verb]]:
            fences = [write.fence(str(uuid4()))] if write.fence else []
            for command in [write.attempt(str(uuid4())), *fences]:
                lock = observer.transaction()
                await lock.start()
                await observer.execute(ROW, session.session_id)
                [waiting] = await lined_up(watcher, [partial(run, store, command)])
                assert not waiting.done(), "it waits for the row"
                async with watcher.transaction():
                    for table in OTHER_TABLES:
                        rows = await watcher.fetch(
                            f"SELECT FROM agents.{table} WHERE session_id = $1 FOR UPDATE NOWAIT", session.session_id
                        )
                        held += len(rows)
                await lock.rollback()
                await waiting

    assert held > 0, "there were rows to hold"


async def test_a_fork_locks_its_new_session_and_nothing_of_its_source(
    session: PGSession, observer: asyncpg.Connection, new_id: Callable[[], str]
) -> None:
    """The source is read in one snapshot: a fork goes on while another writer holds the source's row."""
    await session.add_items([user("1")])
    async with observer.transaction():
        await observer.execute(ROW, session.session_id)
        async with asyncio.timeout(60):
            copy = await session.fork(new_id())

    assert await copy.get_items() == [user("1")]


@pytest.mark.parametrize("patient", [False, True])
async def test_a_read_waits_for_nobody(session: PGSession, observer: asyncpg.Connection, patient: bool) -> None:
    """Reads see the last committed state while a writer holds the row, or every row, of a session."""
    await prepared(session, observer)
    before = await session.get_items()
    async with observer.transaction():
        for table in ("sessions", *(OTHER_TABLES if patient else ())):
            await observer.execute(f"SELECT FROM agents.{table} WHERE session_id = $1 FOR UPDATE", session.session_id)
        async with asyncio.timeout(60):
            assert await session.get_items() == before
            await session.info()
            await session.turns()
            await session.events.list()
            await session.tool_runs.list()
            await session.runs.list()
            await session.snapshots.list()


async def test_a_row_of_a_foreign_key_keeps_no_append_waiting(session: PGSession, observer: asyncpg.Connection) -> None:
    """A row inserted by hand shares the session's row (FOR KEY SHARE): an append goes on, a pop waits for its end."""
    await session.add_items([user("1")])
    lock = observer.transaction()
    await lock.start()
    await observer.execute(
        "INSERT INTO agents.events (tenant_id, session_id, event_id, kind) VALUES ('', $1, 1000, 'by hand')",
        session.session_id,
    )
    async with watching(dsn_of(session)) as watcher, asyncio.timeout(60):
        await session.add_items([user("2")])
        popping = asyncio.ensure_future(session.pop_item())
        await until_waiting(watcher)
        await lock.rollback()

        assert await popping == user("2")


def test_statements_are_text() -> None:
    """What the proof runs is what the library runs: the same text, with named values."""
    key = Key("", "any")

    assert all(
        isinstance(step.clause, TextClause)
        for writes in WRITES.values()
        for write in writes
        for step in write(key).attempt(ID).steps
    )
