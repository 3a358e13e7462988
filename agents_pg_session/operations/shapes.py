"""What an archive tells of each table: its columns as `tables.py` has them, but for what belongs to a place and time.

Who holds a lease or a claim, and which lost statements are fenced off, means nothing in another database: that stays
behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from functools import cache
from typing import Any

from sqlalchemy import JSON, Boolean, Column, DateTime, Float, Integer, Table, Uuid
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB

from agents_pg_session.tables import TABLES, metadata_for

__all__ = ["PARTS", "SESSIONS", "Field", "Kind", "Shape", "Values", "shapes", "told_time"]

SESSIONS = "sessions"

#: What a session has beside its row, in the order it is told.
PARTS = tuple(table for table in TABLES if table != SESSIONS)

_KEY = ("tenant_id", "session_id")
#: A row on its way, in the order of its shape's fields: JSON as text, times as `told_time` writes them.
Values = list[Any]

_LEFT_BEHIND = frozenset({"fenced_ids", "lease_id", "lease_until", "claimed_at", "claimed_by", "claimed_until"})


class Kind(Enum):
    """How a column is written in a line."""

    WHOLE = auto()
    REAL = auto()
    TEXT = auto()
    UUID = auto()
    TRUTH = auto()
    TIME = auto()  #: ISO 8601 in UTC, with microseconds
    JSON = auto()  #: verbatim
    SORTED_JSON = auto()  #: as value: jsonb keeps no order and no notation


@dataclass(frozen=True, slots=True)
class Field:
    """One column; *type* is its name on PostgreSQL."""

    name: str
    kind: Kind
    type: str
    required: bool  #: it is never empty

    @property
    def is_json(self) -> bool:
        return self.kind in (Kind.JSON, Kind.SORTED_JSON)


@dataclass(frozen=True, slots=True)
class Shape:
    """One table: the columns of its primary key behind the session's, and all it tells."""

    table: str
    key: tuple[Field, ...]
    fields: tuple[Field, ...]  #: JSON last, in a line of which it is the tail
    names: frozenset[str]

    def only(self, names: frozenset[str]) -> Shape:
        """Return the shape with only the columns called so."""
        if names >= self.names:
            return self
        fields = tuple(field for field in self.fields if field.name in names)
        return Shape(self.table, self.key, fields, self.names & names)


def told_time(moment: datetime) -> str:
    """Return a time as rows on their way have it: ISO 8601 in UTC, with microseconds; one without a zone is in UTC."""
    utc = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo is not None else moment
    return f"{utc.isoformat(timespec='microseconds')}Z"


@cache
def shapes() -> dict[str, Shape]:
    """Return the shape of each table."""
    metadata = metadata_for(None)
    return {name: _shape(metadata.tables[name]) for name in TABLES}


def _shape(table: Table) -> Shape:
    columns = [column for column in table.columns if column.name not in _LEFT_BEHIND.union(_KEY)]
    fields = [_field(column) for column in columns]
    # Small before large: what a snapshot says beside its content comes before it.
    fields.sort(key=lambda field: (field.is_json, field.name == "content"))
    key = tuple(_field(column) for column in table.primary_key.columns if column.name not in _KEY)
    return Shape(table.name, key, tuple(fields), frozenset(field.name for field in fields))


def _field(column: Column[object]) -> Field:
    type_name = column.type.compile(postgresql.dialect())  # type: ignore[no-untyped-call]
    return Field(column.name, _kind(column), type_name.replace(' COLLATE "C"', ""), not column.nullable)


def _kind(column: Column[object]) -> Kind:
    known = {
        JSONB: Kind.SORTED_JSON,
        JSON: Kind.JSON,
        DateTime: Kind.TIME,
        Uuid: Kind.UUID,
        Boolean: Kind.TRUTH,
        Integer: Kind.WHOLE,
        Float: Kind.REAL,
    }
    return next((kind for base, kind in known.items() if isinstance(column.type, base)), Kind.TEXT)
