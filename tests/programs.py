"""Python programs in processes of their own: anew, or without the two seconds in which each imports the Agents SDK.

The latter are forked from a Python that has imported it already and has done nothing else (`multiprocessing`'s fork
server, which ends with the test run): folder, environment, warnings and end are their own, and nothing that is open
here is open there. The fixture `python` is the former with `--thorough`, and otherwise the latter.
"""

from __future__ import annotations

import builtins
import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from io import TextIOWrapper
from multiprocessing import forkserver
from pathlib import Path
from typing import Protocol

__all__ = ["FORKED", "Python", "anew", "forked", "prepare"]

#: What starts processes that shall be there at once: `FORKED.Process(target=…)`.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        *("agents.extensions.memory", "agents.testing", "asyncpg", "aiosqlite", "psycopg", "pytest", "rich.console"),
        *("agents_pg_session.store", "agents_pg_session.testing", "alembic.command", "tests.migrations.actions"),
    ]
)


#: Seconds after which a program is taken to hang.
_PATIENCE = 100


def prepare() -> None:
    """Start the Python that programs are forked from, without waiting until it is ready."""
    forkserver.ensure_running()


class Python(Protocol):
    """Does as `python …` with these arguments does: a script, `-m module` or `-c code`, behind `-W error::Category`."""

    def __call__(
        self, *arguments: str | Path, cwd: Path, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]: ...


def anew(*arguments: str | Path, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Start an interpreter, as a user would."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=_PATIENCE)


def forked(*arguments: str | Path, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Fork one that has imported what takes long."""
    command = [str(each) for each in arguments]
    with tempfile.TemporaryDirectory(prefix="program-") as folder:
        printed = (Path(folder) / "stdout", Path(folder) / "stderr")
        process = FORKED.Process(target=_become, args=(command, cwd, dict(env), printed))
        process.start()
        process.join(_PATIENCE)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, _PATIENCE)
        out, err = (path.read_text(encoding="utf-8") for path in printed)
        return subprocess.CompletedProcess(command, process.exitcode, out, err)


def _become(command: list[str], folder: Path, environment: Mapping[str, str], printed: tuple[Path, Path]) -> None:
    """Turn this process into what `python …` starts, but for the imports."""
    for number, path in zip((1, 2), printed, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, TextIOWrapper)
        stream.reconfigure(encoding="utf-8")
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    while command[0] == "-W":
        action, _, category = command[1].partition("::")
        assert action == "error", "the only one that is asked for"
        warnings.simplefilter("error", getattr(builtins, category))
        command = command[2:]
    try:
        _run(command, str(folder))
    finally:
        gc.collect()  # an interpreter that ends complains then of what was not closed
        sys.stdout.flush()
        sys.stderr.flush()


def _run(command: list[str], folder: str) -> None:
    match command:
        case ["-m", module, *rest]:
            sys.argv, sys.path[0] = [module, *rest], folder
            sys.modules.pop(module, None)  # what is run is not what was imported
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *rest]:
            sys.argv, sys.path[0] = ["-c", *rest], folder
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        case [script, *rest]:
            sys.argv, sys.path[0] = [script, *rest], str(Path(script).parent)
            runpy.run_path(script, run_name="__main__")
