"""Rewriting history: a tail replaced by its compaction, and brought back. What goes is kept as a snapshot."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from agents_pg_session.errors import SessionNotFound, SnapshotNotFound
from agents_pg_session.labels import checked_number
from agents_pg_session.ledgers.items import Items
from agents_pg_session.ledgers.scope import Scope
from agents_pg_session.projection import Item, decode, project
from agents_pg_session.statements import Key

__all__ = ["CompactionSnapshot", "History"]


@dataclass(frozen=True, slots=True)
class CompactionSnapshot:
    """The newest items and how to replace a tail of them: what the SDK's compaction asks a session for.

    Source: `agents.memory.session._CompactionSnapshot` of openai-agents 0.24, which it takes by its attributes.
    """

    items: list[Item]
    complete: bool  #: there are no older ones
    replace_suffix: Callable[[int, list[Item]], Awaitable[bool]]


class History:
    """Replacing items, never losing them."""

    def __init__(self, scope: Scope, items: Items) -> None:
        self._scope = scope
        self._database = scope.database
        self._items = items

    async def compaction_snapshot(self, limit: int) -> CompactionSnapshot | None:
        """Return the newest *limit* items with a way to replace a tail; None if one of them cannot be read."""
        key = self._scope.key
        rows = list(await self._database.read(self._database.sql.latest(key, limit + 1)))
        complete, rows = len(rows) <= limit, rows[:limit][::-1]
        items = [decode(row.item) for row in rows]
        known = [item for item in items if item is not None]
        if len(known) < len(items):
            return None

        async def replace_suffix(start: int, output: list[Item]) -> bool:
            tail = rows[start:]
            return bool(tail) and await self.replace(output, tail[0].position, (len(tail), tail[-1].position))

        return CompactionSnapshot(known, complete, replace_suffix)

    async def replace(
        self, items: Sequence[Item], first_position: int = 0, expected: tuple[int, int] | None = None
    ) -> bool:
        """Put *items* in place of everything from *first_position* on, in one transaction.

        False, and nothing done, when what stands there is not *expected* (count, last position), or no session is.
        """
        sql, key = self._database.sql, self._scope.key
        row = await self._scope.change(partial(sql.replace, key, project(items), first_position, expected))
        return row is not None and self._note(key, row.payload)

    async def restore(self, version: int) -> None:
        """Bring the items of `history` snapshot *version* back to where they stood."""
        key, version = self._scope.key, checked_number("version", version, least=1)
        row = await self._scope.change(partial(self._database.sql.restore, key, version))
        if row is None:
            raise SessionNotFound(f"session {key.session_id!r} is not there: nothing was appended to it yet")
        if not row.found:
            raise SnapshotNotFound(f"session {key.session_id!r} has no version {version} of snapshot 'history'")
        if not self._note(key, row.payload):
            raise self._database.conflict(
                "restore",
                f"session {key.session_id!r}: what replaced history {version} is not there whole any more (cleared, "
                "popped, or replaced itself: restore the newer version first)",
            )

    def _note(self, key: Key, payload: str | None) -> bool:
        if payload is not None:
            event = json.loads(payload)
            self._items.knows(key, event["last_position"], event["item_count"])
        return payload is not None
