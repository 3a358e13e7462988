"""The code of earlier releases works on the newest schema: their own contract suites, on databases of ours.

Each file in `tests/releases` is the sdist of a release. Its package and its tests are unpacked and run in a process of
their own, where only the databases are made by our revisions (`tests/releases/on_our_schema.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agents_pg_session.schema import newest_revision
from tests.migrations.actions import ROOT, environment
from tests.migrations.releases import FIRST, FOLDER, RELEASES, newest_revision_of, unpacked

#: What the suite runs of a contract: everything that reads and writes, over two drivers; thoroughly, it runs all.
SAMPLE = ["-k", "not psycopg and not 20_megabytes", "--ignore=tests/contract/test_handle.py"]


@pytest.fixture(params=RELEASES, ids=lambda path: path.name.removesuffix(".tar.gz"))
def release(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of an unpacked release."""
    path: Path = request.param
    return unpacked(path, tmp_path)


def run_contract(source: Path, server_url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the contract suite of a release on databases at our newest revision.

    What its tests leave to the garbage collector is not what is asked here: today's pytest may tell it otherwise.
    """
    plugins = ("-p", "no:cacheprovider", "-p", "on_our_schema", "-W", "ignore::pytest.PytestUnraisableExceptionWarning")
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *options]
    settings = environment(
        AGENTS_PG_TEST_URL=server_url,
        AGENTS_PG_NEWEST=f"{ROOT}:{newest_revision()}",
        PYTHONPATH=os.pathsep.join((str(source), str(FOLDER))),
    )
    return subprocess.run(
        [*command, "tests/contract"], cwd=source, env=settings, capture_output=True, text=True, timeout=110
    )


def test_the_contract_of_a_release_holds_on_the_newest_schema(release: Path, server_url: str, thorough: bool) -> None:
    """What a release promised, its last processes keep after a rolling deploy has upgraded the database."""
    ran = run_contract(release, server_url, *([] if thorough else SAMPLE))

    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout


def test_every_release_is_older_than_the_newest_revision(release: Path) -> None:
    """None is newer than this code, and the code of the first revision is among them."""
    assert newest_revision_of(release) <= newest_revision()
    assert FIRST in RELEASES


CHECK = """
import asyncio, sys
from agents_pg_session import SchemaOutdated, SessionStore

async def main():
    async with SessionStore.open(sys.argv[1]) as store:
        print(await store.session("s").get_items())
        try:
            await store.check()
        except SchemaOutdated as error:
            print(error)

asyncio.run(main())
"""


def test_the_first_revisions_own_check_refuses_what_it_does_not_know(migrated: str, tmp_path: Path) -> None:
    """Written before there was anything to ask, that code works on the newest schema, while its `check` says no."""
    source = unpacked(FIRST, tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", CHECK, migrated]
    settings = environment(PYTHONPATH=str(source), PYTHONDONTWRITEBYTECODE="1")
    ran = subprocess.run(command, cwd=source, env=settings, capture_output=True, text=True, timeout=60)

    assert ran.stdout.startswith("[]\nthe database is at revision"), ran.stderr
    assert "upgrade the package agents-pg-session" in ran.stdout
