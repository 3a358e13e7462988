"""What is installed carries its own revisions: everything works where the repository is not."""

from __future__ import annotations

import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from agents_pg_session.schema import newest_revision
from tests.migrations.actions import ROOT, run

SCRIPT = """
import asyncio, sys
from agents_pg_session import SessionStore

async def main(url):
    async with SessionStore.open(url) as store:
        session = store.session("s")
        await session.add_items([{"role": "user", "content": "hello"}])
        print((await store.check()).revision, await session.get_items())

for url in sys.argv[1:]:
    asyncio.run(main(url))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("built")
    build(ROOT, folder, "wheel", "sdist")
    return folder


def build(source: Path, folder: Path, *targets: str) -> None:
    """Build with the project's own backend, as `pip wheel` would, without fetching it first."""
    wanted = [word for target in targets for word in ("-t", target)]
    ended = run(sys.executable, "-m", "hatchling", "build", "-d", folder, *wanted, cwd=source)
    assert ended.returncode == 0, ended.stderr


def wheel_in(folder: Path) -> Path:
    [wheel] = folder.glob("*.whl")
    return wheel


def contents(wheel: Path) -> dict[str, bytes]:
    """Every file of a wheel, but for the list of their checksums."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


@pytest.fixture(scope="module")
def elsewhere(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an empty virtual environment with nothing but the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    # What is imported below is compiled then; all of the SDK would take longer than the download.
    installed = run(*map(str, pip), "install", "-q", "--no-compile", wheel_in(built), cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return folder / "bin" / "python"


def test_the_wheel_holds_the_package_and_its_revisions_only(built: Path) -> None:
    """py.typed and every revision are in it; tests, examples, documents and bytecode are not."""
    names = set(contents(wheel_in(built)))
    revisions = {
        f"agents_pg_session/_alembic/versions/{path.name}" for path in (ROOT / "alembic/versions").glob("*.py")
    }
    folders = {name.split("/")[0] for name in names}

    assert {"agents_pg_session/py.typed", "agents_pg_session/_alembic/env.py", *revisions} <= names
    assert folders == {"agents_pg_session", next(name for name in folders if name.endswith(".dist-info"))}
    assert not {name for name in names if name.endswith((".pyc", ".ini"))}


def test_the_sdist_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    """What is published as source makes the wheel that was published."""
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    build(source, tmp_path, "wheel")

    assert contents(wheel_in(tmp_path)) == contents(wheel_in(built))


def test_the_wheel_migrates_and_stores_without_the_repository(elsewhere: Path, empty: str, tmp_path: Path) -> None:
    """Installed alone, it upgrades PostgreSQL and SQLite from nothing, and items come back."""
    urls = (empty, f"sqlite:///{tmp_path / 'sessions.db'}")
    isolated = (elsewhere, "-I")
    upgrades = [
        run(*isolated, "-m", "agents_pg_session.migrations", "upgrade", "head", cwd=tmp_path, AGENTS_PG_URL=url)
        for url in urls
    ]
    used = run(*isolated, "-W", "error", "-c", SCRIPT, *urls, cwd=tmp_path)

    assert [(ended.returncode, ended.stderr) for ended in upgrades] == [(0, "")] * 2
    assert used.stdout == f"{newest_revision()} [{{'role': 'user', 'content': 'hello'}}]\n" * 2, used.stderr
