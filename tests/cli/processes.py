"""The command line in a process of its own, at a terminal or not: forked from a Python that has imported the SDK."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.programs import FORKED

__all__ = ["running"]


@contextmanager
def running(
    arguments: tuple[str, ...], environment: Mapping[str, str], printed: Path, terminal: str | None = None
) -> Iterator[BaseProcess]:
    """Run a command whose output goes to the files *printed*.out and .err; or errors and questions to a *terminal*."""
    process = FORKED.Process(target=_become, args=(arguments, dict(environment), str(printed), terminal))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _become(arguments: tuple[str, ...], environment: Mapping[str, str], printed: str, terminal: str | None) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests behind it has it ignored
    os.environ.update(environment)
    os.dup2(os.open(f"{printed}.out", os.O_WRONLY | os.O_CREAT), 1)
    if terminal is not None:
        os.setsid()  # the terminal it opens first is the one that Ctrl-C comes from
        os.dup2(os.open(terminal, os.O_RDWR), 0)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 (it ends with the process)
    os.dup2(0 if terminal is not None else os.open(f"{printed}.err", os.O_WRONLY | os.O_CREAT), 2)
    for name, number in (("stdout", 1), ("stderr", 2)):  # what it inherits may know of a file that is none any more
        setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    sys.argv = ["agents-pg-session", *arguments]
    from agents_pg_session.cli import main

    main()
