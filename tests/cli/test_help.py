"""What the command line says of itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from agents_pg_session.cli.app import SECTIONS, app
from tests.cli.conftest import Cli
from tests.programs import Python

ROOT = Path(__file__).parents[2]


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command there is, as it is typed."""
    for name, command in group.commands.items():
        yield (*path, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


ALL = tuple(commands(typer.main.get_command(app)))


def test_the_page_of_all_commands(cli: Cli) -> None:
    """Every command is in its section, in order, and told in full; examples and how to name a database follow."""
    page = cli("--help", width=80).out
    named = [
        line.split()[0] for line in page.partition("Look:")[2].splitlines() if line[:3].strip() and line[:2] == "  "
    ]

    assert {path[0] for path in ALL} == {name for names in SECTIONS.values() for name in names}
    assert [name for name in named if (name,) in ALL] == [name for names in SECTIONS.values() for name in names]
    assert "..." not in page.partition("Look:")[2]
    assert "--url or AGENTS_PG_URL" in page
    assert page.count("\n    agents-pg-session ") == 3
    assert max(map(len, page.splitlines())) <= 80


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_explains_itself(cli: Cli, path: tuple[str, ...]) -> None:
    """Each has a sentence of its own, explains each option, takes --json, and shows no value of the environment."""
    page = cli(*path, "--help", width=80, AGENTS_PG_URL="postgresql://u:geheim@h/d", AGENTS_PG_SCHEMA="verborgen").out
    body = page.partition("\n\n")[2]
    options = [line for line in page.splitlines() if line.startswith("  -")]

    assert body.strip()[0].isupper()
    assert "geheim" not in page
    assert max(map(len, page.splitlines())) <= 80
    if path not in {each[:-1] for each in ALL if len(each) > 1}:
        assert any("--json" in line for line in options), path


def test_version(cli: Cli) -> None:
    """--version says name and version, and is no error."""
    answer = cli("--version")

    assert answer.code == 0
    assert answer.out.startswith("agents-pg-session ")


def test_completion_for_a_shell(python: Python) -> None:
    """A shell that asks gets the commands that go on with what was typed."""
    asked = {"_AGENTS_PG_SESSION_COMPLETE": "complete_bash", "COMP_WORDS": "agents-pg-session s", "COMP_CWORD": "1"}
    result = python("-m", "agents_pg_session.cli", cwd=ROOT, env={**os.environ, **asked})

    assert result.stdout.split() == ["sessions", "stats"]


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_extra_it_says_how_to_install_it(python: Python, missing: str) -> None:
    """Where typer or rich is not there, one line says what to install."""
    result = python("-c", WITHOUT.format(missing), cwd=ROOT, env=os.environ)

    assert result.returncode == 1
    assert result.stderr.strip() == f"{missing} is not installed: pip install 'agents-pg-session[cli]'"


def test_another_missing_module_is_not_hidden(python: Python) -> None:
    """Only what the extra brings is explained; anything else that is missing is a traceback."""
    result = python("-c", WITHOUT.format("agents_pg_session.paging"), cwd=ROOT, env=os.environ)

    assert "agents-pg-session[cli]" not in result.stderr
    assert result.returncode == 1


WITHOUT = (
    "import sys\n"
    "for name in [each for each in sys.modules if each.startswith('agents_pg_session')]: del sys.modules[name]\n"
    "sys.modules[{!r}] = None\n"
    "from agents_pg_session.cli import main\nmain()"
)
