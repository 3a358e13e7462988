"""Any name PostgreSQL takes is a good schema; it is quoted everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from sqlalchemy import make_url

from agents_pg_session import SessionStore
from agents_pg_session.migrations import main as migrate
from tests.migrations.actions import create_tables, execute, use
from tests.migrations.catalog import difference, of_postgres

NAMES = ['Weird " schema; DROP', "per%cent%s", "colon:name", "emoji🎉", "UPPER", "public", "do.t", "{brace}", "x" * 63]
BAD_NAMES = ["", "nul\0", "x" * 64, "ä" * 32]


@pytest.fixture(scope="module")
def database(migrated_database: Callable[[], str]) -> str:
    """One database for all names: each gets a schema of its own in it."""
    return migrated_database()


@pytest.mark.parametrize("name", NAMES)
def test_a_migrated_schema_works(database: str, name: str) -> None:
    """`upgrade head` into any schema gives the usual catalog, and sessions over asyncpg work in it."""
    migrate(["-x", f"url={database}", "-x", f"schema={name}", "upgrade", "head"])

    asyncio.run(use(database, name))
    assert difference(asyncio.run(of_postgres(database)), asyncio.run(of_postgres(database, name))) == {}
    migrate(["-x", f"url={database}", "-x", f"schema={name}", "downgrade", "base"])


@pytest.mark.parametrize("name", NAMES)
async def test_a_created_schema_works(database: str, name: str) -> None:
    """`create_tables` into any schema gives the usual catalog, and sessions over psycopg work in it."""
    await execute(database, 'DROP SCHEMA IF EXISTS "{}" CASCADE'.format(name.replace('"', '""')))
    url = make_url(database).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    await create_tables(url, name)

    await use(url, name)
    assert difference(await of_postgres(database), await of_postgres(database, name)) == {}


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_postgres_would_cut_or_refuse_is_refused(name: str) -> None:
    """PostgreSQL cuts a name after 63 bytes without an error: two schemas could become one."""
    with pytest.raises(ValueError, match="1 to 63 bytes without NUL"):
        SessionStore.open("postgresql://nobody@127.0.0.1:1/nowhere", schema=name)


@pytest.mark.parametrize("name", BAD_NAMES[1:])
@pytest.mark.parametrize("offline", [[], ["--sql"]])
def test_the_migrations_refuse_the_same_names(
    database: str, name: str, offline: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A migration never goes into another schema than the one asked for."""
    with pytest.raises(SystemExit):
        migrate(["-x", f"url={database}", "-x", f"schema={name}", "upgrade", "head", *offline])

    assert "1 to 63 bytes without NUL" in capsys.readouterr().out
