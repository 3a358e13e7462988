"""What whoever operates the application sees: spans, metrics, and what the pool is doing."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, Pool, StaticPool

from agents_pg_session import (
    PGSession,
    PoolUse,
    SchemaOutdated,
    SessionClosed,
    SessionConflict,
    SessionError,
    SessionStore,
)
from tests.conftest import Backend
from tests.items import user
from tests.watching import Watch, watching

PLACE = {"db.system.name", "db.namespace", "db.operation.name"}
SERVER = {"server.address", "server.port"}


@pytest.fixture
def watch(backend: Backend) -> Iterator[Watch]:
    """An SDK that hears of every store opened in the test."""
    with watching() as watch:
        yield watch


@pytest.fixture
async def store(watch: Watch, backend: Backend) -> AsyncIterator[SessionStore]:
    """A store that is watched, with five connections."""
    async with SessionStore.open(backend.url, engine_kwargs={"pool_size": 5}) as store:
        yield store
        assert store.pool().in_use == 0


@asynccontextmanager
async def held_up(backend: Backend, session: PGSession) -> AsyncIterator[None]:
    """Let nobody write to the session meanwhile."""
    if backend.name == "sqlite":
        connection = sqlite3.connect(str(make_url(backend.url).database), isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
        connection.close()
        return
    other = await asyncpg.connect(make_url(backend.url).set(drivername="postgresql").render_as_string(False))
    async with other.transaction():
        await other.execute("SELECT FROM agents.sessions WHERE session_id = $1 FOR UPDATE", session.session_id)
        yield
    await other.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


async def test_a_verb_is_one_span_below_its_callers(
    watch: Watch, store: SessionStore, backend: Backend, new_id: Callable[[], str]
) -> None:
    """Each call is one CLIENT span under the caller's, named and described as the conventions for databases have it."""
    session = store.session(new_id(), tenant="acme")
    with watch.tracer.start_as_current_span("agent run") as run:
        await session.add_items([user("one"), user("two")])
        await session.get_items()

    append, latest = watch.spans()
    url = make_url(backend.url)
    namespace = Path(str(url.database)).name if backend.name == "sqlite" else f"{url.database}|agents"
    assert [span.name for span in (append, latest)] == [f"append {namespace}", f"latest {namespace}"]
    for span in (append, latest):
        assert span.kind is SpanKind.CLIENT
        assert span.parent == run.get_span_context()
        assert span.status.status_code is StatusCode.UNSET
    described = dict(append.attributes or {})
    assert described.keys() - SERVER == PLACE | {
        f"agents_pg_session.{name}" for name in ("session_id", "tenant", "items")
    }
    assert described["agents_pg_session.session_id"] == session.session_id
    assert (described["agents_pg_session.tenant"], described["agents_pg_session.items"]) == ("acme", 2)
    assert (latest.attributes or {})["db.response.returned_rows"] == 2
    if backend.name != "sqlite":
        assert (described["server.address"], described["server.port"]) == (url.host, url.port)


async def test_a_statement_sees_the_verbs_span(watch: Watch, store: SessionStore, session: PGSession) -> None:
    """While a statement runs its verb's span is the current one, so that a driver's own instrumentation is below it;
    afterwards the caller's is."""
    from opentelemetry import trace

    seen: list[Any] = []
    driver = store._database._driver
    run = driver.run

    async def looking(connection: Any, command: Any) -> Any:
        seen.append(trace.get_current_span().get_span_context())
        return await run(connection, command)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "run", looking)
        with watch.tracer.start_as_current_span("agent run") as outer:
            await session.get_items()
            after = trace.get_current_span()

    assert seen == [watch.spans("latest")[0].get_span_context()]
    assert after is outer


async def test_nothing_that_is_stored_is_told(watch: Watch, store: SessionStore, new_id: Callable[[], str]) -> None:
    """No item, no metadata and no password is in any span or metric."""
    password = store.engine.url.password
    session = store.session(new_id(), metadata={"plan": "secret"})
    await session.add_items([user("secret")])
    await session.find("secret")
    await session.snapshots.save("notes", "secret")
    await session.pop_item()
    await session.clear_session()

    told = watch.everything()
    assert len(watch.spans()) == 5
    assert "secret" not in told
    assert not password or password not in told


async def test_metrics_name_no_session(watch: Watch, store: SessionStore, new_id: Callable[[], str]) -> None:
    """Calls are measured by verb; neither a session nor a tenant is a label: each would be a series of its own."""
    for _ in range(3):
        await store.session(new_id(), tenant="acme").add_items([user("hi")])
    await store.session(new_id(), tenant="acme").get_items()

    duration = watch.series("db.client.operation.duration")
    counts = {labels["db.operation.name"]: (set(labels), count) for labels, count in duration}
    expected = PLACE if store.engine.dialect.name == "sqlite" else PLACE | SERVER
    assert counts == {"append": (expected, 3), "latest": (expected, 1)}
    assert watch.metric("db.client.connection.wait_time") == 4


async def test_an_error_ends_the_span_as_one(
    watch: Watch, backend: Backend, tmp_path: Path, new_id: Callable[[], str]
) -> None:
    """A call that fails says so: on its span with the error's class, text and code, and in the metric of its verb."""
    url = f"sqlite:///{tmp_path / 'empty.db'}" if backend.name == "sqlite" else backend.url
    async with SessionStore.open(url, schema="nowhere") as store:
        with pytest.raises(SchemaOutdated) as raised:
            await store.session(new_id()).get_items()

    [span] = watch.spans("latest")
    attributes = span.attributes or {}
    code = "SQLITE_ERROR" if backend.name == "sqlite" else "42P01"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, str(raised.value))
    assert (attributes["error.type"], attributes["db.response.status_code"]) == ("SchemaOutdated", code)
    assert watch.metric("db.client.operation.duration", error__type="SchemaOutdated") == 1


async def test_a_conflict_is_counted(watch: Watch, store: SessionStore, new_id: Callable[[], str]) -> None:
    """Whoever is told of a SessionConflict is counted by verb, and the span around the call knows of it."""
    session, other = store.session(new_id(), expect="unchanged"), store.session(new_id())
    await session.add_items([user("1")])
    await store.session(session.session_id).add_items([user("2")])
    await other.add_items([user("3")])
    with watch.tracer.start_as_current_span("agent run") as run:
        with pytest.raises(SessionConflict):
            await session.add_items([user("4")])
        with pytest.raises(SessionConflict):
            await session.fork(other.session_id)

    counted = {labels["db.operation.name"]: count for labels, count in watch.series("agents_pg_session.conflicts")}
    assert counted == {"append": 1, "fork": 1}
    events = [(event.name, dict(event.attributes or {})) for event in run.events]  # type: ignore[attr-defined]
    assert events == [("agents_pg_session.conflict", {"db.operation.name": verb}) for verb in ("append", "fork")]


async def test_a_pool_tells_what_it_is_doing(backend: Backend, new_id: Callable[[], str]) -> None:
    """Before the first call, after it, and after the end: what `pool()` says needs no connection."""
    async with SessionStore.open(backend.url, engine_kwargs={"pool_size": 5}) as store:
        fresh = store.pool()
        await store.session(new_id()).add_items([user("hi")])
        used = store.pool()

    assert fresh == PoolUse(size=0, in_use=0, idle=0, waiting=0, limit=5)
    assert used == PoolUse(size=1, in_use=0, idle=1, waiting=0, limit=5)
    assert asdict(used)["size"] == 1
    with pytest.raises(SessionClosed):
        store.pool()


#: An application's engine: its pool, and how many of 12 callers get a connection at once, the others waiting.
ENGINES: dict[str, tuple[type[Pool], dict[str, int], int, int | None]] = {
    "overflow": (AsyncAdaptedQueuePool, {"pool_size": 2, "max_overflow": 3}, 5, 5),
    "static": (StaticPool, {}, 1, 1),
    "null": (NullPool, {}, 12, None),
}


async def test_40_callers_of_5_connections(
    watch: Watch, store: SessionStore, session: PGSession, backend: Backend
) -> None:
    """35 of 40 callers wait and 5 are served (on SQLite, which has one writer, 39 and 1): `pool()` and the metrics say
    so, and nobody waits in the end."""
    await session.add_items([user("hi")])
    served = 1 if backend.name == "sqlite" else 5
    async with held_up(backend, session):
        appends = [asyncio.ensure_future(session.add_items([user(str(number))])) for number in range(40)]
        await until(lambda: store.pool().in_use == served)
        crowded = store.pool()
        measured = [
            watch.metric("db.client.connection.count", db__client__connection__state="used"),
            watch.metric("db.client.connection.pending_requests"),
            watch.metric("db.client.connection.max"),
        ]
    await asyncio.gather(*appends)
    calm = store.pool()

    assert (crowded.in_use, crowded.waiting, crowded.limit) == (served, 40 - served, 5)
    assert measured == [served, 40 - served, 5]
    assert (calm.in_use, calm.waiting, calm.idle) == (0, 0, calm.size)
    assert watch.metric("db.client.connection.wait_time") == 41


@pytest.mark.parametrize("kind", ENGINES)
async def test_callers_of_an_engine_of_the_application(
    watch: Watch, backend: Backend, new_id: Callable[[], str], kind: str
) -> None:
    """The same of a borrowed engine, whatever its pool; one without a limit says so."""
    pool_class, settings, places, limit = ENGINES[kind]
    engine = create_async_engine(backend.url, poolclass=pool_class, **settings)
    store = SessionStore(engine=engine)
    session = store.session(new_id())
    await session.add_items([user("hi")])
    served = 1 if backend.name == "sqlite" else places
    async with held_up(backend, session):
        appends = [asyncio.ensure_future(session.add_items([user(str(number))])) for number in range(12)]
        await until(lambda: store.pool().in_use == served and store.pool().waiting == 12 - served)
        crowded = store.pool()
    await asyncio.gather(*appends)
    calm = store.pool()
    await engine.dispose()

    assert (crowded.in_use, crowded.waiting, crowded.limit) == (served, 12 - served, limit)
    assert (calm.in_use, calm.waiting) == (0, 0)
    assert calm.idle == calm.size == {"null": 0, "static": 1}.get(kind, min(served, 2))


async def test_a_caller_that_gave_up_waits_no_more(store: SessionStore, session: PGSession, backend: Backend) -> None:
    """A cancelled caller leaves the line, and is not counted any more."""
    await session.add_items([user("hi")])
    async with held_up(backend, session):
        appends = [asyncio.ensure_future(session.add_items([user("x")])) for _ in range(6)]
        await until(lambda: store.pool().waiting > 0)
        reading = [asyncio.ensure_future(session.get_items()) for _ in range(3)]
        await asyncio.sleep(0)
        for read in reading:
            read.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        left = store.pool()
    await asyncio.gather(*appends)

    assert left.in_use + left.waiting == 6


async def test_a_closed_store_is_measured_no_more(watch: Watch, backend: Backend, new_id: Callable[[], str]) -> None:
    """Stores on one database add up; one that is closed, or garbage, leaves nothing behind in the metrics."""
    one, two = (SessionStore.open(backend.url, engine_kwargs={"pool_size": size}) for size in (3, 4))
    for each in (one, two):
        await each.session(new_id()).add_items([user("hi")])
    together = watch.metric("db.client.connection.max")
    await one.close()
    alone = watch.metric("db.client.connection.max")
    await two.engine.dispose()
    left = weakref.ref(two._database)
    del one, two, each
    gc.collect()

    assert (together, alone) == (7, 4)
    assert left() is None
    assert watch.series("db.client.connection.max") == []


async def test_an_engine_is_not_kept_alive(watch: Watch, backend: Backend, new_id: Callable[[], str]) -> None:
    """What is measured is not held on to: an application's engine goes with its last reference."""

    async def use() -> weakref.ref[AsyncEngine]:
        engine = create_async_engine(backend.url, poolclass=NullPool)
        await SessionStore(engine=engine).session(new_id()).add_items([user("hi")])
        return weakref.ref(engine)

    engine = await use()
    gc.collect()

    assert engine() is None
    assert watch.series("db.client.connection.count") == []


async def test_a_wait_in_vain_is_counted(
    watch: Watch, backend: Backend, session: PGSession, new_id: Callable[[], str]
) -> None:
    """A caller who gets no connection within its time is an error of its own in the metrics."""
    await session.add_items([user("hi")])
    async with SessionStore.open(backend.url, engine_kwargs={"pool_size": 1}, retry_for=30) as store:
        async with held_up(backend, session):
            append = asyncio.ensure_future(store.session(session.session_id).add_items([user("x")]))
            await until(lambda: store.pool().in_use == 1)
            store._database._retry_for = 0.05
            with pytest.raises(SessionError, match="unavailable"):
                await store.session(session.session_id).get_items()
        await append

    assert watch.metric("db.client.connection.timeouts") == 1
    assert watch.metric("db.client.operation.duration", error__type="StorageUnavailable") == 1
