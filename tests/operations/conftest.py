"""Fixtures for what is done to whole stores."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import make_url

from agents_pg_session import SessionStore


@pytest.fixture
async def stores(postgres_url: str, sqlite_template: Path, tmp_path: Path) -> AsyncIterator[dict[str, SessionStore]]:
    """A store on each backend; PostgreSQL's two share a database, so tests take a tenant of their own."""
    shutil.copy(sqlite_template, tmp_path / "sessions.db")
    urls = {"sqlite": f"sqlite:///{tmp_path / 'sessions.db'}"}
    for driver in ("asyncpg", "psycopg"):
        url = make_url(postgres_url).set(drivername=f"postgresql+{driver}")
        urls[driver] = url.render_as_string(hide_password=False)
    opened = {name: SessionStore.open(url) for name, url in urls.items()}
    yield opened
    for store in opened.values():
        assert store.engine.pool.checkedout() == 0, "a connection was left checked out"  # type: ignore[attr-defined]
        await store.close()


@pytest.fixture
def tenant(new_id: Callable[[], str]) -> str:
    """A tenant that nobody has used."""
    return new_id()
