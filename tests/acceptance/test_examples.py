"""Every example runs, as a user would run it: its own process, its own folder."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.acceptance.responses_api import responses_api

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(example: str, folder: Path, environment: Mapping[str, str] | None = None) -> list[str]:
    """Run an example in *folder* without key, database or colours, unless *environment* sets them; return its lines."""
    unset = ("OPENAI_API_KEY", "AGENTS_PG_URL", "FORCE_COLOR")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    result = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", EXAMPLES / example],
        cwd=folder,
        env={**inherited, "COLUMNS": "140", "PYTHONIOENCODING": "utf-8", **(environment or {})},
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return [line.strip() for line in result.stdout.splitlines()]


def test_every_example_is_run_here() -> None:
    """A new example needs a test in this file."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"drop_in.py", "quickstart.py"}


def test_the_drop_in_remembers(tmp_path: Path) -> None:
    """The second run sends the first question and its answer along, and the file it makes keeps all four items."""
    with responses_api("San Francisco.", "California.") as api:
        lines = run("drop_in.py", tmp_path, api.environment)

    assert lines == ["San Francisco.", "California."]
    second = api.requests[1]["input"]
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert [second[0]["content"], second[2]["content"]] == [
        "What city is the Golden Gate Bridge in?",
        "What state is it in?",
    ]
    with sqlite3.connect(tmp_path / "sessions.db") as connection:
        assert connection.execute("SELECT count(*) FROM items WHERE session_id = 'user-123'").fetchone() == (4,)
    connection.close()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_quickstart_shows_a_whole_conversation(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Without a key it chats, pauses, resumes, and shows conversation, session row and item rows from the database."""
    url = request.getfixturevalue("postgres_url") if database == "postgresql" else None
    lines = run("quickstart.py", tmp_path, {"AGENTS_PG_URL": url} if url else None)

    page = "\n".join(lines)
    assert "call refund(order_id='A-1042', amount=249)\noutput A-1042: 249.00 EUR refunded" in page
    assert lines.count("assistant Done: 249.00 EUR are on their way back to you.") == 1
    assert ["item_count", "12"] in [line.split() for line in lines]
    assert ["11", "3", "function_call_output", "NULL", "call_3"] in [line.split()[:5] for line in lines]
    assert f"FROM {'agents.' if url else ''}items" in lines
    assert (tmp_path / "quickstart.db").exists() is (url is None)


def test_the_quickstart_can_be_run_again(tmp_path: Path) -> None:
    """A second run makes a second session in the same file and shows only its own."""
    pages = [run("quickstart.py", tmp_path, {"COLUMNS": "80", "NO_COLOR": "1"}) for _ in range(2)]

    names = {line.split()[1] for lines in pages for line in lines if line.startswith("session ")}
    assert len(names) == 2
    assert len(pages[0]) == len(pages[1])
    assert max(len(line) for line in pages[1] if tmp_path.name not in line) <= 80
