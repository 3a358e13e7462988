"""`agents-pg-session waiting`: runs that wait for a person's yes or no."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from agents_pg_session import Page, WaitingRun
from agents_pg_session.cli.desk import Desk, on_store
from agents_pg_session.cli.options import After, AllTenants, Limit, Tenant, go_on, nothing
from agents_pg_session.cli.paper import below, clipped, json_text, minute, plain, rows, short

__all__ = ["waiting"]


@on_store
async def waiting(
    desk: Desk, tenant: Tenant = "", all_tenants: AllTenants = False, limit: Limit = 50, after: After = None
) -> None:
    """List the runs that wait for an approval, and the calls they ask for.

    The one whose turn began last comes first. "not saved" is a run that nobody stored with session.pause: it cannot be
    resumed. "taken until" is how long a worker has it; when that is past, anybody may take it up.
    """
    page = await desk.store.waiting(tenant=tenant, all_tenants=all_tenants, limit=limit, after=after)
    if desk.paper.as_json:
        return desk.paper.json({"waiting": page.records, "next": page.cursor if page.more else None})
    if not page:
        return nothing(desk.paper, "nobody waits in the sessions", tenant, all_tenants)
    desk.paper.first_that_fits(_beside(page, all_tenants), _below(page, all_tenants))
    return go_on(desk.paper, page)


def _beside(page: Page[WaitingRun], all_tenants: bool) -> Table:
    return rows(
        (
            *(("tenant",) if all_tenants else ()),
            *("session", "user", "agent", "asks for", short("since (UTC)"), short("taken until")),
        ),
        [
            (
                *((each.tenant,) if all_tenants else ()),
                *(each.session_id, each.user_id, each.agent, _asked(each)),
                *(minute(each.paused_at) or "not saved", minute(each.claimed_until)),
            )
            for each in page
        ],
    )


def _below(page: Page[WaitingRun], all_tenants: bool) -> Table:
    """Return the same for a narrow terminal: who and since when is below the session, and no id is broken."""
    lines = []
    for each in page:
        tenant = each.tenant if all_tenants else None
        since = f"since {minute(each.paused_at)}" if each.paused_at else "not saved"
        taken = f"taken until {minute(each.claimed_until)}" if each.claimed_until else None
        lines.append((below(each.session_id, tenant, each.agent, each.user_id, since, taken), _asked(each)))
    return rows((short("who and since when (UTC)"), "asks for"), lines)


def _asked(run: WaitingRun) -> Text:
    return plain("\n".join(_call(call.tool_name, call.arguments) for call in run.approvals), "bold")


def _call(tool: str | None, arguments: object) -> str:
    if isinstance(arguments, dict):
        arguments = ", ".join(f"{name}={json_text(value)}" for name, value in arguments.items())
    told = "" if arguments is None else arguments if isinstance(arguments, str) else json_text(arguments)
    return clipped(f"{tool or 'a tool'}({told})", 300)
