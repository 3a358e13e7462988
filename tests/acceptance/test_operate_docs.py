"""docs/operate.md keeps its word: every command on it runs, on the day of a shop, and says what the page shows."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from agents_pg_session import SessionStore
from agents_pg_session.operations.following import Told, follow
from tests.acceptance.agents_for_tests import TELLS_TOOL_ERRORS
from tests.acceptance.test_ops_sql import live_a_day
from tests.cli.conftest import Cli, file
from tests.migrations.actions import execute

__all__ = ["file"]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
LOST = (
    "UPDATE agents.runs SET started_at = now() - interval '31 min', last_seen_at = now() - interval '30 min'"
    " WHERE session_id = 'chat-4'"
)

#: What somebody does by hand to a database that doctor then finds fault with.
BROKEN = (
    "UPDATE sessions SET item_count = item_count - 3 WHERE session_id = 'chat-1'",
    "DELETE FROM items WHERE session_id = 'chat-3' AND position = 5",
)

#: Commands that do not end with exit code 0 on that day: the server of the tests has settings that lose data.
CODES = {"doctor": 1}


def commands() -> list[tuple[str, str]]:
    """Every command of the page, with the answer below it, if that is of this day."""
    found = []
    for block, answer in re.findall(r"^```bash\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", PAGE, re.MULTILINE | re.DOTALL):
        lines = [line for line in block.splitlines() if line.startswith("agents-pg-session ")]
        found += [(line.removeprefix("agents-pg-session "), answer) for line in lines]
    return found


@pytest.fixture(scope="module")
def shop(migrated_database: Callable[[], str]) -> Cli:
    """The command line on a database where the shop has lived its day, and one of its processes died."""
    url = migrated_database()

    async def open_shop() -> None:
        async with SessionStore.open(url) as store:
            await live_a_day(store)
        await execute(url, LOST)

    asyncio.run(open_shop())
    return Cli(url)


@pytest.fixture(autouse=True)
def _following_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `tail` end where the page's answer ends, instead of waiting for somebody to press Ctrl-C."""

    async def eight(*arguments: Any, **options: Any) -> AsyncIterator[Told]:
        async with aclosing(follow(*arguments, **options)) as following:
            for _ in range(8):
                yield await anext(following)

    monkeypatch.setattr("agents_pg_session.cli.sessions.follow", eight)


def words(text: str) -> set[str]:
    """The words of an answer: no numbers, no units, no ids; where lines break does not matter."""
    return set(re.findall(r"(?<![\w-])[A-Za-z_]{3,}(?![\w-])", text)) - {"min"}


@pytest.mark.skipif(not TELLS_TOOL_ERRORS, reason="this SDK does not tell what a tool raised")
def test_every_command_says_what_the_page_shows(shop: Cli) -> None:
    """In the order of the page: each ends as it should, and its answer has the words of the one that is printed."""
    asked = commands()
    assert len(asked) >= 17
    for line, answer in asked:
        said = shop(*shlex.split(line))

        assert said.code == CODES.get(line, 0), (line, said)
        if answer:
            assert words(answer) == words(said.out), line


def test_every_command_has_json_too(shop: Cli) -> None:
    """Whatever is looked at on the page, a program gets as one document."""
    for line, answer in commands():
        if answer and "tail" not in line:
            assert shop(*shlex.split(line), "--json").out.count("\n") == 1, line


def test_what_the_page_shows_of_a_broken_database(file: Cli) -> None:
    """Two rows changed by hand: doctor finds what the page shows, mends it, and then finds nothing."""
    found, mended = re.findall(r"^```txt\n((?:FAULT|acme / ).*?)^```", PAGE, re.MULTILINE | re.DOTALL)

    async def break_it() -> None:
        async with SessionStore.open(str(file.url)) as store:
            await live_a_day(store)
            async with store.engine.begin() as connection:
                for statement in BROKEN:
                    await connection.exec_driver_sql(statement)

    asyncio.run(break_it())

    assert words(file("doctor").out) == words(found)
    assert words(file("doctor", "--repair", "--dry-run").out) == words(mended)
    assert file("doctor", "--repair").code == 0
    assert file("doctor").code == 0


def test_the_page_names_every_group_of_commands_for_looking() -> None:
    """Nobody has to know a command that answers a question of the night and is not on the page."""
    named = {line.split()[0] for line, _ in commands()}

    assert {"sessions", "runs", "tools", "usage", "waiting", "stats", "doctor", "db", "purge"} <= named
