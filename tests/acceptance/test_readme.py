"""The README keeps its word: every Python block runs, every `make` target it names exists."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import agents
import pytest
from typer.main import get_command

from agents_pg_session.cli.app import app
from tests.acceptance.agents_for_tests import TELLS_TOOL_ERRORS
from tests.acceptance.responses_api import ResponsesAPI, responses_api

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the README's fenced blocks in one language."""
    return re.findall(rf"^```{language}[^\n]*\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def code_below_docstring(path: Path) -> str:
    """Return a file's text from its first statement after the docstring."""
    source = path.read_text(encoding="utf-8")
    first_statement = ast.parse(source).body[1]
    return "".join(source.splitlines(keepends=True)[first_statement.lineno - 1 :])


def execute(code: str) -> None:
    """Run *code* as a file of its own; it may await at the top, as in a notebook."""
    compiled = compile(code, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    result = eval(compiled, namespace)
    if inspect.iscoroutine(result):
        asyncio.run(result)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[ResponsesAPI]:
    """The OpenAI API this process talks to while the test runs."""
    with responses_api() as api:
        for name, value in api.environment.items():
            monkeypatch.setenv(name, value)
        agents.set_tracing_disabled(True)  # the environment is only asked once per process
        yield api


@pytest.fixture
def readers_machine(tmp_path: Path, migrated_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and AGENTS_PG_URL pointing to a migrated database of its own."""
    monkeypatch.setenv("AGENTS_PG_URL", migrated_database())
    monkeypatch.chdir(tmp_path)


def test_the_readme_begins_with_the_drop_in() -> None:
    """The first Python block is examples/drop_in.py below its docstring, letter by letter."""
    first, *_ = blocks("python") or [""]

    assert first == code_below_docstring(ROOT / "examples" / "drop_in.py")


@pytest.mark.parametrize("number", range(max(1, len(blocks("python")))))
@pytest.mark.usefixtures("api", "readers_machine")
def test_a_python_block_runs(number: int) -> None:
    """Every Python block runs by itself, without a key, in an empty folder."""
    found = blocks("python")

    assert found, "README.md has no ```python block"
    execute(found[number])


@pytest.mark.skipif(not TELLS_TOOL_ERRORS, reason="this SDK does not tell what a tool raised")
@pytest.mark.usefixtures("readers_machine")
def test_the_record_is_what_the_readme_says(capsys: pytest.CaptureFixture[str]) -> None:
    """The block about the record prints what its comments promise."""
    [block] = [block for block in blocks("python") if "recording" in block]
    promised = re.findall(r"print\(.*\)  # (.*)$", block, flags=re.MULTILINE)
    agents.set_tracing_disabled(True)

    execute(block)

    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(promised) == 3
    assert all(line.startswith(promise.rstrip("…")) for line, promise in zip(printed, promised, strict=True))


def test_the_make_targets_exist() -> None:
    """Every `make target` the README names is in the Makefile."""
    named = set(re.findall(r"(?:^|[`\s])make ([a-z][\w-]*)", "\n".join(blocks("bash")), flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, flags=re.MULTILINE))

    assert named, "README.md names no make target in a ```bash block"
    assert named <= targets


def test_the_commands_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `agents-pg-session` command the README names is one, with these arguments and options."""
    monkeypatch.setenv("AGENTS_PG_URL", "sqlite://")
    group = get_command(app)
    [table] = re.findall(r"^\| I want to … \| run \|\n\|.*\n((?:\|.*\n)+)", README, flags=re.MULTILINE)
    named = [code.removeprefix("agents-pg-session ") for code in re.findall(r"`([^`]+)`", table)]
    named += re.findall(r"^agents-pg-session ([^#>\n]+)", "\n".join(blocks("bash")), flags=re.MULTILINE)

    assert len(named) > 15
    for line in named:
        assert _parses(group, shlex.split(line)), line


def _parses(command: Any, arguments: list[str]) -> bool:
    """Say whether a command takes its arguments, down to the last of its subcommands; nothing is run."""
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    with command.make_context("agents-pg-session", arguments) as context:
        return bool(context.params)
