"""The runs of a session: written by the appends, read here."""

from __future__ import annotations

from datetime import datetime

from agents_pg_session.labels import checked_filters, checked_id
from agents_pg_session.ledgers.mapping import run, sums
from agents_pg_session.ledgers.scope import Scope
from agents_pg_session.paging import checked_limit, page, read_cursor
from agents_pg_session.records import Page, Run, SessionUsage, TurnUsage

__all__ = ["Runs"]


class Runs:
    """One record per `Runner.run` on this session, with its tokens."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._database = scope.database

    async def list(
        self, *, status: str | None = None, agent: str | None = None, limit: int = 50, after: str | None = None
    ) -> Page[Run]:
        """Return the runs, newest first. *after* is the `cursor` of a page before; a forged one raises `ValueError`."""
        limit, place = checked_limit(limit), read_cursor("runs", after, datetime, str)
        filters = checked_filters(status=status, agent=agent)
        command = self._database.reads.runs(self._scope.key, filters, place, limit)
        records = [run(row) for row in await self._database.read(command)]
        return page("runs", records, limit, lambda record: (record.started_at, record.run_id), after)

    async def get(self, run_id: str) -> Run | None:
        """Return one run; None if the session has none of that id."""
        rows = await self._database.read(self._database.reads.run(self._scope.key, checked_id("run_id", run_id)))
        return run(rows[0]) if rows else None

    async def latest(self) -> Run | None:
        """Return the run that started last; None before the first."""
        newest = await self.list(limit=1)
        return newest[0] if newest else None

    async def usage(self) -> SessionUsage:
        """Return what the runs cost in tokens, in all and per turn."""
        rows = await self._database.read(self._database.reads.usage(self._scope.key))
        turns = tuple(TurnUsage(**_fields(row), turn=row.turn) for row in rows)
        totals = {name: sum(getattr(turn, name) for turn in turns) for name in _FIGURES}
        return SessionUsage(**totals, turns=turns)


_FIGURES = ("runs", "requests", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "total_tokens")


def _fields(row: object) -> dict[str, int]:
    usage = sums(row)  # type: ignore[arg-type]
    return {name: getattr(usage, name) for name in _FIGURES}
