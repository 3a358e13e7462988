"""The session itself: what it is now, its end and when that is, copies of it, its erasure."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from functools import partial

from agents_pg_session.errors import SessionNotFound
from agents_pg_session.labels import checked_end, checked_number
from agents_pg_session.ledgers.mapping import moment, readable, session_info
from agents_pg_session.ledgers.scope import Scope
from agents_pg_session.records import SessionInfo
from agents_pg_session.statements import Key

__all__ = ["Control"]


class Control:
    """A session's row."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._database = scope.database

    async def info(self) -> SessionInfo:
        rows = await self._database.read(self._database.reads.info(self._scope.key))
        if not rows:
            raise self._missing()
        return session_info(rows[0])

    async def end(self, status: str) -> None:
        if await self._scope.change(partial(self._database.sql.end, self._scope.key, status)) is None:
            raise self._missing()

    async def expire(self, end: timedelta | datetime | None) -> datetime | None:
        key, end = self._scope.key, checked_end(end)
        row = await self._scope.change(partial(self._database.sql.expire, key, end))
        if row is None:
            raise self._missing()
        told = readable(f"session {key.session_id!r}", "expires_at", json.loads, row.payload)["expires_at"]
        return None if told is None else moment(told)

    async def fork(self, key: Key, before_turn: int | None) -> None:
        source, labels = self._scope.key, self._scope.labels
        before_turn = None if before_turn is None else checked_number("before_turn", before_turn)
        fork = partial(self._database.sql.fork, key, source.session_id, before_turn, labels)
        row = await self._scope.change(fork)
        if row is None or not row.found:
            raise self._missing()
        if not row.created:
            raise self._database.conflict("fork", f"session {key.session_id!r} is there already; fork into another id")

    async def delete(self) -> bool:
        """Erase the session that is there now, not one that somebody begins under the same id meanwhile."""
        rows = await self._database.read(self._database.reads.erasable(self._scope.key))
        if rows:
            delete = self._database.sql.delete(self._scope.key, rows[0].created_at)
            await self._database.write(delete, self._database.budget())
        return bool(rows) and bool(rows[0].alive)

    def _missing(self) -> SessionNotFound:
        return SessionNotFound(
            f"session {self._scope.key.session_id!r} is not there: nothing was appended to it yet, or it was deleted, "
            "or has expired"
        )
