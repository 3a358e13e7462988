"""What the ledgers of one handle share: the database, whose session it is, and how a change gets through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from agents_pg_session.database import Database
from agents_pg_session.drivers import Row
from agents_pg_session.entries import Labels
from agents_pg_session.statements import Key, Write

__all__ = ["PATIENCE", "Scope"]

#: How often a change waits in line before it gives up. Each time it is first in line once, so more than one is rare.
PATIENCE = 8


class _Verb(Protocol):
    def __call__(self, *, patient: bool) -> Write: ...


class Scope:
    """One session, as one handle sees it."""

    def __init__(self, database: Database, key: Callable[[], Key], labels: Labels) -> None:
        self.database = database
        self._key = key
        self.labels = labels

    @property
    def key(self) -> Key:
        """Whose session it is. Raises what the handle's tenant function raises."""
        self.database.require_open()
        return self._key()

    async def change(self, verb: _Verb) -> Row | None:
        """Run a change; where other writers got in between, again behind them. None: there is no such session."""
        budget = self.database.budget()
        rows = await self.database.write(write := verb(patient=False), budget)
        for _ in range(PATIENCE):
            if not rows or rows[0].fresh:
                return rows[0] if rows else None
            self.database.overtaken(write.subject)
            rows = await self.database.write(write := verb(patient=True), budget)
        what = write.subject
        raise self.database.conflict(what.verb, f"{what}: other writers came first, {PATIENCE} times in a row")
