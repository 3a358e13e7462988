"""docs/migrate-from-sdk.md keeps its word: its blocks run in turn, and its commands print what it shows."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import agents
import pytest
from agents.memory import SQLiteSession
from typer.testing import CliRunner

from agents_pg_session import SessionStore
from agents_pg_session.cli.app import app
from tests.acceptance.test_readme import execute

PAGE = (Path(__file__).parents[2] / "docs" / "migrate-from-sdk.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def words(text: str) -> list[list[str]]:
    """Return the words of each line that has some: how wide a column is, is up to the longest cell."""
    return [line.split() for line in text.replace("─", "").splitlines() if line.split()]


def test_the_page_runs_from_top_to_bottom(
    tmp_path: Path, migrated_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every Python block runs, every command prints the text below it, and at the end the history is back in a file."""
    url = migrated_database()
    monkeypatch.setenv("AGENTS_PG_URL", url)
    monkeypatch.chdir(tmp_path)
    agents.set_tracing_disabled(True)
    printed = None
    shown = 0
    for language, block in BLOCKS:
        if language == "python":
            execute(block)
        elif language == "bash":
            [command] = block.splitlines()
            program, *arguments = shlex.split(command)
            assert program == "agents-pg-session"
            result = CliRunner(env={"COLUMNS": "100"}).invoke(app, arguments)
            assert (result.exit_code, result.stderr) == (0, "")
            printed = result.stdout
        else:
            assert printed is not None
            assert words(printed) == words(block)
            shown += 1

    assert shown == sum(language == "bash" for language, _ in BLOCKS) == 4
    asyncio.run(compare(url))


async def compare(url: str) -> None:
    """What went back is what is here, and what was here is what the page said."""
    async with SessionStore.open(url) as store:
        for session_id in ("chat-ada", "chat-grace"):
            back = SQLiteSession(session_id, "back.db")
            items = await store.session(session_id).get_items()
            assert await back.get_items() == items
            back.close()
        assert (await store.session("chat-ada").info()).user_id == "ada"
        branch = await store.session("draft/shorter", tenant="files").info()
        assert branch.forked_from == "draft"


def test_the_page_names_only_options_there_are() -> None:
    """Every option of import-sdk that the page speaks of is one the command has."""
    help_text = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["import-sdk", "--help"]).stdout

    assert {option for option in re.findall(r"`(--[a-z-]+)", PAGE) if option not in help_text} == set()
