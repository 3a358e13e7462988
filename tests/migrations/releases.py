"""Earlier releases, as their sdists in `tests/releases`: code that must work on the newest schema."""

from __future__ import annotations

import tarfile
from pathlib import Path

from tests.migrations.actions import ROOT

__all__ = ["FIRST", "FOLDER", "RELEASES", "newest_revision_of", "unpacked"]

FOLDER = ROOT / "tests" / "releases"

#: Every release there is; the first file stands in for one: it is the code of revision 0001 (`git archive c60b0cd`).
RELEASES = sorted(FOLDER.glob("*.tar.gz"))
FIRST = FOLDER / "first_revision.tar.gz"


def unpacked(release: Path, folder: Path) -> Path:
    """Unpack a release and return its folder, which holds its package and its tests."""
    with tarfile.open(release) as archive:
        archive.extractall(folder, filter="data")
    [source] = folder.iterdir()
    return source


def newest_revision_of(source: Path) -> str:
    """Return the revision that a release was written for."""
    return max(path.name.partition("_")[0] for path in (source / "alembic" / "versions").glob("*.py"))
