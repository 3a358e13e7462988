"""`agents-pg-session usage`: what agents, users, tenants or days cost in tokens."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

import typer

from agents_pg_session.cli.desk import Desk, on_store
from agents_pg_session.cli.options import AllTenants, Since, Tenant, moment
from agents_pg_session.cli.paper import figure, number

__all__ = ["usage"]

_FIGURES = ("runs", "requests", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "total_tokens")


@on_store(patience=120)
async def usage(
    desk: Desk,
    by: Annotated[
        Literal["agent", "user", "day", "tenant"], typer.Option(help="One line for each agent, user, day or tenant.")
    ] = "agent",
    since: Since = "7d",
    until: Annotated[
        str | None, typer.Option(help="Up to when: a date or a time, 2026-11-01.", metavar="WHEN", show_default=False)
    ] = None,
    tenant: Tenant = "",
    all_tenants: AllTenants = False,
) -> None:
    """Show what agents, users, days or tenants cost in tokens.

    A run counts for the time in which it began. Cached tokens are a part of the input, reasoning tokens of the output.
    Days are days of UTC.
    """
    end = moment("--until", until)
    if isinstance(end, timedelta):
        raise ValueError(f"--until must be a date or a time, like 2026-11-01, not {until!r}")
    used = await desk.store.usage(
        by=by, since=moment("--since", since), until=end, tenant=tenant, all_tenants=all_tenants
    )
    if by != "day":
        used.sort(key=lambda each: -each.total_tokens)
    totals = {name: sum(getattr(each, name) for each in used) for name in _FIGURES}
    if desk.paper.as_json:
        return desk.paper.json({"by": by, "usage": used, "total": totals})
    lines = [(each.of or "(none)", *(number(getattr(each, name)) for name in _FIGURES)) for each in used]
    if len(lines) > 1:
        lines.append(("all", *(number(totals[name]) for name in _FIGURES)))
    names = ("runs", "requests", "input", "cached", "output", "reasoning", "tokens")
    return desk.paper.table((by, *map(figure, names)), lines)
