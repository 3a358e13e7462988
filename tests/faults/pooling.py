"""How to come through PgBouncer, and what operators and machines do to it and to the server behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL, make_url

from agents_pg_session import SessionStore
from agents_pg_session.testing.pgbouncer import PgBouncer
from agents_pg_session.testing.server import Server
from tests.conftest import pgbouncer_program

__all__ = ["WAYS", "Trouble", "Way", "opened", "running"]

TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
 WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


@dataclass(frozen=True)
class Way:
    """How to come through a pooler: over which driver, through which kind."""

    driver: str
    kind: str

    def url(self, bouncer: PgBouncer, database: str | None) -> URL:
        url = make_url(bouncer.url(database or "postgres", f"postgresql+{self.driver}"))
        return url if bouncer.tracks_statements else url.update_query_dict({"pgbouncer": "true"})


WAYS = [Way(driver, kind) for kind in ("plain", "tracking") for driver in ("asyncpg", "psycopg")]


@contextmanager
def running(way: Way, server_url: str, **settings: str) -> Iterator[PgBouncer]:
    """A PgBouncer of the test's own."""
    bouncer = PgBouncer(pgbouncer_program(way.kind), server_url, settings=settings)
    bouncer.start()
    try:
        yield bouncer
    finally:
        bouncer.stop()


@asynccontextmanager
async def opened(url: URL | str, **options: Any) -> AsyncIterator[SessionStore]:
    """A store that leaves nothing checked out."""
    async with SessionStore.open(url, **options) as store:
        yield store
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


class Trouble:
    """What operators and machines do to a pooler and to the server behind it."""

    def __init__(self, bouncer: PgBouncer, server: Server) -> None:
        self._bouncer, self._server = bouncer, server
        self.everything: list[Callable[[], Awaitable[None]]] = [
            *(self.reconnect, self.pause, self.kill_database, self.disable_database),
            *(self.terminate_backends, self.crash_pooler, self.crash_server),
        ]

    async def reconnect(self) -> None:
        await self._bouncer.admin("RECONNECT")

    async def pause(self) -> None:
        await self._bouncer.admin("PAUSE")
        await asyncio.sleep(0.3)
        await self._bouncer.admin("RESUME")

    async def kill_database(self) -> None:
        await self._bouncer.admin("KILL postgres")
        await self._bouncer.admin("RESUME postgres")

    async def disable_database(self) -> None:
        await self._bouncer.admin("DISABLE postgres")
        await self._bouncer.admin("KILL postgres")
        await self._bouncer.admin("RESUME postgres")
        await asyncio.sleep(0.2)
        await self._bouncer.admin("ENABLE postgres")

    async def terminate_backends(self) -> None:
        await asyncio.to_thread(self._server.sql, TERMINATE)

    async def crash_pooler(self) -> None:
        self._bouncer.crash()
        await asyncio.sleep(0.2)
        self._bouncer.start()

    async def crash_server(self) -> None:
        await asyncio.to_thread(self._server.crash)
        await asyncio.to_thread(self._server.start)
