"""A session's end: from that moment on it is to every verb as if it had been deleted, and an append begins it anew."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from agents import Runner
from sqlalchemy import text

from agents_pg_session import (
    PGSession,
    SessionConflict,
    SessionError,
    SessionInfo,
    SessionNotFound,
    SessionStore,
    SnapshotNotFound,
    Window,
)
from tests.acceptance.agents_for_tests import QUIET, calls, says, scripted
from tests.items import assistant, call, output, user

MONTH = timedelta(days=30)
PAST = datetime(2020, 1, 1, tzinfo=UTC)
TALK = [user("hi"), call("c1"), output("c1"), call("c2"), assistant("done")]


async def lived(session: PGSession) -> None:
    """Leave a session with a record of every kind, which has expired."""
    await session.add_items(TALK)
    await session.snapshots.save("summary", "so far")
    await session.expire(PAST)


async def paused(session: PGSession) -> None:
    agent = scripted(calls("refund", "r1", amount=5))
    await session.pause(await Runner.run(agent, "refund", session=session, run_config=QUIET))


async def rows_of(store: SessionStore, session_id: str) -> dict[str, int]:
    """Count what is left of a session in each table, expired or not."""
    prefix = "" if store.engine.dialect.name == "sqlite" else "agents."
    tables = ("sessions", "items", "tool_runs", "runs", "events", "snapshots")
    async with store.engine.connect() as connection:
        return {
            table: (
                await connection.execute(
                    text(f"SELECT count(*) FROM {prefix}{table} WHERE session_id = :id"), {"id": session_id}
                )
            ).scalar_one()
            for table in tables
        }


# -- setting it


async def test_each_append_moves_the_end(store: SessionStore, new_id: Callable[[], str]) -> None:
    """With `expires_after`, each append moves the end to that long after it by the database's clock; reads do not."""
    session = store.session(new_id(), expires_after=MONTH)
    await session.add_items([user("one")])
    first = await session.info()
    await session.get_items()
    await session.add_items([user("two")])
    second = await session.info()

    assert (first.expires_at, second.expires_at) == (first.updated_at + MONTH, second.updated_at + MONTH)
    assert second.updated_at > first.updated_at


async def test_a_handle_that_says_nothing_leaves_the_end(store: SessionStore, new_id: Callable[[], str]) -> None:
    """An append of a handle without `expires_after` neither moves nor lifts the end."""
    session = store.session(new_id(), expires_after=MONTH)
    await session.add_items([user("one")])
    before = await session.info()

    await store.session(session.session_id).add_items([user("two")])

    assert (await session.info()).expires_at == before.expires_at


@pytest.mark.parametrize("opens", ["record", "save"])
async def test_what_begins_a_session_sets_its_end(store: SessionStore, new_id: Callable[[], str], opens: str) -> None:
    """A session that an event or a snapshot begins has its end from the start, and later ones leave it where it is."""
    session = store.session(new_id(), expires_after=MONTH)
    infos = []
    async with session.exclusive():  # a lease alone is no session yet
        for _ in range(2):
            await (session.events.record("note") if opens == "record" else session.snapshots.save("summary", "text"))
            infos.append(await session.info())

    assert [each.expires_at for each in infos] == [infos[0].updated_at + MONTH] * 2


async def test_from_url_takes_it_too(backend: Any, new_id: Callable[[], str]) -> None:
    """`PGSession.from_url` and `fork` pass `expires_after` on."""
    async with PGSession.from_url(new_id(), url=backend.url, expires_after=MONTH) as session:
        await session.add_items([user("hi")])
        copy = await session.fork(new_id())
        await copy.add_items([user("more")])

        for each in (session, copy):
            info = await each.info()
            assert info.expires_at == info.updated_at + MONTH


async def test_the_end_can_be_set_moved_and_lifted(session: PGSession) -> None:
    """`expire` takes a duration, a moment or None, answers the end, and writes an event of it."""
    await session.add_items([user("hi")])
    moment = datetime(2199, 5, 4, 3, 2, 1, tzinfo=UTC)

    after = await session.expire(MONTH)
    assert after == (info := await session.info()).expires_at == info.updated_at + MONTH
    assert await session.expire(moment) == (await session.info()).expires_at == moment
    assert await session.expire(None) is (await session.info()).expires_at is None
    assert [event.kind for event in await session.events.list()] == ["expiry_set"] * 3


async def test_only_a_session_that_is_there_can_be_told(session: PGSession) -> None:
    """`expire` raises `SessionNotFound` before the first append and after the end: nothing brings it back."""
    with pytest.raises(SessionNotFound):
        await session.expire(MONTH)
    await lived(session)
    with pytest.raises(SessionNotFound):
        await session.expire(None)

    assert await session.get_items() == []


@pytest.mark.parametrize(
    "end",
    [timedelta(0), timedelta(days=-1), timedelta(days=40_000), datetime(2199, 1, 1), 30, "30d", True],  # noqa: DTZ001
)
async def test_an_end_that_cannot_be_is_refused(store: SessionStore, new_id: Callable[[], str], end: Any) -> None:
    """A duration that is not positive or too long, a time without a zone, and anything else raise `ValueError`."""
    session = store.session(new_id())
    await session.add_items([user("hi")])
    with pytest.raises(ValueError, match="the end must"):
        await session.expire(end)
    with pytest.raises(ValueError, match="expires_after must"):
        store.session(new_id(), expires_after=end)

    assert (await session.info()).expires_at is None


# -- honoured at once

#: What a verb answers of a session that is not there. A session that has expired is none.
NOTHING: dict[str, tuple[Callable[[PGSession], Awaitable[Any]], Any]] = {
    "get_items": (lambda session: session.get_items(), []),
    "get_items with a limit": (lambda session: session.get_items(limit=3), []),
    "a window": (lambda session: like(session, window=Window(turns=2)).get_items(), []),
    "a window with a summary": (lambda session: like(session, window=Window(summary="summary")).get_items(), []),
    "a reader that expects no change": (lambda session: like(session, expect="unchanged").get_items(), []),
    "turns": (lambda session: session.turns(), []),
    "find": (lambda session: session.find("hi"), []),
    "pop": (lambda session: session.pop_item(), None),
    "clear": (lambda session: session.clear_session(), None),
    "info": (lambda session: session.info(), SessionNotFound),
    "end": (lambda session: session.end(), SessionNotFound),
    "fork": (lambda session: session.fork(f"{session.session_id} copy"), SessionNotFound),
    "resume": (lambda session: session.resume(scripted()), SnapshotNotFound),
    "restore": (lambda session: session.restore(1), SessionNotFound),
    "replace": (lambda session: session._atomic_replace_items([user("short")]), False),
    "summarize": (lambda session: session.summarize(never), None),
    "runs": (lambda session: session.runs.latest(), None),
    "usage": (lambda session: session.usage(), 0),
    "tool runs": (lambda session: session.tool_runs.latest(), None),
    "a tool run": (lambda session: session.tool_runs.get(2), None),
    "events": (lambda session: session.events.latest(), None),
    "an event": (lambda session: session.events.get(1), None),
    "snapshots": (lambda session: session.snapshots.latest("summary"), None),
    "a snapshot": (lambda session: session.snapshots.get("summary", 1), SnapshotNotFound),
    "delete": (lambda session: session.delete(), False),
}


async def never(_items: list[Any]) -> str:
    raise AssertionError("there is nothing to summarise")


def like(session: PGSession, **options: Any) -> PGSession:
    return PGSession(session.session_id, engine=session._database, **options)


async def test_every_verb_finds_nothing_after_the_end(session: PGSession) -> None:
    """From its end on, a session with a record of every kind is to each verb what one is that never was."""
    await paused(session)
    await session._atomic_replace_items([user("short")])
    await paused(session)
    await lived(session)

    answers: dict[str, Any] = {}
    for name, (work, _) in NOTHING.items():
        try:
            answers[name] = await work(session)
        except SessionError as error:
            answers[name] = type(error)
    answers["usage"] = answers["usage"].runs
    assert answers == {name: nothing for name, (_, nothing) in NOTHING.items()}


async def test_lists_across_sessions_leave_it_out(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Sessions, tool runs and waiting runs of a tenant are those that have not expired; usage goes on counting."""
    tenant = new_id()
    for name in ("here", "gone"):
        session = store.session(name, tenant=tenant)
        await session.add_items(TALK)
        await paused(session)
    usage = await store.usage(by="tenant", tenant=tenant)

    await store.session("gone", tenant=tenant).expire(PAST)

    lists: tuple[Any, ...] = (store.sessions, store.tool_runs, store.waiting)
    for each in lists:
        assert {found.session_id for found in await each(tenant=tenant)} == {"here"}
    assert await store.usage(by="tenant", tenant=tenant) == usage
    everywhere = await store.sessions(all_tenants=True, limit=1000)
    assert [found.session_id for found in everywhere if found.tenant == tenant] == ["here"]


async def test_the_end_comes_by_itself(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Nobody has to do anything at that moment: by the database's clock, reads find the session gone."""
    session = store.session(new_id(), expires_after=timedelta(milliseconds=300))
    await session.add_items([user("hi")])
    assert await session.get_items() == [user("hi")]

    async with asyncio.timeout(30):
        while await session.get_items():
            await asyncio.sleep(0.02)

    with pytest.raises(SessionNotFound):
        await session.info()


# -- anew


def born(info: SessionInfo) -> tuple[int, ...]:
    return info.item_count, info.last_position, info.turn_count, info.tool_run_count, info.event_count


@pytest.mark.parametrize("items", [[user("new")], [output("c2"), user("new")]], ids=["items", "a late output"])
async def test_an_append_begins_the_session_anew(store: SessionStore, session: PGSession, items: list[Any]) -> None:
    """An append after the end begins at position 1, with nothing of what was: no item, counter, event or end."""
    await lived(session)
    await session.add_items(items)

    info = await session.info()
    assert await session.get_items() == items
    assert born(info) == (len(items), len(items), 1, 0, 0)
    assert (info.expires_at, info.forked_from) == (None, None)
    left = {"sessions": 1, "items": len(items), "tool_runs": 0, "runs": 0, "events": 0, "snapshots": 0}
    assert await rows_of(store, session.session_id) == left


async def test_other_verbs_begin_it_anew(store: SessionStore, session: PGSession) -> None:
    """An event, a snapshot, a lease and a fork into its id find the id free, and nothing of what was."""
    source = store.session(f"{session.session_id} source")
    await source.add_items([user("elsewhere")])

    await lived(session)
    assert (await session.events.record("note")).event_id == 1
    await session.expire(PAST)
    assert await session.snapshots.save("summary", "new") == 1
    assert [event.kind for event in await session.events.list()] == ["snapshot_saved"]
    await session.expire(PAST)
    async with session.exclusive(wait=0):
        await session.add_items([user("alone")])
    assert await session.get_items() == [user("alone")]
    await session.expire(PAST)
    await source.fork(session.session_id)
    assert await session.get_items() == [user("elsewhere")]


async def test_a_session_that_ended_under_a_lease_is_lost_with_it(session: PGSession) -> None:
    """Who runs a session alone while it expires is told so by its next append: the lease went with the session."""
    await session.add_items([user("hi")])
    async with session.exclusive():
        await like(session).expire(PAST)
        with pytest.raises(SessionConflict, match="lease"):
            await session.add_items([user("more")])

    assert await session.get_items() == []


@pytest.mark.parametrize("read", ["before", "after"])
async def test_expecting_no_change_notices_the_end(store: SessionStore, new_id: Callable[[], str], read: str) -> None:
    """A handle that read the session before its end is refused; one that found it gone begins it anew."""
    session = store.session(new_id(), expect="unchanged")
    await store.session(session.session_id).add_items(TALK)
    if read == "before":
        await session.get_items()
    await store.session(session.session_id).expire(PAST)
    if read == "after":
        assert await session.get_items() == []
        await session.add_items([user("new")])
        assert await session.get_items() == [user("new")]
        return
    with pytest.raises(SessionConflict):
        await session.add_items([user("new")])
    assert await session.get_items() == []


async def test_last_words_of_a_run_do_not_begin_it_anew(session: PGSession) -> None:
    """What a recording still has to tell when the session has expired is left untold, as after a delete."""
    async with session.recording() as run:
        await Runner.run(scripted(says("hello")), "hi", session=session, hooks=run.hooks, run_config=QUIET)
        await like(session).expire(PAST)

    with pytest.raises(SessionNotFound):
        await session.info()


async def test_a_copy_ends_with_its_source(session: PGSession) -> None:
    """A fork keeps its source's end: what has to go by then goes in every copy."""
    await session.add_items(TALK)
    end = await session.expire(MONTH)

    copy = await session.fork(f"{session.session_id} copy")

    assert (await copy.info()).expires_at == end


async def test_delete_erases_what_has_expired(store: SessionStore, session: PGSession) -> None:
    """`delete` after the end answers False, for the session is gone, and erases what is left of it."""
    await lived(session)

    assert await session.delete() is False
    assert set((await rows_of(store, session.session_id)).values()) == {0}
