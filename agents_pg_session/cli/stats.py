"""`agents-pg-session stats`: what went on, to look at rather than to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agents_pg_session.cli.charts import lying, upright
from agents_pg_session.cli.desk import Desk, on_store
from agents_pg_session.cli.options import AllTenants, Limit, Since, Tenant, moment
from agents_pg_session.cli.paper import Paper, clipped, figure, minute, number, plain, rows, seconds
from agents_pg_session.operations.statistics import Statistics, statistics

__all__ = ["stats"]

#: From this width on, things stand beside each other.
_WIDE = 120

#: Characters of a tool's or an agent's name.
_NAME = 24


@on_store(patience=120)
async def stats(
    desk: Desk, tenant: Tenant = "", all_tenants: AllTenants = False, since: Since = "7d", limit: Limit = 8
) -> None:
    """Draw what went on: sessions and failed tools over time, the slowest tools, tokens by agent.

    Over time means by the hour up to two days, by the day up to two months, by the month beyond, in UTC.
    """
    begun = moment("--since", since)
    assert begun is not None, "it has a default"
    found = await statistics(desk.store, since=begun, tenant=tenant, all_tenants=all_tenants, limit=limit)
    if desk.paper.as_json:
        return desk.paper.json(found)
    whose = "all tenants" if all_tenants else f"tenant {tenant}" if tenant else "no tenant"
    period = found.period
    desk.paper.read(plain(f"{minute(period.since)} to {minute(period.until)} (UTC), {whose}", "bold"))
    for piece in _pieces(found, desk.paper, limit):
        desk.paper.read(Text(), piece)
    return None


def _pieces(found: Statistics, paper: Paper, limit: int) -> Iterator[RenderableType]:
    """Yield the four drawings, two and two beside each other where there is room."""
    wide = paper.reading_width >= _WIDE
    width = (paper.reading_width - 4) // 2 if wide else paper.reading_width
    over_time, by = found.over_time, found.period.by
    labels = _labels([each.at for each in over_time], by)
    sessions = [each.sessions for each in over_time]
    failures = [each.failed_tool_runs for each in over_time]
    runs, tool_runs = sum(each.runs for each in over_time), sum(each.tool_runs for each in over_time)
    failed = sum(failures)
    share = f", {100 * failed / tool_runs:.1f} %" if tool_runs else ""
    pieces = [
        _chart(f"Sessions by the {by}", f"{number(runs)} runs", sessions, labels, width, paper, "green"),
        _chart(f"Failed tools by the {by}", f"{number(failed)} of {number(tool_runs)} tool runs{share}",
               failures, labels, width, paper, "red"),
        _slow_tools(found, width, paper),
        _agents(found, width, paper, limit),
    ]  # fmt: skip
    if not wide:
        yield from pieces
        return
    for left, right in ((pieces[0], pieces[1]), (pieces[2], pieces[3])):
        beside = Table.grid(padding=(0, 4, 0, 0), pad_edge=False)
        beside.add_column(width=width)
        beside.add_column(width=width)
        beside.add_row(left, right)
        yield beside


def _chart(
    title: str, beside: str, values: Sequence[int], labels: Sequence[str], width: int, paper: Paper, style: str
) -> Group:
    head = Text(title, "bold").append(f"  {beside}", "dim")
    if not any(values):
        return Group(head, Text("nothing", "dim"))
    return Group(head, *upright(values, labels, width, ascii_only=paper.ascii_only, style=style))


def _slow_tools(found: Statistics, width: int, paper: Paper) -> Group:
    head = Text("Slowest tools", "bold").append("  95 in 100 runs were done within this time", "dim")
    timed = [each for each in found.tools if each.p95 is not None]
    if not timed:
        return Group(head, Text("nothing was measured: pass hooks=session.hooks() to the Runner", "dim"))
    room = max(8, width - _NAME - 8 - 9 - 8 - 8)
    largest = max(each.p95 or 0 for each in timed)
    table = rows(
        ("tool", "", figure("p95"), figure("longest"), figure("runs")),
        [
            (
                clipped(each.tool_name or "(no name)", _NAME),
                lying(each.p95 or 0, largest, room, ascii_only=paper.ascii_only, style="yellow"),
                *(seconds(each.p95), seconds(each.longest), number(each.runs)),
            )
            for each in timed
        ],
    )
    return Group(head, table)


def _agents(found: Statistics, width: int, paper: Paper, limit: int) -> Group:
    head = Text("Tokens by agent", "bold")
    used = [each for each in found.agents if each.total_tokens][:limit]
    if not used:
        return Group(head, Text("none", "dim"))
    room = max(8, width - _NAME - 33 - 8)
    largest = used[0].total_tokens
    table = rows(
        ("agent", "", figure("tokens"), figure("in"), figure("out")),
        [
            (
                clipped(each.of or "(none)", _NAME),
                lying(each.total_tokens, largest, room, ascii_only=paper.ascii_only, style="cyan"),
                *(number(each.total_tokens), number(each.input_tokens), number(each.output_tokens)),
            )
            for each in used
        ],
    )
    return Group(head, table)


def _labels(times: Sequence[datetime], by: str) -> list[str]:
    """Hours as "05:00", days as "11-21", months as "2026-11"."""
    form = {"hour": "%H:00", "day": "%m-%d", "month": "%Y-%m"}[by]
    return [at.strftime(form) for at in times]
