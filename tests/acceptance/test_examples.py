"""Every example runs, as a user would run it: its own process, its own folder.

Without `--thorough`, only the drop-in's interpreter begins anew: see tests/programs.py.
"""

from __future__ import annotations

import os
import runpy
import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import pytest

from agents_pg_session.migrations import main as migrate
from tests.acceptance.responses_api import responses_api
from tests.programs import Python, anew

EXAMPLES = Path(__file__).parents[2] / "examples"


class Run(Protocol):
    def __call__(self, example: str, folder: Path, environment: Mapping[str, str] | None = None) -> list[str]: ...


@pytest.fixture
def run(python: Python) -> Run:
    """Runs an example in a folder and returns its lines."""

    def run(example: str, folder: Path, environment: Mapping[str, str] | None = None) -> list[str]:
        return lines_of(python, example, folder, environment)

    return run


def lines_of(python: Python, example: str, folder: Path, environment: Mapping[str, str] | None = None) -> list[str]:
    """Run an example in *folder* without key, database or colours, unless *environment* sets them; return its lines."""
    unset = ("OPENAI_API_KEY", "AGENTS_PG_URL", "FORCE_COLOR")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    chosen = {**inherited, "COLUMNS": "140", "PYTHONIOENCODING": "utf-8", **(environment or {})}
    result = python("-W", "error::ResourceWarning", EXAMPLES / example, cwd=folder, env=chosen)
    assert (result.returncode, result.stderr) == (0, "")
    return [line.strip() for line in result.stdout.splitlines()]


def test_every_example_is_run_here() -> None:
    """A new example needs a test in this file."""
    elsewhere = {"fastapi_app.py"}  # test_fastapi_app.py
    here = {"approvals.py", "branches.py", "drop_in.py", "memory.py", "quickstart.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == here | elsewhere
    assert {path.name for path in EXAMPLES.glob("*.sql")} == {"ops.sql"}  # test_ops_sql.py


def test_the_drop_in_remembers(tmp_path: Path) -> None:
    """The second run sends the first question and its answer along, and the file it makes keeps all four items."""
    with responses_api("San Francisco.", "California.") as api:
        lines = lines_of(anew, "drop_in.py", tmp_path, api.environment)

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


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Mapping[str, str]:
    """What to set for a database: nothing for SQLite, which is each example's own choice."""
    if request.param == "sqlite":
        return {}
    return {"AGENTS_PG_URL": request.getfixturevalue("postgres_url")}


def test_the_quickstart_shows_a_whole_conversation(run: Run, database: Mapping[str, str], tmp_path: Path) -> None:
    """Without a key it chats, pauses, resumes, and asks the database what became of tools, tokens, events and items."""
    lines = run("quickstart.py", tmp_path, database)

    page = "\n".join(lines)
    words = [line.split() for line in lines]
    assert "call refund(order_id='A-1042', amount=249)\noutput A-1042: 249.00 EUR refunded" in page
    assert lines.count("assistant Done: 249.00 EUR are on their way back to you.") == 1
    assert ["Support", "active", "3", "14", "4", "1", "2338"] in words
    [failed] = [line for line, row in zip(lines, words, strict=True) if row[:2] == ["track_parcel", "failed"]]
    assert failed.endswith("the carrier's server is away")
    assert ["3", "interrupted", "Support", "1", "310", "0", "24"] in words
    events = ["tool_failed", "approval_asked", "snapshot_saved", "snapshot_claimed", "approval_answered"]
    assert [row[1] for row in words if len(row) > 1 and row[1] in events] == events
    assert ["13", "3", "function_call_output", "NULL", "call_4"] in [row[:5] for row in words]
    assert f"FROM {'agents.' if database else ''}items" in lines
    assert (tmp_path / "quickstart.db").exists() is (not database)


def test_the_quickstart_can_be_run_again(run: Run, tmp_path: Path) -> None:
    """Two runs on one file, at the same time, make two sessions, and each shows only its own; 80 columns are enough."""
    narrow = {"COLUMNS": "80", "NO_COLOR": "1"}
    with ThreadPoolExecutor() as both:
        pages = list(both.map(lambda _: run("quickstart.py", tmp_path, narrow), range(2)))

    names = {line.split()[1] for lines in pages for line in lines if line.startswith("session ")}
    assert len(names) == 2
    assert len(pages[0]) == len(pages[1])
    assert max(len(line) for line in pages[1] if tmp_path.name not in line) <= 80


def test_the_quickstart_says_what_to_do_about_an_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the file of an older version it does not trace back: it says how to go on."""
    migrate(["-x", f"url=sqlite:///{tmp_path / 'quickstart.db'}", "upgrade", "0001"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGENTS_PG_URL", raising=False)
    with pytest.raises(SystemExit, match=r"0001.* or remove quickstart\.db and begin anew"):
        runpy.run_path(str(EXAMPLES / "quickstart.py"), run_name="__main__")


def test_approvals_are_decided_once(run: Run, database: Mapping[str, str], tmp_path: Path) -> None:
    """Two runs wait; one is approved, one rejected, whoever comes late is told so, and the inbox is empty."""
    lines = run("approvals.py", tmp_path, database)

    assert lines == [
        "inbox  chat-A-0007 asks for refund {'order_id': 'A-0007', 'amount': 1200}",
        "inbox  chat-A-1042 asks for refund {'order_id': 'A-1042', 'amount': 249}",
        "too late  session 'chat-A-1042': another worker has resumed its paused run",
        "answer  chat-A-1042: The money is on its way.",
        f"record  refund succeeded; {(events := ', '.join(APPROVAL_EVENTS))}",
        "too late  session 'chat-A-0007': another worker has resumed its paused run",
        "answer  chat-A-0007: I cannot refund that.",
        f"record  refund rejected; {events}",
        "inbox  0 waiting",
    ]


APPROVAL_EVENTS = [
    "run_started",
    "approval_asked",
    "run_ended",
    "snapshot_saved",
    "snapshot_claimed",
    "run_started",
    "approval_answered",
    "run_ended",
]


def test_branches_stand_side_by_side(run: Run, tmp_path: Path) -> None:
    """The edited and the regenerated branch begin with the first turn and go their own way; the source stays whole."""
    lines = run("branches.py", tmp_path)

    page = "\n".join(lines)
    [trip] = {line.partition(":")[0] for line in lines if line.endswith(": 3 turns")}
    first = "1  user: Three days in Rome, please.\nassistant: Forum, Vatican, Trastevere."
    assert page.count(first) == 3
    assert (
        f"{trip}-edited: 2 turns, from {trip} up to position 2\n{first}\n2  user: And for dinner on day two, wi" in page
    )
    assert f"{trip}-again: 2 turns, from {trip} up to position 2" in page
    assert page.count("2  user: And for dinner on day two?\n") == 2
    assert page.count("3  user: Book a table for two.\nassistant: Done: 19:00.") == 1
    assert lines[-1] == f"branches: {trip}-again, {trip}-edited, {trip}"


def test_memory_is_a_window_or_a_summary(run: Run, tmp_path: Path) -> None:
    """The model is given a turn, then a summary and what it has not seen, then a summary alone; nothing is lost."""
    lines = run("memory.py", tmp_path)

    given = [block.splitlines() for block in "\n".join(lines).split("\n\n")]
    assert [len(block) - 1 for block in given[:3]] == [3, 9, 5]
    assert given[0][1] == "user: One of us uses a wheelchair."
    assert given[1][1:5] == ["system: Summary of the conversation so far:", *SUMMARY]
    assert given[2][3] == "four people, one in a wheelchair"
    assert {"-four people", "+four people, one in a wheelchair"} <= set(given[3])
    assert lines[-1] == "All 14 items are still there."


SUMMARY = ["Ada, no nuts", "four people", "Sunday at eight"]
