"""A few seconds of the soak: the long one is `make soak`."""

from __future__ import annotations

import asyncio

from agents_pg_session.testing.server import Server
from tests.faults.soak import soak


async def test_a_few_seconds_of_everything_at_once(own_server: Server) -> None:
    """Writers, walkers, cancelled callers and random trouble, a crash among it: nothing is lost, nothing doubled."""
    async with asyncio.timeout(100):
        report = await soak(own_server, 4, crash_every=3)

    assert report.wrong == []
    assert report.counts["acknowledged"] > 0
    assert report.counts["verbs compared"] > 0
    assert report.faults.total() > 0
