"""One transaction of any length: for what moves whole sessions, a page at a time.

A verb is over within seconds. Here only each statement has to be, and the retrying has its patience back whenever the
work came further than ever before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from agents_pg_session.drivers import Driver, Rows
from agents_pg_session.patience import Budget, TimeLimit, settled
from agents_pg_session.statements import Step

__all__ = ["Pace", "Passage", "Reach"]

_T = TypeVar("_T")


class Reach:
    """How far the tries of some work came, counted in statements."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._done = self._furthest = 0

    def again(self) -> Reach:
        """Begin at the start."""
        self._done = 0
        return self

    def further(self) -> bool:
        """Count a statement; say whether no try before came so far."""
        self._done += 1
        was, self._furthest = self._furthest, max(self._furthest, self._done)
        return self._furthest > was


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the statements of one try may take."""

    budget: Budget
    reach: Reach
    limit: TimeLimit | None  #: None on SQLite, which needs none
    command_timeout: float


class Passage:
    """A connection inside a transaction. Each call is one statement; nobody else uses the connection meanwhile."""

    def __init__(self, driver: Driver, connection: Any, pace: Pace) -> None:
        self._driver = driver
        self._connection = connection
        self._pace = pace

    async def whole(self, work: Callable[[Passage], Awaitable[_T]], begin: str) -> _T:
        """Begin, do the work and commit; or roll back."""
        await self._paced(lambda: self._driver.say(self._connection, begin))
        try:
            result = await work(self)
            await self._paced(lambda: self._driver.say(self._connection, "COMMIT"))
        except Exception:
            with suppress(Exception):  # a connection that cannot do even that is thrown away
                await self._paced(lambda: self._driver.say(self._connection, "ROLLBACK"))
            raise
        except BaseException:  # a cancelled caller: on PostgreSQL the connection is thrown away at once
            if self._pace.limit is None:
                await settled(self._driver.say(self._connection, "ROLLBACK"), self._pace.budget)
            raise
        return result

    async def run(self, step: Step) -> Rows:
        """Run a step and return its rows."""
        return await self._paced(lambda: self._driver.answer(self._connection, step))

    async def copy(self, schema: str, table: str, columns: Sequence[str], rows: bytes) -> None:
        """Write many rows, in the text format of PostgreSQL's COPY."""
        await self._paced(lambda: self._driver.copy(self._connection, schema, table, columns, rows))

    async def aside(self, work: Awaitable[_T]) -> _T:
        """Wait for something else, another database say: the time that takes is not counted."""
        budget, now = self._pace.budget, asyncio.get_running_loop().time
        left = budget.deadline - now()
        try:
            return await work
        finally:
            budget.renew(left)

    async def _paced(self, statement: Callable[[], Awaitable[_T]]) -> _T:
        pace = self._pace
        if pace.limit is None:  # the thread of SQLite goes on, whoever is cancelled
            result = await settled(statement(), pace.budget)
        else:
            pace.limit.start(self._connection, pace.budget.until(pace.command_timeout))
            result = await statement()
            pace.limit.stop()
        if pace.reach.further():
            pace.budget.renew(pace.reach.patience)
        return result
