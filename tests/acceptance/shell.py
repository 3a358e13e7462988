"""A shell in which `agents-pg-session` and `alembic` are programs that do not take two seconds to begin.

Each is a few lines that hand their arguments to the test through a socket; there `tests.programs` runs them, forked, or
anew with `--thorough`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.programs import Python

__all__ = ["Shell", "shell"]

#: What stands on the PATH: its name tells which module it is.
_CLIENT = """\
#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as there:
    there.connect({address!r})
    there.sendall(json.dumps([{module!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
    there.shutdown(socket.SHUT_WR)
    status, out, err = json.loads(there.makefile("rb").read())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""


class Shell:
    """Runs scripts with these programs, and those of a folder, before all others."""

    def __init__(self, programs: Path, environment: Mapping[str, str]) -> None:
        self._environment = {**environment, "PATH": f"{programs}{os.pathsep}{environment['PATH']}"}

    def run(self, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run a script up to its first command that fails, in a pipe too."""
        command = ["bash", "-euo", "pipefail", "-c", script]
        return subprocess.run(
            command, cwd=folder, env=self._environment, capture_output=True, encoding="utf-8", timeout=100
        )


@contextmanager
def shell(
    folder: Path, python: Python, modules: Mapping[str, str], links: Mapping[str, Path], environment: Mapping[str, str]
) -> Iterator[Shell]:
    """Open a shell: each of *modules* is a program by its name, each of *links* one that is somewhere else."""
    programs, address = folder / "bin", str(folder / "socket")
    programs.mkdir()
    for name, module in modules.items():
        (programs / name).write_text(_CLIENT.format(python=sys.executable, address=address, module=module))
        (programs / name).chmod(0o755)
    for name, path in links.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{path}" "$@"\n')
        (programs / name).chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        serving = threading.Thread(target=_serve, args=(listening, python))
        serving.start()
        try:
            yield Shell(programs, environment)
        finally:
            with socket.socket(socket.AF_UNIX) as ending:
                ending.connect(address)
            serving.join()


def _serve(listening: socket.socket, python: Python) -> None:
    """Run one program after the other, until somebody asks for nothing."""
    while True:
        asking, _ = listening.accept()
        with asking, asking.makefile("rb") as said:
            if not (asked := said.read()):
                return
            module, arguments, folder, environment = json.loads(asked)
            ended = python("-m", module, *arguments, cwd=Path(folder), env=environment)
            asking.sendall(json.dumps([ended.returncode, ended.stdout, ended.stderr]).encode())
