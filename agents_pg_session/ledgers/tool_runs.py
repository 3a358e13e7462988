"""The tool runs of a session: projected from the items by the appends, read here."""

from __future__ import annotations

from agents_pg_session.labels import checked_filters, checked_number
from agents_pg_session.ledgers.mapping import tool_run
from agents_pg_session.ledgers.scope import Scope
from agents_pg_session.paging import checked_limit, page, read_cursor
from agents_pg_session.records import Page, ToolRun
from agents_pg_session.statements.reads import TOOL_RUN_STATUSES
from agents_pg_session.texts import shown

__all__ = ["ToolRuns", "checked_status"]


def checked_status(status: str | None) -> str | None:
    """Return *status* if a tool run can have it, else raise `ValueError`."""
    if status is not None and status not in TOOL_RUN_STATUSES:
        raise ValueError(f"status must be one of {', '.join(map(repr, TOOL_RUN_STATUSES))}, not {shown(status)}")
    return status


class ToolRuns:
    """One record per execution of a tool call on this session."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._database = scope.database

    async def list(
        self, *, status: str | None = None, tool_name: str | None = None, run_id: str | None = None, limit: int = 50,
        after: str | None = None,
    ) -> Page[ToolRun]:  # fmt: skip
        """Return the tool runs, newest first. *status* is "running", "succeeded", "failed" or "rejected"."""
        limit, place = checked_limit(limit), read_cursor("session tool runs", after, int)
        filters = checked_filters(tool_name=tool_name, run_id=run_id)
        command = self._database.reads.tool_runs(self._scope.key, checked_status(status), filters, place, limit)
        records = [tool_run(row) for row in await self._database.read(command)]
        return page("session tool runs", records, limit, lambda record: (record.position,), after)

    async def get(self, position: int) -> ToolRun | None:
        """Return the tool run whose call stands at *position*; None if there is none."""
        command = self._database.reads.tool_run(self._scope.key, checked_number("position", position))
        rows = await self._database.read(command)
        return tool_run(rows[0]) if rows else None

    async def latest(self, *, tool_name: str | None = None) -> ToolRun | None:
        """Return the newest tool run, of one tool if told which; None before the first."""
        newest = await self.list(tool_name=tool_name, limit=1)
        return newest[0] if newest else None
