"""Sixteen writers in a process of their own, over the package of any release: `python writers.py URL`.

Six sessions are shared by two writers each, and half of the writers come over psycopg. A line is printed for each
append that was acknowledged or failed. Ends when its standard input does, with every append settled.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from sqlalchemy import make_url

from agents_pg_session import SessionStore

WRITERS, SESSIONS = 16, 10


def batches(tag: str, number: int) -> list[list[Any]]:
    """One turn with a tool call: in one append, or with the output in an append of its own."""
    question = {"role": "user", "content": tag}
    call = {"type": "function_call", "call_id": tag, "name": "track", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": tag, "output": tag}
    return [[question, call, output]] if number % 3 else [[question, call], [output]]


def tell(kind: str, **about: object) -> None:
    print(json.dumps({"kind": kind, **about}), flush=True)


async def write(store: SessionStore, writer: int, end: asyncio.Event) -> None:
    session = store.session(f"s{writer % SESSIONS}")
    number = 0
    while not end.is_set():
        number += 1
        tag = f"{writer}-{number}"
        for batch in batches(tag, number):
            try:
                await session.add_items(batch)
            except Exception as error:
                tell("failed", tag=tag, error=f"{type(error).__name__}: {error}")
            else:
                tell("acknowledged", session=session.session_id, tag=tag, items=len(batch))
        await asyncio.sleep(0.01)


async def main(url: str) -> None:
    end = asyncio.Event()
    asyncio.get_running_loop().add_reader(0, end.set)  # nobody writes to it: it becomes readable when it ends
    over_psycopg = make_url(url).set(drivername="postgresql+psycopg")
    async with SessionStore.open(url) as one, SessionStore.open(over_psycopg) as other:
        await asyncio.gather(*(write((one, other)[writer % 2], writer, end) for writer in range(WRITERS)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
