"""`sessions tail`: nothing is skipped, nothing is told twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from agents_pg_session import Event, SessionNotFound, SessionStore, StoredItem
from agents_pg_session.operations import following
from agents_pg_session.operations.following import Told, follow
from agents_pg_session.testing.proxy import Proxy
from tests.cli.conftest import Cli
from tests.cli.processes import running
from tests.cli.writing import append
from tests.items import assistant, user
from tests.postgres.conftest import proxied_url, proxy

__all__ = ["proxied_url", "proxy"]

INTERVAL = 0.02


async def first(following: AsyncIterator[Told], count: int) -> list[Told]:
    """Return the next *count* things that are told."""
    async with asyncio.timeout(30):
        return [await anext(following) for _ in range(count)]


def places(told: list[Told], kind: type = StoredItem) -> list[int]:
    return [each.what.position if isinstance(each.what, StoredItem) else each.what.event_id for each in told
            if isinstance(each.what, kind)]  # fmt: skip


async def test_each_item_and_event_once_under_concurrent_writers(
    store: SessionStore, new_id: Callable[[], str]
) -> None:
    """Eight writers, two hundred items and as many events: each is told once, in the order of the positions."""
    name = new_id()
    await store.session(name).add_items([user("first")])

    async def write(number: int) -> None:
        for each in range(25):
            await store.session(name).add_items([assistant(f"{number}/{each}")])
            await store.session(name).events.record("noted", {"by": number})

    async with aclosing(follow(store, name, newest=1, interval=INTERVAL)) as told:
        begun = await first(told, 1)
        writing = asyncio.gather(*(write(number) for number in range(8)))
        rest = await first(told, 400)
        await writing

    assert places(begun + rest) == list(range(1, 202))
    assert places(rest, Event) == list(range(1, 201))


async def test_it_begins_with_the_last_few(store: SessionStore, new_id: Callable[[], str]) -> None:
    """-n is how many of what is there are told first; with none, only what comes."""
    name = new_id()
    await store.session(name).add_items([user(str(number)) for number in range(30)])
    async with aclosing(follow(store, name, newest=3, interval=INTERVAL)) as told:
        assert places(await first(told, 3)) == [28, 29, 30]
    async with aclosing(follow(store, name, newest=0, interval=INTERVAL)) as told:
        waiting = asyncio.ensure_future(first(told, 1))
        await asyncio.sleep(0)
        await store.session(name).add_items([user("new")])
        while not waiting.done():  # the item may have come before it looked: then another one comes
            await asyncio.wait([waiting], timeout=0.5)
            await store.session(name).add_items([user("newer")])

        assert places(await waiting)[0] > 30


async def test_a_session_that_begins_anew_is_told_anew(store: SessionStore, new_id: Callable[[], str]) -> None:
    """After a delete the next session of that id is told from its beginning, with the same positions again."""
    name = new_id()
    await store.session(name).add_items([user("old")])
    async with aclosing(follow(store, name, newest=5, interval=INTERVAL)) as told:
        [old] = await first(told, 1)
        await store.session(name).delete()
        await store.session(name).add_items([user("new")])
        [new] = await first(told, 1)

    assert (places([old]), places([new])) == ([1], [1])
    assert isinstance(new.what, StoredItem)
    assert new.what.text == "new"


async def test_what_was_popped_does_not_hold_it_up(store: SessionStore, new_id: Callable[[], str]) -> None:
    """A popped item is told by its event, and the next item by its own position."""
    name = new_id()
    session = store.session(name)
    await session.add_items([user("a")])
    async with aclosing(follow(store, name, newest=1, interval=INTERVAL)) as told:
        await first(told, 1)
        await session.add_items([user("b")])
        await first(told, 1)
        await session.pop_item()
        [popped] = await first(told, 1)
        await session.add_items([user("c")])
        [after] = await first(told, 1)

    assert isinstance(popped.what, Event)
    assert popped.what.kind == "item_popped"
    assert places([after]) == [3]


async def test_all_sessions_of_a_tenant(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Without a session, those of the tenant are followed: old ones go on, new ones are told from their beginning, and
    other tenants' are not there."""
    tenant = new_id()
    await store.session("old", tenant=tenant).add_items([user("1"), user("2")])
    async with aclosing(follow(store, tenant=tenant, newest=1, interval=INTERVAL)) as told:
        begun = await first(told, 1)
        await store.session("stranger", tenant=new_id()).add_items([user("x")])
        await store.session("new", tenant=tenant).add_items([user("a"), user("b")])
        new = await first(told, 2)
        await store.session("old", tenant=tenant).add_items([assistant("3")])
        old = await first(told, 1)

    assert [(each.session_id, *places([each])) for each in (*begun, *new, *old)] == [
        ("old", 2), ("new", 1), ("new", 2), ("old", 3),
    ]  # fmt: skip


async def test_an_old_session_taken_up_again(
    store: SessionStore, new_id: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that was not among those followed is told from where it goes on, not from its beginning."""
    monkeypatch.setattr(following, "FOLLOWED", 2)
    tenant = new_id()
    for name in ("forgotten", "a", "b"):
        await store.session(name, tenant=tenant).add_items([user("long ago")])
    async with aclosing(follow(store, tenant=tenant, newest=0, interval=INTERVAL)) as told:
        waiting = asyncio.ensure_future(first(told, 1))
        while not (look := await store.sessions(tenant=tenant)) or len(look) < 3:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        await store.session("forgotten", tenant=tenant).add_items([user("again")])
        [again] = await waiting

    assert again.session_id == "forgotten"
    assert places([again]) == [2]


async def test_a_database_that_is_away_is_waited_for(proxied_url: str, proxy: Proxy, new_id: Callable[[], str]) -> None:
    """It says once that the database is away and once that it is back, and tells what came meanwhile, once."""
    said: list[str] = []
    async with SessionStore.open(proxied_url, retry_for=0.2) as store:
        session = store.session(new_id())
        await session.add_items([user("a")])
        async with aclosing(follow(store, session.session_id, newest=1, notice=said.append, interval=INTERVAL)) as told:
            await first(told, 1)
            waiting = asyncio.ensure_future(first(told, 2))
            proxy.refusing = True
            proxy.cut_all()
            while not said:
                await asyncio.sleep(0.02)
            proxy.refusing = False
            await session.add_items([user("b"), user("c")])
            came = await waiting

    assert places(came) == [2, 3]
    assert [each.rpartition("; ")[2] for each in said] in (["still trying"], ["still trying", "the database is back"])


async def test_a_session_that_is_not_there(store: SessionStore, new_id: Callable[[], str]) -> None:
    """To follow what nobody has begun is an error at once: the id may be mistyped."""
    with pytest.raises(SessionNotFound):
        await first(follow(store, new_id()), 1)


def test_a_program_follows_line_by_line_until_it_is_interrupted(file: Cli, tmp_path: Path) -> None:
    """With --json each line is an object and is there at once; Ctrl-C is how it ends, without an error."""
    asyncio.run(append(file, "s", [user("one")]))
    arguments = ("sessions", "tail", "s", "--json", "--interval", "0.05")
    with running(arguments, {"AGENTS_PG_URL": str(file.url)}, tmp_path / "said") as process:
        lines = wait_for_lines(tmp_path / "said.out", 2)
        asyncio.run(append(file, "s", [assistant("two")]))
        lines = wait_for_lines(tmp_path / "said.out", 3)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join(60)

        assert process.exitcode == 0
    told = [json.loads(line) for line in lines]
    assert [list(each)[2] for each in told] == ["event", "item", "event", "item"]
    assert [each["item"]["item"]["content"] for each in told if "item" in each] == ["one", "two"]
    assert (tmp_path / "said.err").read_text() == ""


def wait_for_lines(path: Path, count: int) -> list[str]:
    until = time.monotonic() + 60
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.02)
    return path.read_text().splitlines()


def test_lines_for_a_person(file: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line per thing: when, in which session, who, what; as long as the terminal is wide."""

    async def once(*arguments: Any, **options: Any) -> AsyncIterator[Told]:
        async with aclosing(follow(*arguments, **options)) as told:
            for each in await first(told, 4):
                yield each

    monkeypatch.setattr("agents_pg_session.cli.sessions.follow", once)
    asyncio.run(append(file, "s", [user("x" * 200), assistant("line\nbreak")], agent="Support"))
    asyncio.run(append(file, "t", [user("hi")]))
    lines = file("sessions", "tail", width=80).out.splitlines()

    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    assert next(line.split()[1:3] for line in lines if "run started" not in line) == ["s", "user"]
    assert any(line.endswith("line break") for line in lines)
