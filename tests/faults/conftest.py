"""The same proxy and observer as the PostgreSQL tests have, and a store behind the proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import URL, make_url

from agents_pg_session import SessionStore
from agents_pg_session.testing.server import Server
from tests.faults.servers import migrated_server
from tests.postgres.conftest import observer, proxied_url, proxy

__all__ = ["observer", "proxied_url", "proxy"]


@pytest.fixture(scope="session")
def own_server() -> Iterator[Server]:
    """A server that a test may kill; it is expected to be started again."""
    server = migrated_server()
    yield server
    server.stop()


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(request: pytest.FixtureRequest, proxied_url: str) -> URL:
    """The test database behind the proxy, over both drivers."""
    return make_url(proxied_url).set(drivername=f"postgresql+{request.param}")


@pytest.fixture
def url_in_turn(request: pytest.FixtureRequest, proxied_url: str) -> URL:
    """The same over a driver that a test is given: see tests/sampling.py."""
    return make_url(proxied_url).set(drivername=f"postgresql+{request.param}")


@pytest.fixture
async def store(url: URL) -> AsyncIterator[SessionStore]:
    """A store behind the proxy, with one connection."""
    async with SessionStore.open(url, engine_kwargs={"pool_size": 1}) as store:
        yield store
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
