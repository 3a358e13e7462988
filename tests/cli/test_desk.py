"""How a command ends: its exit code, its one line, and what never shows."""

from __future__ import annotations

import asyncio
import builtins
import os
import pty
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from agents_pg_session.cli import desk as module
from agents_pg_session.cli import main
from tests.cli.conftest import Cli
from tests.cli.processes import running
from tests.cli.writing import append
from tests.items import user
from tests.programs import Python

ROOT = Path(__file__).parents[2]
UNREACHABLE = "postgresql://somebody:geheim@127.0.0.1:9/nowhere"


def test_without_a_database_it_says_both_ways_to_name_one() -> None:
    """No --url and no AGENTS_PG_URL is wrong usage, and the line shows both; an empty variable is none."""
    for url in (None, ""):
        for command in (("sessions", "list"), ("db", "current"), ("stats",)):
            answer = Cli(url)(*command)

            assert answer.code == 2
            assert "--url postgresql://" in answer.err
            assert "AGENTS_PG_URL" in answer.err


def test_a_url_that_cannot_work(cli: Cli) -> None:
    """A URL of another kind of database is wrong usage, in words, without its password."""
    for url in ("mysql://u:geheim@h/d", "nonsense", "postgresql://u:geheim@h:port/d"):
        answer = cli("sessions", "list", "--url", url)

        assert answer.code == 2
        assert "geheim" not in answer.err
        assert len(answer.err.splitlines()) == 1


def test_a_database_out_of_reach(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not there is exit code 3 and one line, after a few seconds, also for what reads for long."""
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    for command in (("sessions", "list"), ("stats",), ("db", "check")):
        answer = cli(*command, "--url", UNREACHABLE)

        assert answer.code == 3
        assert len(answer.err.splitlines()) == 1
        assert "127.0.0.1:9/nowhere" in answer.err
        assert "geheim" not in answer.err


def test_a_schema_that_is_not_there(postgres_url: str) -> None:
    """Tables that are missing are exit code 1 with the command that makes them."""
    answer = Cli(postgres_url)("sessions", "list", "--schema", "nope")

    assert answer.code == 1
    assert "nope.sessions" in answer.err
    assert "agents-pg-session db upgrade" in answer.err


def test_a_closed_pipe_is_no_error(file: Cli, python: Python) -> None:
    """`… | head` gets its lines and the command ends quietly, whether it printed for people or for programs."""
    code = (
        "import os, sys; nobody, reads = os.pipe(); os.close(nobody); os.dup2(reads, 1)\n"
        "sys.stdout = open(1, 'w', closefd=False)\n"
        "from agents_pg_session.cli import main; sys.argv[1:] = {!r}.split(); main()"
    )
    asyncio.run(append(file, "s", [user("hi")]))
    for arguments in ("sessions show s", "sessions list --json", "db sql"):
        environment = {**os.environ, "AGENTS_PG_URL": str(file.url)}
        result = python("-c", code.format(arguments), cwd=ROOT, env=environment)

        assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("typed", "code", "there"), [(b"y\n", 0, False), (b"n\n", 1, True), (b"\n", 1, True), (b"\x03", 130, True)]
)
def test_a_person_is_asked(file: Cli, tmp_path: Path, typed: bytes, code: int, there: bool) -> None:
    """On a terminal it asks; only yes is yes, and Ctrl-C ends the question at once."""
    asyncio.run(append(file, "s", [user("hi")]))
    terminal, inside = pty.openpty()
    environment = {"AGENTS_PG_URL": str(file.url)}
    with running(("sessions", "delete", "s"), environment, tmp_path / "said", os.ttyname(inside)) as process:
        said = b""
        while b"[y/N]" not in said:
            said += os.read(terminal, 1000)
        os.write(terminal, typed)
        process.join(60)

        assert process.exitcode == code
        assert b"1 item," in said
    os.close(inside)
    os.close(terminal)
    assert (file("sessions", "show", "s").code == 0) == there


def test_ctrl_c_is_130(tmp_path: Path) -> None:
    """An interrupted command says so in one line, prints nothing, and ends with 130."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/d"
        with running(("sessions", "list", "--url", url), {}, tmp_path / "said") as process:
            connection, _ = silent.accept()  # it waits for an answer by now
            assert process.pid is not None
            os.kill(process.pid, signal.SIGINT)
            process.join(60)
            connection.close()

            assert process.exitcode == 130
    assert (tmp_path / "said.out").read_text() == ""
    assert (tmp_path / "said.err").read_text() == "agents-pg-session: interrupted\n"


def test_ctrl_c_while_it_is_still_starting(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever presses Ctrl-C before all is imported gets the same exit code, and no traceback."""

    def interrupt(name: str, *arguments: Any) -> Any:
        if name == "agents_pg_session.cli.app":
            raise KeyboardInterrupt
        return imported(name, *arguments)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", interrupt)
    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 130


def test_to_look_at_a_file_that_is_not_there_makes_none(cli: Cli, tmp_path: Path) -> None:
    """A mistyped SQLite file is said to be missing, with the command that makes one; nothing is left behind."""
    url = f"sqlite:///{tmp_path / 'mistyped.db'}"
    for command in (("sessions", "list"), ("doctor",), ("db", "check")):
        answer = cli(*command, "--url", url)

        assert answer.code == 1
        assert "mistyped.db" in answer.err
        assert "agents-pg-session db upgrade" in answer.err
    assert list(tmp_path.iterdir()) == []
