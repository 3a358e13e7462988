"""Ten processes that set up one database in the same instant: `python -m tests.migrations.crowd URL upgrade create …`.

Each is forked from one that has imported everything, and starts when all are there: they meet at the database, where
ten interpreters would come one by one as their imports end. Prints what each said and ends with the number that failed.
"""

from __future__ import annotations

import asyncio
import os
import runpy
import sys
import traceback
from collections.abc import Callable

from tests.migrations.actions import create_tables


def upgrade(url: str) -> None:
    """What `python -m agents_pg_session.migrations` does once Python has started."""
    sys.argv = ["migrations", "-x", f"url={url}", "upgrade", "head"]
    runpy.run_module("agents_pg_session.migrations", run_name="__main__", alter_sys=True)


def create(url: str) -> None:
    asyncio.run(create_tables(url))


ACTIONS: dict[str, Callable[[str], None]] = {"upgrade": upgrade, "create": create}


def main(url: str, actions: list[str]) -> int:
    closed_to_start, held = os.pipe()
    children = [_fork(ACTIONS[action], url, closed_to_start, held) for action in actions]
    os.close(held)
    return sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)


def _fork(action: Callable[[str], None], url: str, closed_to_start: int, held: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.close(held)
        os.read(closed_to_start, 1)
        action(url)
        status = 0
    except SystemExit as end:
        status = 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
