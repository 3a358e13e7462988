"""Time: how long a verb may take, when a try has had enough of it, and what becomes of a caller that is cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TypeVar

from agents_pg_session.errors import SessionError
from agents_pg_session.texts import shown
from agents_pg_session.wire import hang_up

__all__ = ["PARTING", "Budget", "TimeLimit", "cancellations", "checked_patience", "settled"]

#: Seconds that a caller who is cancelled, or has failed, may still be held up to give back what it had taken.
PARTING = 3.0

#: What is longer counts as so long: thirty years.
MAX_SECONDS = 1e9

logger = logging.getLogger("agents_pg_session.cancellations")

_T = TypeVar("_T")


class Budget:
    """The time one verb may take, by the event loop's clock; `abandon` ends the retrying, not the try under way."""

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.deadline = self._loop.time() + seconds
        self._abandoned = asyncio.Event()

    def renew(self, seconds: float) -> None:
        """Begin anew: something that takes as long as it takes has come further."""
        self.deadline = self._loop.time() + seconds

    @property
    def spent(self) -> bool:
        return self._abandoned.is_set() or self._loop.time() >= self.deadline

    def until(self, seconds: float) -> float:
        return min(self.deadline, self._loop.time() + seconds)

    def abandon(self) -> None:
        self._abandoned.set()

    async def sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout_at(self.until(seconds)):
                await self._abandoned.wait()
        except TimeoutError:
            pass


class TimeLimit:
    """Hangs up a connection whose answer does not come in time, so that whoever waits for it gets an error at once.

    Cancelling the statement instead would politely ask a server that is not there, and wait for its consent. SQLite
    needs no limit: it waits for its lock at most the busy timeout, and cannot be stopped in the middle of a commit.
    """

    reached = False
    _alarm: asyncio.TimerHandle | None = None

    def start(self, driver_connection: object, deadline: float) -> None:
        self.stop()
        self._alarm = asyncio.get_running_loop().call_at(deadline, self._hang_up, driver_connection)

    def stop(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def _hang_up(self, driver_connection: object) -> None:
        self.reached = True
        hang_up(driver_connection)


def cancellations() -> int:
    """Return how often the running task was asked to end; it may have been before, and gone on to tidy up."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


async def settled(work: Awaitable[_T], budget: Budget) -> _T:
    """Wait for *work* to its end, whatever happens to the caller, then let the caller's cancellation go on."""
    task = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            logger.debug("a caller was cancelled; what it asked for is under way, and settles first")
            cancellation = cancellation or error
            budget.abandon()
    if cancellation is not None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            said = failure if isinstance(failure, SessionError) else type(failure).__name__
            logger.warning("what a cancelled caller had asked for failed: %s", said)  # nobody else is told
        raise cancellation
    return task.result()


def checked_patience(name: str, seconds: float) -> float:
    """Return a number of seconds that somebody is ready to wait, or raise `ValueError` for what is none."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise ValueError(f"{name} must be a positive number of seconds, not {shown(seconds)}")
    return float(min(seconds, MAX_SECONDS))
