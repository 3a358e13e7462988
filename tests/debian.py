"""Fetch a program with Debian's own apt, without root.

The program goes into a folder of the running Python's environment, with the libraries it was linked to and their
loader, so it starts whatever this machine's own libc is. The mirror is the one that this machine's apt already uses.
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

KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

#: What a package depends on, as far as it is libraries of programs: libraries of Perl have no business here.
LIBRARY = re.compile(r"^ +(?:Pre)?Depends: ((?:lib|lua)(?!json-perl)[a-z0-9.+-]+)$", re.MULTILINE)

#: Started through the loader that belongs to its libraries, from wherever the folder lies.
LAUNCHER = """#!/bin/sh
root="${0%%/*}/.."
exec "$root/lib/loader" --library-path "$root/lib" "$root/lib/%s" "$@"
"""


def on_debian() -> bool:
    return sys.platform == "linux" and platform.freedesktop_os_release().get("ID") == "debian"


def codename() -> str:
    """Return the name of this machine's own release."""
    return platform.freedesktop_os_release()["VERSION_CODENAME"]


def fetch(package: str, program: str, into: Path, *, suite: str, called: str) -> str:
    """Put *program*, a path in *package* of *suite*, into *into* as `bin/called`; return what it says it is."""
    shutil.rmtree(into, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="fetched-") as scratch:
        unpacked = unpack(package, suite, Path(scratch))
        assemble(unpacked, unpacked / program, into, called)
    said = subprocess.run([into / "bin" / called, "--version"], check=True, capture_output=True, text=True)
    return said.stdout.splitlines()[0]


def unpack(package: str, suite: str, scratch: Path) -> Path:
    """Unpack *package* of *suite* and every library that it needs."""
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
    (scratch / "sources.list").write_text(f"deb [signed-by={KEYS}] {find_mirror()} {suite} main\n")
    apt("apt-get", *options, "--quiet", "update")
    wanted = [f"{name}/{suite}" for name in with_libraries(package, options)]
    apt("apt-get", *options, "--quiet", "download", *wanted, cwd=scratch)
    for archive in scratch.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, scratch / "unpacked"], check=True)
    return scratch / "unpacked"


def find_mirror() -> str:
    """Return where this machine's apt finds the archive of its own release."""
    asked = apt("apt-get", "update", "--print-uris")
    found = re.search(rf"'(https?://[^']+)/dists/{codename()}/InRelease'", asked)
    if found is None:
        raise SystemExit(f"apt knows no archive of {codename()} over http: its sources name none")
    return found[1]


def with_libraries(package: str, options: list[str]) -> list[str]:
    """Return the packages to fetch: *package*, and the libraries it depends on."""
    wanted, asked = {package}, set[str]()
    while waiting := sorted(wanted - asked):
        said = apt("apt-cache", *options, "depends", "--important", *waiting)
        asked.update(waiting)
        wanted.update(LIBRARY.findall(said))
    return sorted(wanted)


def assemble(unpacked: Path, program: Path, into: Path, called: str) -> None:
    """Put the program, its libraries and their loader into one folder, in which nothing else lies."""
    (into / "bin").mkdir(parents=True)
    (into / "lib").mkdir()
    for path in sorted(unpacked.rglob("*.so*")):
        if path.is_file() and path.parent.name.endswith("-linux-gnu"):
            shutil.copy(path, into / "lib" / path.name)
    loader = next(path for path in (into / "lib").iterdir() if path.name.startswith("ld-linux"))
    shutil.copy(loader, into / "lib" / "loader")
    shutil.copy(program, into / "lib" / called)
    launcher = into / "bin" / called
    launcher.write_text(LAUNCHER % called)
    for started in (launcher, into / "lib" / "loader", into / "lib" / called):
        started.chmod(0o755)


def apt(*command: str, cwd: Path | None = None) -> str:
    said = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "LC_ALL": "C"})
    if said.returncode:
        raise SystemExit(f"{command[0]} failed:\n{said.stderr}")
    return said.stdout
