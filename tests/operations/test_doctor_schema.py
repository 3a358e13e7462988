"""Schema, server and file: what somebody changed by hand there, and what is mended of it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import SimpleNamespace

import asyncpg
import pytest
from sqlalchemy import make_url

from agents_pg_session import SessionStore
from agents_pg_session.operations.doctor import Diagnosis, examine, repair, server
from agents_pg_session.operations.doctor.findings import Finding
from tests.items import user
from tests.migrations.actions import create_tables

#: What the server of the tests has switched off, to be faster.
OF_THE_TESTS = {"fsync is off", "full_page_writes is off"}


@pytest.fixture(scope="module")
def url(migrated_database: Callable[[], str]) -> str:
    """A PostgreSQL database of this file's own."""
    return migrated_database()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def diagnosed(url: str, *only: str) -> Diagnosis:
    async with SessionStore.open(url) as store:
        return await examine(store, only=only or ["schema"])


def said(findings: tuple[Finding, ...]) -> list[str]:
    return [place.said for finding in findings for place in finding.places]


#: What a hand does to the catalog, and how that is told. Indexes that are missing or invalid can be built again.
BUILT_AGAIN = {
    "DROP INDEX agents.ix_sessions_user": "index ix_sessions_user is missing",
    "DROP INDEX agents.ix_sessions_metadata": "index ix_sessions_metadata is missing",
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'agents.ix_runs_recent'::regclass":
        "index ix_runs_recent is INVALID: its build was interrupted, so no query uses it, but each write keeps it",
}  # fmt: skip
TOLD_ONLY = {
    "DROP INDEX agents.ix_tool_runs_running; CREATE INDEX ix_tool_runs_running ON agents.tool_runs"
    " (tenant_id, session_id, call_position)":
        "index ix_tool_runs_running is another index than it should be",
    "ALTER TABLE agents.sessions DROP CONSTRAINT ck_sessions_counts":
        "constraint sessions.ck_sessions_counts is missing",
    "ALTER TABLE agents.items DROP CONSTRAINT ck_items_position,"
    " ADD CONSTRAINT ck_items_position CHECK (position >= 0)":
        "constraint items.ck_items_position is 'check position >= 0', not 'check position > 0'",
    "ALTER TABLE agents.snapshots DROP CONSTRAINT ck_snapshots_version,"
    " ADD CONSTRAINT ck_snapshots_version CHECK (version > 0) NOT VALID":
        "constraint snapshots.ck_snapshots_version is NOT VALID: rows from before it were never checked",
    "ALTER TABLE agents.events ALTER COLUMN kind DROP NOT NULL": "column events.kind is 'text', not 'text not null'",
    "ALTER TABLE agents.events DROP COLUMN agent CASCADE": "column events.agent is missing",
    "DROP VIEW agents.agent_task_progress; CREATE VIEW agents.agent_task_progress AS SELECT 1 AS one":
        "view agent_task_progress shows 'one', not 'tenant_id session_id agent status turn_count tool_run_count"
        " tool_error_count tool_running_count running_tool active_at updated_at ended_at'",
    "ALTER TABLE agents.sessions RESET (fillfactor)": "table sessions has not set fillfactor=80",
}  # fmt: skip


async def test_indexes_are_built_again(url: str) -> None:
    """Indexes that are gone or were left invalid are one fault; repair builds them, and then nothing is found."""
    healthy = await diagnosed(url)
    async with connected(url) as connection:
        for broken in BUILT_AGAIN:
            await connection.execute(broken)
    async with SessionStore.open(url) as store:
        before = await examine(store, only=["schema"])
        would = [each async for each in repair(store, ["indexes"], dry_run=True)]
        did = [each async for each in repair(store, ["indexes"])]
        again = [each async for each in repair(store, ["indexes"])]
        after = await examine(store, only=["schema"])

    assert (healthy.findings, after.findings) == ((), ())
    assert [each.severity for each in before.findings] == ["fault"]
    assert sorted(said(before.findings)) == sorted(BUILT_AGAIN.values())
    assert (would, len(did), again) == (did, 3, [])


async def test_a_catalog_that_somebody_changed(migrated_database: Callable[[], str]) -> None:
    """Each constraint, column, view, index and setting that differs is told by its name, and left as it is."""
    url = await asyncio.to_thread(migrated_database)
    async with connected(url) as connection:
        for broken in TOLD_ONLY:
            await connection.execute(broken)
    async with SessionStore.open(url) as store:
        told = said((await examine(store, only=["schema"])).findings)
        did = [each async for each in repair(store, ["indexes"])]

    assert sorted(told) == sorted(TOLD_ONLY.values())
    assert did == []


def test_looking_leaves_the_tables_as_they_are(url: str, new_database: Callable[[], str]) -> None:
    """Whoever creates tables after an examination, in the same process, gets them whole."""
    asyncio.run(diagnosed(url))
    created = new_database()
    asyncio.run(create_tables(created))

    assert said(asyncio.run(diagnosed(created)).findings) == []


async def test_a_schema_that_is_behind_is_the_only_finding(migrated_database: Callable[[], str]) -> None:
    """Where a table is missing or the revision is unknown, that is said with what to run, and no row is read."""
    url = await asyncio.to_thread(migrated_database)
    async with connected(url) as connection:
        await connection.execute("UPDATE agents.agents_pg_session_version SET version_num = '0002'")

    [behind] = (await diagnosed(url, "schema", "counters")).findings
    async with connected(url) as connection:
        await connection.execute("DROP TABLE agents.events CASCADE")
    [missing] = (await diagnosed(url, "schema", "counters")).findings

    assert (behind.severity, behind.examination) == ("fault", "schema")
    assert "run `" in behind.do
    assert "0002" in behind.places[0].said
    assert missing.severity == "fault"


async def test_a_column_that_is_gone_ends_the_rows_not_the_doctor(migrated_database: Callable[[], str]) -> None:
    """Rows that cannot be read for a missing column are a finding of their own."""
    url = await asyncio.to_thread(migrated_database)
    async with connected(url) as connection:
        await connection.execute("INSERT INTO agents.sessions (tenant_id, session_id) VALUES ('', 's')")
        await connection.execute("ALTER TABLE agents.sessions DROP COLUMN lease_until CASCADE")

    findings = (await diagnosed(url, "schema", "counters")).findings

    assert [each.what for each in findings] == [
        "1 object of the schema not as this version creates them", "rows could not be examined",
    ]  # fmt: skip


async def test_settings_that_hurt(migrated_database: Callable[[], str]) -> None:
    """Settings that lose appends or end statements too early are found as our own connections see them."""
    url = await asyncio.to_thread(migrated_database)
    name = make_url(url).database
    healthy = await diagnosed(url, "server")
    async with connected(url) as connection:
        for setting in (
            "synchronous_commit = off", "statement_timeout = '2s'", "idle_in_transaction_session_timeout = '10ms'",
        ):  # fmt: skip
            await connection.execute(f"ALTER DATABASE {name} SET {setting}")
        await connection.execute("ALTER TABLE agents.items SET (autovacuum_enabled = false)")

    hurt = await diagnosed(url, "server")

    assert {each.what for each in healthy.findings} <= OF_THE_TESTS
    assert {each.what for each in hurt.findings} - OF_THE_TESTS == {
        "synchronous_commit is off",
        "statement_timeout is 2000 ms, less than a store's command_timeout (10000 ms)",
        "idle_in_transaction_session_timeout is 10 ms",
        "autovacuum is off for items",
    }


def test_what_only_other_servers_are() -> None:
    """A standby, an old server, another encoding and few transaction ids are said in their words, with what to do."""
    fine = {"version_num": "180000", "version": "18", "server_encoding": "UTF8", "is_standby": False}
    odd = {"version_num": "140010", "version": "14.10", "server_encoding": "LATIN1", "is_standby": True}
    ages = [
        [(each.severity, each.what) for each in server._age(SimpleNamespace(database_age=age))]
        for age in (10, 2**31 - 100_000_000, 2**31 - 10_000_000)
    ]

    assert list(server._kind(SimpleNamespace(**fine))) == []
    assert [each.severity for each in server._kind(SimpleNamespace(**odd))] == ["warning", "fault", "note"]
    assert ages == [
        [],
        [("warning", "100,000,000 transaction ids are left in this database")],
        [("fault", "10,000,000 transaction ids are left in this database")],
    ]


async def test_who_stands_in_the_way(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that idles with our locks, and whoever waits behind it, are found by their process ids."""
    assert (await diagnosed(url, "activity")).findings == ()
    monkeypatch.setattr(server, "IDLE_FOR", 0)
    async with connected(url) as idle, connected(url) as waits:
        transaction = idle.transaction()
        await transaction.start()
        await idle.execute("LOCK TABLE agents.snapshots IN SHARE MODE")
        waiting = asyncio.create_task(waits.execute("BEGIN; LOCK TABLE agents.snapshots; COMMIT"))
        try:
            async with asyncio.timeout(20), connected(url) as looks:
                while not await looks.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    await asyncio.sleep(0.01)
            findings = (await diagnosed(url, "activity")).findings
        finally:
            await transaction.rollback()
            await waiting
        pids = [f"pid {each.get_server_pid()}," for each in (idle, waits)]

    assert [each.what for each in findings] == [
        "1 connection is idle in a transaction with locks on our tables",
        "1 connection is waiting for a lock on our tables",
    ]
    assert [f"{each.split()[0]} {each.split()[1]}" for each in said(findings)] == pids


async def test_bloat(migrated_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Many dead rows, and updates that had to write indexes, are told with the VACUUM that helps."""
    url = await asyncio.to_thread(migrated_database)
    assert (await diagnosed(url, "bloat")).findings == ()
    monkeypatch.setattr(server, "DEAD_ROWS", 100)
    monkeypatch.setattr(server, "UPDATES", 100)
    async with SessionStore.open(url) as store:
        for number in range(20):
            await store.session(f"s{number}").add_items([user("Hello")])
    async with connected(url) as connection:
        await connection.execute("ALTER TABLE agents.sessions SET (autovacuum_enabled = false)")
        for _ in range(30):
            await connection.execute("UPDATE agents.sessions SET user_id = coalesce(user_id, '') || 'x'")
        await connection.execute("SELECT pg_stat_force_next_flush()")
        async with asyncio.timeout(20):
            while not await connection.fetchval(
                "SELECT n_tup_upd >= 600 FROM pg_stat_user_tables WHERE relname = 'sessions'"
            ):
                await connection.execute("SELECT pg_stat_clear_snapshot()")
                await asyncio.sleep(0.01)

    dead, hot = (await diagnosed(url, "bloat")).findings

    assert (dead.do, dead.severity) == ("VACUUM (ANALYZE) agents.sessions", "warning")
    assert "dead beside 20 rows" in dead.places[0].said
    assert hot.what == "only 0% of the updates of sessions were HOT"


async def test_whoever_may_only_read_can_examine(url: str, server_url: str) -> None:
    """A role with no right but to read runs all examinations, and the dry run of a repair."""
    async with connected(url) as connection:
        await connection.execute(
            "DROP ROLE IF EXISTS doctor_reader; CREATE ROLE doctor_reader LOGIN;"
            "GRANT USAGE ON SCHEMA agents TO doctor_reader;"
            "GRANT SELECT ON ALL TABLES IN SCHEMA agents TO doctor_reader"
        )
        await connection.execute(
            "INSERT INTO agents.sessions (tenant_id, session_id, item_count, last_position) VALUES ('ro', 's', 3, 3)"
        )
    reader = make_url(url).set(username="doctor_reader", password=None).render_as_string(hide_password=False)
    try:
        async with SessionStore.open(reader) as store:
            diagnosis = await examine(store)
            would = [each async for each in repair(store, dry_run=True)]
    finally:
        async with connected(url) as connection:
            await connection.execute("DELETE FROM agents.sessions WHERE tenant_id = 'ro'")
            await connection.execute("DROP OWNED BY doctor_reader; DROP ROLE doctor_reader")

    assert [each.examination for each in diagnosis.findings if each.what not in OF_THE_TESTS] == ["counters"]
    assert [each.session_id for each in would] == ["s"]


@pytest.fixture
def file(sqlite_template: Path, tmp_path: Path) -> Path:
    """A SQLite file at the newest revision."""
    path = tmp_path / "sessions.db"
    shutil.copy(sqlite_template, path)
    return path


@pytest.mark.parametrize(
    ("broken", "only", "told", "mends"),
    [
        ("DROP INDEX ix_sessions_user", "schema", ["index ix_sessions_user is missing"], True),
        ("DROP VIEW session_summary; CREATE VIEW session_summary AS SELECT 1", "schema",
         ["view session_summary differs"], False),
        ("ALTER TABLE runs DROP COLUMN model_seconds", "schema", ["table runs differs"], False),
        ("INSERT INTO items (tenant_id, session_id, position, append_id, item) VALUES ('', 'gone', 1, 'a', '{}')",
         "file", ["table items"], False),
    ],
)  # fmt: skip
async def test_a_file_that_somebody_changed(file: Path, broken: str, only: str, told: list[str], mends: bool) -> None:
    """Missing indexes, other views and tables, and rows without a session are found in a SQLite file."""
    healthy = await diagnosed(f"sqlite:///{file}")
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(broken)
    async with SessionStore.open(f"sqlite:///{file}") as store:
        before = await examine(store, only=[only])
        did = [each async for each in repair(store, ["indexes"])]
        after = await examine(store, only=[only])

    assert healthy.findings == ()
    assert said(before.findings) == told
    assert len(did) == mends
    assert (after.findings == ()) == mends


async def test_a_damaged_file(file: Path) -> None:
    """What SQLite's own check finds is a fault of the file."""
    async with SessionStore.open(f"sqlite:///{file}") as store:
        await store.session("s", user_id="ada").add_items([user("Hello")])
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("PRAGMA ignore_check_constraints = ON; UPDATE sessions SET item_count = -1")

    [finding] = (await diagnosed(f"sqlite:///{file}", "file")).findings

    assert (finding.severity, finding.what) == ("fault", "the file is damaged")


async def test_rows_that_cannot_be_read_do_not_end_the_examination(file: Path) -> None:
    """A range whose rows the driver cannot hand over is named, and the others are examined all the same."""
    async with SessionStore.open(f"sqlite:///{file}") as store:
        for name in ("a", "b"):
            await store.session(name, tenant=name).add_items([user("Hello")])
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("UPDATE sessions SET lease_until = CAST(x'ff' AS text) WHERE session_id = 'a'")
            connection.execute("UPDATE sessions SET item_count = 5 , last_position = 5 WHERE session_id = 'b'")
        ill = await examine(store, tenant="a")
        counted = await examine(store, tenant="b")

    assert [each.what for each in ill.findings] == ["1 session cannot be examined"]
    assert [each.examination for each in counted.findings] == ["counters"]
