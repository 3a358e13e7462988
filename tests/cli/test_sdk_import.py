"""`agents-pg-session import-sdk`: what it prints, and its exit codes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from agents_pg_session import SessionStore
from agents_pg_session.cli.app import app
from tests.conftest import Backend
from tests.items import assistant, call, output, user
from tests.operations.sdk_sources import KINDS, Source


def pytest_generate_tests() -> None:
    """Each test here names its own backends."""


@pytest.fixture
def sdk(tmp_path: Path) -> Source:
    """A file that the SDK has written: a session with an orphan, and a torn row."""
    source = Source.of(KINDS[2], tmp_path, "")

    async def fill() -> None:
        await source.add("chat-1", [user("hi")], [call("c"), call("open"), output("c")], [assistant("hello")])
        await source.row("chat-1", "{torn", "2095-01-01 00:00:00")
        await source.add("chat-2", [user("hi")])

    asyncio.run(fill())
    return source


@pytest.fixture
def run(sdk: Source, tmp_path: Path, sqlite_template: Path) -> Callable[..., Result]:
    """A function that runs the command on a target of its own."""
    target = tmp_path / "ours.db"
    target.write_bytes(sqlite_template.read_bytes())

    def command(*arguments: str, source: str = sdk.url) -> Result:
        place = ["--url", f"sqlite:///{target}", "--from", source]
        return CliRunner(env={"COLUMNS": "80"}).invoke(app, ["import-sdk", *place, *arguments])

    return command


def test_a_report_for_people(run: Callable[..., Result]) -> None:
    """The report counts what came, names the orphans, and a dry run says that nothing was written."""
    dry, wet = run("--dry-run"), run()

    assert (dry.exit_code, wet.exit_code) == (0, 0)
    assert "nothing was written" in dry.stdout
    assert "nothing was written" not in wet.stdout
    lines = [" ".join(line.split()) for line in wet.stdout.splitlines()]
    assert "2 sessions imported" in lines
    assert "1 calls without an output open in chat-1" in lines
    assert "1 undecodable rows kept aside" in lines
    assert dry.stderr == wet.stderr == ""


def test_a_report_for_programs(run: Callable[..., Result]) -> None:
    """With --json the report is one object, and says whether anything was left out."""
    first, second = (json.loads(run("--json").stdout) for _ in range(2))

    assert (first["sessions"], first["items"], first["tool_runs"], first["undecodable"]) == (2, 6, 2, 1)
    assert first["calls"] == [{"session_id": "chat-1", "call_id": "open"}]
    assert (second["sessions"], second["skipped"], second["complete"]) == (0, 2, True)


def test_conflicts_end_it_with_1(run: Callable[..., Result], sdk: Source, tmp_path: Path) -> None:
    """Sessions left alone are listed with the reason, and the exit code is 1."""
    run()

    async def write_on_both_sides() -> None:
        async with SessionStore.open(f"sqlite:///{tmp_path / 'ours.db'}") as store:
            await store.session("chat-1").add_items([user("here")])
        await sdk.add("chat-1", [user("there")])

    asyncio.run(write_on_both_sides())
    text, document = run(), run("--json")

    assert (text.exit_code, document.exit_code) == (1, 1)
    assert "it went on here and in the source" in " ".join(text.stdout.split())
    assert "1 session was left alone" in text.stderr
    assert [each["session_id"] for each in json.loads(document.stdout)["conflicts"]] == ["chat-1"]


def test_wrong_usage_ends_it_with_2(run: Callable[..., Result]) -> None:
    """Wrong tables, a missing file and a time nobody can read are wrong usage, each said in a line."""
    tables, file, time = run("--messages-table", "x"), run(source="sqlite:///nowhere.db"), run("--since", "soon")

    assert (tables.exit_code, file.exit_code, time.exit_code) == (2, 2, 2)
    assert "--sessions-table agent_sessions --messages-table agent_messages" in tables.stderr
    assert "there is no SQLite file" in file.stderr
    assert "--since must be a time" in time.stderr


def test_a_database_that_is_away_ends_it_with_3(run: Callable[..., Result]) -> None:
    """A source that does not answer is exit code 3."""
    result = run(source="postgresql://u:secret@127.0.0.1:1/nothing")

    assert result.exit_code == 3
    assert "cannot be reached" in result.stderr
    assert "secret" not in result.stderr


@pytest.mark.parametrize("backend", ["asyncpg"], indirect=True)
def test_the_source_is_the_same_database_where_none_is_named(backend: Backend, tmp_path: Path) -> None:
    """Without --from, the SDK's tables are looked for in the database of --url, and brought within it."""
    source = Source.of(KINDS[0], tmp_path, backend.url)
    asyncio.run(source.add("same-database", [user("hi")]))
    tables = ["--sessions-table", source.sessions_table, "--messages-table", source.messages_table]
    arguments = ["import-sdk", "--url", backend.url, *tables, "--tenant", "same", "--json"]
    try:
        result = CliRunner().invoke(app, arguments)
    finally:
        asyncio.run(source.write("DROP TABLE {messages}, {sessions}"))

    assert json.loads(result.stdout)["sessions"] == 1
