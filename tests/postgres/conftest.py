"""Fixtures for what only PostgreSQL can prove; over asyncpg, the driver people get without asking."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest
from sqlalchemy import make_url

from agents_pg_session.testing.proxy import Proxy


@pytest.fixture
async def observer(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of its own, to look at what the library did."""
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


@pytest.fixture
def new_database_url(new_database: Callable[[], str]) -> str:
    """An empty database."""
    return new_database()


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[Proxy]:
    """A proxy before the test database."""
    async with Proxy(make_url(postgres_url).port or 5432) as proxy:
        yield proxy


@pytest.fixture
def proxied_url(postgres_url: str, proxy: Proxy) -> str:
    """The test database, seen through the proxy."""
    return make_url(postgres_url).set(port=proxy.port).render_as_string(hide_password=False)
