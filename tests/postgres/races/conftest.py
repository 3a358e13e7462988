"""One session, seen from two processes' stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from agents_pg_session import PGSession, SessionStore


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[SessionStore]:
    async with SessionStore.open(postgres_url) as store:
        yield store
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.fixture
async def other(postgres_url: str) -> AsyncIterator[SessionStore]:
    """The store of another process."""
    async with SessionStore.open(postgres_url) as store:
        yield store
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.fixture
def session(store: SessionStore, new_id: Callable[[], str]) -> PGSession:
    return store.session(new_id())


@pytest.fixture
def twin(other: SessionStore, session: PGSession) -> PGSession:
    """The same session in another process."""
    return other.session(session.session_id)
