"""The laws of the house that a machine can check."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import agents_pg_session
from agents_pg_session import errors
from agents_pg_session.statements.postgres import append, changes, history, items, locks

ROOT = Path(__file__).parents[2]
PUBLIC = [
    "Approval",
    "Event",
    "InvalidItem",
    "PGSession",
    "Page",
    "PoolUse",
    "Purged",
    "Run",
    "SchemaOutdated",
    "SessionClosed",
    "SessionConflict",
    "SessionError",
    "SessionInfo",
    "SessionNotFound",
    "SessionStore",
    "SessionUsage",
    "Snapshot",
    "SnapshotNotFound",
    "StorageUnavailable",
    "StoreCheck",
    "StoredItem",
    "TokenUsage",
    "ToolRun",
    "Turn",
    "TurnUsage",
    "UsageOf",
    "WaitingRun",
    "Window",
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_floors() -> None:
    """Each file imports only from lower floors; pyproject.toml holds the list, and every file is on it."""
    script = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([script, "--no-cache"], cwd=ROOT, capture_output=True, text=True)

    assert result.returncode == 0, result.stdout


def test_everything_public_is_at_the_root() -> None:
    """One door: what the root lists is what it has, in order, and nothing else."""
    assert agents_pg_session.__all__ == sorted(agents_pg_session.__all__, key=str) == PUBLIC
    assert all(hasattr(agents_pg_session, name) for name in agents_pg_session.__all__)


def test_every_error_is_a_session_error() -> None:
    """`except SessionError` catches all of them."""
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.SessionError)


def test_importing_does_nothing() -> None:
    """No environment variable is read, no driver is loaded and nothing is logged at import."""
    code = (
        "import sys; before = set(sys.modules); import agents_pg_session;"
        "print([name for name in ('asyncpg', 'psycopg', 'aiosqlite') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)

    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def statements_of_a_session() -> dict[str, str]:
    """Every statement PostgreSQL gets about one session; an append with all its parts."""
    modules = (items, changes, history, locks)
    named = {name: getattr(module, name) for module in modules for name in module.__all__}
    texts = {name: sql for name, sql in named.items() if isinstance(sql, str)}
    return {**texts, "APPEND": append._composed(True, True, True, True, True, True)}


def test_every_part_of_a_statement_names_the_key() -> None:
    """One session, one shard: each table a statement touches is reached through tenant and session."""
    statements = statements_of_a_session()
    assert {"APPEND", "LATEST", "POP", "CLEAR", "REPLACE", "RESTORE", "SAVE", "CLAIM", "FENCE"} <= set(statements)
    for name, sql in statements.items():
        touched = len(re.findall(r"(?:FROM|UPDATE|INTO|JOIN) \{schema\}", sql))
        keyed = len(re.findall(r"tenant_id = :tenant_id AND (?:\w\.)?session_id = :(?:session|source)_id", sql))
        inserted = len(re.findall(r"(?:VALUES \(|SELECT) *\n? *:tenant_id, :session_id", sql))
        assert keyed + inserted >= touched, name


def test_no_function_in_do_update() -> None:
    """`DO UPDATE SET` calls no function that could change its mind: a distributed table would refuse it."""
    for name, sql in statements_of_a_session().items():
        for update in sql.split("DO UPDATE SET")[1:]:
            assert "now()" not in re.split(r"RETURNING|\n\)", update)[0], name


def test_lower_bounds_are_what_the_floors_install() -> None:
    """The suite runs against exactly the versions pyproject.toml calls its lower bounds."""
    project = PROJECT["project"]
    bounds = {*project["dependencies"], *project["optional-dependencies"]["psycopg"]}
    installed = {line.partition(" ")[0] for line in (ROOT / "requirements" / "floors.txt").read_text().splitlines()}

    assert {re.sub(r"\[\w+\]", "", bound).replace(">=", "==") for bound in bounds} <= installed


def test_no_file_holds_a_registry_or_a_path_of_a_machine() -> None:
    """What is committed works anywhere."""
    for file in (ROOT / "requirements").glob("*.txt"):
        assert not re.search(r"https?://|/(?:home|root|work)/", file.read_text()), file


def test_every_promise_names_a_test_that_is_there() -> None:
    """What the pages call the test of a promise is a test, or a file of tests."""
    files = list((ROOT / "tests").rglob("test_*.py"))
    there = {file.name for file in files} | {
        name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    for page in ("guarantees.md", "locks.md"):
        named = set(re.findall(r"\btest_\w+(?:\.py)?", (ROOT / "docs" / page).read_text()))

        assert named
        assert named <= there, page
