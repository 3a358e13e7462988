"""What happened to a session beside its items: append-only."""

from __future__ import annotations

from functools import partial

from agents_pg_session.labels import checked_filters, checked_number, checked_text
from agents_pg_session.ledgers.mapping import event, moment
from agents_pg_session.ledgers.scope import Scope
from agents_pg_session.paging import checked_limit, page, read_cursor
from agents_pg_session.projection import encode_value
from agents_pg_session.records import JSON, Event, Page
from agents_pg_session.reports import Note

__all__ = ["Events"]


class Events:
    """The session's log: append-only, in the order of the commits. Own kinds are welcome.

    The library writes run_started, run_updated, run_ended, agent_changed, handoff, approval_asked, approval_answered,
    tool_failed, snapshot_saved, snapshot_claimed, history_replaced, item_popped, session_cleared, session_ended and
    session_forked, each in the statement that does the thing.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._database = scope.database

    async def record(
        self, kind: str, payload: JSON = None, *, run_id: str | None = None, agent: str | None = None
    ) -> Event:
        """Write an event of your own and return it. Raises `InvalidItem` for a payload that is no JSON."""
        text = None if payload is None else encode_value(payload, place="payload")
        named = checked_filters(agent=agent, run_id=run_id)
        note = Note(checked_text("kind", kind), text, named["agent"], named["run_id"])
        key = self._scope.key
        row = await self._scope.change(partial(self._database.sql.record, key, note, self._scope.labels))
        assert row is not None, "an event creates its session"
        return Event(key.session_id, row.event_id, kind, run_id, agent, payload, moment(row.created_at))

    async def list(
        self, *, kind: str | None = None, run_id: str | None = None, limit: int = 100, after: str | None = None
    ) -> Page[Event]:
        """Return the events, oldest first. Keep the page's `cursor` and ask again with `after=`: nothing is skipped,
        for ids are handed out in the order of the commits."""
        limit, place = checked_limit(limit), read_cursor("events", after, int)
        filters = checked_filters(kind=kind, run_id=run_id)
        start = place[0] if place else 0
        assert isinstance(start, int)
        command = self._database.reads.events(self._scope.key, filters, start, limit)
        records = [event(row) for row in await self._database.read(command)]
        return page("events", records, limit, lambda record: (record.event_id,), after)

    async def get(self, event_id: int) -> Event | None:
        """Return one event; None if there is none of that id."""
        command = self._database.reads.event(self._scope.key, checked_number("event_id", event_id))
        rows = await self._database.read(command)
        return event(rows[0]) if rows else None

    async def latest(self, *, kind: str | None = None) -> Event | None:
        """Return the newest event, of one kind if told which; None before the first."""
        rows = await self._database.read(self._database.reads.latest_event(self._scope.key, checked_filters(kind=kind)))
        return event(rows[0]) if rows else None
