"""docs/deploy.md keeps its word: every block runs, section by section, as the roles it names."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agents_pg_session import SessionStore
from agents_pg_session.grants import grants
from agents_pg_session.migrations import upgrade
from agents_pg_session.schema import newest_revision
from agents_pg_session.testing.server import Server
from tests.acceptance.shell import Shell, shell
from tests.migrations.actions import check, execute, use
from tests.migrations.catalog import difference, of_postgres
from tests.programs import Python

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
ROLES = ("deployer", "app", "oncall")
APPLICATION = {
    "models.py": """
from sqlalchemy import Column, Integer, MetaData, Table

metadata = MetaData()
Table("tickets", metadata, Column("id", Integer, primary_key=True))
""",
    "alembic.ini": "[alembic]\nscript_location = %(here)s/migrations\nprepend_sys_path = .\npath_separator = os\n",
    "migrations/versions/0001_first.py": """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None


def upgrade():
    op.create_table("tickets", sa.Column("id", sa.Integer(), primary_key=True))
""",
}


def sections() -> dict[str, list[tuple[str, str]]]:
    """Return the page's blocks by section, each with its language; a formula has none."""
    found: dict[str, list[tuple[str, str]]] = {}
    for section in PAGE.split("\n## ")[1:]:
        title = section.partition("\n")[0]
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
        found[title] = [(language, text) for language, text in blocks if language]
    return {title: blocks for title, blocks in found.items() if blocks}


SECTIONS = sections()


@dataclass(frozen=True)
class Reader:
    """Somebody who follows the page in an empty folder, at a server that is called db.example.com there."""

    server: Server
    binaries: Path
    folder: Path
    python: Python
    shell: Shell

    def url(self, role: str, database: str = "app") -> str:
        return f"postgresql://{role}@127.0.0.1:{self.server.port}/{database}"

    def run(self, language: str, text: str) -> str:
        """Run one block and return what it prints; raise where it fails."""
        text = text.replace("db.example.com", f"127.0.0.1:{self.server.port}")
        if text.startswith("# migrations/env.py"):
            (self.folder / "migrations" / "env.py").write_text(text, encoding="utf-8")
            return ""
        match language:
            case "python":
                ended = self.python("-c", text, cwd=self.folder, env=environment(self.url("app")))
            case "bash":
                ended = self.shell.run(text, self.folder)
            case _:
                ended = self.psql("dba", text)
        if ended.returncode:
            raise RuntimeError(f"{text}\nended with {ended.returncode}:\n{ended.stdout}\n{ended.stderr}")
        return ended.stdout

    def psql(self, role: str, sql: str) -> subprocess.CompletedProcess[str]:
        """Run SQL up to its first error."""
        psql = [str(self.binaries / "psql"), self.url(role), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql]
        return subprocess.run(psql, capture_output=True, encoding="utf-8", timeout=100)

    def follow(self, title: str) -> list[str]:
        """Run a section's blocks in their order, and return what each printed."""
        return [self.run(language, text) for language, text in SECTIONS[title]]


def environment(url: str) -> dict[str, str]:
    """What a program of the page finds in its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTS_PG", "PYTHONDONT"))}
    return kept | {"PYTHONPATH": str(ROOT), "AGENTS_PG_URL": url, "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def server(binaries: Path) -> Iterator[Server]:
    """A server of the page's own, for its roles have plain names."""
    server = Server(binaries)
    server.start()
    server.sql("CREATE ROLE dba LOGIN SUPERUSER")
    yield server
    server.stop()


@pytest.fixture
def follower(server: Server, binaries: Path, tmp_path: Path, python: Python) -> Iterator[Reader]:
    """A reader with an empty folder but for a small application; databases come with the fixtures below."""
    for name, text in APPLICATION.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    modules = {"agents-pg-session": "agents_pg_session.cli", "alembic": "alembic.config"}
    with shell(tmp_path, python, modules, {"psql": binaries / "psql"}, environment("")) as opened:
        yield Reader(server, binaries, tmp_path, python, opened)
    for database in ("app", "staging"):
        server.sql(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")


@pytest.fixture
def reader(follower: Reader) -> Reader:
    """A reader at the first line: an empty database, and nobody but the DBA."""
    follower.server.sql("DROP DATABASE IF EXISTS installed WITH (FORCE)")
    for role in ROLES:
        follower.server.sql(f"DROP ROLE IF EXISTS {role}")
    follower.server.sql("CREATE DATABASE app")
    return follower


@pytest.fixture
def deployed(follower: Reader) -> Reader:
    """A reader who has been through the first section: in a copy of a database that was set up that way."""
    server = follower.server
    if server.sql("SELECT count(*) FROM pg_database WHERE datname = 'installed'") == "0":
        for role in ROLES:
            server.sql(f"DROP ROLE IF EXISTS {role}")
        server.sql("CREATE DATABASE app")
        follower.run(*SECTIONS["The pipeline"][0])
        upgrade(follower.url("deployer"))
        assert follower.psql("deployer", grants("agents", "app", "deployer", "oncall")).stderr == ""
        server.sql("ALTER DATABASE app RENAME TO installed")
    server.sql("CREATE DATABASE app TEMPLATE installed")
    return follower


def test_every_section_is_followed_here() -> None:
    """A section with blocks that no test below follows would be a promise nobody checks."""
    source = Path(__file__).read_text(encoding="utf-8")
    followed = set(re.findall(r'follow\("([^"]+)"\)', source))

    assert followed == set(SECTIONS)
    assert {language for blocks in SECTIONS.values() for language, _ in blocks} == {"bash", "python", "sql"}


def test_the_pipeline(reader: Reader) -> None:
    """From nothing but a server to an application that works with the rights of its role."""
    *_, checked = reader.follow("The pipeline")

    assert newest_revision() in checked
    asyncio.run(use(reader.url("app")))
    assert asyncio.run(check(reader.url("oncall"))).revision == newest_revision()
    with pytest.raises(Exception, match="permission denied"):
        asyncio.run(execute(reader.url("app"), "TRUNCATE agents.items"))


def test_side_by_side(deployed: Reader) -> None:
    """The view tells which code the schema serves; a downgrade goes back, and says where it is."""
    served, back = deployed.follow("Side by side")

    assert newest_revision() in served
    assert "0001" in served
    assert "0003" in back


def test_pods(deployed: Reader) -> None:
    """The server starts and is ready; on a schema that is missing it does not start, and says what to run."""
    ready = deployed.follow("Pods")
    deployed.server.sql("DROP DATABASE app")
    deployed.server.sql("CREATE DATABASE app")
    with pytest.raises(RuntimeError) as refusal:
        deployed.follow("Pods")

    assert ready == [f"(200, '{newest_revision()}')\n"]
    assert "SchemaOutdated" in str(refusal.value)
    assert "db upgrade" in str(refusal.value)


def test_reading_the_sql_first(deployed: Reader) -> None:
    """The printed script makes what the upgrade makes, object for object."""
    deployed.server.sql("CREATE DATABASE staging")
    deployed.follow("Reading the SQL first")
    scripted = asyncio.run(of_postgres(deployed.url("dba", "staging")))

    assert difference(scripted, asyncio.run(of_postgres(deployed.url("dba")))) == {}


def test_roles(deployed: Reader) -> None:
    """The query about rights shows both roles, and nothing beyond rows."""
    [shown] = deployed.follow("Roles")

    assert re.search(r"items +\| app +\| DELETE, INSERT, SELECT, UPDATE\n", shown)
    assert re.search(r"items +\| oncall +\| SELECT\n", shown)
    assert not re.search(r"TRUNCATE|REFERENCES|TRIGGER|MAINTAIN", shown)


def test_beside_your_own_alembic(deployed: Reader) -> None:
    """One command brings both histories up, with sessions in the schema; autogenerate has nothing to propose."""
    upgraded = deployed.follow("Beside your own Alembic")

    assert "No new upgrade operations detected" in upgraded[-1]
    assert asyncio.run(execute(deployed.url("dba"), "SELECT version_num FROM alembic_version")) == [("0001",)]


def test_how_many_connections(deployed: Reader) -> None:
    """The script tells how long a call holds a connection, for each of its calls; the query counts what is open."""
    told, counted = deployed.follow("How many connections")
    figures = [float(figure) for figure in re.findall(r"([\d.]+) ms", told)]

    assert len(figures) == 2
    assert 0 < figures[0] <= figures[1]
    assert re.search(r"room \| taken \| by_sessions", counted)


def test_no_extension_is_needed(deployed: Reader) -> None:
    """After upgrade and use the database has what every database begins with."""
    asyncio.run(use(deployed.url("app")))

    assert asyncio.run(execute(deployed.url("dba"), "SELECT extname FROM pg_extension")) == [("plpgsql",)]


def test_the_example_of_the_sizing_is_right() -> None:
    """What the page calculates is what its formula gives."""
    runs, calls, seconds, headroom, connections = re.findall(
        r"(\d+) × (\d+) × ([\d.]+) × (\d+) = (\d+) connections", PAGE
    )[0]

    assert round(int(runs) * int(calls) * float(seconds) * int(headroom)) == int(connections)


def test_the_page_knows_the_default_pool() -> None:
    """The default in the table is the default of a store."""
    store: Any = SessionStore.open("postgresql://nobody@127.0.0.1:1/nowhere")

    assert f"then kept | {store.engine.pool.size()} |" in PAGE
