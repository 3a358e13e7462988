"""Several processes at the start of the same deployment: the other end of a promise about setting up.

One process imports everything once and forks the crowd, so that its members begin at the same moment.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from importlib import import_module
from operator import attrgetter
from typing import Any

from agents_pg_session.testing.promises.subject import Subject
from agents_pg_session.testing.promises.trial import Trial, history

MEMBERS = 6


def named(path: str) -> Any:
    """Return what `module:name` is called."""
    module, _, name = path.partition(":")
    return attrgetter(name)(import_module(module))


def main() -> None:
    """Read `[opener, creator or null, urls]` and print one line per member that failed."""
    opener, creator, urls = json.loads(sys.argv[1])
    open_session, create_tables = named(opener), named(creator) if creator else None
    for url in urls:
        starting, start = os.pipe()
        members = []
        for _ in range(MEMBERS):
            if not (member := os.fork()):
                os.close(start)
                os.read(starting, 1)  # ends for all when the parent closes its end
                _begin(Subject(open_session, url, create_tables))
            members.append(member)
        os.close(start)
        os.close(starting)
        for member in members:
            os.waitpid(member, 0)


def _begin(subject: Subject) -> None:
    try:
        asyncio.run(_append(subject))
    except BaseException as error:
        text = (str(error).strip() or "no words").splitlines()[0]
        os.write(1, f"{type(error).__name__}: {text}\n".encode())
    os._exit(0)


async def _append(subject: Subject) -> None:
    async with asyncio.timeout(30), Trial(subject) as trial:
        await (await trial.open()).add_items(history(1))
