"""`agents-pg-session purge`: remove sessions whose time is over."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated

import typer

from agents_pg_session.cli.desk import Desk, agreed, on_store
from agents_pg_session.cli.options import AllTenants, Tenant, Yes, moment
from agents_pg_session.cli.paper import Paper, counted, number
from agents_pg_session.purging import MAX_BATCH, Progress
from agents_pg_session.records import Purged

__all__ = ["purge"]


@on_store(patience=60, left="what was removed is removed whole; run it again to go on")
async def purge(
    desk: Desk,
    older_than: Annotated[
        str | None,
        typer.Option(help="That nothing was written to for so long: 90d, 12h.", metavar="AGE", show_default=False),
    ] = None,
    status: Annotated[
        str | None, typer.Option(help="That have this status: ended, active …", metavar="STATUS", show_default=False)
    ] = None,
    expired: Annotated[bool, typer.Option(help="Those that have expired, too.")] = True,
    tenant: Tenant = "",
    all_tenants: AllTenants = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, only count.")] = False,
    batch: Annotated[
        int, typer.Option(help="Sessions that one statement removes at most.", min=1, max=MAX_BATCH, metavar="N")
    ] = 100,
    yes: Yes = False,
) -> None:
    """Remove sessions whose time is over, whole, with everything about them.

    These are the ones that have expired, and those with the age and the status that are given. It waits for nobody and
    nobody waits for it long; it may be stopped at any point, and the next one goes on.
    """
    age = moment("--older-than", older_than)
    if age is not None and not isinstance(age, timedelta):
        raise ValueError(f"--older-than must be an age, like 90d or 12h, not {older_than!r}")

    async def walk(*, dry_run: bool, progress: Progress | None = None) -> Purged:
        return await desk.store.purge(
            older_than=age,
            status=status,
            expired=expired,
            tenant=tenant,
            all_tenants=all_tenants,
            dry_run=dry_run,
            batch=batch,
            progress=progress,
        )

    if not (dry_run or yes):
        found = await walk(dry_run=True) if sys.stdin.isatty() else None
        agreed(f"Remove {_what(found) if found else 'these sessions'}? This cannot be undone.", yes)
    with _bar(desk.paper) as progress:
        purged = await walk(dry_run=dry_run, progress=progress)
    if desk.paper.as_json:
        return desk.paper.json({"purged": purged})
    desk.paper.print(f"{'would remove' if dry_run else 'removed'} {_what(purged)}")
    if purged.passed_over:
        desk.paper.print(f"{number(purged.passed_over)} were in use and are left for the next purge")
    return None


def _what(purged: Purged) -> str:
    why = f" ({number(purged.expired)} expired, {number(purged.old)} old)" if purged.expired and purged.old else ""
    return (
        f"{counted(purged.sessions, 'session')}{why} with {counted(purged.items, 'item')}, "
        f"{counted(purged.tool_runs, 'tool run')} and {counted(purged.events, 'event')}"
    )


@contextmanager
def _bar(paper: Paper) -> Iterator[Progress | None]:
    """Draw how far a purge has come; where nobody looks, nobody asks how many sessions there are."""
    with paper.progress() as bar:
        if bar.disable:
            yield None
            return
        task = bar.add_task("sessions", total=None)
        yield lambda so_far: bar.update(
            task, total=so_far.total, completed=so_far.seen, description=f"{number(so_far.sessions)} removed"
        )
