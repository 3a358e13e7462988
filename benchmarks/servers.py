"""The servers of one run: a PostgreSQL with settings as in production, and a Redis per way of writing to disk."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from agents_pg_session.testing.server import Server, find_binaries

__all__ = ["POSTGRES", "Redis", "postgres", "redis_program"]

_MEGABYTES = psutil.virtual_memory().total // 2**20

#: What differs from PostgreSQL's own defaults. Commits reach the disk before they are acknowledged.
POSTGRES = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": f"{min(2048, _MEGABYTES // 4)}MB",
    "effective_cache_size": f"{_MEGABYTES * 3 // 4}MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "max_connections": "300",
}

_PATIENCE = 30.0


@contextlib.contextmanager
def postgres() -> Iterator[Server]:
    """Start a PostgreSQL of our own; it goes with the run."""
    binaries = find_binaries()
    if binaries is None:
        raise SystemExit("no PostgreSQL here: `make bench` installs one")
    server = Server(binaries, settings=POSTGRES)
    try:
        server.start()
        yield server
    finally:
        server.stop()


class Redis:
    """A Redis on loopback with an append-only file, written to disk as *policy* says: `everysec` or `always`."""

    def __init__(self, program: str, policy: str) -> None:
        self.policy = policy
        self.port = _free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="agents-pg-redis-"))
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self._folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": policy,
            "logfile": "log",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen([program, *words], preexec_fn=_die_with_parent, cwd=self._folder)
        deadline = time.monotonic() + _PATIENCE
        while not _answers(self.port):
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"Redis did not start; see {self._folder}/log")
            time.sleep(0.02)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(_PATIENCE)
        shutil.rmtree(self._folder, ignore_errors=True)


def redis_program() -> str | None:
    """Return the program: the one `benchmarks/fetch_redis.py` fetched, or the one on the PATH."""
    fetched = Path(sys.prefix) / "redis" / "bin" / "redis-server"
    return str(fetched) if fetched.is_file() else shutil.which("redis-server")


def redis_version() -> str:
    program = redis_program()
    if program is None:
        return "none"
    said = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    return said.partition("v=")[2].partition(" ")[0]


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    return next(port for port in random.sample(range(15_000, 32_000), 100) if not _answers(port))


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        if os.getppid() == 1:
            os._exit(1)
