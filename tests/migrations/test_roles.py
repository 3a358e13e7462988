"""Least privilege, with real roles: what `grants` prints is enough for each of them, and no more."""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any, cast

import asyncpg
import pytest
from sqlalchemy import make_url

from agents_pg_session import PGSession, SessionStore
from agents_pg_session.grants import grants
from agents_pg_session.ledgers.events import Events
from agents_pg_session.ledgers.runs import Runs
from agents_pg_session.ledgers.snapshots import Snapshots
from agents_pg_session.ledgers.tool_runs import ToolRuns
from agents_pg_session.migrations import main as migrate
from agents_pg_session.schema import newest_revision
from agents_pg_session.tables import TABLES, VERSION_TABLE, VIEWS
from tests.faults.verbs import HISTORY, VERBS, in_peace
from tests.items import user
from tests.migrations.actions import check, execute, run

ROWS = {"SELECT", "INSERT", "UPDATE", "DELETE"}

#: Every right on a relation that a role was given by name or for everybody.
RIGHTS = """
SELECT c.relname, r.privilege_type
  FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) r
 WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1) AND c.relkind <> 'i'
   AND r.grantee IN (0, (SELECT oid FROM pg_roles WHERE rolname = $2))
"""
RELATIONS = "SELECT relname FROM pg_class WHERE relnamespace = 'agents'::regnamespace AND relkind NOT IN ('i', 'I')"


@dataclass(frozen=True)
class House:
    """One database and its three roles, none of them a superuser."""

    owner: str  #: the URL of the superuser who made it
    migrator: str
    runtime: str
    read_only: str

    def url(self, role: str) -> str:
        return make_url(self.owner).set(username=role, password="s3cret").render_as_string(hide_password=False)

    def sql(self, schema: str = "agents") -> str:
        return grants(schema, self.runtime, self.migrator, self.read_only)

    def migrate(self, *command: str, schema: str = "agents") -> None:
        """Run a migration as the migrator."""
        migrate(["-x", f"url={self.url(self.migrator)}", "-x", f"schema={schema}", *command])


def quoted(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))


def psql(binaries: Path, url: str, sql: str, folder: Path) -> str:
    """Run SQL as a DBA does, stopping at the first error, and return what psql complains about."""
    script = folder / "grants.sql"
    script.write_text(sql, encoding="utf-8")
    where = make_url(url)  # libpq reads no spaces in a URL
    settings = {"PGHOST": where.host, "PGPORT": str(where.port), "PGUSER": where.username}
    settings |= {"PGPASSWORD": where.password or "", "PGDATABASE": where.database}
    ended = run(binaries / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", script, **cast("Any", settings))
    return ended.stderr + (f"psql ended with {ended.returncode}" if ended.returncode else "")


@pytest.fixture(scope="module")
def new_house(new_database: Callable[[], str]) -> Iterator[Callable[[], House]]:
    """A function that returns an empty database with three new roles, whose names need quotes."""
    houses: list[House] = []

    def build() -> House:
        key = secrets.token_hex(4)
        names = (f'{name} "{key}" 100% $$ :x \\ \'{{é}}' for name in ("deployer", "app", "oncall"))
        house = House(new_database(), *names)
        houses.append(house)
        roles = (house.migrator, house.runtime, house.read_only)
        asyncio.run(execute(house.owner, *(f"CREATE ROLE {quoted(role)} LOGIN PASSWORD 's3cret'" for role in roles)))
        return house

    yield build
    for house in houses:
        for role in map(quoted, (house.migrator, house.runtime, house.read_only)):
            asyncio.run(execute(house.owner, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}"))


@pytest.fixture(scope="module")
def house(new_house: Callable[[], House], binaries: Path, tmp_path_factory: pytest.TempPathFactory) -> House:
    """A schema that a DBA made for the migrator; the rest is the migrator's own work."""
    house = new_house()
    secret = "CREATE SCHEMA payroll CREATE TABLE salaries (amount int)"
    asyncio.run(execute(house.owner, f"CREATE SCHEMA agents AUTHORIZATION {quoted(house.migrator)}", secret))
    house.migrate("upgrade", "head")
    assert psql(binaries, house.url(house.migrator), house.sql(), tmp_path_factory.mktemp("grants")) == ""
    return house


async def rights(url: str, role: str, schema: str = "agents") -> dict[str, set[str]]:
    """Return what a role may do with each relation of a schema, as far as it may do anything."""
    connection = await asyncpg.connect(url)
    try:
        found: dict[str, set[str]] = {}
        for relation, right in await connection.fetch(RIGHTS, schema, role):
            found.setdefault(relation, set()).add(right)
        return found
    finally:
        await connection.close()


# -- what each role can do


@asynccontextmanager
async def opened(url: str, driver: str) -> AsyncIterator[SessionStore]:
    """A store that leaves nothing checked out."""
    where = make_url(url).set(drivername=f"postgresql+{driver}")
    async with SessionStore.open(where, verify=True) as store:
        yield store
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def short(_items: object) -> str:
    """A summary."""
    return "short"


async def ask_everything(store: SessionStore) -> None:
    """Call what only reads, and what the other verbs leave out."""
    session = store.session("asked", user_id="ada", metadata={"plan": "pro"})
    await session.add_items(HISTORY)
    await session.summarize(short)
    await session.snapshots.save("summary", "shorter")
    await session.info(), await session.turns(), await session.find("1"), await session.usage()
    await session.runs.list(), await session.runs.get("r"), await session.runs.latest(), await session.runs.usage()
    await session.tool_runs.list(), await session.tool_runs.get(2), await session.tool_runs.latest()
    await session.events.record("noted")
    await session.events.list(), await session.events.get(1), await session.events.latest()
    await session.snapshots.list(), await session.snapshots.get("summary", 1), await session.snapshots.latest("summary")
    await session.snapshots.diff("summary", 1, 2)
    await session.expire(timedelta(days=1))
    await session.end("over")
    assert (await store.purge(status="over")).sessions == 1
    await store.sessions(metadata={"plan": "pro"}), await store.tool_runs(since=timedelta(hours=1))
    await store.waiting(all_tenants=True), await store.usage(by="agent")
    await store.create_tables()
    assert (await store.check()).revision == newest_revision()


def noted(calls: set[str], name: str, method: Any) -> Any:
    @wraps(method)
    def calling(*arguments: Any, **options: Any) -> Any:
        calls.add(name)
        return method(*arguments, **options)

    return calling


def note_verbs(monkeypatch: pytest.MonkeyPatch, *classes: type) -> tuple[set[str], set[str]]:
    """Return the names of all asynchronous verbs there are, and a set into which each goes when it is called."""
    there: set[str] = set()
    called: set[str] = set()
    for each in classes:
        for name, method in vars(each).items():
            if not name.startswith("_") and inspect.iscoroutinefunction(method):
                there.add(f"{each.__name__}.{name}")
                monkeypatch.setattr(each, name, noted(called, f"{each.__name__}.{name}", method))
    return there, called


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_the_runtime_role_runs_every_verb(house: House, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a store and a handle can be asked works with nothing but SELECT, INSERT, UPDATE and DELETE."""
    there, called = note_verbs(monkeypatch, SessionStore, PGSession, Runs, ToolRuns, Events, Snapshots)
    async with opened(house.url(house.runtime), driver) as store:
        for name, verb in VERBS.items():
            await verb(store.session(f"{name} {driver}"), in_peace)
        await ask_everything(store)

    assert there - called - {"SessionStore.close", "PGSession.close"} == set()


async def test_each_role_has_its_rights_and_no_others(house: House) -> None:
    """Rows in the tables, a look at views and revision; for the person with psql a look at everything."""
    relations = {name for (name,) in await execute(house.owner, RELATIONS)}

    runtime = await rights(house.owner, house.runtime)
    assert runtime == {name: ROWS if name in TABLES else {"SELECT"} for name in relations}
    assert await rights(house.owner, house.read_only) == {name: {"SELECT"} for name in relations}
    assert {*TABLES, *VIEWS, VERSION_TABLE} <= relations


FORBIDDEN = {
    "drop a table": "DROP TABLE agents.items",
    "drop a view": "DROP VIEW agents.session_summary",
    "drop the schema": "DROP SCHEMA agents CASCADE",
    "alter a table": "ALTER TABLE agents.items ADD COLUMN mine int",
    "rename a table": "ALTER TABLE agents.items RENAME TO mine",
    "empty a table": "TRUNCATE agents.items",
    "create a table": "CREATE TABLE agents.mine (id int)",
    "create a schema": "CREATE SCHEMA mine",
    "create a table in public": "CREATE TABLE public.mine (id int)",
    "create an index": "CREATE INDEX mine ON agents.items (role)",
    "create a trigger": "CREATE TRIGGER mine BEFORE INSERT ON agents.items EXECUTE FUNCTION pg_catalog.mine()",
    "give rights away": "ALTER DEFAULT PRIVILEGES FOR ROLE {migrator} GRANT ALL ON TABLES TO PUBLIC",
    "change the revision": f"UPDATE agents.{VERSION_TABLE} SET version_num = '9999'",
    "forget the revision": f"DELETE FROM agents.{VERSION_TABLE}",
    "write through a view": "UPDATE agents.session_summary SET agent = 'mine'",
    "read another schema": "SELECT * FROM payroll.salaries",
    "be the migrator": "SET ROLE {migrator}",
    "create a role": "CREATE ROLE mine",
    "read a file": "SELECT pg_read_file('postgresql.conf')",
}
WRITES = {
    "insert": "INSERT INTO agents.sessions (tenant_id, session_id) VALUES ('', 'mine')",
    "update": "UPDATE agents.sessions SET agent = 'mine'",
    "delete": "DELETE FROM agents.sessions",
    "lock": "LOCK TABLE agents.sessions IN EXCLUSIVE MODE",
    "lock a row": "SELECT 1 FROM agents.sessions FOR UPDATE",
}


async def refusals(url: str, statements: dict[str, str], migrator: str) -> set[str]:
    """Return which statements the server refuses for want of a right; each that works is undone."""
    connection = await asyncpg.connect(url)
    refused = set()
    for name, sql in statements.items():
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute(sql.format(migrator=quoted(migrator)))
        except asyncpg.InsufficientPrivilegeError:
            refused.add(name)
        await transaction.rollback()
    await connection.close()
    return refused


async def test_the_runtime_role_is_refused_everything_else(house: House) -> None:
    """No DDL, no TRUNCATE, no other schema, no revision to rewrite; and what it may do is not refused."""
    url = house.url(house.runtime)

    assert await refusals(url, FORBIDDEN, house.migrator) == set(FORBIDDEN)
    assert await refusals(url, WRITES, house.migrator) == set()


async def test_the_read_only_role_reads_and_nothing_else(house: House) -> None:
    """A person with psql sees every table and view, and cannot change a row or lock one."""
    url, relations = house.url(house.read_only), await execute(house.owner, RELATIONS)
    for (relation,) in relations:
        await execute(url, f"SELECT * FROM agents.{relation} LIMIT 1")

    assert await refusals(url, FORBIDDEN | WRITES, house.migrator) == set(FORBIDDEN | WRITES)
    assert (await check(url)).revision == newest_revision()


# -- what the migrator can do


def test_rights_outlive_upgrades(new_house: Callable[[], House], binaries: Path, tmp_path: Path) -> None:
    """The migrator goes down and up again, and adds a table: the others have their rights on it all, unasked."""
    house = new_house()
    asyncio.run(execute(house.owner, f"CREATE SCHEMA agents AUTHORIZATION {quoted(house.migrator)}"))
    house.migrate("upgrade", "head")
    assert psql(binaries, house.url(house.migrator), house.sql(), tmp_path) == ""
    for down in ("0001", "base"):
        house.migrate("downgrade", down)
        house.migrate("upgrade", "head")
    asyncio.run(execute(house.url(house.migrator), "CREATE TABLE agents.of_a_later_revision (id int)"))

    async def use() -> None:
        async with opened(house.url(house.runtime), "asyncpg") as store:
            await ask_everything(store)
            await VERBS["append of a run"](store.session("run"), in_peace)
        later = {"of_a_later_revision": ROWS, VERSION_TABLE: {"SELECT"}}
        assert (await rights(house.owner, house.runtime)).items() >= later.items()
        assert (await rights(house.owner, house.read_only))["of_a_later_revision"] == {"SELECT"}
        assert await refusals(house.url(house.runtime), {"forget": FORBIDDEN["forget the revision"]}, "") == {"forget"}

    asyncio.run(use())


def test_a_migrator_without_a_schema_says_what_it_lacks(
    new_house: Callable[[], House], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without CREATE on the database and without a schema nothing is made, and the message names the database."""
    house = new_house()
    with pytest.raises(SystemExit):
        house.migrate("upgrade", "head")

    assert f"permission denied for database {make_url(house.owner).database}" in capsys.readouterr().out


def test_what_a_superuser_made_becomes_the_migrators(
    new_house: Callable[[], House], binaries: Path, tmp_path: Path
) -> None:
    """Run by a superuser, the text hands an installation over; running it again changes nothing."""
    house = new_house()
    migrate(["-x", f"url={house.owner}", "upgrade", "head"])
    everything = f"GRANT ALL ON ALL TABLES IN SCHEMA agents TO {quoted(house.runtime)}, {quoted(house.read_only)}"
    asyncio.run(execute(house.owner, everything))
    said = [psql(binaries, house.owner, house.sql(), tmp_path)]
    before = asyncio.run(rights(house.owner, house.runtime))
    said += [psql(binaries, house.url(house.migrator), house.sql(), tmp_path)]
    after = asyncio.run(rights(house.owner, house.runtime))
    house.migrate("downgrade", "0001")
    house.migrate("upgrade", "head")

    assert said == ["", ""]
    assert before == after
    assert after["items"] == ROWS
    assert after[VERSION_TABLE] == {"SELECT"}
    assert asyncio.run(check(house.url(house.runtime))).revision == newest_revision()


async def test_nobody_is_without_rights_for_a_moment(house: House, binaries: Path, tmp_path: Path) -> None:
    """While the pipeline runs the text, the application goes on appending and no append fails."""
    url, done = house.url(house.migrator), asyncio.Event()

    async def append() -> int:
        count = 0
        while not done.is_set():
            await store.session("busy").add_items([user("hi")])
            count += 1
        return count

    async with opened(house.url(house.runtime), "asyncpg") as store:
        busy = asyncio.create_task(append())
        said = [await asyncio.to_thread(psql, binaries, url, house.sql(), tmp_path) for _ in range(3)]
        done.set()

        assert await busy == len(await store.session("busy").get_items()) > 0
    assert said == ["", "", ""]


# -- the text


@pytest.mark.parametrize("schema", ["public", "Weird \" schema $$; DROP 'x' {y} %s \\"])
def test_the_text_for_another_schema(
    new_house: Callable[[], House], binaries: Path, tmp_path: Path, schema: str
) -> None:
    """Whatever the schema is called; tables of others beside ours are not given to anybody."""
    house = new_house()
    asyncio.run(execute(house.owner, f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}"))
    asyncio.run(execute(house.owner, f"CREATE TABLE {quoted(schema)}.theirs (id int)"))
    migrate(["-x", f"url={house.owner}", "-x", f"schema={schema}", "upgrade", "head"])
    said = psql(binaries, house.owner, house.sql(schema), tmp_path)
    house.migrate("downgrade", "0001", schema=schema)
    house.migrate("upgrade", "head", schema=schema)
    runtime = asyncio.run(rights(house.owner, house.runtime, schema))

    assert said == ""
    assert asyncio.run(check(house.url(house.runtime), schema)).schema == schema
    assert runtime["items"] == ROWS
    assert "theirs" not in runtime
    [[owner]] = asyncio.run(execute(house.owner, "SELECT tableowner FROM pg_tables WHERE tablename = 'theirs'"))
    assert owner == make_url(house.owner).username


def test_the_runtime_role_alone(new_house: Callable[[], House], binaries: Path, tmp_path: Path) -> None:
    """Without a migrator and a read-only role the text is about one role, and covers what its runner creates later."""
    house = new_house()
    migrate(["-x", f"url={house.owner}", "upgrade", "head"])
    text = grants("agents", house.runtime)
    said = psql(binaries, house.owner, text, tmp_path)
    asyncio.run(execute(house.owner, "CREATE TABLE agents.later (id int)"))

    assert said == ""
    assert "OWNER" not in text
    assert asyncio.run(rights(house.owner, house.runtime))["later"] == ROWS
