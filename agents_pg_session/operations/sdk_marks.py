"""How far a session was imported: an event in its own record, by which the next import knows what is new."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from agents_pg_session.operations.sdk_tables import SourceSession

__all__ = ["MARK", "Mark", "iso"]

#: The event that says how far a session was imported; the newest one counts.
MARK = "imported"


class Mark(NamedTuple):
    """How far a session was imported, and what it was on both sides then: the payload of its `imported` event."""

    source: Mapping[str, Any]  #: kind of session, tables, session id and branch
    session_created_at: str | None
    row_count: int
    ids: int
    last_id: int
    newest: str | None
    key: tuple[Any, ...]  #: the last row's place in the order of the source
    last_position: int
    item_count: int
    usages: int
    tokens: int
    user_turn: int | None  #: the last turn, as the source counts …
    turn: int  #: … and as we do
    spent: tuple[int, int] = (0, 0)  #: tokens of that turn that are in the session's counters: input, output

    def payload(self) -> str:
        """Return the mark as JSON text."""
        return json.dumps(self._asdict(), default=iso)

    @classmethod
    def read(cls, text: str | None) -> Mark | None:
        """Return the mark of an event's payload; None where there is none, or not one of ours."""
        try:
            return cls(**json.loads(text)) if text else None
        except (ValueError, TypeError):
            return None

    def is_all(self, source: SourceSession) -> bool:
        """Whether the source holds exactly what was imported."""
        return (source.row_count, source.ids, source.last_id, source.newest) == (
            self.row_count,
            self.ids,
            self.last_id,
            self.newest,
        )

    def is_of(self, source: SourceSession, described: Mapping[str, Any]) -> bool:
        """Whether this can be the session that was imported."""
        return self.source == described and self.session_created_at == iso(source.created_at)

    def has_usage(self, source: SourceSession) -> bool:
        """Whether the tokens it has used are known here."""
        return (self.usages, self.tokens) == (source.usages, source.tokens)


def iso(value: object) -> str | None:
    """Return a time as JSON has it; None for what is none."""
    return value.isoformat() if isinstance(value, datetime) else None
