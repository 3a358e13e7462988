"""No two verbs wait for each other: one lock order."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from agents_pg_session import PGSession, SessionConflict, SessionNotFound, SessionStore, SnapshotNotFound
from tests.acceptance.agents_for_tests import scripted
from tests.items import assistant, call, output, user
from tests.postgres.races.lines import (
    FAILED,
    counters_hold,
    is_gone,
    own,
    paused,
)


async def alone(session: PGSession) -> None:
    async with session.exclusive(wait=0):
        pass


Verb = Callable[[PGSession], Awaitable[object]]
names = itertools.count()
VERBS: dict[str, Verb] = {
    "append": lambda session: session.add_items([user("hi"), call("c1"), output("c1"), assistant("ok")]),
    "call": lambda session: session.add_items([call("c2")]),
    "output": lambda session: session.add_items([output("c2", FAILED)]),
    "pop": lambda session: session.pop_item(),
    "clear": lambda session: session.clear_session(),
    "save": lambda session: session.snapshots.save("summary", {}),
    "record": lambda session: session.events.record("note", {"a": 1}),
    "claim": lambda session: session.resume(scripted()),
    "end": lambda session: session.end(),
    "fork": lambda session: session.fork(f"{session.session_id} {next(names)}"),
    "replace": lambda session: session._atomic_replace_items([user("short"), assistant("ok")]),
    "restore": lambda session: session.restore(1),
    "lease": lambda session: alone(own(session)),
    "delete": lambda session: session.delete(),
}
#: What a verb may say when another one came first.
EXPECTED = (SessionConflict, SessionNotFound, SnapshotNotFound)


@pytest.mark.parametrize("one", VERBS)
async def test_no_two_verbs_wait_for_each_other(
    one: str,
    postgres_url: str,
    new_id: Callable[[], str],
    observer: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every pair of verbs, three times each at once: one lock order, so no deadlock, and the counters are right."""
    before = await deadlocks(observer)
    async with SessionStore.open(postgres_url) as left, SessionStore.open(postgres_url) as right:
        for another in itertools.islice(VERBS, list(VERBS).index(one), None):
            session = left.session(new_id())
            await session.add_items([user("1"), call("c1"), output("c1"), call("c2")])
            await session._atomic_replace_items([user("2")])
            await session.add_items([call("c2"), call("c2"), call("c2")])
            await paused(session)
            twins = (session, right.session(session.session_id))
            answers = await asyncio.gather(
                *(VERBS[verb](twin) for verb in (one, another) for twin in (*twins, session)), return_exceptions=True
            )

            wrong = [each for each in answers if isinstance(each, BaseException) and not isinstance(each, EXPECTED)]
            assert wrong == [], another
            assert await is_gone(observer, session) or await counters_hold(observer, session), another
    while await observer.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'agents_pg_session'"):
        await asyncio.sleep(0.01)  # a backend counts its deadlocks when it ends, at the latest

    assert await deadlocks(observer) == before
    assert [record for record in caplog.records if record.name.startswith("agents_pg_session")] == []


async def deadlocks(observer: asyncpg.Connection) -> int:
    count: int = await observer.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return count


async def test_forks_into_each_other_and_deletes_wait_in_no_circle(
    postgres_url: str, new_id: Callable[[], str], observer: asyncpg.Connection
) -> None:
    """A fork locks its new session only: A into B, B into A, and both deleted at once end without a deadlock."""
    before = await deadlocks(observer)
    async with SessionStore.open(postgres_url) as store, SessionStore.open(postgres_url) as other:
        for _ in range(10):
            a, b = store.session(new_id()), other.session(new_id())
            await a.add_items([user("a")])
            await b.add_items([user("b")])
            answers = await asyncio.gather(
                a.fork(b.session_id), b.fork(a.session_id), a.delete(), b.delete(), own(a).fork(b.session_id),
                own(b).fork(a.session_id), return_exceptions=True,
            )  # fmt: skip

            assert [
                each for each in answers if isinstance(each, BaseException) and not isinstance(each, EXPECTED)
            ] == []
    while await observer.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'agents_pg_session'"):
        await asyncio.sleep(0.01)

    assert await deadlocks(observer) == before
