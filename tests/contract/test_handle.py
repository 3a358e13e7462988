"""Opening, sharing and closing: who opens, closes."""

from __future__ import annotations

import asyncio
import gc
import secrets
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from agents_pg_session import PGSession, SessionClosed, SessionError, SessionStore, StorageUnavailable, sharing
from tests.conftest import Backend
from tests.items import user


async def test_a_session_on_a_borrowed_engine(backend: Backend, new_id: Callable[[], str]) -> None:
    """`PGSession("id", engine=engine)` works like the SDK's, and leaves the engine as it was."""
    engine = create_async_engine(backend.url)
    session = PGSession(new_id(), engine=engine, tenant="acme")
    await session.add_items([user("hi")])

    assert await session.get_items() == [user("hi")]
    assert session.engine is engine
    async with engine.begin() as connection:  # still transactional: our autocommit did not stick to its connections
        await connection.execute(text("SELECT 1"))
        assert await connection.run_sync(lambda sync: sync.get_isolation_level()) != "AUTOCOMMIT"
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


async def test_closing_a_borrowed_engine_is_a_no_op(backend: Backend, new_id: Callable[[], str]) -> None:
    """A handle owns nothing of yours: after `close()` engine and handle go on."""
    engine = create_async_engine(backend.url)
    async with PGSession(new_id(), engine=engine) as session, SessionStore(engine=engine) as store:
        await session.add_items([user("hi")])
    await session.close()

    assert await session.get_items() == [user("hi")]
    assert await store.session(session.session_id).get_items() == [user("hi")]
    await engine.dispose()


async def test_a_session_from_a_url(backend: Backend, new_id: Callable[[], str]) -> None:
    """`PGSession.from_url("id", url=…)` needs nothing else; closing it twice is fine."""
    async with PGSession.from_url(new_id(), url=backend.url, session_settings={"limit": 1}) as session:
        await session.add_items([user("1"), user("2")])
        assert await session.get_items() == [user("2")]

    await session.close()


async def test_a_closed_session_refuses_everything(backend: Backend, new_id: Callable[[], str]) -> None:
    """After `close()` every call raises `SessionClosed`, which is a RuntimeError; an empty append too."""
    session = PGSession.from_url(new_id(), url=backend.url)
    await session.add_items([user("hi")])
    await session.close()

    for use in (session.get_items(), session.get_items(limit=0), session.add_items([]), session.pop_item()):
        with pytest.raises(SessionClosed, match="was closed; open a new one"):
            await use
    with pytest.raises(RuntimeError):
        await session.clear_session()


async def test_a_closed_store_closes_its_sessions(backend: Backend, new_id: Callable[[], str]) -> None:
    """Handles of a store end with it."""
    store = SessionStore.open(backend.url)
    session = store.session(new_id())
    await session.close()
    await session.add_items([user("a handle of a store owns nothing")])
    await store.close()
    await store.close()

    with pytest.raises(SessionClosed):
        await session.get_items()
    with pytest.raises(SessionClosed):
        store.session("another")
    with pytest.raises(SessionClosed):
        _ = store.engine


async def test_handles_from_one_url_share_one_pool(backend: Backend, new_id: Callable[[], str]) -> None:
    """The pool is closed with the last handle that is, and not before."""
    first = PGSession.from_url(new_id(), url=backend.url)
    second = PGSession.from_url(first.session_id, url=backend.url)
    assert first.engine is second.engine

    await first.add_items([user("hi")])
    await first.close()
    assert await second.get_items() == [user("hi")]
    engine, pool = second.engine, second.engine.pool
    await second.close()

    assert engine.pool is not pool, "a disposed engine has a new pool"


async def test_different_settings_do_not_share(backend: Backend, new_id: Callable[[], str]) -> None:
    """Other engine settings mean another pool."""
    async with (
        PGSession.from_url(new_id(), url=backend.url) as first,
        PGSession.from_url(new_id(), url=backend.url, engine_kwargs={"pool_size": 2}) as second,
    ):
        assert first.engine is not second.engine
        assert second.engine.pool.size() == 2  # type: ignore[attr-defined]


def test_one_store_in_several_event_loops(backend: Backend, new_id: Callable[[], str]) -> None:
    """A store made from a URL works in one `asyncio.run` after the other, and in threads with loops of their own."""
    store, name = SessionStore.open(backend.url), new_id()

    async def append(message: str) -> None:
        await store.session(name).add_items([user(message)])

    for message in ("first loop", "second loop"):
        asyncio.run(append(message))
    threads = [threading.Thread(target=asyncio.run, args=(append(f"thread {number}"),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def read_and_close() -> int:
        count = len(await store.session(name).get_items())
        await store.close()
        return count

    assert asyncio.run(read_and_close()) == 6


def test_one_handle_in_several_event_loops(backend: Backend, new_id: Callable[[], str]) -> None:
    """A handle from a URL does not care which loop it was made in."""
    session = PGSession.from_url(new_id(), url=backend.url)

    async def append() -> int:
        await session.add_items([user("hi")])
        return len(await session.get_items())

    assert [asyncio.run(append()) for _ in range(3)] == [1, 2, 3]
    asyncio.run(session.close())


def test_a_borrowed_engine_in_a_second_loop(backend: Backend, new_id: Callable[[], str]) -> None:
    """On PostgreSQL the second loop is told what is wrong; disposing the engine in between makes it right."""
    engine = create_async_engine(backend.url)
    session = PGSession(new_id(), engine=engine)

    async def append(*, dispose: bool) -> None:
        await session.add_items([user("hi")])
        if dispose:
            await engine.dispose()

    if backend.name == "sqlite":
        asyncio.run(append(dispose=True))
        asyncio.run(append(dispose=True))
        return
    asyncio.run(append(dispose=True))
    asyncio.run(append(dispose=True))
    home = asyncio.new_event_loop()
    home.run_until_complete(append(dispose=False))
    with pytest.raises(SessionError, match="belongs to another event loop"):
        asyncio.run(append(dispose=False))
    home.run_until_complete(append(dispose=True))
    home.close()


def test_a_borrowed_engine_without_a_pool_in_any_loop(backend: Backend, new_id: Callable[[], str]) -> None:
    """`NullPool` belongs to no loop."""
    engine = create_async_engine(backend.url, poolclass=NullPool)
    session = PGSession(new_id(), engine=engine)

    asyncio.run(session.add_items([user("1")]))
    asyncio.run(session.add_items([user("2")]))

    assert asyncio.run(session.get_items()) == [user("1"), user("2")]


async def test_create_tables_with_the_first_use(tmp_path: Path, new_id: Callable[[], str]) -> None:
    """`create_tables=True` needs no migration: 25 first writers at once lose nothing."""
    url = f"sqlite:///{tmp_path / 'new.db'}"
    sessions = [PGSession.from_url("shared", url=url, create_tables=True) for _ in range(25)]

    await asyncio.gather(*(session.add_items([user(str(number))]) for number, session in enumerate(sessions)))

    assert len(await sessions[0].get_items()) == 25
    for session in sessions:
        await session.close()


async def test_a_file_is_tuned_for_many_readers_and_a_writer(tmp_path: Path) -> None:
    """Our own SQLite engines: readers do not wait, writers wait for each other, foreign keys count."""
    async with SessionStore.open(f"sqlite:///{tmp_path / 'new.db'}") as store:
        async with store.engine.connect() as connection:
            values = [
                (await connection.execute(text(f"PRAGMA {name}"))).scalar_one()
                for name in ("journal_mode", "busy_timeout", "foreign_keys")
            ]

        assert values == ["wal", 5000, 1]


async def test_a_database_in_memory(new_id: Callable[[], str]) -> None:
    """`sqlite://` works, for several tasks at once, and each store has its own."""
    async with SessionStore.open("sqlite://") as store, SessionStore.open("sqlite+aiosqlite:///:memory:") as other:
        await store.create_tables()
        await other.create_tables()
        session = store.session(new_id())
        await asyncio.gather(*(session.add_items([user(str(number))]) for number in range(20)))

        assert len(await session.get_items()) == 20
        assert await other.session(session.session_id).get_items() == []


def test_a_database_in_memory_outlives_its_loops(new_id: Callable[[], str]) -> None:
    """The second `asyncio.run` finds what the first one wrote."""
    session = PGSession.from_url(new_id(), url="sqlite://", create_tables=True)
    asyncio.run(session.add_items([user("hi")]))

    assert asyncio.run(session.get_items()) == [user("hi")]
    asyncio.run(session.close())


async def test_a_borrowed_engine_in_memory_serves_many_tasks(new_id: Callable[[], str]) -> None:
    """SQLAlchemy's in-memory engine has one connection for all: our transactions take turns on it."""
    engine = create_async_engine("sqlite+aiosqlite://")
    first, second = (PGSession("shared", engine=engine, create_tables=True) for _ in range(2))

    await asyncio.gather(*(each.add_items([user("x")]) for each in [first, second] * 10))
    await asyncio.gather(*(each.pop_item() for each in [first, second] * 3), second.get_items())

    assert len(await first.get_items()) == 14
    await engine.dispose()


async def test_a_dropped_handle_leaves_nothing_behind(backend: Backend, new_id: Callable[[], str]) -> None:
    """A thousand handles made and dropped without closing share one pool."""
    name, keeper = new_id(), PGSession.from_url(new_id(), url=backend.url)
    for number in range(50):
        await PGSession.from_url(name, url=backend.url).add_items([user(str(number))])
    gc.collect()

    assert len(await PGSession.from_url(name, url=backend.url).get_items()) == 50
    assert keeper.engine.pool.checkedin() == 1  # type: ignore[attr-defined]
    await keeper.close()


def test_a_borrowed_engine_in_memory_in_two_loops(new_id: Callable[[], str]) -> None:
    """The usual fixture of a test suite: one in-memory engine, several event loops, many tasks."""
    engine = create_async_engine("sqlite+aiosqlite://")
    session = PGSession(new_id(), engine=engine, create_tables=True)

    async def append() -> None:
        await asyncio.gather(*(session.add_items([user("hi")]) for _ in range(5)))

    asyncio.run(append())
    asyncio.run(append())

    assert len(asyncio.run(session.get_items())) == 10
    asyncio.run(engine.dispose())


async def test_a_cancelled_read_locks_nothing(new_id: Callable[[], str]) -> None:
    """A read cut short leaves no cursor behind that would keep writers out, in memory and in a file."""
    async with SessionStore.open("sqlite://", retry_for=2) as store:
        await store.create_tables()
        session = store.session(new_id())
        await session.add_items([user("x" * 1000)] * 200)
        for pauses in range(30):
            reading = asyncio.ensure_future(session.get_items())
            for _ in range(pauses):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await session.add_items([user("y")])

        assert len(await session.get_items()) == 230


async def test_a_failed_append_is_rolled_back_by_us(tmp_path: Path, sqlite_template: Path) -> None:
    """Whatever an engine does with connections that come back: the next append begins anew."""
    path = tmp_path / "sessions.db"
    shutil.copy(sqlite_template, path)
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", pool_size=1, max_overflow=0, pool_reset_on_return=None)
    session = PGSession("s", engine=engine)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TRIGGER no BEFORE INSERT ON items BEGIN SELECT RAISE(ABORT, 'no'); END"))
    with pytest.raises(SessionError, match=r"refused.*no"):
        await session.add_items([user("1")])
    async with engine.begin() as connection:
        await connection.execute(text("DROP TRIGGER no"))
    await session.add_items([user("2")])

    assert await session.get_items() == [user("2")]
    await engine.dispose()


@pytest.mark.parametrize(
    "engine_kwargs", [{"isolation_level": "READ COMMITTED"}, {"execution_options": {"isolation_level": "SERIALIZABLE"}}]
)
def test_an_isolation_level_is_refused(backend: Backend, engine_kwargs: dict[str, object]) -> None:
    """Each call is one statement in autocommit: another level would leave it uncommitted."""
    with pytest.raises(ValueError, match="engine_kwargs cannot set an isolation_level"):
        SessionStore.open(backend.url, engine_kwargs=engine_kwargs)


async def test_subclasses_are_constructed(backend: Backend, new_id: Callable[[], str]) -> None:
    """`from_url` on a subclass calls its constructor, with arguments of its own."""

    class Mine(PGSession):
        def __init__(self, session_id: str, *, color: str = "red", **kwargs: Any) -> None:
            super().__init__(session_id, **kwargs)
            self.color = color

    async with Mine.from_url(new_id(), url=backend.url, color="blue", tenant="acme") as mine:
        await mine.add_items([user("hi")])

        assert (type(mine), mine.color, mine.tenant) == (Mine, "blue", "acme")
        assert await mine.get_items() == [user("hi")]


async def test_an_object_in_the_settings_leaks_no_pool(backend: Backend, new_id: Callable[[], str]) -> None:
    """A callback made anew for each request means a pool of its own, which goes with its last handle."""
    name = new_id()
    for number in range(5):
        kwargs = {"json_serializer": lambda value: str(value)}
        await PGSession.from_url(name, url=backend.url, engine_kwargs=kwargs).add_items([user(str(number))])
        gc.collect()

    assert len(await PGSession.from_url(name, url=backend.url).get_items()) == 5
    assert not [key for key in sharing._pooled if "json_serializer" in str(key)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"session_id": ""}, "session_id must not be empty"),
        ({"session_id": "a\0b"}, "session_id must not contain NUL"),
        ({"session_id": "\ud800"}, "session_id must not contain a lone surrogate"),
        ({"session_id": "é" * 257}, "session_id must be at most 512 bytes of UTF-8, not 514"),
        ({"session_id": 5}, "session_id must be a string, not int"),
        ({"session_id": "s", "tenant": "\0"}, "tenant must not contain NUL"),
        ({"session_id": "s", "tenant": None}, "tenant must be a string, not NoneType"),
        ({"session_id": "s", "agent": "x" * 513}, "agent must be at most 512 bytes"),
        ({"session_id": "s", "user_id": "\0"}, "user_id must not contain NUL"),
        ({"session_id": "s", "metadata": {"a": float("nan")}}, r'metadata\["a"\] is NaN'),
        ({"session_id": "s", "metadata": {"a": ["\0"]}}, "metadata contains NUL"),
        ({"session_id": "s", "metadata": [1]}, "metadata must be a dict, not list"),
        ({"session_id": "s", "session_settings": 5}, "session_settings must be SessionSettings or a dict, not int"),
    ],
)
async def test_what_cannot_be_an_id_is_refused_at_once(wrong: dict[str, object], message: str) -> None:
    """A handle that could never work is not made."""
    async with SessionStore.open("sqlite://") as store:
        with pytest.raises(ValueError, match=message):
            store.session(**wrong)  # type: ignore[arg-type]


async def test_the_longest_ids_work(store: SessionStore) -> None:
    """512 bytes each is what the key columns are built for, incompressible ones too."""
    longest = secrets.token_hex(256)
    session = store.session(longest, tenant=longest, agent=longest, user_id=longest)
    await session.add_items([user("hi")])

    assert await session.get_items() == [user("hi")]


async def test_an_unreachable_database_is_an_error_not_an_empty_history(new_id: Callable[[], str]) -> None:
    """Reads and writes fail loudly after the budget, naming the place and never the password."""
    url = "postgresql://somebody:hunter2@127.0.0.1:9/nowhere"
    async with SessionStore.open(url, retry_for=0.3) as store:
        session = store.session(new_id())
        with pytest.raises(StorageUnavailable, match=r"127\.0\.0\.1:9/nowhere was unavailable for 0.3 s") as read:
            await session.get_items()
        with pytest.raises(StorageUnavailable, match="nothing was written") as write:
            await session.add_items([user("hi")])

    assert "hunter2" not in f"{read.value!r} {write.value!r} {store!r} {session!r}"


async def test_a_missing_schema_names_the_command(tmp_path: Path, new_id: Callable[[], str]) -> None:
    """Without tables the error says what to run."""
    async with SessionStore.open(f"sqlite:///{tmp_path / 'empty.db'}") as store:
        with pytest.raises(SessionError, match=r"no such table.*agents-pg-session db upgrade"):
            await store.session(new_id()).add_items([user("hi")])
