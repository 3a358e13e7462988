"""`agents-pg-session doctor`: findings a person can act on, one document for programs, and exit codes for scripts."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from agents_pg_session import SessionStore
from tests.cli.conftest import Cli
from tests.operations.ailing import healthy_session

COUNTERS = """\
FAULT counters: 1 session has counters that disagree with its rows
  - acme / s: item_count says 2, is 8
  Why: Lists, views and the next append go by the counters; a last_position or
       last_event_id that is too low makes every append fail.
  Do:  agents-pg-session doctor --repair

1 fault; 2 sessions examined.
"""


@pytest.fixture
def file(sqlite_template: Path, tmp_path: Path) -> Path:
    """A SQLite file with a healthy session of each of two tenants."""
    path = tmp_path / "sessions.db"
    shutil.copy(sqlite_template, path)

    async def fill() -> None:
        async with SessionStore.open(f"sqlite:///{path}") as store:
            await healthy_session(store, "acme")
            await healthy_session(store, "globex")

    asyncio.run(fill())
    return path


@pytest.fixture
def cli(file: Path) -> Cli:
    return Cli(f"sqlite:///{file}")


def by_hand(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement)


def test_a_healthy_database(cli: Cli) -> None:
    """Nothing found is one line and exit code 0; --json says the same in one document."""
    person, program = cli("doctor"), cli("doctor", "--json")

    assert (person.code, person.out, person.err) == (0, "Nothing found; 2 sessions examined.\n", "")
    assert program.json == {"healthy": True, "sessions": 2, "findings": []}


def test_a_fault_says_what_where_why_and_what_to_do(cli: Cli, file: Path) -> None:
    """A fault ends with exit code 1 and reads well in 80 columns, without trailing spaces."""
    by_hand(file, "UPDATE sessions SET item_count = 2 WHERE tenant_id = 'acme'")
    person, program = cli("doctor", width=80), cli("doctor", "--json")
    finding: Any = json.loads(program.out)["findings"][0]

    assert (person.code, person.out) == (1, COUNTERS)
    assert program.code == 1
    assert (finding["severity"], finding["examination"], finding["count"]) == ("fault", "counters", 1)
    assert finding["places"] == [
        {"said": "item_count says 2, is 8", "tenant": "acme", "session_id": "s", "position": None}
    ]


def test_repair_says_what_it_changed(cli: Cli, file: Path) -> None:
    """--dry-run tells what --repair then does; afterwards nothing is found and nothing is left to mend."""
    by_hand(file, "UPDATE sessions SET item_count = 2 WHERE tenant_id = 'acme'")
    by_hand(file, "DROP INDEX ix_sessions_user")
    would, did, again = (
        cli("doctor", "--repair", *more, width=80) for more in (["--dry-run"], [], ["counters"])
    )  # fmt: skip

    assert would.out.splitlines()[:2] == did.out.splitlines()[:2] == [
        "ix_sessions_user: is missing -> built", "acme / s  item_count: 2 -> 8",
    ]  # fmt: skip
    assert would.out.splitlines()[2:] == ["2 places would be mended."]
    assert did.out.splitlines()[2:] == [
        '2 places mended; an event "repaired" in each session says what was before.'
    ]  # fmt: skip
    assert (again.code, again.out) == (0, "Nothing to mend.\n")
    assert cli("doctor").code == 0


def test_repair_for_programs(cli: Cli, file: Path) -> None:
    """With --json a repair is one document of what was before and what is after."""
    by_hand(file, "UPDATE sessions SET item_count = 2 WHERE tenant_id = 'acme'")

    assert cli("doctor", "--repair", "counters", "--json").json == {
        "dry_run": False,
        "mended": [
            {
                "changes": [{"repair": "counters", "what": "item_count", "before": 2, "after": 8}],
                "tenant": "acme",
                "session_id": "s",
            }
        ],
    }


def test_a_note_is_no_reason_to_wake_anybody(cli: Cli, file: Path) -> None:
    """Notes are shown and end with exit code 0; --tenant, --session, --since, --only and --quick narrow the look."""
    by_hand(file, "UPDATE sessions SET expires_at = '2020-01-01 00:00:00.000' WHERE tenant_id = 'acme'")
    by_hand(file, "UPDATE sessions SET updated_at = '2020-01-01 00:00:00.000' WHERE tenant_id = 'globex'")
    note = cli("doctor", "--all-tenants", width=80)

    assert note.code == 0
    assert note.out.startswith("NOTE expired: 1 session is past its expires_at\n  - acme / s: expired 2020-01-01")
    assert cli("doctor", "--tenant", "globex").out == "Nothing found; 1 session examined.\n"
    assert cli("doctor", "--tenant", "globex", "--session", "s").out == "Nothing found; 1 session examined.\n"
    assert cli("doctor", "--only", "schema").out == "Nothing found; 0 sessions examined.\n"
    assert "1 session examined." in cli("doctor", "--quick").out
    assert "1 session examined." in cli("doctor", "--since", "7d").out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "nose"], "there is no examination 'nose'; there are: schema, server"),
        (["--repair", "nose"], "there is no repair 'nose'; there are: indexes, counters"),
        (["orphans"], "orphans: say --repair with it"),
        (["--dry-run"], "--dry-run: say --repair with it"),
        (["--repair", "--quick"], "name that instead of --only or --quick"),
        (["--tenant", "a", "--all-tenants"], "exclude each other"),
    ],
)
def test_wrong_usage(cli: Cli, arguments: list[str], told: str) -> None:
    """What cannot be meant is exit code 2 and one line that says what there is."""
    answer = cli("doctor", *arguments)

    assert answer.code == 2
    assert told in answer.err


def test_a_database_that_is_away(server_url: str) -> None:
    """A database that cannot be reached is exit code 3."""
    answer = Cli(make_url(server_url).set(database="nowhere").render_as_string(hide_password=False))("doctor")

    assert answer.code == 3
    assert answer.out == ""
