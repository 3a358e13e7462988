"""What an examination found: frozen records, and for each kind of trouble why it matters and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from agents_pg_session.statements import Key

__all__ = ["KINDS", "SHOWN", "Complaint", "Finding", "Place", "Severity", "gathered"]

Severity = Literal["fault", "warning", "note"]

#: Places a finding names; the rest is in its count.
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was found, and what was there."""

    said: str
    tenant: str | None = None  #: None for what is no session's
    session_id: str | None = None
    position: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or worth to know, wherever it was found."""

    severity: Severity
    examination: str
    what: str
    why: str
    do: str
    count: int = 1
    places: tuple[Place, ...] = ()  #: the first few
    mended_by: str | None = None  #: what `repair` calls it; None for what it never touches


class Kind(NamedTuple):
    """What is said of one kind of trouble in sessions."""

    examination: str
    severity: Severity
    what: str
    why: str
    do: str
    mended_by: str | None = None


class Complaint(NamedTuple):
    """One kind of trouble at one place of one session."""

    kind: str
    key: Key
    said: str
    position: int | None = None


_REPAIR = "agents-pg-session doctor --repair"

KINDS: Mapping[str, Kind] = {
    "output_without_call": Kind(
        "orphans",
        "fault",
        "{count} tool {output answers|outputs answer} no call: {its session is|their sessions are} bricked now",
        "The Runner sends such an output with the next request, and the API refuses it, each time anew.",
        "fork the session before that turn (agents-pg-session sessions fork), or open it with a Window, which leaves"
        " orphans out",
    ),
    "call_without_output": Kind(
        "orphans",
        "warning",
        "{count} tool {call of the last turn has|calls of a last turn have} no output, and nobody works on {it|them}",
        "The Runner leaves such a call out of the next request, so the model forgets that it asked; whoever sends"
        " get_items() to the API by hand is refused.",
        f"{_REPAIR} orphans (appends an output that says it was interrupted)",
        "orphans",
    ),
    "old_call_without_output": Kind(
        "orphans",
        "note",
        "{count} tool {call|calls} of earlier turns never got an output",
        "The conversation has gone on without them: the Runner leaves them out of each request.",
        "nothing; sessions that whoever sends get_items() by hand needs whole: fork before that turn",
    ),
    "counters": Kind(
        "counters",
        "fault",
        "{count} {session has counters that disagree with its|sessions have counters that disagree with their} rows",
        "Lists, views and the next append go by the counters; a last_position or last_event_id that is too low makes"
        " every append fail.",
        _REPAIR,
        "counters",
    ),
    "events_gone": Kind(
        "counters",
        "note",
        "{count} {session has|sessions have} handed out ids of events that are not there",
        "Somebody deleted their newest events by hand; ids are never handed out twice, so nothing else follows.",
        "nothing",
    ),
    "undecodable": Kind(
        "items",
        "fault",
        "{count} {item holds|items hold} no JSON object",
        "Reads skip such a row and log it, so the model is told a conversation with a hole.",
        "look at the row (SELECT item FROM items WHERE tenant_id = … AND session_id = … AND position = …), then restore"
        " it from a backup or delete it and run doctor --repair",
    ),
    "unreadable": Kind(
        "items",
        "fault",
        "{count} {session|ranges of sessions} cannot be examined",
        "A value that no verb of this package writes stands where another kind belongs: verbs fail there, too.",
        "doctor --session ID finds which one it is; restore its rows from a backup",
    ),
    "tool_run_lost": Kind(
        "tool_runs",
        "warning",
        "{count} tool {run points|runs point} at items that are not there, and no clear or compaction took them out",
        "Somebody deleted items by hand; the record tells of a call that the conversation no longer shows.",
        "restore the items from a backup, or delete the tool run and run doctor --repair",
    ),
    "tool_run_status": Kind(
        "tool_runs",
        "fault",
        "{count} tool {run says something else than its|runs say something else than their} items",
        "Lists of running and failed tools are wrong, and a later output may be written to the wrong call.",
        _REPAIR,
        "tool_runs",
    ),
    "lease": Kind(
        "leases",
        "note",
        "{count} {lease|leases} ran out long ago and {was|were} never given back",
        "Their holders died; nobody is kept out, the next one who asks gets the lease.",
        f"nothing, or {_REPAIR}",
        "leases",
    ),
    "claim": Kind(
        "claims",
        "note",
        "{count} paused {run was|runs were} taken up by a worker that never came back",
        "The claim has run out, so any worker may resume them, but none did.",
        f"resume them (session.resume), or {_REPAIR} to forget the claim",
        "claims",
    ),
    "silent_run": Kind(
        "runs",
        "note",
        "in {count} {session|sessions} a run is still 'running' although nothing was heard of it for long",
        "Either their process died, or they ran without hooks, so that nobody recorded their end.",
        "nothing: pass session.hooks() or use session.recording(); docs/operate.md, question 7, tells the two apart",
    ),
    "expired": Kind(
        "expired",
        "note",
        "{count} {session is past its|sessions are past their} expires_at",
        "They wait for a purge and take up room meanwhile.",
        "agents-pg-session purge",
    ),
    "waiting": Kind(
        "waiting",
        "note",
        "{count} {session has|sessions have} waited for an approval for long",
        "Somebody was asked and has not answered; the run stands still until then.",
        "agents-pg-session waiting; answer, or end the session",
    ),
}


def gathered(complaints: Mapping[str, tuple[int, Iterable[Complaint]]]) -> list[Finding]:
    """Return one finding per kind of complaint: how many there are, and the first of them."""
    return [_finding(KINDS[kind], count, first) for kind, (count, first) in complaints.items()]


def _finding(kind: Kind, count: int, first: Iterable[Complaint]) -> Finding:
    places = tuple(Place(each.said, each.key.tenant_id, each.key.session_id, each.position) for each in first)
    what = re.sub(r"{(.*?)[|](.*?)}", r"\1" if count == 1 else r"\2", kind.what.replace("{count}", f"{count:,}"))
    return Finding(kind.severity, kind.examination, what, kind.why, kind.do, count, places, kind.mended_by)
