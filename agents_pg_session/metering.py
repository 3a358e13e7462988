"""What a run used of the model."""

from __future__ import annotations

import time
import weakref
from operator import add, sub

from agents import Usage
from agents.usage import RequestUsage
from pydantic_core import to_json

from agents_pg_session.reports import RunReport, UsageDelta

__all__ = ["Meter"]

#: The newest requests that `usage_details` tells of.
MAX_REQUESTS = 200

#: What is counted of each, in this order, as in `UsageDelta`.
_TOKENS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


class Meter:
    """What a run uses of the model: tokens as differences of its `usage`, and seconds where hooks measure them."""

    def __init__(self, usage: Usage, written: UsageDelta | None) -> None:
        self.written = _totals(usage) if written is None else written
        self.seconds = 0.0  #: not written yet
        self._usage: weakref.ref[Usage] | None = weakref.ref(usage)
        self._first = len(usage.request_usage_entries)  #: of the listed requests, the run's first
        self._seconds_of: dict[int, float] = {}  #: by place in that list
        self._started: tuple[float, int] | None = None  #: when, and how many requests were listed by then

    @property
    def is_running(self) -> bool:
        return self._started is not None

    def model_started(self) -> None:
        self._started = (time.monotonic(), len(self._listed()))

    def model_finished(self) -> None:
        if self._started is None:
            return
        (started, listed), self._started = self._started, None
        seconds = time.monotonic() - started
        self.seconds += seconds
        if (newest := len(self._listed())) > listed:
            self._seconds_of[newest - 1] = seconds

    def abandon(self) -> None:
        """Note that the model will not answer."""
        self._started = None

    def stop(self) -> None:
        """Count no further: what is used from here on is another run's."""
        self._usage, self.seconds = None, 0.0

    def unwritten(self) -> UsageDelta:
        usage = self._usage() if self._usage is not None else None
        if usage is None:
            return UsageDelta()
        return UsageDelta(*map(sub, _totals(usage), self.written))

    def forget(self, report: RunReport) -> None:
        self.written = UsageDelta(*map(add, self.written, report.usage))
        self.seconds = max(0.0, self.seconds - report.model_seconds)

    def details(self) -> str | None:
        """The run's newest requests as JSON text; None when the model's provider counts nothing."""
        listed = self._listed()
        first = max(self._first, len(listed) - MAX_REQUESTS)
        requests: list[dict[str, float]] = [dict(zip(_TOKENS, _tokens(entry), strict=True)) for entry in listed[first:]]
        for place, request in enumerate(requests, first):
            if place in self._seconds_of:
                request["model_seconds"] = round(self._seconds_of[place], 6)
        return to_json({"requests": requests}).decode() if requests else None

    def _listed(self) -> list[RequestUsage]:
        usage = self._usage() if self._usage is not None else None
        return usage.request_usage_entries if usage is not None else []


def _totals(usage: Usage) -> UsageDelta:
    return UsageDelta(usage.requests or 0, *_tokens(usage), usage.total_tokens or 0)


def _tokens(usage: Usage | RequestUsage) -> tuple[int, int, int, int]:
    """The tokens as plain numbers; what a provider leaves out counts as zero."""
    return (
        usage.input_tokens or 0,
        getattr(usage.input_tokens_details, "cached_tokens", 0) or 0,
        usage.output_tokens or 0,
        getattr(usage.output_tokens_details, "reasoning_tokens", 0) or 0,
    )
