"""`agents-pg-session runs …`: which runs never said how they ended."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer
from rich.table import Table

from agents_pg_session.cli.desk import Desk, on_store
from agents_pg_session.cli.options import AllTenants, Limit, Since, Tenant, moment, nothing
from agents_pg_session.cli.paper import below, figure, minute, rows, seconds, short
from agents_pg_session.operations.silence import SilentRun, silent_runs

__all__ = ["commands"]

commands = typer.Typer(help="See which runs never ended.", no_args_is_help=True)

_SilentFor = Annotated[str, typer.Option("--silent-for", help="Not heard of for: 10m, 2h.", metavar="TIME")]


@commands.command()
@on_store
async def silent(
    desk: Desk,
    tenant: Tenant = "",
    all_tenants: AllTenants = False,
    silent_for: _SilentFor = "10m",
    since: Since = "1d",
    limit: Limit = 50,
) -> None:
    """List runs that are still "running" although nothing was heard of them, the newest first.

    Its last item tells what became of a run. "assistant message": it has answered, and nobody recorded the end, as
    with session= alone. Anything else: the process died, or the run raised and nobody recorded it.
    """
    begun, span = moment("--since", since), moment("--silent-for", silent_for)
    assert begun is not None, "it has a default"
    if not isinstance(span, timedelta):
        raise ValueError("--silent-for must be a time like 10m or 2h, not a date")
    runs = await silent_runs(
        desk.store, since=begun, silent_for=span, tenant=tenant, all_tenants=all_tenants, limit=limit
    )
    if desk.paper.as_json:
        return desk.paper.json({"runs": runs})
    if not runs:
        return nothing(desk.paper, "no silent runs in the sessions", tenant, all_tenants)
    return desk.paper.first_that_fits(_beside(runs, all_tenants), _below(runs, all_tenants))


def _beside(runs: list[SilentRun], all_tenants: bool) -> Table:
    return rows(
        (
            figure("silent for"),
            *(("tenant",) if all_tenants else ()),
            *("session", "agent", "last item", short("began (UTC)"), "run"),
        ),
        [
            (
                seconds(each.silent_for),
                *((each.tenant,) if all_tenants else ()),
                *(each.session_id, each.agent, each.last_item, minute(each.started_at), each.run_id[:8]),
            )
            for each in runs
        ],
    )


def _below(runs: list[SilentRun], all_tenants: bool) -> Table:
    """Return the same for a narrow terminal: what no line has room for is below the session."""
    return rows(
        (figure("silent for"), "which and since when (UTC)", "last item"),
        [
            (
                seconds(each.silent_for),
                below(
                    each.session_id,
                    each.tenant if all_tenants else None,
                    each.agent,
                    f"began {minute(each.started_at)}",
                    f"run {each.run_id[:8]}",
                ),
                each.last_item,
            )
            for each in runs
        ],
    )
