"""Frozen results: what the verbs hand to the caller instead of rows.

Times are aware datetimes in UTC, by the database's clock. Durations are seconds, measured by the process that ran.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from agents_pg_session.projection import Item

__all__ = [
    "JSON",
    "Approval",
    "Event",
    "Page",
    "PoolUse",
    "Purged",
    "Run",
    "SessionInfo",
    "SessionUsage",
    "Snapshot",
    "StoreCheck",
    "StoredItem",
    "TokenUsage",
    "ToolRun",
    "Turn",
    "TurnUsage",
    "UsageOf",
    "WaitingRun",
]

#: Any value JSON has a form for.
JSON = Any

_T = TypeVar("_T", covariant=True)


@dataclass(frozen=True, slots=True)
class Page(Generic[_T]):
    """One page of a list: iterate it, take its `len`, and pass `cursor` as `after=` for what comes next."""

    records: tuple[_T, ...]
    cursor: str | None  #: the place behind the last record; opaque. On an empty page the one it was asked with
    more: bool  #: whether there was more when this page was read

    def __iter__(self) -> Iterator[_T]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> _T:
        return self.records[index]


@dataclass(frozen=True, slots=True)
class PoolUse:
    """What a store's connections are doing at this moment."""

    size: int  #: connections there are: those in use and those that are idle
    in_use: int  #: connections that somebody has, or that are being made for somebody
    idle: int  #: connections that are open and free
    waiting: int  #: callers that wait for their turn
    limit: int | None  #: the most connections there may be; None: any number
    pools: int = 1  #: a store has one pool per event loop; this is all of them together


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purge has removed, or (`dry_run`) would remove; also how far it has come, while it runs."""

    sessions: int = 0  #: removed whole, with everything about them; of these …
    expired: int = 0  #: … so many had expired, …
    old: int = 0  #: … and so many had the status or the age that was asked for
    items: int = 0  #: what went with them, as their counters told
    tool_runs: int = 0
    events: int = 0
    passed_over: int = (
        0  #: that were to go, but somebody was writing to them, or they became active: the next purge looks
    )
    seen: int = 0  #: sessions that were looked at …
    total: int = 0  #: … of so many when it began; counted only for a purge that tells its progress
    dry_run: bool = False  #: nothing was removed


@dataclass(frozen=True, slots=True)
class StoreCheck:
    """What `SessionStore.check` found: a database that answers and a schema that fits this version."""

    server: str  #: product and version, for example "PostgreSQL 18.6" or "SQLite 3.45.1"
    schema: str | None  #: the PostgreSQL schema of the tables; None on SQLite
    revision: str  #: the migration the database is at, which is the newest this version knows


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session's row: what the session is now."""

    tenant: str
    session_id: str
    status: str  #: "active", "waiting" (for an approval), "ended", or what `end` was told
    agent: str | None
    user_id: str | None
    metadata: Mapping[str, JSON]
    item_count: int
    message_count: int
    turn_count: int
    tool_run_count: int
    tool_error_count: int
    event_count: int
    input_tokens: int
    output_tokens: int
    last_position: int  #: the position handed out last, whether its item is still there or not
    created_at: datetime
    updated_at: datetime
    active_at: datetime  #: when the last turn began
    ended_at: datetime | None
    expires_at: datetime | None
    forked_from: str | None  #: the session this one began as a copy of
    forked_through: int | None  #: the last position that was copied


@dataclass(frozen=True, slots=True)
class Run:
    """One `Runner.run` on the session."""

    session_id: str
    run_id: str
    status: str  #: "running" (also if nobody told how it ended), "completed", "failed", "interrupted", "cancelled"
    agent: str | None  #: who had the run last
    trace_id: str | None
    turn: int
    requests: int
    input_tokens: int
    cached_tokens: int  #: of the input tokens
    output_tokens: int
    reasoning_tokens: int  #: of the output tokens
    total_tokens: int
    model_seconds: float  #: waited for the model; 0.0 without hooks
    started_at: datetime
    last_seen_at: datetime
    finished_at: datetime | None
    error: str | None
    details: JSON  #: {"requests": [one object per model request]}


@dataclass(frozen=True, slots=True)
class ToolRun:
    """One execution of a tool call."""

    tenant: str
    session_id: str
    position: int  #: of the call
    output_position: int | None
    call_id: str | None
    tool_name: str | None
    tool_type: str  #: "function", "custom", "mcp", "shell", "web_search", …
    status: str  #: "running", "succeeded", "failed", "rejected"
    agent: str | None
    run_id: str | None
    arguments: JSON
    error: str | None
    created_at: datetime
    started_at: datetime | None  #: measured by hooks; None without them
    finished_at: datetime | None  #: measured by hooks; without them, when the output was stored

    @property
    def duration(self) -> float | None:
        """Seconds from start to end, where hooks measured both."""
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened beside the items; `event_id` counts from 1 per session, without gaps."""

    session_id: str
    event_id: int
    kind: str
    run_id: str | None
    agent: str | None
    payload: JSON
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of remembered state; versions count from 1 per session and kind."""

    session_id: str
    kind: str
    version: int
    through: int | None  #: position of the last item this state has seen
    content: JSON
    label: str | None
    metadata: JSON
    created_at: datetime
    claimed_by: str | None
    claimed_until: datetime | None


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item and where it stands."""

    position: int
    turn: int
    run_id: str | None
    created_at: datetime
    item: Item

    @property
    def text(self) -> str:
        """What a message says, its parts joined; what an output answered, if that is text; else empty."""
        said: Any = dict(self.item).get("content", dict(self.item).get("output"))
        if isinstance(said, list):
            said = "".join(part.get("text") or "" for part in said if isinstance(part, dict))
        return said if isinstance(said, str) else ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One user input and all that answers it; turn 0 is what came before the first input."""

    number: int
    items: tuple[StoredItem, ...]

    @property
    def position(self) -> int:
        """Where it begins."""
        return self.items[0].position

    @property
    def started_at(self) -> datetime:
        """When its first item was stored."""
        return self.items[0].created_at


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Requests to models and what they cost, in tokens."""

    runs: int = 0
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0  #: of the input tokens
    output_tokens: int = 0
    reasoning_tokens: int = 0  #: of the output tokens
    total_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TurnUsage(TokenUsage):
    """What one turn cost."""

    turn: int = 0


@dataclass(frozen=True, slots=True)
class SessionUsage(TokenUsage):
    """What a session cost, in all and per turn; a turn that was popped or cleared has cost what it cost."""

    turns: tuple[TurnUsage, ...] = ()


@dataclass(frozen=True, slots=True)
class UsageOf(TokenUsage):
    """What one agent, user, tenant or day (UTC, "2026-11-21") cost; None is runs that named none."""

    of: str | None = None


@dataclass(frozen=True, slots=True)
class Approval:
    """A tool call that waits for a person to say yes or no."""

    tool_name: str | None
    call_id: str | None
    arguments: JSON
    agent: str | None = None


@dataclass(frozen=True, slots=True)
class WaitingRun:
    """A session whose run waits for approvals."""

    tenant: str
    session_id: str
    agent: str | None
    user_id: str | None
    metadata: Mapping[str, JSON]
    active_at: datetime  #: when the last turn began
    approvals: tuple[Approval, ...]
    version: int | None  #: of the paused run that `resume` takes up; None if nobody called `pause`
    paused_at: datetime | None
    claimed_until: datetime | None  #: a worker has it until then; None or past: anybody may
