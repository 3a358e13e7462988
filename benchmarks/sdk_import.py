"""A team's year of history out of the SDK's tables: items per second, and memory, of one import.

`python -m benchmarks.sdk_import` makes 10⁶ items with plain SQL in a database of its own on a server of its own, and
imports them twice: all, then nothing. `--items 20000` is a small run, `--target sqlite` writes to a file, and
`--sessions 1` puts all of it into one session. Memory is that of the importing process, which does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import asyncpg

from agents_pg_session import SessionStore
from agents_pg_session.testing.server import Server, find_binaries

__all__ = ["main"]

# The SDK's own tables, as SQLAlchemySession makes them.
_TABLES = """
CREATE TABLE agent_sessions (
    session_id varchar PRIMARY KEY,
    created_at timestamp NOT NULL DEFAULT now(), updated_at timestamp NOT NULL DEFAULT now()
);
CREATE TABLE agent_messages (
    id serial PRIMARY KEY, session_id varchar NOT NULL REFERENCES agent_sessions ON DELETE CASCADE,
    message_data text NOT NULL, created_at timestamp NOT NULL DEFAULT now()
);
CREATE INDEX idx_agent_messages_session_time ON agent_messages (session_id, created_at);
"""

# A year of sessions: each turn is a question, a call, its output and an answer, three appends of them.
_SESSIONS = """
INSERT INTO agent_sessions
SELECT 'chat-' || lpad(s::text, 7, '0'), timestamp '2025-01-01' + s * interval '1 minute',
       timestamp '2025-01-01' + s * interval '1 minute' + interval '1 hour'
  FROM generate_series(1, $1) s
"""
_MESSAGES = """
INSERT INTO agent_messages (session_id, message_data, created_at)
SELECT 'chat-' || lpad((i / 4 % $1 + 1)::text, 7, '0'),
       CASE i % 4
       WHEN 0 THEN json_build_object('role', 'user', 'content', 'Wo ist mein Paket ' || i || '? ' || repeat('ä', 60))
       WHEN 1 THEN json_build_object('type', 'function_call', 'call_id', 'call_' || i, 'name', 'find_parcel',
                                     'arguments', json_build_object('order', 'A-' || i)::text, 'id', 'fc_' || i)
       WHEN 2 THEN json_build_object('type', 'function_call_output', 'call_id', 'call_' || i - 1,
                                     'output', repeat('in Zürich ', 40))
       ELSE json_build_object('role', 'assistant', 'type', 'message', 'status', 'completed', 'id', 'msg_' || i,
                              'content', json_build_array(json_build_object('type', 'output_text',
                                         'text', repeat('It is in Zürich. ', 15), 'annotations', json_build_array())))
       END::text,
       timestamp '2025-01-01' + i / 4 * interval '1 second' + i % 4 / 3 * interval '0.5 second'
                 + least(i % 4, 1) * interval '0.1 second'
  FROM generate_series(0, $2 - 1) i
"""

# What the importing process runs: the time and its memory at the end, in KiB.
_IMPORT = """
import asyncio, json, resource, sys, time
from agents_pg_session import SessionStore
from agents_pg_session.operations.sdk_import import import_sdk

async def main(source, target):
    async with SessionStore.open(target) as store:
        await store.check()
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        report = await import_sdk(store, source=source)
        took = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    print(json.dumps({"seconds": took, "cpu": cpu, "before": before, "after": after, "items": report.items,
                      "sessions": report.sessions, "skipped": report.skipped, "tool_runs": report.tool_runs}))

asyncio.run(main(*sys.argv[1:]))
"""


async def _fill(url: str, items: int, sessions: int) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(_TABLES)
        await connection.execute(_SESSIONS, sessions)
        await connection.execute(_MESSAGES, sessions, items)
        await connection.execute("ANALYZE")
    finally:
        await connection.close()


async def _prepare(url: str) -> None:
    async with SessionStore.open(url) as store:
        await store.create_tables()


def _import(source: str, target: str) -> dict[str, float]:
    command = [sys.executable, "-c", _IMPORT, source, target]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    """Run the benchmark, print a line per import, and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--sessions", type=int, default=0, help="25 turns each where nothing is said")
    parser.add_argument("--target", choices=("postgresql", "sqlite"), default="postgresql")
    options = parser.parse_args(arguments)
    binaries = find_binaries()
    assert binaries is not None, "no PostgreSQL was found; agents_pg_session.testing.server says where it looks"
    server = Server(binaries)
    server.start()
    try:
        with tempfile.TemporaryDirectory(prefix="sdk-import-") as folder:
            target = server.url if options.target == "postgresql" else f"sqlite:///{Path(folder) / 'ours.db'}"
            began = time.perf_counter()
            asyncio.run(_fill(server.url, options.items, options.sessions or max(1, options.items // 100)))
            asyncio.run(_prepare(target))
            print(f"{options.items} items made in {time.perf_counter() - began:.1f} s", flush=True)
            found = []
            for _ in range(2):
                found.append(_import(server.url, target))
                print(_line(found[-1]), flush=True)
            return found
    finally:
        server.stop()


def _line(found: dict[str, float]) -> str:
    what = f"{found['items']:,} items, {found['sessions']:,} sessions, {found['tool_runs']:,} tool runs"
    pace = f"{found['items'] / found['seconds']:,.0f} items/s, {found['cpu']:.1f} s of CPU"
    memory = f"memory {found['before'] / 1024:.0f} MiB before, {found['after'] / 1024:.0f} at most"
    return f"{what} ({found['skipped']:,} skipped) in {found['seconds']:.1f} s: {pace}, {memory}"


if __name__ == "__main__":
    main()
