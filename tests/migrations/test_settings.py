"""Where the command line takes its database from, and what it never tells."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from agents_pg_session.migrations import main as migrate
from agents_pg_session.testing.server import Server
from tests.migrations.actions import ALEMBIC, MIGRATIONS, ROOT, check, environment, execute
from tests.migrations.catalog import of_postgres
from tests.programs import Python

SECRET = "5ecret-p4ss"


def test_the_environment_names_the_database(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """AGENTS_PG_URL and AGENTS_PG_SCHEMA are enough."""
    monkeypatch.setenv("AGENTS_PG_URL", empty)
    monkeypatch.setenv("AGENTS_PG_SCHEMA", "chat")
    migrate(["upgrade", "head"])

    assert asyncio.run(check(empty, "chat")).schema == "chat"
    assert asyncio.run(of_postgres(empty)) == {}


def test_an_option_wins_over_the_environment(empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-x url=` and `-x schema=` win: nothing is done where the environment points."""
    monkeypatch.setenv("AGENTS_PG_URL", f"sqlite:///{tmp_path / 'environment.db'}")
    monkeypatch.setenv("AGENTS_PG_SCHEMA", "environment")
    migrate(["-x", f"url={empty}", "-x", "schema=chat", "upgrade", "head"])

    assert asyncio.run(check(empty, "chat")).schema == "chat"
    assert asyncio.run(of_postgres(empty, "environment")) == {}
    assert not (tmp_path / "environment.db").exists()


@pytest.mark.parametrize("command", [["upgrade", "head"], ["upgrade", "head", "--sql"], ["current"]])
def test_no_database_is_one_clear_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Without a URL the command says what to set, and fails."""
    with pytest.raises(SystemExit) as end:
        migrate(command)

    assert end.value.code not in (0, None)
    assert capsys.readouterr().out.startswith("FAILED: no database: set AGENTS_PG_URL, or add -x url=")


def test_alembic_in_a_checkout(python: Python, empty: str) -> None:
    """`alembic upgrade head` in the repository's own folder does the same."""
    ended = python(*ALEMBIC, "upgrade", "head", cwd=ROOT, env=environment(AGENTS_PG_URL=empty))

    assert (ended.returncode, ended.stderr) == (0, "")
    assert asyncio.run(check(empty)).schema == "agents"


@pytest.fixture(scope="module")
def locked_server(binaries: Path) -> Iterator[str]:
    """The URL of a server that asks for a password (the other one trusts everybody), with the right one in it."""
    server = Server(binaries)
    rules = server.data / "pg_hba.conf"
    rules.write_text(f"host all somebody 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
    server.start()
    asyncio.run(execute(server.url, f"CREATE ROLE somebody LOGIN SUPERUSER PASSWORD '{SECRET}'"))
    yield make_url(server.url).set(username="somebody", password=SECRET).render_as_string(hide_password=False)
    server.stop()


@pytest.fixture
def dead_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


FAILING = {
    "wrong password": "postgresql://somebody:{secret}-wrong@{server}/postgres",
    "wrong password, psycopg": "postgresql+psycopg://somebody:{secret}-wrong@{server}/postgres",
    "no such database": "postgresql://somebody:{secret}@{server}/nowhere",
    "no server": "postgresql://somebody:{secret}@127.0.0.1:{dead}/postgres",
    "no server, psycopg": "postgresql+psycopg://somebody:{secret}@127.0.0.1:{dead}/postgres",
    "password in the query": "postgresql://127.0.0.1:{dead}/postgres?user=somebody&password={secret}",
    "password not escaped": "postgresql://somebody:{secret}#/x?@{server}/postgres",
    "port that is none": "postgresql://somebody:{secret}@127.0.0.1:port/postgres",
    "another database": "mysql://somebody:{secret}@{server}/postgres",
    "sync driver": "postgresql+psycopg2://somebody:{secret}@{server}/postgres",
    "unknown sslmode": "postgresql://somebody:{secret}@{server}/postgres?sslmode=always",
    "missing certificate": "postgresql://somebody:{secret}@{server}/postgres?sslmode=verify-full&sslrootcert=/nowhere",
    "no TLS there": "postgresql://somebody:{secret}@{server}/postgres?sslmode=require",
    "scheme missing": "somebody:{secret}@{server}/postgres",
}


@pytest.mark.parametrize("url", FAILING.values(), ids=FAILING.keys())
def test_a_failure_is_one_line_without_the_password(
    locked_server: str, dead_port: int, url: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong with the database or its URL: one line, no traceback, and never the password."""
    where = make_url(locked_server)
    written = url.format(secret=SECRET, server=f"{where.host}:{where.port}", dead=dead_port)
    with pytest.raises(SystemExit) as end:
        migrate(["-x", f"url={written}", "upgrade", "head"])

    printed = "".join(capfd.readouterr())
    assert end.value.code not in (0, None)
    assert printed.startswith("FAILED: ")
    assert "Traceback" not in printed
    assert SECRET not in printed + caplog.text


def test_a_success_does_not_tell_the_password(locked_server: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Nor does any command that works, however talkative."""
    url = ["-x", f"url={locked_server}"]
    for command in (["upgrade", "head"], ["current", "-v"], ["history", "-v", "-i"], ["downgrade", "base"]):
        migrate([*url, *command])
    migrate([*url, "upgrade", "head", "--sql"])

    assert SECRET not in "".join(capfd.readouterr())


def test_a_traceback_does_not_tell_the_password(python: Python, dead_port: int) -> None:
    """Asked for with `--raiseerr`, the traceback shows code, not values."""
    url = f"postgresql://somebody:{SECRET}@127.0.0.1:{dead_port}/postgres"
    ended = python(*MIGRATIONS, "--raiseerr", "upgrade", "head", cwd=ROOT, env=environment(AGENTS_PG_URL=url))

    assert ended.returncode != 0
    assert "Traceback" in ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
