"""`agents-pg-session doctor`: what is wrong, why it matters and what to do about it; with `--repair`, do it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from textwrap import wrap
from typing import Annotated

import typer
from rich.text import Text

from agents_pg_session.cli.desk import Desk, on_store
from agents_pg_session.cli.options import Since, moment
from agents_pg_session.cli.paper import Paper, number, plain
from agents_pg_session.operations.doctor import (
    EXAMINATIONS,
    REPAIRS,
    SAFE,
    Change,
    Diagnosis,
    Finding,
    Mended,
    Place,
    examine,
    repair,
)

__all__ = ["doctor"]

_STYLES = {"fault": "bold red", "warning": "yellow", "note": "cyan"}

_OneTenant = Annotated[
    str | None, typer.Option("--tenant", help="Of this tenant only.", metavar="ID", show_default=False)
]
_AllTenants = Annotated[bool, typer.Option("--all-tenants", help="Of all tenants: so it is unless you say otherwise.")]
_OneSession = Annotated[
    str | None,
    typer.Option("--session", help="This session only (of --tenant, or of none).", metavar="ID", show_default=False),
]
_Only = Annotated[
    list[str] | None,
    typer.Option("--only", help=f"Of {', '.join(EXAMINATIONS)}; may be repeated.", metavar="NAME", show_default=False),
]
_Quick = Annotated[
    bool, typer.Option("--quick", help="Leave the items alone, and look at the sessions of the last day only.")
]
_Repair = Annotated[bool, typer.Option("--repair", help="Mend what can be mended, and say what was changed.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="With --repair: say what it would change.")]
_Names = Annotated[
    list[str] | None,
    typer.Argument(
        help=f"With --repair: mend only these of {', '.join(REPAIRS)}. Without names it mends {', '.join(SAFE)}.",
        metavar="[REPAIR]...",
        show_default=False,
    ),
]


@on_store(left="what was mended is mended; run it again to go on")
async def doctor(
    desk: Desk,
    names: _Names = None,
    mends: _Repair = False,
    dry_run: _DryRun = False,
    only: _Only = None,
    tenant: _OneTenant = None,
    all_tenants: _AllTenants = False,
    session: _OneSession = None,
    since: Since = None,
    quick: _Quick = False,
) -> None:
    """Examine the database: orphans, counters, items, claims, schema, indexes, bloat, settings.

    Reads in short statements, without a lock: about a minute per million items, and safe beside production. Exits with
    0 when nothing is worse than a note, else with 1.

    --repair mends counters, the state of tool runs, leases and claims that ran out, and indexes, session by session,
    and says what it changed; an event "repaired" remembers it. --repair orphans answers tool calls that nobody will
    answer any more. Nothing is ever deleted.
    """
    if all_tenants and tenant is not None:
        raise ValueError("--tenant and --all-tenants exclude each other")
    if (names or dry_run) and not mends:
        raise ValueError(f"{' '.join(names or ['--dry-run'])}: say --repair with it")
    reach = _reach(since)
    if mends:
        if only or quick:
            raise ValueError("--repair looks at what it mends: name that instead of --only or --quick")
        await _mend(desk, names or list(SAFE), tenant, session, reach, dry_run)
        return
    with _progress(desk.paper, "sessions examined") as progress:
        diagnosis = await examine(
            desk.store,
            tenant=tenant,
            session_id=session,
            only=only or (),
            since=reach,
            quick=quick,
            progress=progress,
        )
    if desk.paper.as_json:
        desk.paper.json({"healthy": diagnosis.is_healthy, **_fields(diagnosis)})
    else:
        _lay_out(desk.paper, diagnosis)
    if not diagnosis.is_healthy:
        raise typer.Exit(1)


async def _mend(
    desk: Desk, names: list[str], tenant: str | None, session: str | None, since: timedelta | None, dry_run: bool
) -> None:
    places, mended = 0, list[Mended]()
    with _progress(desk.paper, "sessions looked at") as progress:
        async for each in repair(
            desk.store, names, tenant=tenant, session_id=session, since=since, dry_run=dry_run, progress=progress
        ):
            places += 1
            if desk.paper.as_json:
                mended.append(each)
            else:
                for change in each.changes:
                    desk.paper.print(_changed(each, change))
    if desk.paper.as_json:
        desk.paper.json({"dry_run": dry_run, "mended": mended})
    elif not places:
        desk.paper.print("Nothing to mend.")
    else:
        done = "would be mended" if dry_run else 'mended; an event "repaired" in each session says what was before'
        desk.paper.print(f"{number(places)} place{'' if places == 1 else 's'} {done}.")


def _changed(mended: Mended, change: Change) -> Text:
    where = "" if mended.session_id is None else f"{_session(mended.tenant, mended.session_id)}  "
    before = "" if change.before is None else f"{_value(change.before)} -> "
    return plain(f"{where}{change.what}: {before}{'cleared' if change.after is None else _value(change.after)}")


def _value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {'none' if each is None else each}" for key, each in value.items())
    return str(value)


def _lay_out(paper: Paper, diagnosis: Diagnosis) -> None:
    for finding in diagnosis.findings:
        for each in _told(finding, paper.reading_width):
            paper.print(each)
        paper.print("")
    counts = [
        f"{count} {severity}{'' if count == 1 else 's'}"
        for severity in ("fault", "warning", "note")
        if (count := sum(finding.severity == severity for finding in diagnosis.findings))
    ]
    sessions = f"{number(diagnosis.sessions)} session{'' if diagnosis.sessions == 1 else 's'} examined"
    paper.print(f"{', '.join(counts) or 'Nothing found'}; {sessions}.")


def _told(finding: Finding, width: int) -> Iterator[Text]:
    head = _wrapped(f"{finding.severity.upper()} {finding.examination}: {finding.what}", width, "", "  ")
    head.stylize(_STYLES[finding.severity], 0, len(finding.severity))
    yield head
    for place in finding.places:
        yield _wrapped(_place(place), width, "  - ", "    ")
    if finding.count > len(finding.places) > 0:
        yield Text(f"    and {number(finding.count - len(finding.places))} more")
    why = _wrapped(finding.why, width, "  Why: ", "       ")
    why.stylize("dim")
    yield why
    yield _wrapped(finding.do, width, "  Do:  ", "       ")


def _wrapped(text: str, width: int, first: str, then: str) -> Text:
    """Wrap by words, what follows the first line indented; names and commands are not broken at hyphens."""
    return Text("\n").join(
        Text(line)
        for line in wrap(plain(text).plain, width, initial_indent=first, subsequent_indent=then, break_on_hyphens=False)
    )


def _place(place: Place) -> str:
    if place.session_id is None:
        return place.said
    at = "" if place.position is None else f" at {place.position}"
    return f"{_session(place.tenant, place.session_id)}{at}: {place.said}"


def _session(tenant: str | None, session_id: str) -> str:
    return f"{tenant} / {session_id}" if tenant else session_id


def _fields(diagnosis: Diagnosis) -> dict[str, object]:
    return {"sessions": diagnosis.sessions, "findings": diagnosis.findings}


def _reach(since: str | None) -> timedelta | None:
    """Return how far back to look, by the database's clock: a date would have to be compared with this machine's."""
    at = moment("--since", since)
    if isinstance(at, datetime):
        raise ValueError("--since of doctor reaches back from the database's present: 7d, 12h or 30m")
    return at


@contextmanager
def _progress(paper: Paper, what: str) -> Iterator[Callable[[int], None]]:
    with paper.progress() as bar:
        task = bar.add_task(what, total=None)
        yield lambda count: bar.update(task, completed=count)
