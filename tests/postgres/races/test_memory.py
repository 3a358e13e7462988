"""Snapshots, events and rewritten history, with another writer in between."""

from __future__ import annotations

import asyncio

import asyncpg

from agents_pg_session import PGSession, SessionConflict
from tests.items import assistant, user
from tests.postgres.races.lines import (
    counters_hold,
    dsn_of,
    in_line,
    until_waiting,
)


async def test_versions_begin_anew_behind_a_delete(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """The session was erased while a save waited: its snapshot is version 1 of the new session."""
    await session.snapshots.save("summary", "old")
    _, version = await in_line(observer, session, session.delete, lambda: twin.snapshots.save("summary", "new"))

    assert version == 1
    assert await counters_hold(observer, session)


async def test_saves_at_once_are_versions_in_a_row(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """No version is handed out twice, none is left out, and none is overwritten."""
    await session.add_items([user("hi")])
    versions = await in_line(
        observer,
        session,
        *(lambda number=number: (session, twin)[number % 2].snapshots.save("summary", number) for number in range(6)),
    )

    assert sorted(versions) == [1, 2, 3, 4, 5, 6]
    saved = await session.snapshots.list("summary")
    assert {each.version: each.content for each in saved} == {versions[n]: n for n in range(6)}
    assert await counters_hold(observer, session)


async def test_a_save_knows_what_was_appended_before_it(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """A snapshot that says how far it has seen says so of the moment it took effect."""
    await session.add_items([user("1")])
    await in_line(
        observer,
        session,
        lambda: session.add_items([user("2")]),
        lambda: twin.snapshots.save("note", "x"),
    )

    latest = await session.snapshots.latest("note")
    assert latest is not None
    assert latest.through == 2


async def test_a_reader_after_a_cursor_misses_no_event(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """Eight writers record events, some commit late; a reader that follows its cursor sees 1, 2, 3 … without a gap."""
    await session.events.record("first")

    async def write(number: int) -> None:
        for part in range(10):
            await (session, twin)[number % 2].events.record("note", f"{number}.{part}")

    watcher = await asyncpg.connect(dsn_of(session))
    late = observer.transaction()
    await late.start()
    await observer.execute(
        "UPDATE agents.sessions SET last_event_id = last_event_id + 1 WHERE session_id = $1", session.session_id
    )
    writers = [asyncio.ensure_future(write(number)) for number in range(8)]
    await until_waiting(watcher, 8)
    page = await session.events.list()
    seen = [each.event_id for each in page]
    assert seen == [1], "the writer that came first has not committed"
    await observer.execute(
        "INSERT INTO agents.events (tenant_id, session_id, event_id, kind) VALUES ('', $1, 2, 'late')",
        session.session_id,
    )
    await late.commit()
    while len(seen) < 82:
        page = await twin.events.list(after=page.cursor, limit=7)
        seen.extend(each.event_id for each in page)
    await asyncio.gather(*writers)
    await watcher.close()

    assert seen == list(range(1, 83))
    payloads = [each.payload for each in await session.events.list(kind="note")]
    assert sorted(map(str, payloads)) == sorted(f"{number}.{part}" for number in range(8) for part in range(10))


async def test_a_compaction_behind_an_append_replaces_nothing(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """What was compacted is not what stands there any more: the replacement is refused, the append is kept."""
    await session.add_items([user("1"), assistant("2")])
    snapshot = await session._get_compaction_snapshot(10)
    assert snapshot is not None
    _, replaced = await in_line(
        observer, session, lambda: twin.add_items([user("3")]), lambda: snapshot.replace_suffix(0, [user("short")])
    )

    assert replaced is False
    assert await session.get_items() == [user("1"), assistant("2"), user("3")]
    assert list(await session.snapshots.list("history")) == []


async def test_an_append_behind_a_compaction_stands_after_it(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """The other order: the history is replaced, and the append that waited follows what replaced it."""
    await session.add_items([user("1"), assistant("2")])
    snapshot = await session._get_compaction_snapshot(10)
    assert snapshot is not None
    replaced, _ = await in_line(
        observer, session, lambda: snapshot.replace_suffix(0, [user("short")]), lambda: twin.add_items([user("3")])
    )

    assert replaced is True
    assert await session.get_items() == [user("short"), user("3")]
    assert await counters_hold(observer, session)


async def test_a_replacement_of_everything_behind_an_append_keeps_it_as_history(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """Replacing the whole history takes what came before it too, and remembers it."""
    await session.add_items([user("1")])
    await in_line(
        observer,
        session,
        lambda: twin.add_items([user("2")]),
        lambda: session._atomic_replace_items([user("short")]),
    )

    assert await session.get_items() == [user("short")]
    history = await session.snapshots.get("history", 1)
    assert history.content == [user("1"), user("2")]
    await session.restore(1)
    assert await session.get_items() == [user("1"), user("2")]
    assert await counters_hold(observer, session)


async def test_of_two_compactions_of_one_history_one_takes_effect(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """Both compacted the same items: the second one finds that they are gone."""
    await session.add_items([user("1"), assistant("2")])
    snapshots = [await each._get_compaction_snapshot(10) for each in (session, twin)]
    replaced = await in_line(
        observer, session, *(lambda each=each: each.replace_suffix(0, [user("short")]) for each in snapshots)
    )

    assert replaced == [True, False]
    assert await session.get_items() == [user("short")]


async def test_a_restore_behind_a_clear_is_refused(
    session: PGSession, twin: PGSession, observer: asyncpg.Connection
) -> None:
    """What replaced the history was cleared while the restore waited: it is not there whole, so nothing comes back."""
    await session.add_items([user("1"), user("2")])
    await session._atomic_replace_items([user("short")])
    _, refused = await in_line(observer, session, twin.clear_session, lambda: session.restore(1))

    assert isinstance(refused, SessionConflict)
    assert await session.get_items() == []
    assert await counters_hold(observer, session)
