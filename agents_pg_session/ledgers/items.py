"""The conversation: append, latest, pop, clear."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import cast

from agents_pg_session.database import Database, Rows
from agents_pg_session.projection import Item, decode, project
from agents_pg_session.statements import Key, Labels, Write

__all__ = ["Items"]

logger = logging.getLogger("agents_pg_session")

#: The largest LIMIT both databases take.
_NO_MORE_THAN = 2**63 - 1


class Items:
    """The items of one session, in the order of their positions."""

    def __init__(self, database: Database, key: Key, labels: Labels) -> None:
        self._database = database
        self._key = key
        self._labels = labels

    async def append(self, items: Sequence[Item]) -> None:
        """Append *items* behind all others, together or not at all, exactly once.

        The first append creates the session. Raises `InvalidItem` before anything is written when one of them cannot be
        stored, `StorageUnavailable` when the database stays away.
        """
        batch = project(items)
        if batch.rows:
            append = self._database.sql.append(self._key, batch, self._labels)
            await self._database.write(append, self._database.budget())

    async def latest(self, limit: int | None = None) -> list[Item]:
        """Return the newest *limit* items, oldest first; all of them without a limit.

        Rows that hold no JSON object (edited by hand) are skipped, logged and not counted. Raises `StorageUnavailable`
        when the database stays away: an empty list always means an empty session.
        """
        if limit == 0:
            return []
        window = limit if limit is None else min(limit, _NO_MORE_THAN)
        while True:
            rows = await self._database.read(self._database.sql.latest(self._key, window))
            items = [item for row in rows if (item := self._decoded(row.item, row.position)) is not None]
            if limit is None or window is None or len(items) >= limit or len(rows) < window:
                return items[:limit][::-1]
            window = min(2 * window, _NO_MORE_THAN)

    async def pop(self) -> Item | None:
        """Take out the newest item and return it; None when there is none. Two callers never get the same item."""
        while (payload := await self._take(self._database.sql.pop)) is not None:
            taken = json.loads(payload)
            if isinstance(item := taken["item"], dict):
                return cast("Item", item)
            logger.warning("session %r: the row at position %s holds no item; taken out", *self._at(taken["position"]))
        return None

    async def clear(self) -> None:
        """Take out all items at one moment: what was appended before is gone, what comes after stays."""
        await self._take(self._database.sql.clear)

    async def _take(self, verb: Callable[..., Write]) -> str | None:
        """Run pop or clear; where other writers got in between, once more behind them. Return the event's payload."""
        budget = self._database.budget()
        rows: Rows = await self._database.write(verb(self._key), budget)
        if rows and not rows[0].fresh:
            rows = await self._database.write(verb(self._key, patient=True), budget)
        return rows[0].payload if rows else None

    def _decoded(self, text: object, position: int) -> Item | None:
        item = decode(text) if isinstance(text, str) else None
        if item is None:
            logger.warning("session %r: the row at position %s holds no item; skipped", *self._at(position))
        return item

    def _at(self, position: int) -> tuple[str, int]:
        return self._key.session_id, position
