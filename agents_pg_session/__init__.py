"""Sessions for the OpenAI Agents SDK on PostgreSQL: durable, queryable, one round trip per verb, exactly once.

Everything public is imported from here.
"""

from agents_pg_session.errors import (
    InvalidItem,
    SchemaOutdated,
    SessionClosed,
    SessionConflict,
    SessionError,
    SessionNotFound,
    SnapshotNotFound,
    StorageUnavailable,
)
from agents_pg_session.records import StoreCheck
from agents_pg_session.session import PGSession
from agents_pg_session.store import SessionStore

__all__ = [
    "InvalidItem",
    "PGSession",
    "SchemaOutdated",
    "SessionClosed",
    "SessionConflict",
    "SessionError",
    "SessionNotFound",
    "SessionStore",
    "SnapshotNotFound",
    "StorageUnavailable",
    "StoreCheck",
]
