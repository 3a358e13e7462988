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
from agents_pg_session.records import (
    Approval,
    Event,
    Page,
    PoolUse,
    Purged,
    Run,
    SessionInfo,
    SessionUsage,
    Snapshot,
    StoreCheck,
    StoredItem,
    TokenUsage,
    ToolRun,
    Turn,
    TurnUsage,
    UsageOf,
    WaitingRun,
)
from agents_pg_session.session import PGSession
from agents_pg_session.store import SessionStore
from agents_pg_session.windows import Window

__all__ = [
    "Approval",
    "Event",
    "InvalidItem",
    "PGSession",
    "Page",
    "PoolUse",
    "Purged",
    "Run",
    "SchemaOutdated",
    "SessionClosed",
    "SessionConflict",
    "SessionError",
    "SessionInfo",
    "SessionNotFound",
    "SessionStore",
    "SessionUsage",
    "Snapshot",
    "SnapshotNotFound",
    "StorageUnavailable",
    "StoreCheck",
    "StoredItem",
    "TokenUsage",
    "ToolRun",
    "Turn",
    "TurnUsage",
    "UsageOf",
    "WaitingRun",
    "Window",
]
