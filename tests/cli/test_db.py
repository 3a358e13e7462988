"""`db upgrade | downgrade | current | check | sql | grants`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agents_pg_session.schema import newest_revision
from tests.cli.conftest import Cli

NEWEST = newest_revision()


@pytest.fixture(params=["sqlite", "asyncpg"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Cli:
    """The command line on a database where nobody has created anything."""
    if request.param == "sqlite":
        return Cli(f"sqlite:///{tmp_path / 'empty.db'}")
    create: Callable[[], str] = request.getfixturevalue("new_database")
    return Cli(create())


def test_from_nothing_to_tables_and_back(empty: Cli) -> None:
    """upgrade, current, check and downgrade agree on where the database is; the steps go to standard error."""
    assert empty("db", "current", "--json").json == {"revision": None, "newest": NEWEST}
    assert empty("db", "check").code == 1
    upgraded = empty("db", "upgrade")
    assert (upgraded.code, upgraded.out) == (0, f"revision {NEWEST}, the newest\n")
    assert "0001" in upgraded.err
    assert empty("db", "check", "--json").json["revision"] == NEWEST
    assert empty("sessions", "list").code == 0
    back = empty("db", "downgrade", "0002", "--yes")
    assert (back.code, back.out) == (0, f"revision 0002; the newest is {NEWEST}\n")
    assert empty("db", "upgrade", "--json").json == {"revision": NEWEST, "newest": NEWEST}


def test_check_says_what_to_run(empty: Cli) -> None:
    """Missing or behind is exit code 1 with the command to run, for a program too; both kinds of output agree."""
    missing = empty("db", "check")
    empty("db", "upgrade", "0002")
    behind, as_json = empty("db", "check"), empty("db", "check", "--json")

    assert missing.code == behind.code == as_json.code == 1
    assert "run `agents-pg-session db upgrade`" in missing.err
    assert (
        f"the database is at revision 0002, this version needs {NEWEST}; run `agents-pg-session db upgrade`"
        in behind.err
    )
    assert as_json.out.startswith('{"fits": false, "message": "the database is at revision 0002')
    assert len(as_json.out.splitlines()) == 1


def test_check_of_a_database_out_of_reach(cli: Cli) -> None:
    """A server that is not there is exit code 3 at once, whichever command asks, and no password is told."""
    url = "postgresql://somebody:geheim@127.0.0.1:9/nowhere"
    for command in (("db", "current"), ("db", "upgrade", "--retry-for", "0")):
        answer = cli(*command, "--url", url)

        assert answer.code == 3, answer
        assert "geheim" not in answer.err
        assert "Traceback" not in answer.err


def test_downgrade_asks_first(file: Cli) -> None:
    """Where nobody can be asked it refuses and nothing happens."""
    answer = file("db", "downgrade", "base")

    assert answer.code == 2
    assert "is dropped, with its data" in answer.err
    assert file("db", "check").code == 0


def test_a_revision_that_is_none(file: Cli) -> None:
    """A revision nobody knows is wrong usage, in words."""
    answer = file("db", "upgrade", "9999")

    assert answer.code == 2
    assert "9999" in answer.err


def test_sql_for_a_dba(cli: Cli) -> None:
    """The script of an upgrade, from nothing or a revision, for the kind of database the URL names; none is asked."""
    whole, rest = cli("db", "sql").out, cli("db", "sql", "--from", "0003").out
    other = cli("db", "sql", "--schema", "chat").out

    assert "CREATE TABLE agents.sessions" in whole.replace('"', "")
    assert "CREATE TABLE" not in rest
    assert f"'{NEWEST}'" in rest
    assert "chat.sessions" in other.replace('"', "")
    assert "CREATE TABLE sessions" in cli("db", "sql", "--url", "sqlite:///nowhere.db").out
    assert "CREATE TABLE" in cli("db", "sql", "--json").json["sql"]


def test_grants(cli: Cli) -> None:
    """The rights of each role as SQL; without the runtime role it is wrong usage."""
    answer = cli("db", "grants", "--runtime", "app", "--migrator", "deploy", "--schema", "chat")

    assert answer.code == 0
    assert 'GRANT USAGE ON SCHEMA "chat" TO "app";' in answer.out
    assert '"deploy"' in answer.out
    assert cli("db", "grants", "--runtime", "app", "--json").json["sql"].endswith("COMMIT;\n")
    assert cli("db", "grants").code == 2
    assert cli("db", "grants", "--runtime", "a", "--migrator", "a").code == 2
