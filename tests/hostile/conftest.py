"""One bench per backend; at its end nothing is checked out, and what was tried is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import make_url

from agents_pg_session import SessionStore
from tests.conftest import Backend
from tests.hostile.law import Bench
from tests.tally import Tally


@pytest.fixture
def bench(backend: Backend, thorough: bool, tally: Tally) -> Iterator[Bench]:
    """A store in a loop of its own, which hypothesis' examples share."""
    with asyncio.Runner() as runner:
        store = SessionStore.open(backend.url)
        bench = Bench(backend.name, backend.url, runner, store, thorough, tally)
        yield bench

        async def end() -> None:
            assert store.engine.pool.checkedout() == 0, "a connection was left checked out"  # type: ignore[attr-defined]
            assert (await store.check()).revision, "the pool still works"
            await store.close()

        runner.run(end())
    tally.add("Bad input", cases=bench.counts.total(), **bench.counts, foreign_errors=0)


@pytest.fixture(params=["asyncpg", "psycopg"])
def bench_url(request: pytest.FixtureRequest, postgres_url: str) -> str:
    """PostgreSQL over each driver."""
    return make_url(postgres_url).set(drivername=f"postgresql+{request.param}").render_as_string(hide_password=False)
