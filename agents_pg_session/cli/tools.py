"""`agents-pg-session tools …`: which tools failed and why, and which are slow."""

from __future__ import annotations

import typer
from rich.text import Text

from agents_pg_session import ToolRun
from agents_pg_session.cli.desk import Desk, on_store
from agents_pg_session.cli.options import After, AllTenants, Limit, Since, Tenant, go_on, moment, nothing
from agents_pg_session.cli.paper import clipped, figure, minute, number, plain, rows, seconds, short
from agents_pg_session.cli.words import STATUS_STYLES, call_words
from agents_pg_session.operations.statistics import slow_tools, slowest_tool_runs

__all__ = ["commands"]

commands = typer.Typer(help="See which tools failed and why, and which are slow.", no_args_is_help=True)


@commands.command()
@on_store
async def failed(
    desk: Desk,
    tenant: Tenant = "",
    all_tenants: AllTenants = False,
    tool: str | None = typer.Option(None, help="Of this tool.", metavar="NAME", show_default=False),
    since: Since = None,
    limit: Limit = 50,
    after: After = None,
) -> None:
    """List failed tool runs with their errors, newest first."""
    page = await desk.store.tool_runs(
        tenant=tenant,
        all_tenants=all_tenants,
        status="failed",
        tool_name=tool,
        since=moment("--since", since),
        limit=limit,
        after=after,
    )
    if desk.paper.as_json:
        return desk.paper.json({"tool_runs": page.records, "next": page.cursor if page.more else None})
    if not page:
        return nothing(desk.paper, "no failed tool runs in the sessions", tenant, all_tenants)
    wide = rows(
        (
            short("when (UTC)"),
            *(("tenant",) if all_tenants else ()),
            *("session", figure("item"), figure("took"), "call and error"),
        ),
        [
            (
                minute(each.created_at),
                *((each.tenant,) if all_tenants else ()),
                *(each.session_id, str(each.position), seconds(each.duration)),
                _call_and_error(each),
            )
            for each in page
        ],
    )
    narrow = rows(
        (figure("took"), "call, error and where"),
        [(seconds(each.duration), _call_and_error(each).append_text(_where(each, all_tenants))) for each in page],
    )
    desk.paper.first_that_fits(wide, narrow)
    return go_on(desk.paper, page)


@commands.command()
@on_store(patience=120)
async def slow(
    desk: Desk, tenant: Tenant = "", all_tenants: AllTenants = False, since: Since = "1d", limit: Limit = 10
) -> None:
    """Show how long each tool takes, and the single runs that took longest.

    Half of the runs were done within p50, 95 in 100 within p95. Only runs with hooks are measured.
    """
    begun = moment("--since", since)
    assert begun is not None, "it has a default"
    tools = await slow_tools(desk.store, since=begun, tenant=tenant, all_tenants=all_tenants, limit=limit)
    runs = await slowest_tool_runs(desk.store, since=begun, tenant=tenant, all_tenants=all_tenants, limit=limit)
    if desk.paper.as_json:
        return desk.paper.json(
            {"tools": tools, "slowest": [{**_fields(each), "seconds": each.duration} for each in runs]}
        )
    desk.paper.table(
        ("tool", *map(figure, ("p50", "p95", "longest", "measured", "runs", "failed"))),
        [
            (
                each.tool_name,
                *map(seconds, (each.p50, each.p95, each.longest)),
                *(number(each.measured), number(each.runs)),
                plain(number(each.failed), "red" if each.failed else "dim"),
            )
            for each in tools
        ],
    )
    if not runs:
        return desk.paper.print("\nno tool run was measured: pass hooks=session.hooks() to the Runner")
    desk.paper.print()
    wide = rows(
        (
            figure("took"),
            short("status"),
            *(("tenant",) if all_tenants else ()),
            *("session", figure("item"), "call", short("when (UTC)")),
        ),
        [
            (
                *(seconds(each.duration), plain(each.status, STATUS_STYLES.get(each.status, ""))),
                *((each.tenant,) if all_tenants else ()),
                *(each.session_id, str(each.position), clipped(call_words(each), 200), minute(each.created_at)),
            )
            for each in runs
        ],
    )
    narrow = rows(
        (figure("took"), short("status"), "call and where"),
        [
            (
                *(seconds(each.duration), plain(each.status, STATUS_STYLES.get(each.status, ""))),
                plain(clipped(call_words(each), 200)).append_text(_where(each, all_tenants)),
            )
            for each in runs
        ],
    )
    return desk.paper.first_that_fits(wide, narrow)


def _call_and_error(run: ToolRun) -> Text:
    return plain(f"{clipped(call_words(run), 200)}\n").append_text(plain(clipped(run.error or "", 300), "red"))


def _where(run: ToolRun, all_tenants: bool) -> Text:
    """What a wide terminal has in columns: session, item, time (UTC)."""
    tenant = f", tenant {run.tenant}" if all_tenants and run.tenant else ""
    return plain(f"\n{run.session_id}{tenant}\nitem {run.position}, {minute(run.created_at)}", "dim")


def _fields(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__slots__}  # type: ignore[attr-defined]
