"""An import that is interrupted leaves whole sessions behind and goes on; one that cannot work says what to do."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Connection, make_url

from agents_pg_session import SessionStore, StorageUnavailable
from agents_pg_session.operations import loading, sdk_import, sdk_tables, sdk_target
from agents_pg_session.operations.sdk_import import import_sdk
from agents_pg_session.operations.sdk_tables import Layout, SourceRow
from agents_pg_session.passages import Passage
from agents_pg_session.statements import Key, Subject
from agents_pg_session.testing.proxy import Fault, Proxy
from tests.conftest import Backend
from tests.items import assistant, user
from tests.operations.sdk_sources import KINDS, Source
from tests.programs import Python


def pytest_generate_tests() -> None:
    """Each test here names its own backends."""


ON_SQLITE = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
ON_BOTH = pytest.mark.parametrize("backend", ["sqlite", "asyncpg"], indirect=True)


@pytest.fixture(scope="module")
def sdk_database(new_database: Callable[[], str]) -> str:
    """A PostgreSQL database in which the SDK keeps tables."""
    return new_database()


@pytest.fixture
def source(tmp_path: Path, sdk_database: str) -> Source:
    """The SDK's tables on PostgreSQL."""
    return Source.of(KINDS[0], tmp_path, sdk_database)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of two rows: sessions of three are large."""
    monkeypatch.setattr(sdk_import, "PAGE_ROWS", 2)
    monkeypatch.setattr(sdk_tables, "PAGE_ROWS", 2)


@pytest.fixture
async def proxy(backend: Backend) -> AsyncIterator[Proxy]:
    """A proxy to the target."""
    async with Proxy(make_url(backend.url).port or 5432) as proxy:
        yield proxy


@ON_BOTH
@pytest.mark.usefixtures("small_pages")
async def test_a_session_is_there_whole_or_not_at_all(
    store: SessionStore, source: Source, new_id: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the import dies within a large session, the ones before are complete, that one is not there at all, and the
    next import goes on with it."""
    first, second = sorted(new_id() for _ in range(2))
    for session_id in (first, second):
        await source.add(session_id, [user("1"), assistant("2"), user("3")], [assistant("4")], [user("5")])
    page, seen = Layout.page, []

    def dying(layout: Layout, connection: Connection, key: tuple[str, str | None], after: object) -> list[SourceRow]:
        seen.append(key[0])
        if seen.count(second) == 3:
            raise ValueError("the power is out")
        return page(layout, connection, key, after)  # type: ignore[arg-type]

    monkeypatch.setattr(Layout, "page", dying)
    with pytest.raises(ValueError, match="power"):
        await import_sdk(store, **source.options)
    monkeypatch.setattr(Layout, "page", page)

    assert await store.session(first).get_items() == await source.items(first)
    assert await store.session(second).get_items() == []
    report = await import_sdk(store, **source.options)
    assert (report.sessions, report.skipped) == (1, 1)
    assert await store.session(second).get_items() == await source.items(second)


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"], indirect=True)
@pytest.mark.usefixtures("small_pages")
async def test_a_target_that_goes_away(
    backend: Backend, store: SessionStore, source: Source, new_id: Callable[[], str], proxy: Proxy
) -> None:
    """When our database goes away in the middle, the import says so in time; run again, it brings the rest."""
    ids = [new_id() for _ in range(4)]
    for session_id in ids:
        await source.add(session_id, [user("hi"), assistant("hello")])
    behind = make_url(backend.url).set(port=proxy.port).render_as_string(hide_password=False)

    def away(done: int, _total: int) -> None:
        if done >= 4:
            proxy.refusing = True
            proxy.cut_all()

    async with SessionStore.open(behind, retry_for=0.5) as fragile:
        with pytest.raises(StorageUnavailable, match="import_sdk"):
            await import_sdk(fragile, **source.options, progress=away)
    report = await import_sdk(store, **source.options)

    assert (report.sessions, report.skipped) == (2, 2)
    for session_id in ids:
        assert await store.session(session_id).get_items() == await source.items(session_id)


@pytest.mark.parametrize("backend", ["asyncpg"], indirect=True)
async def test_a_connection_that_is_lost_is_no_reason_to_stop(
    backend: Backend, store: SessionStore, source: Source, new_id: Callable[[], str], proxy: Proxy
) -> None:
    """Where only the connection to our database is lost, even with the answer to a commit, the import goes on alone."""
    session_id = new_id()
    await source.add(session_id, [user("hi"), assistant("hello")])
    behind = make_url(backend.url).set(port=proxy.port).render_as_string(hide_password=False)
    async with SessionStore.open(behind) as fragile:
        await fragile.check()
        proxy.watched = []
        await import_sdk(fragile, **source.options, session_id="nobody")
        for passed in range(1, 14, 4):
            await source.add(session_id, [user(f"{passed}")])
            proxy.fault = Fault("cut", "server", passed)
            report = await import_sdk(fragile, **source.options)
            assert (report.sessions + report.continued, report.items, report.skipped) == (1, 1 + (passed == 1) * 2, 0)
            assert await store.session(session_id).get_items() == await source.items(session_id)
    assert proxy.faults >= 3


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg"], indirect=True)
async def test_a_lost_answer_to_a_commit_is_found_out(
    backend: Backend, store: SessionStore, source: Source, new_id: Callable[[], str], proxy: Proxy
) -> None:
    """What is in, although nobody heard so, is reported as brought, not as skipped, and is there once."""
    session_id, answers = new_id(), 0
    behind = make_url(backend.url).set(port=proxy.port)
    async with SessionStore.open(behind) as fragile:
        for number in range(4):
            await source.add(session_id, [user(f"{number}")])
            proxy.watched = []
            if number == 3:  # as many messages as the last time, but for the answer to the commit
                proxy.fault = Fault("cut", "server", answers - 2)
            report = await import_sdk(fragile, **source.options)
            answers = [message.side for message in proxy.watched].count("server")

    assert (report.sessions, report.continued, report.skipped, report.items) == (0, 1, 0, 1)
    assert proxy.faults == 1
    assert await store.session(session_id).get_items() == await source.items(session_id)


@pytest.mark.parametrize("backend", ["asyncpg"], indirect=True)
async def test_a_slow_source_is_no_reason_to_stop(
    backend: Backend, source: Source, new_id: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long the SDK's database takes for an answer does not count as time that ours has taken."""
    session_id = new_id()
    await source.add(session_id, [user("hi")])
    rows = Layout.rows

    def slow(*asked: Any) -> Any:
        time.sleep(0.4)
        return rows(*asked)

    monkeypatch.setattr(Layout, "rows", slow)
    async with SessionStore.open(backend.url, retry_for=0.3) as hasty:
        report = await import_sdk(hasty, **source.options)

    assert report.sessions == 1


@pytest.mark.parametrize("backend", ["asyncpg"], indirect=True)
async def test_an_import_waits_for_another_one_as_long_as_it_takes(
    backend: Backend, source: Source, new_id: Callable[[], str]
) -> None:
    """While another import, of whatever kind, is at the same session, this one neither fails nor gives up."""
    session_id = new_id()
    await source.add(session_id, [user("hi")])
    loader = loading.loader_of("agents")
    there, over = asyncio.Event(), asyncio.Event()

    async def busy(passage: Passage) -> None:
        assert await loader.alone(passage, [Key("", session_id)])
        there.set()
        await passage.aside(over.wait())

    async with SessionStore.open(backend.url, retry_for=0.3, command_timeout=0.2) as hasty:
        somebody = asyncio.create_task(hasty._database.passage(Subject("import"), busy, begin=loader.begin))
        await there.wait()
        task = asyncio.create_task(import_sdk(hasty, **source.options))
        finished, _ = await asyncio.wait({task}, timeout=0.8)
        over.set()
        await somebody
        report = await task

    assert not finished
    assert report.sessions == 1


@ON_BOTH
@pytest.mark.usefixtures("small_pages")
async def test_a_cancelled_import_leaves_whole_sessions(
    store: SessionStore, source: Source, new_id: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of a session, while the source is read, takes it back; beginning anew brings it."""
    session_id = new_id()
    await source.add(session_id, *[[user(f"{number}")] for number in range(5)])
    page, pages, reading = Layout.page, itertools.count(1), asyncio.Event()

    def noted(*asked: Any) -> Any:
        if next(pages) == 2:
            reading.set()
        return page(*asked)

    monkeypatch.setattr(Layout, "page", noted)
    task = asyncio.create_task(import_sdk(store, **source.options))
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await store.session(session_id).get_items() == []
    assert (await import_sdk(store, **source.options)).items == 5


@ON_SQLITE
@pytest.mark.usefixtures("small_pages")
async def test_a_source_that_goes_away(
    store: SessionStore, source: Source, sdk_database: str, new_id: Callable[[], str]
) -> None:
    """When the SDK's database goes away, the error says that what was imported is complete, and how to go on."""
    ids = sorted(new_id() for _ in range(2))
    for session_id in ids:
        await source.add(session_id, [user("hi"), assistant("hello")])
    async with Proxy(make_url(source.url).port or 5432) as proxy:
        behind = make_url(source.url).set(port=proxy.port).render_as_string(hide_password=False)
        with pytest.raises(StorageUnavailable, match="run the same command again"):
            await import_sdk(
                store,
                **{**source.options, "source": behind},
                progress=lambda done, _: proxy.cut_all() if done else None,
            )

    assert await store.session(ids[0]).get_items() == [user("hi"), assistant("hello")]
    assert (await import_sdk(store, **source.options)).sessions == 1


@ON_SQLITE
async def test_a_source_that_is_not_there(store: SessionStore, tmp_path: Path) -> None:
    """A file that does not exist is not created, and a server that does not answer is named without its password."""
    with pytest.raises(ValueError, match="there is no SQLite file"):
        await import_sdk(store, source=f"sqlite:///{tmp_path}/missing.db")
    with pytest.raises(StorageUnavailable, match="check --from") as caught:
        await import_sdk(store, source="postgresql://u:secret@127.0.0.1:1/nothing")

    assert not (tmp_path / "missing.db").exists()
    assert "secret" not in str(caught.value)


@ON_BOTH
async def test_wrong_tables_are_answered_with_the_right_ones(
    store: SessionStore, source: Source, new_id: Callable[[], str]
) -> None:
    """Where the tables have other names, the error lists the options that name them, also in another schema."""
    await source.add(new_id(), [user("hi")])
    with pytest.raises(ValueError, match=f"--sessions-table {source.sessions_table} --messages-table") as plain:
        await import_sdk(store, source=source.url)
    with pytest.raises(ValueError, match="--from-schema public --sessions-table") as elsewhere:
        await import_sdk(store, source=source.url, source_schema="pg_catalog")
    with pytest.raises(ValueError, match="has no id, message_data"):
        await import_sdk(store, **{**source.options, "messages_table": source.sessions_table} | {"source": source.url})

    assert "there is no table 'agent_sessions'" in str(plain.value)
    assert source.messages_table in str(elsewhere.value)


@ON_BOTH
async def test_our_own_tables_are_no_source(backend: Backend, store: SessionStore) -> None:
    """Whoever points the import at our own tables is told what moves those."""
    schema = "agents" if backend.name != "sqlite" else None
    ours: dict[str, Any] = {"sessions_table": "sessions", "messages_table": "items"}
    for tables in ({}, ours):
        with pytest.raises(ValueError, match="`export` and `import` move those"):
            await import_sdk(store, source=backend.url, source_schema=schema, **tables)


@ON_SQLITE
async def test_an_empty_source(store: SessionStore, source: Source) -> None:
    """Tables without a row are imported without an error."""
    await source.items("nobody")
    report = await import_sdk(store, **source.options)

    assert (report.sessions, report.items, report.complete) == (0, 0, True)


@ON_SQLITE
async def test_a_pattern_that_is_none(store: SessionStore, source: Source) -> None:
    """A user pattern that is no regular expression is refused before anything is read."""
    with pytest.raises(ValueError, match="no regular expression"):
        await import_sdk(store, **source.options, user_from="(")


IMPORT = """
import asyncio, resource, sys
from agents_pg_session import SessionStore
from agents_pg_session.operations.sdk_import import import_sdk

async def main(source, target):
    async with SessionStore.open(target) as store:
        await import_sdk(store, source=source, session_id="nobody")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report = await import_sdk(store, source=source)
        assert report.turns == 2, report
    print(report.items, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)

asyncio.run(main(*sys.argv[1:]))
"""


@ON_SQLITE
async def test_memory_does_not_grow_with_a_session(
    backend: Backend, tmp_path: Path, sdk_database: str, python: Python
) -> None:
    """One session of 10,000 items and 60 MB is imported with a fraction of that in memory."""
    source = Source.of(KINDS[2], tmp_path, sdk_database)
    await source.add("giant", [user("begin")])
    await source.write(
        "WITH RECURSIVE n (value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < 9999) "
        "INSERT INTO {messages} (session_id, message_data, created_at) "
        "SELECT 'giant', json_object('role', 'user', 'content', value || $1), '2025-01-01 00:00:00' FROM n",
        "x" * 6000,
    )
    done = await asyncio.to_thread(
        python, "-c", IMPORT, source.url, backend.url, cwd=tmp_path, env={"PATH": os.defpath, "HOME": str(tmp_path)}
    )

    assert done.stderr == ""
    items, grown = map(int, done.stdout.split())
    assert items == 10_000
    assert grown < 50, f"{grown} MiB more"


async def test_statements_can_be_pasted_into_psql(postgres_url: str) -> None:
    """PostgreSQL accepts each of the target's statements as it is, once its values have types."""
    words = {"schema": "agents.", "now": "now()", "among": "= ANY (CAST(:among AS text[]))", "lock": "", "mark": "x"}
    statements = [loading.open_sql("agents", sdk_target.written()["sessions"])]
    statements += [loading.change_sql("agents", shape) for shape in sdk_target.changed().values()]
    for sql in sdk_target.QUESTIONS.values():
        for name, meaning in words.items():
            sql = sql.replace("{" + name + "}", meaning)
        statements.append(sql)
    connection = await asyncpg.connect(postgres_url)
    try:
        for sql in statements:
            await connection.prepare(numbered(sql))
    finally:
        await connection.close()


def numbered(sql: str) -> str:
    """Write named values as PREPARE has them."""
    names = list(dict.fromkeys(re.findall(r"(?<!:):([a-z_]+)", sql)))
    return re.sub(r"(?<!:):([a-z_]+)", lambda found: f"${names.index(found[1]) + 1}", sql)
