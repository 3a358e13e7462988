"""Following conversations: what is appended to them and happens in them, as it commits.

Positions and the ids of events are handed out under the session row's lock, in the order of the commits. So whoever
has read up to a position and an id has read everything up to there, and a cursor of the two skips nothing and repeats
nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from agents_pg_session.drivers import Row, Rows
from agents_pg_session.errors import SessionNotFound, StorageUnavailable
from agents_pg_session.ledgers.mapping import moment, readable
from agents_pg_session.operations.conversations import merged
from agents_pg_session.projection import decode
from agents_pg_session.records import Event, StoredItem
from agents_pg_session.statements import Command, Key, Step, Subject, clause, quoted_prefix
from agents_pg_session.store import SessionStore

__all__ = ["FOLLOWED", "Told", "follow"]

#: Sessions that are followed where none is named: those whose last turn began last.
FOLLOWED = 1000

#: Rows of a kind that one statement answers; what is more comes with the next one.
_AT_ONCE = 500

_BEHIND = """
-- How far one session has come, and its items and events behind a cursor: one snapshot of all three, by primary key.
SELECT 'session' AS what, s.last_position AS place, s.last_event_id AS turn, s.created_at, NULL AS run_id,
       NULL AS kind, NULL AS agent, NULL AS body
  FROM {schema}sessions s
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id AND {alive}
UNION ALL
SELECT * FROM (
    SELECT 'item' AS what, i.position AS place, i.turn, i.created_at, i.run_id,
           NULL AS kind, NULL AS agent, CAST(i.item AS text) AS body
      FROM {schema}items i
     WHERE i.tenant_id = :tenant_id AND i.session_id = :session_id AND i.position > :position
     ORDER BY i.position LIMIT :limit) AS items
UNION ALL
SELECT * FROM (
    SELECT 'event' AS what, e.event_id AS place, 0 AS turn, e.created_at, e.run_id,
           e.kind, e.agent, CAST(e.payload AS text) AS body
      FROM {schema}events e
     WHERE e.tenant_id = :tenant_id AND e.session_id = :session_id AND e.event_id > :event_id
     ORDER BY e.event_id LIMIT :limit) AS events
"""

_NEWEST = """
-- The sessions of a tenant whose last turn began last, and how far each has come: ix_sessions_active from behind.
SELECT s.session_id, s.created_at, s.active_at, s.last_position, s.last_event_id
  FROM {schema}sessions s
 WHERE s.tenant_id = :tenant_id AND s.last_position + s.last_event_id > 0 AND {alive}
 ORDER BY s.active_at DESC, s.session_id DESC
 LIMIT :limit
"""

_BEFORE = """
-- Where one session stood at a moment: its primary keys from behind.
SELECT coalesce((SELECT i.position FROM {schema}items i
                  WHERE i.tenant_id = :tenant_id AND i.session_id = :session_id AND i.created_at < :moment
                  ORDER BY i.position DESC LIMIT 1), 0) AS position,
       coalesce((SELECT e.event_id FROM {schema}events e
                  WHERE e.tenant_id = :tenant_id AND e.session_id = :session_id AND e.created_at < :moment
                  ORDER BY e.event_id DESC LIMIT 1), 0) AS event_id
"""

#: A session that has expired is not there, though nobody has removed it yet.
_ALIVE = {
    "postgresql": "(s.expires_at IS NULL OR s.expires_at > now())",
    "sqlite": "(s.expires_at IS NULL OR s.expires_at > strftime('%Y-%m-%d %H\\:%M\\:%f', 'now'))",
}


@dataclass(frozen=True, slots=True)
class Told:
    """An item that was appended to a session, or an event that happened in it."""

    tenant: str
    session_id: str
    what: StoredItem | Event

    @property
    def at(self) -> datetime:
        """When."""
        return self.what.created_at


@dataclass
class _Place:
    """How far a session has been read; it began at *began*, and another one may begin under its id."""

    position: int = 0
    event_id: int = 0
    began: datetime | None = None


async def follow(
    store: SessionStore,
    session_id: str | None = None,
    *,
    tenant: str = "",
    newest: int = 10,
    interval: float = 1.0,
    notice: Callable[[str], None] = lambda text: None,
) -> AsyncGenerator[Told, None]:
    """Yield the *newest* items and events of a session, then each that comes, once, without end.

    Without a session it follows the `FOLLOWED` sessions of the tenant whose last turn began last. A database that is
    away is waited for, and *notice* told of it once; only at the start it raises, as `SessionNotFound` does for a
    session that is not there. Looks every *interval* seconds.
    """
    follower = _Follower(store, tenant, notice)
    for told in await follower.begin(session_id, newest):
        yield told
    while True:
        await asyncio.sleep(interval)
        async for told in follower.more(session_id):
            yield told


@dataclass
class _Follower:
    store: SessionStore
    tenant: str
    notice: Callable[[str], None]
    places: dict[str, _Place] = field(default_factory=dict)
    away: bool = False
    moment: object = None  #: where there were more sessions than are followed: when the newest of them had begun

    async def begin(self, session_id: str | None, newest: int) -> list[Told]:
        """Return the last *newest* things, and remember where each session stands."""
        if session_id is not None:
            return await self._last_of(session_id, newest)
        found: list[Told] = []
        sessions = await self._newest_sessions()
        self.moment = sessions[0].active_at if len(sessions) == FOLLOWED else None
        for number, row in enumerate(sessions):
            if number < newest:  # what happened last happened in as many sessions at most
                found += await self._last_of(row.session_id, newest)
            else:
                self.places[row.session_id] = _Place(row.last_position, row.last_event_id, moment(row.created_at))
        found.sort(key=lambda told: told.at)
        return found[-newest:] if newest else []

    async def more(self, session_id: str | None) -> AsyncIterator[Told]:
        """Yield what came since; nothing while the database is away."""
        try:
            changed = [session_id] if session_id is not None else await self._changed()
            for each in changed:
                async for told in self._since(each):
                    yield told
        except StorageUnavailable as error:
            if not self.away:
                self.notice(f"{error}; still trying")
            self.away = True
        else:
            if self.away:
                self.notice("the database is back")
            self.away = False

    async def _last_of(self, session_id: str, newest: int) -> list[Told]:
        there = _session_of(await self._read(session_id, _Place(), limit=0))
        if there is None:
            raise SessionNotFound(f"session {session_id!r} is not there: nothing was appended to it yet")
        # Positions may be empty: what is taken is the last of so many, so it may be fewer than asked for.
        start = max(0, there.place - newest), max(0, there.turn - newest)
        self.places[session_id] = _Place(*start, moment(there.created_at))
        told = [each async for each in self._since(session_id)]
        return told[-newest:] if newest else []

    async def _since(self, session_id: str) -> AsyncIterator[Told]:
        """Yield what a session has behind its place, and move that on; a session that is gone has nothing."""
        place = self.places[session_id]
        while (there := _session_of(rows := await self._read(session_id, place))) is not None:
            if place.began != moment(there.created_at):  # it was deleted, and another one began
                place = self.places[session_id] = _Place(began=moment(there.created_at))
                continue
            items = [row for row in rows if row.what == "item"]
            events = [row for row in rows if row.what == "event"]
            for what in _in_order(session_id, items, events):
                yield Told(self.tenant, session_id, what)
            # All of this was one snapshot: where there is no more, the last position and id of the session are read,
            # also if nothing stands there any more.
            all_items, all_events = len(items) < _AT_ONCE, len(events) < _AT_ONCE
            place.position = there.place if all_items else items[-1].place
            place.event_id = there.turn if all_events else events[-1].place
            if all_items and all_events:
                return

    async def _changed(self) -> list[str]:
        """Return which of the tenant's sessions have gone on, or begun, since they were read; the oldest first."""
        changed = []
        for row in reversed(await self._newest_sessions()):
            place = self.places.get(row.session_id) or await self._place_of(row)
            if place != _Place(row.last_position, row.last_event_id, moment(row.created_at)):
                changed.append(row.session_id)
            self.places[row.session_id] = place
        return changed

    async def _place_of(self, row: Row) -> _Place:
        """Return from where on a session is told that was not among those followed: a new one from its beginning."""
        began = moment(row.created_at)
        if self.moment is None or row.created_at >= self.moment:
            return _Place(began=began)
        key = Key(self.tenant, row.session_id)
        [before] = await self._ask(Subject("tail", key), _BEFORE, {**key._asdict(), "moment": self.moment})
        return _Place(before.position, before.event_id, began)

    async def _newest_sessions(self) -> Rows:
        values = {"tenant_id": self.tenant, "limit": FOLLOWED}
        return await self._ask(Subject("tail"), _NEWEST, values)

    async def _read(self, session_id: str, place: _Place, limit: int = _AT_ONCE) -> Rows:
        key = Key(self.tenant, session_id)
        values = {**key._asdict(), "position": place.position, "event_id": place.event_id, "limit": limit}
        return await self._ask(Subject("tail", key), _BEHIND, values)

    async def _ask(self, subject: Subject, sql: str, values: dict[str, object]) -> Rows:
        database = self.store._database
        sql = sql.replace("{alive}", _ALIVE["sqlite" if database.schema is None else "postgresql"])
        sql = sql.replace("{schema}", quoted_prefix(database.schema))  # last: whatever its name contains is a name
        return await database.read(Command(subject, (Step(clause(sql), values),)))


def _session_of(rows: Rows) -> Row | None:
    return next((row for row in rows if row.what == "session"), None)


def _in_order(session_id: str, items: Sequence[Row], events: Sequence[Row]) -> list[StoredItem | Event]:
    stored = [
        StoredItem(row.place, row.turn, row.run_id, moment(row.created_at), item)
        for row in items
        if (item := decode(row.body)) is not None
    ]
    return list(merged(stored, [_event(session_id, row) for row in events]))


def _event(session_id: str, row: Row) -> Event:
    place = f"session {session_id!r}, event {row.place}"
    payload = readable(place, "payload", lambda text: None if text is None else json.loads(text), row.body)
    return Event(session_id, row.place, row.kind, row.run_id, row.agent, payload, moment(row.created_at))
