"""Frozen results: what the verbs hand to the caller instead of rows."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StoreCheck"]


@dataclass(frozen=True, slots=True)
class StoreCheck:
    """What `SessionStore.check` found: a database that answers and a schema that fits this version."""

    server: str  #: product and version, for example "PostgreSQL 18.6" or "SQLite 3.45.1"
    schema: str | None  #: the PostgreSQL schema of the tables; None on SQLite
    revision: str  #: the migration the database is at, which is the newest this version knows
