"""What becomes of a try that failed: another one, for as long as the verb's time lasts, or an error in our words.

Each try is a line for whoever debugs. One line says that a verb has to wait for something to pass, and one that it has
passed: so an outage is as many lines as there were verbs, however long it takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from agents_pg_session.errors import SchemaOutdated, SessionError, StorageUnavailable
from agents_pg_session.failures import Verdict, advice, describe, sqlstate_of
from agents_pg_session.patience import Budget
from agents_pg_session.schema import UPGRADE_COMMAND
from agents_pg_session.statements import Subject
from agents_pg_session.telemetry import Told

__all__ = ["IN_DOUBT", "Passing", "failure_of", "persist", "unavailable"]

logger = logging.getLogger("agents_pg_session.retries")

#: What an error adds when nobody could find out what became of a try.
IN_DOUBT = "; the answer was lost, so it has taken effect once, whole, or not at all"

_T = TypeVar("_T")


class Passing(Exception):
    """A failure that may pass; it never leaves `Database`."""

    first: Passing | None = None  #: what began it, on the last one of several

    def __init__(self, error: BaseException, *, in_doubt: bool) -> None:
        super().__init__(describe(error))
        self.error = error
        self.in_doubt = in_doubt


async def persist(attempt: Callable[[], Awaitable[_T]], budget: Budget, subject: Subject, told: Told | None) -> _T:
    """Make one attempt, then more with growing pauses as long as the failure may pass and the budget lasts.

    Raises the last `Passing` failure, which knows the first.
    """
    try:
        return await attempt()
    except Passing as failure:
        first = failure
    if budget.spent:
        raise first
    trouble = _Trouble(subject, first, told)
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(Passing),
        wait=wait_random_exponential(multiplier=0.05, max=2.0),
        stop=lambda _state: budget.spent,
        sleep=budget.sleep,
        before_sleep=trouble.goes_on,
        reraise=True,
    )
    try:
        answer: _T = await retrying(attempt)
    except Passing as last:
        last.first = first
        raise
    trouble.has_passed()
    return answer


class _Trouble:
    """What kept a verb from succeeding at once, and for how long."""

    def __init__(self, subject: Subject, first: Passing, told: Told | None) -> None:
        self._subject = subject
        self._first = first
        self._told = told
        self._tries = 1
        self._began = asyncio.get_running_loop().time()
        self._again(first)
        logger.debug("%s: %s; trying again at once", subject, first)

    def goes_on(self, state: RetryCallState) -> None:
        assert state.outcome is not None
        assert state.next_action is not None
        failure = state.outcome.exception()
        assert isinstance(failure, Passing)
        level = logging.WARNING if self._tries == 2 else logging.DEBUG
        self._again(failure)
        logger.log(level, "%s: %s; trying again in %.2f s", self._subject, failure, state.next_action.sleep)

    def has_passed(self) -> None:
        seconds = asyncio.get_running_loop().time() - self._began
        logger.info("%s: done at try %d, %.2f s after %s", self._subject, self._tries, seconds, self._first)

    def _again(self, failure: Passing) -> None:
        self._tries += 1
        if self._told is not None:
            self._told.retried(failure.error, in_doubt=failure.in_doubt)


def failure_of(what: Subject, error: Exception, verdict: Verdict, place: str) -> Exception:
    """Return what a failed try raises: `Passing`, or the error for the caller where another try would not help."""
    code = sqlstate_of(error)
    match verdict:
        case Verdict.RETRY | Verdict.DOUBT:
            return Passing(error, in_doubt=verdict is Verdict.DOUBT)
        case Verdict.OUTDATED:
            return SchemaOutdated(f"{what}: {describe(error)}; run `{UPGRADE_COMMAND}`", sqlstate=code)
        case Verdict.CONFIGURATION:
            hint = "check the database URL and engine_kwargs"
            return StorageUnavailable(f"{what}: {place} does not let us in ({describe(error)}); {hint}", sqlstate=code)
        case Verdict.UNPREPARED:
            hint = "behind PgBouncer in transaction mode, open the store with pgbouncer=True"
            return SessionError(f"{what}: {describe(error)}; {hint}", sqlstate=code)
        case Verdict.WRONG_LOOP:
            hint = "open the store from a URL, which keeps one pool per loop"
            return SessionError(f"{what}: the engine belongs to another event loop ({describe(error)}); {hint}")
        case _:
            return SessionError(f"{what}: the database refused: {describe(error)}{advice(error)}", sqlstate=code)


def unavailable(what: Subject, last: Passing, place: str, seconds: float) -> StorageUnavailable:
    """Return the error for a caller whose verb's time is up."""
    first, known = last.first or last, ""
    if what.writes:
        known = IN_DOUBT if last.in_doubt else "; nothing was written"
    why = f"{last}" if str(first) == str(last) else f"first {first}, at last {last}"
    return StorageUnavailable(
        f"{what}: {place} was unavailable for {seconds:g} s ({why}){known}{advice(last.error) or advice(first.error)}",
        sqlstate=sqlstate_of(last.error) or sqlstate_of(first.error),
    )
