"""What is installed carries its own revisions: everything works where the repository is not."""

from __future__ import annotations

import json
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from agents_pg_session.schema import newest_revision
from tests.migrations.actions import MIGRATIONS, ROOT, run

SCRIPT = """
import asyncio, sys
from agents_pg_session import SessionStore
from agents_pg_session.migrations import main as migrate

async def main(url):
    async with SessionStore.open(url) as store:
        session = store.session("s")
        await session.add_items([{"role": "user", "content": "hello"}])
        print((await store.check()).revision, await session.get_items())

for url in sys.argv[1:]:
    migrate(["-x", f"url={url}", "upgrade", "head"])
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
def elsewhere(built: Path, tmp_path_factory: pytest.TempPathFactory, thorough: bool) -> Path:
    """The python of an empty virtual environment with nothing but the wheel and what it asks for."""
    return environment_with(wheel_in(built), "", tmp_path_factory.mktemp("elsewhere"), thorough)


@pytest.fixture(scope="module")
def with_command_line(built: Path, tmp_path_factory: pytest.TempPathFactory, thorough: bool) -> Path:
    """The same with the extra `cli`."""
    return environment_with(wheel_in(built), "cli", tmp_path_factory.mktemp("with_command_line"), thorough)


def environment_with(wheel: Path, extra: str, folder: Path, thorough: bool) -> Path:
    """Install the wheel into a new environment; return its python.

    Thoroughly, pip fetches what it asks for; in the suite that is linked from here, where it is compiled already.
    """
    venv.create(folder, with_pip=False)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    options = ["-q", "--no-compile"] if thorough else ["-q", "--no-deps", "--no-index"]
    installed = run(*map(str, pip), "install", *options, f"{wheel}[{extra}]" if extra else wheel, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    if not thorough:
        [packages] = folder.glob("lib/python*/site-packages")
        link(wanted_by(packages, extra), packages)
    return folder / "bin" / "python"


def wanted_by(packages: Path, extra: str) -> set[str]:
    """Return the names of what the package installed there asks for, and of what that asks for in turn."""
    [ours] = distributions(path=[str(packages)])
    waiting, found = [(ours, extra)], set[tuple[str, str]]()
    while waiting:
        one, extra = waiting.pop()
        for each in map(Requirement, one.requires or ()):
            if each.marker is not None and not each.marker.evaluate({"extra": extra}):
                continue
            new = {(canonicalize_name(each.name), extra) for extra in ("", *each.extras)} - found
            waiting += [(distribution(name), extra) for name, extra in new]
            found |= new
    return {name for name, _ in found}


def link(names: set[str], into: Path) -> None:
    """Make what is installed here under these names be there, too."""
    for name in names:
        one = distribution(name)
        for part in {path.parts[0] for path in one.files or () if path.parts[0] != ".."} - {"__pycache__"}:
            if not (into / part).exists():
                (into / part).symlink_to(Path(str(one.locate_file(part))))


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
    upgraded = run(*isolated, *MIGRATIONS, "upgrade", "head", cwd=tmp_path, AGENTS_PG_URL=empty)
    used = run(*isolated, "-W", "error", "-c", SCRIPT, *urls, cwd=tmp_path)

    assert upgraded.returncode == 0, upgraded.stderr
    assert upgraded.stderr.startswith("upgrade -> 0001, ")
    assert used.stdout == f"{newest_revision()} [{{'role': 'user', 'content': 'hello'}}]\n" * 2, used.stderr


def test_the_command_line_of_the_wheel(elsewhere: Path, with_command_line: Path, empty: str, tmp_path: Path) -> None:
    """With its extra alone, the wheel's command migrates and lists; without the extra it says how to get it."""
    command, bare = (python.with_name("agents-pg-session") for python in (with_command_line, elsewhere))
    upgraded = run(command, "db", "upgrade", cwd=tmp_path, AGENTS_PG_URL=empty)
    listed = run(command, "sessions", "list", "--all-tenants", "--json", cwd=tmp_path, AGENTS_PG_URL=empty)
    refused = run(bare, "sessions", "list", cwd=tmp_path, AGENTS_PG_URL=empty)

    assert upgraded.returncode == 0, upgraded.stderr
    assert json.loads(listed.stdout)["sessions"] == [], listed.stderr
    assert (refused.returncode, "pip install 'agents-pg-session[cli]'" in refused.stderr) == (1, True)
