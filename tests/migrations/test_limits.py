"""What a role or a database sets against an application's statements does not end an upgrade, and refusals say more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest
from sqlalchemy import make_url

from agents_pg_session import SessionError, SessionStore, StorageUnavailable
from agents_pg_session.migrations import upgrade
from agents_pg_session.testing.pgbouncer import PgBouncer
from tests.items import user
from tests.migrations.actions import execute
from tests.migrations.catalog import difference, of_postgres

LIMITS = ("statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout")

#: An index build that has waited for longer than any limit would let it.
STUCK = """
    SELECT pid FROM pg_stat_activity
     WHERE datname = current_database() AND query LIKE '%INDEX CONCURRENTLY%' AND wait_event = 'virtualxid'
       AND clock_timestamp() - query_start > interval '300 ms'
    """


@pytest.fixture(scope="module")
def template(new_database: Callable[..., str]) -> str:
    url = new_database()
    upgrade(url, revision="0002")
    return url


@pytest.fixture
def database(template: str, new_database: Callable[..., str]) -> str:
    """A database at the revision before the indexes, with 100 ms for everything that an application may do."""
    url = new_database(like=make_url(template).database)
    limits = [*LIMITS, "transaction_timeout"]
    asyncio.run(execute(url, *(f'ALTER DATABASE "{make_url(url).database}" SET {name} = 100' for name in limits)))
    return url


@pytest.fixture
async def reader(database: str) -> AsyncIterator[asyncpg.Connection]:
    """Somebody with an old snapshot, and without limits: no index can be finished before they end."""
    none = dict.fromkeys([*LIMITS, "transaction_timeout"], "0")
    connection = await asyncpg.connect(database, server_settings=none)
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    await connection.fetch("SELECT count(*) FROM agents.events")
    yield connection
    await connection.close()


def over(url: str, driver: str) -> str:
    return make_url(url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_no_limit_of_a_role_ends_the_build_of_an_index(
    database: str, postgres_url: str, reader: asyncpg.Connection, driver: str
) -> None:
    """An index that takes longer than every timeout of the role or the database is built, and the rest of them too."""
    upgrading = asyncio.create_task(asyncio.to_thread(upgrade, over(database, driver)))
    async with asyncio.timeout(60):
        while not upgrading.done() and not await execute(database, STUCK):
            await asyncio.sleep(0.02)
    await reader.close()
    await upgrading

    assert difference(await of_postgres(database), await of_postgres(postgres_url)) == {}


async def test_behind_a_pooler_the_limit_is_named_and_the_upgrade_goes_on(
    database: str, postgres_url: str, reader: asyncpg.Connection, pgbouncer: Callable[[str], PgBouncer]
) -> None:
    """Where a setting would stay with somebody else's connection, a limit ends the build; the error says which to
    raise, nobody's connection was changed, and the same command goes on.
    """
    name = str(make_url(database).database)
    await execute(
        database, f'ALTER DATABASE "{name}" RESET ALL', f'ALTER DATABASE "{name}" SET statement_timeout = 100'
    )
    pooled = pgbouncer("tracking").url(name, "postgresql")
    with pytest.raises(SessionError, match=r"57014.*ALTER ROLE … SET statement_timeout"):
        await asyncio.to_thread(upgrade, pooled)
    left = [await execute(pooled, "SHOW statement_timeout") for _ in range(6)]
    await reader.close()
    await asyncio.to_thread(upgrade, pooled)

    assert left == [[("100ms",)]] * 6
    assert difference(await of_postgres(database), await of_postgres(postgres_url)) == {}


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_lost_connection_is_what_is_told(database: str, reader: asyncpg.Connection, driver: str) -> None:
    """An upgrade whose connection ended under the build of an index says so, and not what came of it."""
    upgrading = asyncio.create_task(asyncio.to_thread(upgrade, over(database, driver)))
    async with asyncio.timeout(60):
        while not (stuck := await execute(database, STUCK)):
            await asyncio.sleep(0.02)
    await execute(database, f"SELECT pg_terminate_backend({stuck[0][0]})")

    with pytest.raises(StorageUnavailable, match=r"said no: (ConnectionDoesNotExistError|AdminShutdown 57P01)"):
        await upgrading


async def test_a_server_that_only_reads_is_named(database: str) -> None:
    """An upgrade of a standby, or of what is read only, says to give the primary's URL."""
    await execute(database, f'ALTER DATABASE "{make_url(database).database}" SET default_transaction_read_only = on')

    with pytest.raises(StorageUnavailable, match=r"25006.*give the URL of the primary"):
        await asyncio.to_thread(upgrade, database)


async def test_a_role_without_rights_is_told_where_they_are(migrated: str) -> None:
    """A role that may not read or write is told of the command that prints its rights, by upgrades and by verbs."""
    name = f"nobody_{make_url(migrated).database}"
    await execute(migrated, f'CREATE ROLE "{name}" LOGIN')
    url = make_url(migrated).set(username=name).render_as_string(hide_password=False)
    try:
        with pytest.raises(SessionError, match=r"42501.*`agents-pg-session db grants`"):
            await asyncio.to_thread(upgrade, url)
        async with SessionStore.open(url) as store:
            with pytest.raises(SessionError, match=r"42501.*`agents-pg-session db grants`"):
                await store.session("s").add_items([user("hi")])
    finally:
        await execute(migrated, f'DROP ROLE "{name}"')


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_verb_whose_time_a_role_limits_says_so(migrated: str, driver: str) -> None:
    """A verb that the server ends again and again is tried within its budget; the error names the limit."""
    async with SessionStore.open(migrated) as store:
        await store.session("s").add_items([user("one")])
    await execute(migrated, f'ALTER DATABASE "{make_url(migrated).database}" SET statement_timeout = 50')
    holder = await asyncpg.connect(migrated)
    await holder.execute("BEGIN")
    await holder.execute("SELECT FROM agents.sessions FOR UPDATE")
    async with SessionStore.open(over(migrated, driver), retry_for=0.4) as store:
        with pytest.raises(StorageUnavailable, match=r"for 0.4 s .*57014.*ALTER ROLE … SET statement_timeout"):
            await store.session("s").add_items([user("two")])
        await holder.execute("ROLLBACK")
        await holder.close()
