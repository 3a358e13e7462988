"""Databases of a test's own, made by the migrations: to be changed by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here depends on the environment it was started in."""
    monkeypatch.delenv("AGENTS_PG_URL", raising=False)
    monkeypatch.delenv("AGENTS_PG_SCHEMA", raising=False)


@pytest.fixture
def empty(new_database: Callable[[], str]) -> str:
    """The URL of a PostgreSQL database with nothing in it."""
    return new_database()


@pytest.fixture
def migrated(migrated_database: Callable[[], str]) -> str:
    """The URL of a PostgreSQL database at the newest revision."""
    return migrated_database()


@pytest.fixture
def sqlite_file(sqlite_template: Path, tmp_path: Path) -> Path:
    """A SQLite file at the newest revision."""
    path = tmp_path / "migrated.db"
    shutil.copy(sqlite_template, path)
    return path
