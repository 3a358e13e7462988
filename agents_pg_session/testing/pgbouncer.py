"""A real PgBouncer before a PostgreSQL: in transaction mode, on loopback, and it can crash.

Looked for in this order: `AGENTS_PG_TEST_PGBOUNCER` (a program), `pgbouncer/*/bin/pgbouncer` in the environment of the
running Python (where this project's Makefile puts those of two Debian releases), the PATH and `/usr/sbin`.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import asyncpg
from sqlalchemy import make_url

from agents_pg_session.testing.processes import (
    PATIENCE,
    die_with_parent,
    end,
    free_port,
    in_user_namespace,
    namespace_works,
)

__all__ = ["PgBouncer", "find_pgbouncer"]

#: The first version that gives each client its own prepared statements in transaction mode.
_TRACKING = (1, 21)

_SETTINGS = {
    "listen_addr": "127.0.0.1",
    "unix_socket_dir": "",
    "auth_type": "any",  # whoever comes is let in, as the user below
    "pool_mode": "transaction",
    "default_pool_size": "3",
    "max_client_conn": "300",
    "server_login_retry": "1",  # by default, 15 s after the server refused one connection it is not asked for another
}


class PgBouncer:
    """One PgBouncer before the server of *server_url*, under that URL's user; its folder goes with it.

    Any database of that server can be asked for. *settings* are PgBouncer's own and override ours: transaction mode,
    with three server connections per database.
    """

    def __init__(self, program: Path, server_url: str, *, settings: Mapping[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="agents-pg-pgbouncer-"))
        self.version = version_of(program)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._become, self._program = _somebody_else(program, self.folder)
        server = make_url(server_url)
        self._user = server.username or "postgres"
        line = {"host": server.host, "port": server.port or 5432, "user": self._user, "password": server.password}
        target = " ".join(f"{name}='{value}'" for name, value in line.items() if value is not None)
        lines = {**_SETTINGS, "listen_port": str(self.port), "admin_users": self._user, **(settings or {})}
        self._ini.write_text(
            f"[databases]\n* = {target}\n[pgbouncer]\n" + "".join(f"{key} = {lines[key]}\n" for key in lines)
        )

    @property
    def tracks_statements(self) -> bool:
        """Whether it knows prepared statements: then clients need no switch."""
        return self.version >= _TRACKING

    @property
    def log(self) -> str:
        """What it has said so far."""
        return (self.folder / "log").read_text()

    @property
    def _ini(self) -> Path:
        return self.folder / "pgbouncer.ini"

    def url(self, database: str, driver: str = "postgresql") -> str:
        """Return the URL of *database* as seen through it."""
        return f"{driver}://{self._user}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it, again after `crash` on the same port, and return when it accepts connections.

        Call this in a thread that lives longer than it shall: the kernel ends it with the thread that started it.
        """
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, self._ini],
                stdout=log,
                stderr=log,
                preexec_fn=lambda: die_with_parent(self._become),
                cwd=self.folder,
            )
        deadline = time.monotonic() + PATIENCE
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PgBouncer did not start:\n{self.log}")
            time.sleep(0.02)

    def crash(self) -> None:
        """Kill it: every client and every server connection it has ends in the middle of what it was doing."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it and remove its folder."""
        self._end(signal.SIGQUIT)  # SIGTERM waits for the clients to go, since 1.23
        shutil.rmtree(self.folder, ignore_errors=True)

    async def admin(self, command: str) -> None:
        """Run a command of its console (`PAUSE`, `RESUME`, `RECONNECT`, `KILL name` …) and return when it is done."""
        console = await asyncpg.connect(self.url("pgbouncer"))
        try:
            await console.execute(command)
        finally:
            console.terminate()

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            end(process, how)


def find_pgbouncer(*, tracks_statements: bool) -> Path | None:
    """Return a PgBouncer that tracks prepared statements (1.21 and newer) or one that does not, or None."""
    return next((each for each in _candidates() if (version_of(each) >= _TRACKING) is tracks_statements), None)


@cache
def version_of(program: Path) -> tuple[int, ...]:
    """Return what a PgBouncer says of itself, `(1, 18, 0)`."""
    said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"PgBouncer (\d+)\.(\d+)\.(\d+)", said)
    if found is None:
        raise RuntimeError(f"{program} is no PgBouncer; it says: {said}")
    return tuple(map(int, found.groups()))


def _candidates() -> Iterator[Path]:
    if program := os.environ.get("AGENTS_PG_TEST_PGBOUNCER"):
        yield Path(program)
    yield from sorted((Path(sys.prefix) / "pgbouncer").glob("*/bin/pgbouncer"))
    if found := shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin"):
        yield Path(found)


def _somebody_else(program: Path, folder: Path) -> tuple[Callable[[], None], Path]:
    """Return how a child becomes somebody PgBouncer agrees to run as (not root), and the program it can reach.

    As for PostgreSQL: uid 1000 in a user namespace, or, where the kernel forbids that, `nobody`.
    """
    if os.geteuid() != 0:
        return (lambda: None), program
    if namespace_works():
        return in_user_namespace, program
    nobody = pwd.getpwnam("nobody")
    folder.chmod(0o755)
    if (program.parent.parent / "lib" / "loader").is_file():  # one of ours, in a folder that may be root's own
        copy = folder / "program"
        shutil.copytree(program.parent.parent, copy)
        program = copy / "bin" / program.name

    def become_nobody() -> None:
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)

    return become_nobody, program
