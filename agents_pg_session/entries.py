"""What one append writes: its items, and the record that rides along with them. Pure; no database.

An entry is composed from the items, from what the run has to say (`reports.py`) and from what the handle says of its
session. The statements turn it into rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from agents_pg_session.calls import ToolCall, ToolItems, project_calls
from agents_pg_session.projection import Batch, Item, project
from agents_pg_session.reports import Note, RunReport, ToolTiming
from agents_pg_session.texts import stored_name, stored_text

__all__ = ["Answer", "Entry", "Guard", "Labels", "ToolRunRow", "compose"]


class Labels(NamedTuple):
    """What a handle says of its session.

    It reaches the session's row with the appends. None leaves the row as it is.
    """

    agent: str | None = None
    user_id: str | None = None
    metadata: str | None = None  #: a JSON object as text
    expires_after: float | None = None  #: seconds from each append to the session's end


class Guard(NamedTuple):
    """On which conditions an append may take effect; checked on the row it has locked."""

    last_position: int | None = None  #: the session as somebody read it: nothing was appended since …
    item_count: int | None = None  #: … and nothing taken out
    lease_id: str | None = None  #: this lease is held, and nobody else took it


_UNGUARDED = Guard()


class ToolRunRow(NamedTuple):
    """A tool run that begins with this append; places count from 1 within the batch."""

    place: int
    output_place: int | None
    call_id: str | None
    tool_name: str | None
    tool_type: str
    agent: str | None
    status: str
    error: str | None
    arguments: str | None  #: JSON text
    started: float | None
    finished: float | None


class Answer(NamedTuple):
    """The output of a call that an earlier append brought; *nth* tells apart those with one call id, newest first."""

    place: int
    call_id: str
    nth: int
    status: str
    error: str | None
    started: float | None
    finished: float | None


class Entry(NamedTuple):
    """What one append writes."""

    batch: Batch
    labels: Labels = Labels()
    guard: Guard = _UNGUARDED
    tool_runs: tuple[ToolRunRow, ...] = ()
    answers: tuple[Answer, ...] = ()
    notes: tuple[Note, ...] = ()
    report: RunReport | None = None
    status: str | None = None  #: what the session becomes; None leaves it as it is
    status_at: int | None = None  #: only if its last position still is this one
    taken: tuple[ToolTiming, ...] = ()  #: the timings that these rows tell

    @property
    def conditional(self) -> bool:
        """Whether it may have to do nothing: a guard does not hold, or last words of a run whose session is gone."""
        return self.guard != _UNGUARDED or not self.batch.rows

    @property
    def tool_errors(self) -> int:
        """Failed tool runs among those that begin with this append."""
        return sum(row.status == "failed" for row in self.tool_runs)


def compose(
    items: Sequence[Item],
    labels: Labels,
    *,
    guard: Guard = _UNGUARDED,
    report: RunReport | None = None,
    names: Mapping[str, str] | None = None,
    status: str | None = None,
    status_at: int | None = None,
) -> Entry:
    """Project *items* and what their run has to say into rows, or refuse all of them with `InvalidItem`.

    *names* tells the tools of calls that earlier appends brought, by call id.
    """
    batch = project(items)
    tools = project_calls(items, approved=report.approved if report else None, names=names or {})
    timings = _Timings(report)
    caller = _caller(report) or labels.agent
    runs = tuple(_tool_run(call, timings, caller) for call in tools.calls)
    answers = tuple(_answers(tools, timings))
    notes = tuple(_notes(tools, runs, answers, report, names or {}, timings))
    return Entry(
        batch=batch,
        labels=labels,
        guard=guard,
        tool_runs=runs,
        answers=answers,
        notes=notes,
        report=report,
        status=status or ("active" if batch.rows else None),
        status_at=status_at,
        taken=tuple(timings.taken),
    )


class _Timings:
    """Hands out what hooks saw: by call id, or in order for tools whose hooks tell none."""

    def __init__(self, report: RunReport | None) -> None:
        self._named = dict(report.timings) if report else {}
        self._nameless = list(report.nameless) if report else []
        self._over = report is not None and report.status != "running"
        self.taken: list[ToolTiming] = []

    def take(self, call_id: str | None, tool_type: str) -> ToolTiming | None:
        timing = self._named.pop(call_id, None) if call_id is not None else None
        for index, nameless in enumerate(self._nameless):
            if timing is None and nameless.tool_type == tool_type:
                timing = self._nameless.pop(index)
        if timing is not None:
            self.taken.append(timing)
        return timing

    def failed(self) -> Iterator[tuple[str | None, ToolTiming]]:
        """What is left and went wrong when the run is over: tools that ended it, so that no item tells of them."""
        left = [*self._named.items(), *((None, timing) for timing in self._nameless)] if self._over else []
        self.taken.extend(timing for _, timing in left)
        return ((call_id, timing) for call_id, timing in left if timing.error is not None)


def _caller(report: RunReport | None) -> str | None:
    """Return the agent whose calls these are: before a hand-off, the one that gave the run away."""
    for note in report.notes if report else ():
        if note.kind == "handoff" and note.agent is not None:
            return note.agent
    return report.agent if report else None


def _tool_run(call: ToolCall, timings: _Timings, caller: str | None) -> ToolRunRow:
    timing = timings.take(call.call_id, call.tool_type) if call.output_place is not None else None
    status, error = _outcome(call.status, call.error, timing)
    return ToolRunRow(
        place=call.place + 1,
        output_place=None if call.output_place is None else call.output_place + 1,
        call_id=call.call_id,
        tool_name=None if call.tool_name is None else stored_name(call.tool_name),
        tool_type=call.tool_type,
        agent=timing.agent if timing and timing.agent else caller,
        status=status,
        error=error,
        arguments=call.arguments,
        started=timing.started if timing else None,
        finished=timing.finished if timing else None,
    )


def _answers(tools: ToolItems, timings: _Timings) -> Iterator[Answer]:
    seen: dict[str, int] = {}
    for output in tools.outputs:
        timing = timings.take(output.call_id, output.tool_type)
        status, error = _outcome(output.status, output.error, timing)
        yield Answer(
            place=output.place + 1,
            call_id=output.call_id,
            nth=seen.get(output.call_id, 0),
            status=status,
            error=error,
            started=timing.started if timing else None,
            finished=timing.finished if timing else None,
        )
        seen[output.call_id] = seen.get(output.call_id, 0) + 1


def _outcome(status: str, error: str | None, timing: ToolTiming | None) -> tuple[str, str | None]:
    """What hooks saw outranks what the item says: the SDK turns exceptions into friendly text."""
    if timing is not None and timing.error is not None and status != "rejected":
        return "failed", stored_text(timing.error)
    return status, error


def _notes(
    tools: ToolItems,
    runs: Sequence[ToolRunRow],
    answers: Sequence[Answer],
    report: RunReport | None,
    names: Mapping[str, str],
    timings: _Timings,
) -> Iterator[Note]:
    agent = report.agent if report else None
    run_id = report.run_id if report else None

    def note(kind: str, **payload: object) -> Note:
        return Note(kind, json.dumps(payload), agent, run_id)

    # A run starts before, and ends after, everything else that this append tells of it.
    told = report.notes if report else ()
    yield from (each for each in told if each.kind != "run_ended")
    if tools.handoffs and not any(each.kind == "handoff" for each in told):
        for handoff in tools.handoffs:
            yield note("handoff", **{"from": agent, "to": handoff.to_agent, "call_id": handoff.call_id})
    for approval in tools.approvals:
        kind = "approval_asked" if approval.asked else "approval_answered"
        said = {} if approval.asked else {"approved": approval.approved}
        yield note(kind, call_id=approval.approval_id, tool_name=approval.tool_name, **said)
    for answer in answers:
        name = names.get(answer.call_id)
        if name is not None and (approved := _approved(report, name, answer.call_id)) is not None:
            yield note("approval_answered", call_id=answer.call_id, tool_name=name, approved=approved)
    for row in runs:
        if row.status == "failed":
            yield note("tool_failed", call_id=row.call_id, tool_name=row.tool_name, error=row.error)
    for answer in answers:
        if answer.status == "failed":
            name = names.get(answer.call_id)
            yield note("tool_failed", call_id=answer.call_id, tool_name=name, error=answer.error)
    for call_id, timing in timings.failed():
        yield note("tool_failed", call_id=call_id, tool_name=timing.tool_name, error=timing.error)
    yield from (each for each in told if each.kind == "run_ended")


def _approved(report: RunReport | None, name: str, call_id: str) -> bool | None:
    if report is None or report.approved is None:
        return None
    try:
        return report.approved(name, call_id)
    except Exception:  # the SDK's own, about a state we do not know
        return None
