"""The application goes on writing while its tables are upgraded and taken back: nothing fails, nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url

from agents_pg_session import StorageUnavailable
from agents_pg_session.migrations import current, downgrade, upgrade
from agents_pg_session.migrations import main as migrate
from agents_pg_session.schema import newest_revision
from tests.migrations.actions import ROOT, execute
from tests.migrations.catalog import difference, of_postgres
from tests.migrations.load import differences, writing
from tests.migrations.releases import FIRST, unpacked
from tests.tally import Tally


@pytest.fixture(scope="module")
def first_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as it was at the first revision."""
    return unpacked(FIRST, tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def at_first(new_database: Callable[..., str]) -> Callable[[], str]:
    """A function that returns the URL of a database at the first revision."""

    def create() -> str:
        url = new_database()
        upgrade(url, revision="0001")
        return url

    return create


async def until_told(caplog: pytest.LogCaptureFixture, *words: str) -> str:
    """Wait for a line of the upgrade with all these words in it."""
    async with asyncio.timeout(60):
        while True:
            for line in caplog.messages:
                if all(word in line for word in words):
                    return line
            await asyncio.sleep(0.02)


async def test_the_first_releases_writers_go_on(
    at_first: Callable[[], str], first_release: Path, postgres_url: str, thorough: bool, tally: Tally
) -> None:
    """From the first revision to the newest and back, under 16 writers of the first release."""
    url = await asyncio.to_thread(at_first)
    rounds = 10 if thorough else 1
    async with writing(url, first_release) as load:
        for _ in range(rounds):
            await load.more()
            await asyncio.to_thread(upgrade, url)
            assert difference(await of_postgres(url), await of_postgres(postgres_url)) == {}
            await load.more()
            await asyncio.to_thread(downgrade, url, revision="0001")
        await load.more()

    tally.add("migrations under load, first release", rounds=rounds, appends=len(load.acknowledged))
    assert load.failed == []
    assert await differences(url, load) == []


async def test_the_newest_writers_go_on(migrated: str, postgres_url: str, thorough: bool, tally: Tally) -> None:
    """Between the newest revision and the last one whose columns the newest code needs, under its own 16 writers."""
    rounds = 10 if thorough else 1
    async with writing(migrated, ROOT) as load:
        for _ in range(rounds):
            await load.more()
            await asyncio.to_thread(downgrade, migrated, revision="0002")
            await load.more()
            await asyncio.to_thread(upgrade, migrated)
        await load.more()

    tally.add("migrations under load, newest code", rounds=rounds, appends=len(load.acknowledged))
    assert load.failed == []
    assert await differences(migrated, load) == []
    assert difference(await of_postgres(migrated), await of_postgres(postgres_url)) == {}


async def test_writers_do_not_queue_behind_an_upgrade_that_waits(
    at_first: Callable[[], str], first_release: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A long report keeps the upgrade out: appends go on meanwhile, and when it ends, the upgrade succeeds."""
    caplog.set_level("INFO", "agents_pg_session.migrations")
    url = await asyncio.to_thread(at_first)
    report = await asyncpg.connect(url, server_settings={"application_name": "monthly report"})
    async with writing(url, first_release) as load:
        await load.more()
        reading = report.transaction()
        await reading.start()
        await report.fetch("SELECT count(*) FROM agents.sessions")
        upgrading = asyncio.create_task(asyncio.to_thread(upgrade, url, lock_timeout=0.3))
        line = await until_told(caplog, "waiting for a lock", "agents.sessions", "trying again in")
        await load.more(200)
        assert not upgrading.done()
        await reading.rollback()
        await upgrading
        await load.more()
    await report.close()

    assert "monthly report" in line
    assert load.failed == []
    assert await differences(url, load) == []
    assert await asyncio.to_thread(current, url) == newest_revision()


async def test_an_upgrade_that_gives_up_names_the_lock_and_its_holder(at_first: Callable[[], str]) -> None:
    """When the budget is spent, nothing has changed, and the error says what to end before running it again."""
    url = await asyncio.to_thread(at_first)
    before = await of_postgres(url)
    report = await asyncpg.connect(url, server_settings={"application_name": "monthly report"})
    pid = report.get_server_pid()
    reading = report.transaction()
    await reading.start()
    await report.fetch("SELECT count(*) FROM agents.runs")
    with pytest.raises(StorageUnavailable) as failure:
        await asyncio.to_thread(upgrade, url, lock_timeout=0.3, retry_for=1)
    after = await of_postgres(url)
    await reading.rollback()
    await report.close()
    await asyncio.to_thread(upgrade, url)

    said = str(failure.value)
    assert said.startswith("upgrade 0001 -> 0002")
    assert "waited 1 s for a lock (AccessExclusiveLock) on agents.runs held by" in said
    assert f"pid {pid} (monthly report, role postgres, idle in transaction, its transaction open since 20" in said
    assert f"`SELECT pg_terminate_backend({pid})`" in said
    assert failure.value.sqlstate == "55P03"
    assert difference(before, after) == {}
    assert await asyncio.to_thread(current, url) == newest_revision()


async def test_giving_up_is_one_line_on_the_command_line(
    at_first: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """`-x lock_timeout=` and `-x retry_for=` say how patient it is; the end is FAILED and one sentence."""
    url = await asyncio.to_thread(at_first)
    report = await asyncpg.connect(url)
    reading = report.transaction()
    await reading.start()
    await report.fetch("SELECT count(*) FROM agents.runs")
    patience = ["-x", "lock_timeout=0.2", "-x", "retry_for=0.2"]
    with pytest.raises(SystemExit):
        await asyncio.to_thread(migrate, ["-x", f"url={url}", *patience, "upgrade", "head"])
    await report.close()

    assert capsys.readouterr().out.startswith("FAILED: upgrade 0001 -> 0002")


async def test_steps_that_were_taken_stay_taken(migrated: str, caplog: pytest.LogCaptureFixture) -> None:
    """Two revisions back, and the second has to be tried again: it is that one again, and no further one.

    The database's own `lock_timeout` also ends what waits for other transactions outside of one.
    """
    caplog.set_level("INFO", "agents_pg_session.migrations")
    await execute(migrated, f"ALTER DATABASE {make_url(migrated).database} SET lock_timeout = '200ms'")
    report = await asyncpg.connect(migrated)
    reading = report.transaction()
    await reading.start()
    await report.fetch("SELECT count(*) FROM agents.runs")
    back = asyncio.create_task(asyncio.to_thread(downgrade, migrated, revision="-2"))
    await until_told(caplog, "downgrade 0003 -> 0002", "trying again in")
    await reading.rollback()
    await report.close()
    await back

    assert await asyncio.to_thread(current, migrated) == "0002"
    assert await execute(migrated, "SELECT count(*) FROM pg_index WHERE NOT indisvalid") == [(0,)]
