"""Fetch Redis with Debian's own apt, without root: `python -m benchmarks.fetch_redis`, which the Makefile runs.

Debian's redis-server goes into `redis/` of the running Python's environment, with the libraries it was linked to and
their loader, as `tests/fetch_pgbouncer.py` does for PgBouncer. Where there is no Debian nothing is fetched: the
benchmarks then look on the PATH, and leave Redis out with a sentence if there is none either.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fetch_pgbouncer import KEYS, apt, find_mirror, on_debian

INTO = Path(sys.prefix) / "redis"

#: Started through the loader that belongs to its libraries, from wherever the folder lies.
LAUNCHER = """#!/bin/sh
root="${0%/*}/.."
exec "$root/lib/loader" --library-path "$root/lib" "$root/lib/redis-server" "$@"
"""


def main() -> None:
    if not on_debian():
        print("Redis is fetched on Debian only; elsewhere the benchmarks take the one on the PATH")
        return
    suite, mirror = platform.freedesktop_os_release()["VERSION_CODENAME"], find_mirror()
    shutil.rmtree(INTO, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="redis-") as scratch:
        fetch(suite, mirror, Path(scratch))
    said = subprocess.run([INTO / "bin/redis-server", "--version"], check=True, capture_output=True, text=True)
    print(f"{said.stdout.strip()} is in {INTO}")


def fetch(suite: str, mirror: str, scratch: Path) -> None:
    """Unpack Redis of *suite* and every library that it needs."""
    settings = [
        f"Dir::Etc::SourceList={scratch / 'sources.list'}",
        f"Dir::Etc::SourceParts={scratch / 'none'}",
        f"Dir::State::Lists={scratch / 'lists'}",
        f"Dir::Cache={scratch / 'cache'}",
        "Acquire::Languages=none",
        "Acquire::Retries=3",
        "APT::Sandbox::User=",  # everything here belongs to us: no other account could write it
    ]
    options = [word for setting in settings for word in ("-o", setting)]
    for folder in ("lists/partial", "cache/archives/partial", "none", "unpacked"):
        (scratch / folder).mkdir(parents=True)
    (scratch / "sources.list").write_text(f"deb [signed-by={KEYS}] {mirror} {suite} main\n")
    apt("apt-get", *options, "--quiet", "update")
    apt("apt-get", *options, "--quiet", "download", *packages(options), cwd=scratch)
    for archive in scratch.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, scratch / "unpacked"], check=True)
    assemble(scratch / "unpacked")


def packages(options: list[str]) -> list[str]:
    """Return what to fetch: the program (Debian keeps it in redis-tools) and the libraries it depends on."""
    wanted, asked = {"redis-tools"}, set[str]()
    while waiting := sorted(wanted - asked):
        said = apt("apt-cache", *options, "depends", "--important", *waiting)
        asked.update(waiting)
        wanted.update(re.findall(r"^ +(?:Pre)?Depends: ((?:lib|lua)[a-z0-9.+-]+)$", said, re.MULTILINE))
    return sorted(wanted)


def assemble(unpacked: Path) -> None:
    """Put the program, its libraries and their loader into one folder, in which nothing else lies."""
    (INTO / "bin").mkdir(parents=True)
    (INTO / "lib").mkdir()
    for path in sorted(unpacked.rglob("*.so*")):
        if path.is_file() and path.parent.name.endswith("-linux-gnu"):
            shutil.copy(path, INTO / "lib" / path.name)
    loader = next(path for path in (INTO / "lib").iterdir() if path.name.startswith("ld-linux"))
    shutil.copy(loader, INTO / "lib" / "loader")
    shutil.copy(unpacked / "usr/bin/redis-check-rdb", INTO / "lib" / "redis-server")  # one program, two names
    launcher = INTO / "bin" / "redis-server"
    launcher.write_text(LAUNCHER)
    for program in (launcher, INTO / "lib" / "loader", INTO / "lib" / "redis-server"):
        program.chmod(0o755)


if __name__ == "__main__":
    main()
