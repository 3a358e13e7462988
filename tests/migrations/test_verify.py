"""`verify=True`: no pod serves on a schema that is behind or unknown, and one that waits for its migration comes up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from agents_pg_session import SchemaOutdated, SessionClosed, SessionStore, StorageUnavailable
from agents_pg_session.migrations import main as migrate
from agents_pg_session.schema import newest_revision
from agents_pg_session.tables import SUPPORT_VIEW, VERSION_TABLE
from tests.items import user
from tests.migrations.actions import execute, execute_sqlite
from tests.overheard import overheard

BACKENDS = ("asyncpg", "psycopg", "sqlite")
NEWER = f"UPDATE agents.{VERSION_TABLE} SET version_num = '9999'"
NO_LONGER_SERVED = (
    NEWER,
    f"DROP VIEW agents.{SUPPORT_VIEW}",
    f"CREATE VIEW agents.{SUPPORT_VIEW} AS SELECT CAST('9999' AS text) AS oldest_revision",
)
NOBODY_THERE = "postgresql://somebody:5ecret@127.0.0.1:1/nowhere"

#: What may come first of all on a store: each asks, or writes.
FIRST: dict[str, Callable[[SessionStore], Awaitable[object]]] = {
    "append": lambda store: store.session("s").add_items([user("hi")]),
    "read": lambda store: store.session("s").get_items(),
    "pop": lambda store: store.session("s").pop_item(),
    "clear": lambda store: store.session("s").clear_session(),
    "delete": lambda store: store.session("s").delete(),
    "record": lambda store: store.session("s").events.record("noted"),
    "lease": lambda store: store.session("s").exclusive(wait=0).__aenter__(),
    "list": lambda store: store.sessions(),
    "usage": lambda store: store.usage(by="agent"),
}


def checked_out(store: SessionStore) -> int:
    """How many connections are in use."""
    count: int = store.engine.pool.checkedout()  # type: ignore[attr-defined]
    return count


def over(url: str, driver: str) -> str:
    return make_url(url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)


@pytest.fixture(params=BACKENDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with nothing in it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    return over(request.getfixturevalue("empty"), request.param)


async def test_a_missing_schema_is_refused_before_the_block(place: str) -> None:
    """`async with` raises what `check` raises, with the command to run, and its block never begins."""
    store, begun = SessionStore.open(place, verify=True), False
    with pytest.raises(SchemaOutdated, match="missing; run `"):
        async with store:
            begun = True

    assert not begun
    with pytest.raises(SessionClosed):
        await store.sessions()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_refused_pod_leaves_no_connection_behind(empty: str, driver: str) -> None:
    """What the look took is closed at the server too: nobody would ever close that store."""
    name = f"refused-{driver}"
    with pytest.raises(SchemaOutdated):
        async with SessionStore.open(f"{over(empty, driver)}?application_name={name}", verify=True):
            pass

    left = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'"
    async with asyncio.timeout(10):
        while await execute(empty, left) != [(0,)]:  # the server learns of it a moment later
            await asyncio.sleep(0.02)


async def test_a_revision_behind_is_refused(empty: str) -> None:
    """New code does not start on the schema of the release before."""
    await asyncio.to_thread(migrate, ["-x", f"url={empty}", "upgrade", "0001"])

    with pytest.raises(SchemaOutdated, match=f"at revision 0001, this version needs {newest_revision()}"):
        async with SessionStore.open(empty, verify=True):
            raise AssertionError("it has begun")


async def test_an_unknown_revision_is_refused(migrated: str, sqlite_file: Path) -> None:
    """Nor does any code on a schema that it has never heard of and that does not say to serve it."""
    await execute(migrated, *NO_LONGER_SERVED)
    execute_sqlite(sqlite_file, ";".join(NO_LONGER_SERVED).replace("agents.", ""))

    for url in (migrated, f"sqlite:///{sqlite_file}"):
        with pytest.raises(SchemaOutdated, match="9999, which this version does not know"):
            async with SessionStore.open(url, verify=True):
                raise AssertionError("it has begun")


async def test_a_newer_schema_that_serves_this_version_is_good(migrated: str, sqlite_file: Path) -> None:
    """A pod of the release before that restarts between the upgrade and the roll-out comes up."""
    await execute(migrated, NEWER)
    execute_sqlite(sqlite_file, NEWER.replace("agents.", ""))

    for url in (migrated, f"sqlite:///{sqlite_file}"):
        async with SessionStore.open(url, verify=True) as store:
            await store.session("s").add_items([user("hi")])


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_database_that_is_away_is_refused_within_the_budget(driver: str) -> None:
    """Nobody answers: `StorageUnavailable` comes when `retry_for` is over, at the door and from the first verb."""
    url = over(NOBODY_THERE, driver)
    with pytest.raises(StorageUnavailable, match=r"unavailable for 0\.3 s"):
        async with SessionStore.open(url, verify=True, retry_for=0.3):
            raise AssertionError("it has begun")
    store = SessionStore.open(url, verify=True, retry_for=0.3)
    began = asyncio.get_running_loop().time()
    with pytest.raises(StorageUnavailable, match=r"unavailable for 0\.3 s"):
        await store.session("s").get_items()

    assert asyncio.get_running_loop().time() - began < 3
    assert checked_out(store) == 0
    await store.close()


@pytest.mark.parametrize("first", FIRST)
async def test_the_first_verb_looks_before_anything_is_sent(migrated: str, first: str) -> None:
    """Without `async with`, whatever comes first raises, and the server has heard none of it."""
    await execute(migrated, *NO_LONGER_SERVED)
    store = SessionStore.open(migrated, verify=True)
    with overheard(store) as heard, pytest.raises(SchemaOutdated, match="9999"):
        await FIRST[first](store)

    assert heard == []
    assert checked_out(store) == 0
    await store.close()


async def test_a_pod_that_waits_for_its_migration_comes_up(place: str) -> None:
    """A look that failed is repeated by the next verb: after the upgrade the same store works, without a restart."""
    store = SessionStore.open(place, verify=True)
    with overheard(store) as heard:
        for _ in range(2):
            with pytest.raises(SchemaOutdated):
                await store.session("s").add_items([user("too early")])
    await asyncio.to_thread(migrate, ["-x", f"url={place}", "upgrade", "head"])
    await store.session("s").add_items([user("hi")])

    assert heard == []
    assert await store.session("s").get_items() == [user("hi")]
    assert checked_out(store) == 0
    await store.close()


async def test_one_look_is_enough(place: str) -> None:
    """Once a store knows that the schema fits, no verb of it and no later loop asks again."""
    await asyncio.to_thread(migrate, ["-x", f"url={place}", "upgrade", "head"])
    async with SessionStore.open(place, verify=True) as store:
        looks = counting(store)
        await store.session("s").add_items([user("hi")])
        await store.sessions()
        await asyncio.to_thread(lambda: asyncio.run(read_elsewhere(store)))

        assert looks == []


async def test_first_verbs_at_once_all_work(place: str) -> None:
    """Forty callers that come first together may look more than once; none is refused."""
    await asyncio.to_thread(migrate, ["-x", f"url={place}", "upgrade", "head"])
    store = SessionStore.open(place, verify=True)
    looks = counting(store)
    await asyncio.gather(*(store.session(f"s{number}").add_items([user("hi")]) for number in range(40)))

    assert 1 <= len(looks) <= 40
    assert len(await store.sessions(limit=100)) == 40
    assert checked_out(store) == 0
    await store.close()


async def test_without_it_nothing_is_looked_at(migrated: str) -> None:
    """The default asks nothing of the database, neither at the door nor at the first verb."""
    async with SessionStore.open(migrated) as store:
        looks = counting(store)
        with overheard(store) as heard:
            await store.session("s").get_items()

        assert (looks, len(heard)) == ([], 1)


async def test_a_borrowed_engine_is_looked_at_and_left_open(empty: str) -> None:
    """With your engine the same holds; refused, the store works on once the tables are there."""
    engine = create_async_engine(over(empty, "asyncpg"))
    store = SessionStore(engine=engine, verify=True)
    with pytest.raises(SchemaOutdated):
        async with store:
            raise AssertionError("it has begun")
    await store.create_tables()
    async with store:
        await store.session("s").add_items([user("hi")])

    assert checked_out(store) == 0
    await engine.dispose()


async def test_tables_can_be_created_through_a_store_that_verifies(tmp_path: Path) -> None:
    """`create_tables` is what mends the schema, so it does not ask for it first."""
    store = SessionStore.open(f"sqlite:///{tmp_path / 'new.db'}", verify=True)
    await store.create_tables()
    await store.session("s").add_items([user("hi")])

    assert (await store.check()).revision == newest_revision()
    await store.close()


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_only_true_and_false_are_answers(value: Any) -> None:
    """A setting read from a file as a word is refused rather than taken for a yes."""
    with pytest.raises(ValueError, match="verify must be True or False"):
        SessionStore.open(NOBODY_THERE, verify=value)


def counting(store: SessionStore) -> list[str]:
    """Note each transaction of this store that looks at the schema."""
    looks: list[str] = []
    database: Any = store._database
    transaction = database.transaction

    async def noted(verb: str, *arguments: Any, **options: Any) -> Any:
        looks.append(verb)
        return await transaction(verb, *arguments, **options)

    database.transaction = noted
    return looks


async def read_elsewhere(store: SessionStore) -> None:
    """Use the store in the event loop of another thread."""
    assert await store.session("s").get_items() == [user("hi")]
