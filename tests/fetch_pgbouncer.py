"""Fetch PgBouncer with Debian's own apt, without root: `python tests/fetch_pgbouncer.py`, which the Makefile runs.

One of Debian 12 (1.18: knows nothing of prepared statements) and one of Debian 13 (1.24: tracks them) go into
`pgbouncer/` of the running Python's environment, each with the libraries it was linked to and their loader, so both
start whatever this machine's own libc is. The mirror is the one that this machine's apt already uses. Where there is
no Debian, nothing is fetched: the tests then look on the PATH, and say so if there is none either.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SUITES = ("bookworm", "trixie")
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
INTO = Path(sys.prefix) / "pgbouncer"

#: Started through the loader that belongs to its libraries, from wherever the folder lies.
LAUNCHER = """#!/bin/sh
root="${0%/*}/.."
exec "$root/lib/loader" --library-path "$root/lib" "$root/lib/pgbouncer" "$@"
"""


def main() -> None:
    if not on_debian():
        print("PgBouncer is fetched on Debian only; elsewhere its tests take the one on the PATH")
        return
    mirror = find_mirror()
    shutil.rmtree(INTO, ignore_errors=True)
    for suite in SUITES:
        with tempfile.TemporaryDirectory(prefix="pgbouncer-") as scratch:
            fetch(suite, mirror, Path(scratch), INTO / suite)
        said = subprocess.run([INTO / suite / "bin/pgbouncer", "--version"], check=True, capture_output=True, text=True)
        print(f"{said.stdout.splitlines()[0]} from {suite} is in {INTO / suite}")


def on_debian() -> bool:
    return sys.platform == "linux" and platform.freedesktop_os_release().get("ID") == "debian"


def find_mirror() -> str:
    """Return where this machine's apt finds the archive of its own release."""
    codename = platform.freedesktop_os_release()["VERSION_CODENAME"]
    asked = apt("apt-get", "update", "--print-uris")
    found = re.search(rf"'(https?://[^']+)/dists/{codename}/InRelease'", asked)
    if found is None:
        raise SystemExit(f"apt knows no archive of {codename} over http: its sources name none")
    return found[1]


def fetch(suite: str, mirror: str, scratch: Path, into: Path) -> None:
    """Unpack PgBouncer of *suite* and every library that it needs."""
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
    packages = [f"{name}/{suite}" for name in libraries(options)]
    apt("apt-get", *options, "--quiet", "download", *packages, cwd=scratch)
    for archive in scratch.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, scratch / "unpacked"], check=True)
    assemble(scratch / "unpacked", into)


def libraries(options: list[str]) -> list[str]:
    """Return the packages to fetch: what PgBouncer depends on, as far as it is libraries."""
    wanted, asked = {"pgbouncer"}, set[str]()
    while waiting := sorted(wanted - asked):
        said = apt("apt-cache", *options, "depends", "--important", *waiting)
        asked.update(waiting)
        wanted.update(re.findall(r"^ +(?:Pre)?Depends: (lib(?!json-perl)[a-z0-9.+-]+)$", said, re.MULTILINE))
    return sorted(wanted)


def assemble(unpacked: Path, into: Path) -> None:
    """Put the program, its libraries and their loader into one folder, in which nothing else lies."""
    (into / "bin").mkdir(parents=True)
    (into / "lib").mkdir()
    for path in sorted(unpacked.rglob("*.so*")):
        if path.is_file() and path.parent.name.endswith("-linux-gnu"):
            shutil.copy(path, into / "lib" / path.name)
    loader = next(path for path in (into / "lib").iterdir() if path.name.startswith("ld-linux"))
    shutil.copy(loader, into / "lib" / "loader")
    shutil.copy(unpacked / "usr/sbin/pgbouncer", into / "lib" / "pgbouncer")
    launcher = into / "bin" / "pgbouncer"
    launcher.write_text(LAUNCHER)
    for program in (launcher, into / "lib" / "loader"):
        program.chmod(0o755)


def apt(*command: str, cwd: Path | None = None) -> str:
    said = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "LC_ALL": "C"})
    if said.returncode:
        raise SystemExit(f"{command[0]} failed:\n{said.stderr}")
    return said.stdout


if __name__ == "__main__":
    main()
