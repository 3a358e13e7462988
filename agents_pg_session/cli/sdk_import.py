"""`agents-pg-session import-sdk`: bring history out of the Agents SDK's own tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import typer

from agents_pg_session.cli.desk import Desk, fail, on_store
from agents_pg_session.cli.options import Tenant, moment
from agents_pg_session.cli.paper import figure, number, short
from agents_pg_session.operations.sdk_import import import_sdk
from agents_pg_session.operations.sdk_report import Orphan, SDKImport

__all__ = ["import_from_sdk"]


@on_store(left="what was imported is whole; run it again to go on")
async def import_from_sdk(
    desk: Desk,
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="The database with the SDK's tables; without it, the one of --url.",
            metavar="URL",
            show_default=False,
        ),
    ] = None,
    source_schema: Annotated[
        str | None,
        typer.Option("--from-schema", help="Their PostgreSQL schema.", metavar="NAME", show_default=False),
    ] = None,
    sessions_table: Annotated[str, typer.Option(help="Their table of sessions.", metavar="NAME")] = "agent_sessions",
    messages_table: Annotated[str, typer.Option(help="Their table of items.", metavar="NAME")] = "agent_messages",
    tenant: Tenant = "",
    user_from: Annotated[
        str | None,
        typer.Option(
            help="A regular expression that finds the user in a session's id: its first group, or all of it.",
            metavar="REGEX",
            show_default=False,
        ),
    ] = None,
    session: Annotated[str | None, typer.Option(help="Only this session.", metavar="ID", show_default=False)] = None,
    since: Annotated[
        str | None,
        typer.Option(
            help="Only sessions that changed since: 7d, 12h, 2026-11-01 or 2026-11-01T10:00Z (UTC).",
            metavar="WHEN",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing, and report the same.")] = False,
) -> None:
    """Bring sessions out of the tables of SQLAlchemySession, SQLiteSession or AdvancedSQLiteSession.

    Run it again after an interruption, or for what has been written there since: sessions that are complete are
    skipped, those that have grown are continued. Those that went on here as well are left alone and reported; then it
    exits with 1.
    """
    with desk.paper.progress() as bar:
        task = bar.add_task("reading" if dry_run else "importing", total=None)
        report = await import_sdk(
            desk.store,
            source=source or desk.url,
            source_schema=source_schema,
            sessions_table=sessions_table,
            messages_table=messages_table,
            tenant=tenant,
            user_from=user_from,
            session_id=session,
            since=moment("--since", since),
            dry_run=dry_run,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    _print(desk, report)
    if not report.complete:
        what = "1 session was" if report.conflict_count == 1 else f"{number(report.conflict_count)} sessions were"
        raise fail(f"{what} left alone. To have the source's version here, `sessions delete` ours and import again")


def _print(desk: Desk, report: SDKImport) -> None:
    paper = desk.paper
    if paper.as_json:
        return paper.json({**_as_dict(report), "complete": report.complete})
    paper.print(f"From {report.source}{': nothing was written' if report.dry_run else ''}", "")
    columns = (figure("count"), short("what"), "first of them")
    width = 3 if report.calls or report.outputs else 2
    paper.table(columns[:width], [line[:width] for line in _lines(report)])
    if report.conflicts:
        paper.print("")
        paper.table(("left alone", "because"), report.conflicts)
    if report.conflict_count > len(report.conflicts):
        paper.print(f"and {number(report.conflict_count - len(report.conflicts))} more")
    return None


def _lines(report: SDKImport) -> Iterator[Sequence[str]]:
    """What was brought, in every report; what is worth a look, only where there is some."""
    would = "would be " if report.dry_run else ""
    always = [
        (report.sessions, f"sessions {would}imported", ""),
        (report.continued, f"sessions {would}continued", ""),
        (report.skipped, "sessions unchanged, skipped", ""),
        (report.conflict_count, "sessions left alone", ""),
        (report.items, "items", ""),
        (report.turns, "turns", ""),
        (report.tool_runs, "tool runs", ""),
        (report.orphan_calls, "calls without an output", _named(report.calls)),
        (report.orphan_outputs, "outputs without a call", _named(report.outputs)),
        (report.undecodable, "undecodable rows kept aside", ""),
    ]
    sometimes = [
        (report.branches, "of the sessions are branches", ""),
        (report.runs, "runs with tokens", ""),
        (report.unlisted, "rows in no branch, left out", ""),
        (report.empty, "sessions without a row, left out", ""),
    ]
    for count, what, first in [*always, *(each for each in sometimes if each[0])]:
        yield number(count), what, first


def _named(orphans: Iterable[Orphan]) -> str:
    return ", ".join(f"{each.call_id} in {each.session_id}" for each in orphans)


def _as_dict(report: SDKImport) -> dict[str, object]:
    found = {name: getattr(report, name) for name in report.__slots__}
    for name in ("conflicts", "calls", "outputs"):
        found[name] = [each._asdict() for each in found[name]]
    return found
