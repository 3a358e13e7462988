"""What travels with an append beside its items: plain data, gathered by `tracking.py`, written by the statements.

Times are readings of `time.monotonic()`. A statement sends how many seconds ago something was, and the database
subtracts that from its own clock: durations are the caller's, points in time are the database's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

__all__ = ["Note", "RunReport", "ToolTiming", "UsageDelta"]


class Note(NamedTuple):
    """An event to be written with the next append."""

    kind: str
    payload: str | None = None  #: JSON text
    agent: str | None = None
    run_id: str | None = None


class ToolTiming(NamedTuple):
    """What hooks saw of one tool run."""

    tool_type: str  #: as in `tool_runs.tool_type`: "function", "shell", …
    agent: str | None = None
    started: float | None = None
    finished: float | None = None
    error: str | None = None  #: "ValueError: no station in Paris"; None when it succeeded or still runs
    tool_name: str | None = None


class UsageDelta(NamedTuple):
    """What a run has used since its last append; counts of requests and tokens."""

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0


class RunReport(NamedTuple):
    """What one run has to say with its next append."""

    run_id: str
    started: float
    status: str = "running"  #: running, completed, failed, interrupted, cancelled
    agent: str | None = None
    trace_id: str | None = None
    usage: UsageDelta = UsageDelta()
    usage_details: str | None = None  #: JSON text: the requests of this run so far, one object each
    model_seconds: float = 0.0  #: time spent waiting for the model since the last append
    finished: float | None = None
    error: str | None = None
    timings: Mapping[str, ToolTiming] = {}  #: by call id
    nameless: tuple[ToolTiming, ...] = ()  #: tools whose hooks tell no call id (shell, computer, apply_patch), in order
    notes: tuple[Note, ...] = ()
    approved: Callable[[str, str], bool | None] | None = None  #: (tool name, call id): what a person answered
