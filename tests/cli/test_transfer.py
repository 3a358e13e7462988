"""`export` and `import` as a person or a script calls them."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from agents_pg_session import SessionStore
from agents_pg_session.cli.app import app
from tests.items import assistant, user

Run = Callable[..., Result]


@pytest.fixture
def url(sqlite_template: Path, tmp_path: Path) -> str:
    """A database with two sessions."""
    shutil.copy(sqlite_template, tmp_path / "from.db")
    url = f"sqlite:///{tmp_path / 'from.db'}"

    async def fill() -> None:
        async with SessionStore.open(url) as store:
            await store.session("a", tenant="acme").add_items([user("hi"), assistant("yes")])
            await store.session("b", tenant="acme").add_items([user("ho")])

    asyncio.run(fill())
    return url


@pytest.fixture
def other(sqlite_template: Path, tmp_path: Path) -> str:
    """An empty database."""
    shutil.copy(sqlite_template, tmp_path / "to.db")
    return f"sqlite:///{tmp_path / 'to.db'}"


def run(*words: object, **how: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "80"}, **how)  # type: ignore[arg-type]


async def append(url: str) -> None:
    async with SessionStore.open(url) as store:
        await store.session("b", tenant="acme").add_items([user("more")])


def test_sessions_go_through_a_file(url: str, other: str, tmp_path: Path) -> None:
    """Export to a file, import it elsewhere, again, and export from there: the same bytes, and a summary of each."""
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"

    told = run("export", "--url", url, "--tenant", "acme", "-o", first)
    brought = run("import", "--url", other, first)
    again = run("import", "--url", other, first)
    run("export", "--url", other, "--tenant", "acme", "-o", second)

    what = "2 sessions with 3 items, 0 tool runs, 0 runs, 0 events and 0 snapshots"
    assert told.exit_code == 0
    assert told.stdout.replace("\n", "").replace(" ", "") == f"exported {what} to {first}".replace(" ", "")
    assert (brought.exit_code, brought.stdout) == (0, f"imported {what}\n")
    assert "2 were there already, the same" in again.stdout
    assert second.read_bytes() == first.read_bytes()
    assert sorted(each.name for each in tmp_path.glob("*jsonl*")) == ["first.jsonl", "second.jsonl"]


def test_sessions_go_through_a_pipe(url: str, other: str) -> None:
    """Without a file, the sessions are all that is on standard output, and - reads them from standard input."""
    sent = run("export", "--url", url, "--all-tenants", "-o", "-")
    brought = run("import", "--url", other, "-", "--json", input=sent.stdout_bytes)

    assert sent.stderr.startswith("exported 2 sessions with 3 items")
    assert json.loads(sent.stdout.splitlines()[0])["asked"] == {"all_tenants": True}
    assert json.loads(brought.stdout)["imported"]["sessions"] == 2


def test_a_conflict_is_told(url: str, other: str, tmp_path: Path) -> None:
    """A session that went on ends the import with exit code 1; skipped ones too, and the list names them."""
    file = tmp_path / "a.jsonl.gz"
    run("export", "--url", url, "--tenant", "acme", "-o", file)
    run("import", "--url", other, file)
    asyncio.run(append(other))

    failed = run("import", "--url", other, file)
    skipped = run("import", "--url", other, file, "--on-conflict", "skip")
    as_json = run("import", "--url", other, file, "--on-conflict", "skip", "--json")
    replaced = run("import", "--url", other, file, "--on-conflict", "replace")

    assert (failed.exit_code, skipped.exit_code, as_json.exit_code, replaced.exit_code) == (1, 1, 1, 0)
    assert "session 'b' of tenant 'acme' is there already and differs" in failed.stderr
    assert "nothing of it was written" in failed.stderr
    assert "1 are there already, different, and were left as they are:\n  b of tenant acme\n" in skipped.stdout
    assert json.loads(as_json.stdout)["complete"] is False
    assert json.loads(as_json.stdout)["imported"]["conflicts"] == [["acme", "b"]]
    assert "1 of them replaced what was there" in replaced.stdout


def test_what_cannot_be_is_refused(url: str, other: str, tmp_path: Path) -> None:
    """A file that is there, a folder, nothing to read, a broken archive: one line says which and what to do."""
    file = tmp_path / "a.jsonl"
    file.write_text("mine")

    taken = run("export", "--url", url, "--all-tenants", "-o", file)
    folder = run("export", "--url", url, "-o", tmp_path)
    both = run("export", "--url", url, "--json")
    missing = run("import", "--url", other, tmp_path / "none.jsonl")
    broken = run("import", "--url", other, file)
    nobody = run("export", "--url", url, "--session", "nobody", "-o", tmp_path / "new.jsonl")
    forced = run("export", "--url", url, "--all-tenants", "-o", file, "--force", "--json")

    assert [each.exit_code for each in (taken, folder, both, missing, broken, nobody, forced)] == [2, 2, 2, 2, 1, 1, 0]
    assert "is there already; --force" in taken.stderr
    assert "is a folder" in folder.stderr
    assert "--json needs --output FILE" in both.stderr
    assert "cannot be read" in missing.stderr
    assert "line 1: this is no archive of agents-pg-session" in broken.stderr
    assert "there is no session 'nobody'" in nobody.stderr
    assert not (tmp_path / "new.jsonl").exists()
    assert json.loads(forced.stdout)["exported"]["sessions"] == 2


def test_a_terminal_is_not_written_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where standard output is a terminal, the sessions stay where they are."""
    monkeypatch.setattr("agents_pg_session.cli.transfer._is_terminal", lambda _stream: True)

    refused = run("export", "--url", url)

    assert refused.exit_code == 2
    assert "this is a terminal: name a file with --output FILE" in refused.stderr
    assert refused.stdout == ""


def test_filters_narrow_an_export(url: str, postgres_url: str, new_id: Callable[[], str], tmp_path: Path) -> None:
    """The same two commands move sessions into PostgreSQL and another tenant; status and time choose among them."""
    tenant, file, back = new_id(), tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    run("export", "--url", url, "--tenant", "acme", "-o", file)

    brought = run("import", "--url", postgres_url, file, "--tenant", tenant, "--verify")
    run("export", "--url", postgres_url, "--tenant", tenant, "--status", "active", "--since", "1h", "-o", back)
    none = run("export", "--url", postgres_url, "--tenant", tenant, "--status", "ended", "-o", tmp_path / "c", "--json")

    assert brought.exit_code == 0
    told = [json.loads(line) for line in back.read_text().splitlines()]
    assert told[0]["asked"] == {"tenant": tenant, "status": "active", "since_seconds": 3600.0}
    assert [each["session_id"] for each in told if each.get("table") == "sessions"] == ["a", "b"]
    assert json.loads(none.stdout)["exported"]["sessions"] == 0
