"""A few seconds of the soak: the long one is `make soak`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from agents_pg_session.migrations import main as migrate
from agents_pg_session.testing.server import Server, find_binaries
from tests.faults.soak import soak


@pytest.fixture
def server() -> Iterator[Server]:
    """A server that may crash."""
    binaries = find_binaries()
    assert binaries is not None, "no PostgreSQL was found; agents_pg_session.testing.server says where it looks"
    server = Server(binaries)
    server.start()
    migrate(["-x", f"url={server.url}", "upgrade", "head"])
    yield server
    server.stop()


async def test_a_few_seconds_of_everything_at_once(server: Server) -> None:
    """Writers, walkers, cancelled callers and random trouble, a crash among it: nothing is lost, nothing doubled."""
    async with asyncio.timeout(100):
        report = await soak(server, 6, crash_every=6)

    assert report.wrong == []
    assert report.counts["acknowledged"] > 0
    assert report.counts["verbs compared"] > 0
    assert report.faults.total() > 0
