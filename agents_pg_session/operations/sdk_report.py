"""What an import did, as it is reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from agents_pg_session.operations.sdk_rows import Growing

__all__ = ["Conflict", "Orphan", "SDKImport", "count"]

#: Orphans and conflicts that are named; all are counted.
_NAMED = 1000
_ORPHANS_NAMED = 10


class Conflict(NamedTuple):
    """A session that was left alone, and why."""

    session_id: str
    reason: str


class Orphan(NamedTuple):
    """A call without an output, or an output without a call."""

    session_id: str
    call_id: str


@dataclass(slots=True)
class SDKImport:
    """What an import did, or with *dry_run* would do."""

    source: str = ""  #: kinds of session and the order their rows are read in
    dry_run: bool = False
    sessions: int = 0  #: new here
    continued: int = 0  #: imported before, with items that have come since
    skipped: int = 0  #: imported before, and nothing new
    conflict_count: int = 0  #: left alone
    branches: int = 0  #: sessions among the new ones that are branches of others
    items: int = 0
    turns: int = 0
    tool_runs: int = 0
    runs: int = 0
    orphan_calls: int = 0  #: calls without an output
    orphan_outputs: int = 0  #: outputs without a call
    undecodable: int = 0  #: rows that hold no item, kept aside as events
    unlisted: int = 0  #: rows of an AdvancedSQLiteSession that belong to no branch: it never shows them
    empty: int = 0  #: sessions of the source without a row
    conflicts: list[Conflict] = field(default_factory=list)  #: the first thousand
    calls: list[Orphan] = field(default_factory=list)  #: the first ten without an output
    outputs: list[Orphan] = field(default_factory=list)  #: the first ten without a call

    @property
    def complete(self) -> bool:
        """Whether nothing was left out."""
        return self.conflict_count == 0

    def add(self, other: SDKImport) -> None:
        """Count what *other* counted as well."""
        for each in fields(self):
            mine = getattr(self, each.name)
            if isinstance(mine, int) and not isinstance(mine, bool):
                setattr(self, each.name, mine + getattr(other, each.name))
        self.conflicts = (self.conflicts + other.conflicts)[:_NAMED]
        self.calls = (self.calls + other.calls)[:_ORPHANS_NAMED]
        self.outputs = (self.outputs + other.outputs)[:_ORPHANS_NAMED]


def count(report: SDKImport, growing: Growing, before: Mapping[str, Any] | None) -> None:
    """Count what was brought of a session; *before* is its row as it was, if it was here."""
    now = growing.row()
    report.sessions += before is None
    report.continued += before is not None
    report.branches += before is None and growing.forked_from is not None
    report.items += now["item_count"] - (before["item_count"] if before else 0)
    report.turns += now["turn_count"] - (before["turn_count"] if before else 0)
    report.tool_runs += now["tool_run_count"] - (before["tool_run_count"] if before else 0)
    report.runs += growing.run_count
    report.undecodable += growing.undecodable
    report.orphan_calls += growing.orphan_calls
    report.orphan_outputs += growing.orphan_output_count
    named = _ORPHANS_NAMED - len(report.calls)
    report.calls += [Orphan(growing.session_id, call_id) for call_id in list(growing.running)[: max(0, named)]]
    report.outputs += [Orphan(growing.session_id, call_id) for call_id in growing.orphan_outputs]
    report.outputs = report.outputs[:_ORPHANS_NAMED]
