"""`--sql` prints a script that psql, or SQLite, runs as it is."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url

from agents_pg_session.migrations import main as migrate
from agents_pg_session.schema import LOCK, newest_revision
from agents_pg_session.tables import VERSION_TABLE
from tests.migrations.actions import ALEMBIC, MIGRATIONS, ROOT, create_tables, environment, execute, execute_sqlite, run
from tests.migrations.catalog import difference, names_of, of_postgres, of_sqlite
from tests.programs import Python

NOWHERE = "postgresql://somebody:5ecret@127.0.0.1:1/nowhere"


def script(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what the command prints on its standard output."""
    capsys.readouterr()
    migrate([*arguments, "--sql"])
    return capsys.readouterr().out


def psql(binaries: Path, url: str, sql: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script as a DBA does: it stops at the first error; notices are not of interest."""
    path, where = folder / "script.sql", make_url(url)
    path.write_text(sql, encoding="utf-8")
    options = [
        "--no-psqlrc",
        "-v",
        "ON_ERROR_STOP=1",
        "-q",
        "-h",
        where.host,
        "-p",
        str(where.port),
        "-U",
        where.username,
    ]
    return run(
        binaries / "psql",
        *map(str, options),
        "-d",
        str(where.database),
        "-f",
        path,
        PGOPTIONS="-c client_min_messages=warning",
    )


@pytest.mark.parametrize("command", [MIGRATIONS, ALEMBIC], ids=["python -m", "alembic"])
def test_the_printed_script_is_sql_only(
    python: Python, command: tuple[str, ...], empty: str, postgres_url: str, binaries: Path, tmp_path: Path
) -> None:
    """Standard output goes straight into psql, without a database at hand when it is made; the catalog is the same."""
    printed = python(*command, "-x", f"url={NOWHERE}", "upgrade", "head", "--sql", cwd=ROOT, env=environment())
    ran = psql(binaries, empty, printed.stdout, tmp_path)

    assert (printed.returncode, printed.stderr) == (0, "")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert difference(asyncio.run(of_postgres(empty)), asyncio.run(of_postgres(postgres_url))) == {}


@pytest.mark.parametrize("schema", ["a\"b %s %(c)s :d \\e 100% 'f", "emoji🎉 UPPER"])
def test_the_script_for_a_schema_with_a_strange_name(
    empty: str, postgres_url: str, binaries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], schema: str
) -> None:
    """Quotes, percent signs, colons and backslashes in the name arrive as they are, up and down."""
    arguments = ["-x", f"url={NOWHERE}", "-x", f"schema={schema}"]
    up = psql(binaries, empty, script(capsys, *arguments, "upgrade", "head"), tmp_path)
    after_up = asyncio.run(of_postgres(empty, schema))
    down = psql(binaries, empty, script(capsys, *arguments, "downgrade", f"{newest_revision()}:base"), tmp_path)
    after_down = asyncio.run(of_postgres(empty, schema))

    assert (up.returncode, up.stderr, down.returncode, down.stderr) == (0, "", 0, "")
    assert difference(after_up, asyncio.run(of_postgres(postgres_url))) == {}
    assert names_of(after_down, "relation") <= {VERSION_TABLE}  # older Alembics drop it too
    assert asyncio.run(execute(empty, "SELECT nspname FROM pg_namespace WHERE nspname = 'agents'")) == []


def test_a_revision_of_the_script_runs_whole_or_not_at_all(
    empty: str, binaries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A transaction for each: where something is in the way, nothing of it is left behind."""
    asyncio.run(execute(empty, "CREATE SCHEMA agents", "CREATE TABLE agents.snapshots (id int)"))
    ran = psql(binaries, empty, script(capsys, "-x", f"url={NOWHERE}", "upgrade", "head"), tmp_path)

    assert ran.returncode != 0
    assert names_of(asyncio.run(of_postgres(empty)), "relation") == {"snapshots"}


def test_the_script_builds_indexes_while_the_application_writes(
    empty: str, binaries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each index is built outside of a transaction, without a limit for what it waits for, and the script can be run
    again from its revision on: what an interrupted run left behind is built again.
    """
    arguments = ["-x", f"url={NOWHERE}", "-x", "lock_timeout=1.5", "upgrade"]
    psql(binaries, empty, script(capsys, *arguments, "0002"), tmp_path)
    indexes = script(capsys, *arguments, "0002:0003")
    first, again = (psql(binaries, empty, indexes.replace("UPDATE", "-- UPDATE"), tmp_path) for _ in range(2))
    built = [line for line in indexes.splitlines() if line.startswith("CREATE INDEX")]

    assert (first.returncode, first.stderr, again.returncode, again.stderr) == (0, "", 0, "")
    assert built
    assert all(line.startswith("CREATE INDEX CONCURRENTLY ix_") for line in built)
    assert indexes.count("SET lock_timeout = 0;") == len(built)
    assert indexes.count("SET lock_timeout = '1500ms';") == len(built) + 1
    assert asyncio.run(execute(empty, "SELECT count(*) FROM pg_index WHERE NOT indisvalid")) == [(0,)]


def test_the_script_does_not_start_beside_another_upgrade(
    migrated: str, binaries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where somebody else is at it, the script ends at its first statement and says why."""
    indexes = script(capsys, "-x", f"url={NOWHERE}", "upgrade", "0002:0003")

    async def beside() -> subprocess.CompletedProcess[str]:
        other = await asyncpg.connect(migrated)
        try:
            await other.execute("SELECT pg_advisory_lock($1)".replace("$1", str(LOCK)))
            return await asyncio.to_thread(psql, binaries, migrated, indexes, tmp_path)
        finally:
            await other.close()

    ran = asyncio.run(beside())

    assert ran.returncode != 0
    assert "another upgrade of this database is at work" in ran.stderr


def test_the_sqlite_script(tmp_path: Path, sqlite_template: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script for SQLite makes the same file, and printing it makes none."""
    path, url = tmp_path / "scripted.db", f"sqlite:///{tmp_path / 'never.db'}"
    execute_sqlite(path, script(capsys, "-x", f"url={url}", "upgrade", "head"))
    after_up = of_sqlite(path)
    execute_sqlite(path, script(capsys, "-x", f"url={url}", "downgrade", f"{newest_revision()}:base"))

    assert difference(after_up, of_sqlite(sqlite_template)) == {}
    assert names_of(of_sqlite(path), "table") <= {VERSION_TABLE}
    assert not (tmp_path / "never.db").exists()


def test_the_sqlite_script_runs_whole_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One transaction on SQLite too."""
    path = tmp_path / "taken.db"
    execute_sqlite(path, "CREATE TABLE snapshots (id int)")
    with closing(sqlite3.connect(path)) as connection, pytest.raises(sqlite3.OperationalError, match="already exists"):
        connection.executescript(script(capsys, "-x", f"url=sqlite:///{path}", "upgrade", "head"))

    assert names_of(of_sqlite(path), "table") == {"snapshots"}


def test_a_script_for_a_stamp(empty: str, binaries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A database made by the script is one that `create_tables` accepts."""
    psql(binaries, empty, script(capsys, "-x", f"url={NOWHERE}", "upgrade", "head"), tmp_path)
    before = asyncio.run(of_postgres(empty))
    asyncio.run(create_tables(empty))

    assert asyncio.run(of_postgres(empty)) == before
