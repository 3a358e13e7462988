"""`create_tables` stamps what it makes, and `check` says what a database lacks and what to run."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from pathlib import Path

import pytest

from agents_pg_session import SchemaOutdated, SessionStore, StorageUnavailable
from agents_pg_session.migrations import main as migrate
from agents_pg_session.schema import newest_revision
from agents_pg_session.tables import SUPPORT_VIEW, TABLES, VERSION_TABLE, VIEWS
from tests.migrations.actions import check, create_tables, execute, execute_sqlite, use
from tests.migrations.catalog import of_postgres, of_sqlite

UPGRADE = (
    "run `agents-pg-session db upgrade` (without the extra cli: `python -m agents_pg_session.migrations upgrade head`)"
)
STAMP = "run `python -m agents_pg_session.migrations stamp head`"


def serves(revision: str) -> str:
    """What a revision says that contracts: only code that knows *revision* may go on."""
    return f"CREATE OR REPLACE VIEW agents.{SUPPORT_VIEW} AS SELECT CAST('{revision}' AS text) AS oldest_revision"


def test_upgrading_created_tables_changes_nothing(empty: str) -> None:
    """After `create_tables`, `upgrade head` succeeds and finds nothing to do."""
    asyncio.run(create_tables(empty))
    before = asyncio.run(of_postgres(empty))
    migrate(["-x", f"url={empty}", "upgrade", "head"])

    assert asyncio.run(of_postgres(empty)) == before


def test_upgrading_a_created_sqlite_file_changes_nothing(tmp_path: Path) -> None:
    """The same on SQLite."""
    path = tmp_path / "created.db"
    asyncio.run(create_tables(f"sqlite:///{path}"))
    before = of_sqlite(path)
    migrate(["-x", f"url=sqlite:///{path}", "upgrade", "head"])

    assert of_sqlite(path) == before


async def test_creating_tables_that_are_there_changes_nothing(migrated: str) -> None:
    """`create_tables` on a migrated database leaves it as it is."""
    before = await of_postgres(migrated)
    await create_tables(migrated)

    assert await of_postgres(migrated) == before


async def test_a_database_of_a_newer_package_is_left_alone(migrated: str) -> None:
    """A newer revision that does not serve this code: `create_tables` and `check` say so, and change nothing."""
    await execute(migrated, f"UPDATE agents.{VERSION_TABLE} SET version_num = '9999'", serves("9999"))
    before = await of_postgres(migrated)
    says = "the database is at revision 9999, which this version does not know .* upgrade the package"

    for act in (create_tables, check):
        with pytest.raises(SchemaOutdated, match=says):
            await act(migrated)
    assert await of_postgres(migrated) == before


async def test_a_newer_database_without_a_table_of_ours_is_left_alone(migrated: str) -> None:
    """A newer revision may have dropped a table: that is no reason to make it again."""
    await execute(
        migrated, f"UPDATE agents.{VERSION_TABLE} SET version_num = '9999'", "DROP TABLE agents.items CASCADE"
    )

    with pytest.raises(SchemaOutdated, match=r"^agents\.items, .* are missing, although .* revision 9999"):
        await create_tables(migrated)
    await execute(migrated, serves("9999"))
    with pytest.raises(SchemaOutdated, match="revision 9999, which this version does not know"):
        await create_tables(migrated)
    assert await execute(migrated, "SELECT to_regclass('agents.items')") == [(None,)]


@pytest.mark.parametrize("oldest", ["0001", newest_revision()])
async def test_code_goes_on_on_a_newer_schema_that_serves_it(migrated: str, oldest: str) -> None:
    """In a rolling deploy, processes of the release before open, check and work: the database is ahead of them."""
    await execute(migrated, f"UPDATE agents.{VERSION_TABLE} SET version_num = '9999'", serves(oldest))
    before = await of_postgres(migrated)
    await create_tables(migrated)
    await use(migrated)

    assert (await check(migrated)).revision == "9999"
    assert await of_postgres(migrated) == before


async def test_code_goes_on_on_a_newer_sqlite_file_that_serves_it(sqlite_file: Path) -> None:
    """The same on SQLite."""
    execute_sqlite(sqlite_file, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    await create_tables(f"sqlite:///{sqlite_file}")

    assert (await check(f"sqlite:///{sqlite_file}")).revision == "9999"


async def test_a_newer_schema_that_does_not_say_whom_it_serves_is_refused(migrated: str) -> None:
    """Without the view that says so, nobody guesses."""
    await execute(
        migrated, f"UPDATE agents.{VERSION_TABLE} SET version_num = '9999'", f"DROP VIEW agents.{SUPPORT_VIEW}"
    )

    for act in (create_tables, check):
        with pytest.raises(SchemaOutdated, match="does not serve it any more; upgrade the package"):
            await act(migrated)


def test_upgrading_a_newer_database_says_to_upgrade_the_package(
    migrated: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An older pipeline that comes late is told what is wrong, and changes nothing."""
    asyncio.run(execute(migrated, f"UPDATE agents.{VERSION_TABLE} SET version_num = '9999'"))
    before = asyncio.run(of_postgres(migrated))
    with pytest.raises(SystemExit):
        migrate(["-x", f"url={migrated}", "upgrade", "head"])

    assert "revision 9999, which this version does not know" in capsys.readouterr().out
    assert asyncio.run(of_postgres(migrated)) == before


async def test_a_dropped_table_is_named(migrated: str) -> None:
    """Where a table is gone, `create_tables` and `check` name it, and do not promise that an upgrade helps."""
    await execute(migrated, "DROP TABLE agents.items CASCADE")

    for act in (create_tables, check):
        with pytest.raises(SchemaOutdated, match=r"^agents\.items, .*tool_run_details are missing.*restore a backup"):
            await act(migrated)


async def test_a_missing_view_is_named(migrated: str) -> None:
    """`check` looks at the views too."""
    await execute(migrated, "DROP VIEW agents.session_summary")

    with pytest.raises(SchemaOutdated, match=r"^agents\.session_summary is missing"):
        await check(migrated)


async def test_an_empty_database_is_told_from_a_good_one(empty: str) -> None:
    """`check` on an empty database names everything that is missing and the command that makes it."""
    with pytest.raises(SchemaOutdated) as failure:
        await check(empty)

    assert str(failure.value).endswith(UPGRADE)
    assert all(f"agents.{name}" in str(failure.value) for name in (*TABLES, *VIEWS))


async def test_an_empty_sqlite_file_is_told_from_a_good_one(tmp_path: Path) -> None:
    """The same on SQLite, without a schema before the names."""
    with pytest.raises(SchemaOutdated, match=rf"^sessions, items, .* are missing; {re.escape(UPGRADE)}$"):
        await check(f"sqlite:///{tmp_path / 'empty.db'}")


def test_the_command_in_the_message_helps(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doing what `check` says makes `check` pass."""
    monkeypatch.setenv("AGENTS_PG_URL", empty)
    with pytest.raises(SchemaOutdated) as failure:
        asyncio.run(check(empty))
    command = str(failure.value).rsplit("`", 2)[1]
    assert "`agents-pg-session db upgrade`" in str(failure.value)
    migrate(command.removeprefix("python -m agents_pg_session.migrations ").split())

    assert asyncio.run(check(empty)).revision == newest_revision()


@pytest.mark.parametrize("how", [f"DROP TABLE agents.{VERSION_TABLE}", f"DELETE FROM agents.{VERSION_TABLE}"])
def test_tables_without_a_revision_can_be_stamped(migrated: str, how: str) -> None:
    """All tables but no version: nobody guesses; the message says how to stamp them, and that helps."""
    asyncio.run(execute(migrated, how))
    for act in (create_tables, check):
        with pytest.raises(SchemaOutdated, match=f"revision of the tables is unknown.*{re.escape(STAMP)}"):
            asyncio.run(act(migrated))
    migrate(["-x", f"url={migrated}", "stamp", "head"])

    assert asyncio.run(check(migrated)).revision == newest_revision()


async def test_a_table_that_is_not_ours_is_not_taken_over(empty: str) -> None:
    """Where somebody else's `items` stands in the schema, nothing is created around it."""
    await execute(empty, "CREATE TABLE public.items (id int)")
    before = await of_postgres(empty, "public")

    with pytest.raises(
        SchemaOutdated, match=r"public\.items is there without a revision, but public\.sessions.* missing"
    ):
        await create_tables(empty, "public")
    assert await of_postgres(empty, "public") == before


async def test_a_good_database_is_described(migrated: str, sqlite_file: Path) -> None:
    """`check` returns the server, the schema and the revision."""
    on_postgres, on_sqlite = await check(migrated), await check(f"sqlite:///{sqlite_file}")
    [[version]] = await execute(migrated, "SHOW server_version")

    assert (on_postgres.schema, on_postgres.revision) == ("agents", newest_revision())
    assert on_postgres.server == f"PostgreSQL {version.split()[0]}"
    assert (on_sqlite.schema, on_sqlite.revision) == (None, newest_revision())
    assert on_sqlite.server == f"SQLite {sqlite3.sqlite_version}"


async def test_a_sqlite_file_of_a_newer_package_is_left_alone(sqlite_file: Path) -> None:
    """An unknown revision is refused on SQLite too."""
    execute_sqlite(sqlite_file, f"UPDATE {VERSION_TABLE} SET version_num = '9999'; DROP VIEW {SUPPORT_VIEW}")

    with pytest.raises(SchemaOutdated, match="revision 9999"):
        await create_tables(f"sqlite:///{sqlite_file}")


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_an_unreachable_server_is_said_quickly(driver: str) -> None:
    """Nobody listens: `StorageUnavailable` comes when the budget is spent, naming the place and no password."""
    url = f"postgresql+{driver}://somebody:5ecret@127.0.0.1:1/nowhere"
    before = time.monotonic()
    async with SessionStore.open(url, retry_for=0.5) as store:
        with pytest.raises(StorageUnavailable, match=r"127\.0\.0\.1:1/nowhere was unavailable for 0.5 s") as failure:
            await store.check()

    assert time.monotonic() - before < 3
    assert "5ecret" not in str(failure.value)
