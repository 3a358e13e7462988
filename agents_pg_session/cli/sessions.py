"""`agents-pg-session sessions …`: look at conversations, branch them, end or erase them."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from agents_pg_session import Event, Page, SessionInfo, StoredItem
from agents_pg_session.cli.conversation import lay_out
from agents_pg_session.cli.desk import Desk, agreed, fail, on_store
from agents_pg_session.cli.options import After, AllTenants, Limit, SessionId, Tenant, Yes, go_on, nothing, pairs
from agents_pg_session.cli.paper import below, clipped, clock, counted, figure, minute, number, plain, rows, short
from agents_pg_session.cli.words import STATUS_STYLES, event_words, item_words
from agents_pg_session.operations.conversations import read_conversation
from agents_pg_session.operations.following import FOLLOWED, Told, follow

__all__ = ["commands"]

commands = typer.Typer(help="Look at conversations, branch them, end or erase them.", no_args_is_help=True)


@commands.command("list")
@on_store
async def list_sessions(
    desk: Desk,
    tenant: Tenant = "",
    all_tenants: AllTenants = False,
    user: Annotated[str | None, typer.Option(help="Of this user.", metavar="ID", show_default=False)] = None,
    agent: Annotated[str | None, typer.Option(help="Of this agent.", metavar="NAME", show_default=False)] = None,
    status: Annotated[
        str | None,
        typer.Option(help="active, waiting, ended or a word of yours.", metavar="STATUS", show_default=False),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(help="With this metadata: key=value or JSON; may be repeated.", metavar="K=V", show_default=False),
    ] = None,
    limit: Limit = 50,
    after: After = None,
) -> None:
    """List sessions, the one whose last turn began last first."""
    page = await desk.store.sessions(
        tenant=tenant,
        all_tenants=all_tenants,
        user_id=user,
        agent=agent,
        status=status,
        metadata=pairs("--metadata", metadata or ()),
        limit=limit,
        after=after,
    )
    if desk.paper.as_json:
        return desk.paper.json({"sessions": page.records, "next": page.cursor if page.more else None})
    if not page:
        return nothing(desk.paper, "no sessions", tenant, all_tenants)
    desk.paper.first_that_fits(*(_sessions(page, all_tenants, left_out) for left_out in range(3)))
    return go_on(desk.paper, page)


@commands.command()
@on_store(patience=60)
async def show(
    desk: Desk,
    session: SessionId,
    tenant: Tenant = "",
    turns: Annotated[int, typer.Option(help="The newest so many turns; 0 for all.", min=0, max=1000, metavar="N")] = 20,
    full: Annotated[bool, typer.Option("--full", help="Cut no text, leave out no event.")] = False,
) -> None:
    """Lay a conversation out: turn by turn, who said what, what the tools did, what it cost."""
    handle = desk.store.session(session, tenant=tenant)
    conversation = await read_conversation(desk.store, handle, turns or None)
    if desk.paper.as_json:
        told = [
            {"turn": each.turn.number, "items": each.turn.items, "runs": each.runs, "events": _events(each.told)}
            for each in conversation.turns
        ]
        calls = list(conversation.tool_runs.values())
        return desk.paper.json({"session": conversation.info, "turns": told, "tool_runs": calls,
                                "events": conversation.aside})  # fmt: skip
    for piece in lay_out(conversation, desk.paper, full=full):
        desk.paper.read(piece)
    return None


@commands.command()
@on_store
async def tail(
    desk: Desk,
    session: Annotated[
        str | None,
        typer.Argument(
            help=f"The session; without one, the {FOLLOWED:,} of the tenant whose last turn began last.",
            metavar="[SESSION]",
            show_default=False,
        ),
    ] = None,
    tenant: Tenant = "",
    newest: Annotated[
        int, typer.Option("-n", "--lines", help="Begin with the last N.", min=0, max=1000, metavar="N")
    ] = 10,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.05, max=3600, metavar="S")] = 1.0,
) -> None:
    """Follow items and events as they commit, one per line, until Ctrl-C.

    Nothing is skipped and nothing is told twice. A database that is away is waited for. With --json each line is an
    object.
    """
    following = follow(desk.store, session, tenant=tenant, newest=newest, interval=interval, notice=desk.paper.note)
    try:
        async for told in following:
            if desk.paper.as_json:
                kind = "event" if isinstance(told.what, Event) else "item"
                desk.paper.json({"tenant": told.tenant, "session_id": told.session_id, kind: told.what})
            else:
                _print_told(desk, told, with_session=session is None)
    except asyncio.CancelledError:  # Ctrl-C is how following ends, as with `tail -f`
        return


@commands.command()
@on_store
async def fork(
    desk: Desk,
    session: SessionId,
    new: Annotated[str, typer.Argument(help="The id of the copy.", metavar="NEW", show_default=False)],
    tenant: Tenant = "",
    before_turn: Annotated[
        int | None, typer.Option(help="Copy up to this turn, without it.", min=1, metavar="N", show_default=False)
    ] = None,
) -> None:
    """Copy a session into a new one: to try something else from there."""
    copy = await desk.store.session(session, tenant=tenant).fork(new, before_turn=before_turn)
    info = await copy.info()
    if desk.paper.as_json:
        return desk.paper.json({"session": info})
    return desk.paper.print(f"{new} is a copy of {session} with {counted(info.turn_count, 'turn')}")


@commands.command()
@on_store
async def end(
    desk: Desk,
    session: SessionId,
    tenant: Tenant = "",
    status: Annotated[str, typer.Option(help="What it ends as: a word of yours.", metavar="STATUS")] = "ended",
) -> None:
    """Mark a session as over; an append makes it active again."""
    handle = desk.store.session(session, tenant=tenant)
    await handle.end(status)
    if desk.paper.as_json:
        return desk.paper.json({"session": await handle.info()})
    return desk.paper.print(f"{session} is {status}")


@commands.command()
@on_store
async def delete(desk: Desk, session: SessionId, tenant: Tenant = "", yes: Yes = False) -> None:
    """Erase a session and everything about it; exit code 1 if it was not there."""
    handle = desk.store.session(session, tenant=tenant)
    info = await handle.info()  # not there: nobody is asked
    counts = ((info.item_count, "item"), (info.tool_run_count, "tool run"), (info.event_count, "event"))
    what = ", ".join(counted(count, name) for count, name in counts)
    agreed(f"Erase {session} with {what}? This cannot be undone.", yes)
    if not await handle.delete():
        raise fail(f"session {session!r} is not there any more")
    if desk.paper.as_json:
        return desk.paper.json({"deleted": session})
    return desk.paper.print(f"{session} is erased")


def _sessions(page: Page[SessionInfo], all_tenants: bool, left_out: int) -> Table:
    """Return a page as a table; in a narrow terminal without the tool runs, then with names below the session."""
    beside = left_out < 2
    return rows(
        (
            *(("tenant",) if all_tenants and beside else ()),
            *(("session", "agent", "user") if beside else (_names(all_tenants),)),
            *(short("status"), figure("turns")),
            *(() if left_out else (figure("tool runs"),)),
            *(figure("failed"), *((figure("tokens"),) if beside else ()), figure("last turn (UTC)")),
        ),
        [
            (
                *((each.tenant,) if all_tenants and beside else ()),
                *((each.session_id, each.agent, each.user_id) if beside else (_named(each, all_tenants),)),
                *(plain(each.status, STATUS_STYLES.get(each.status, "")), number(each.turn_count)),
                *(() if left_out else (number(each.tool_run_count),)),
                plain(number(each.tool_error_count), "red" if each.tool_error_count else "dim"),
                *((number(each.input_tokens + each.output_tokens),) if beside else ()),
                minute(each.active_at),
            )
            for each in page
        ],
    )


def _named(info: SessionInfo, all_tenants: bool) -> Text:
    return below(info.session_id, info.tenant if all_tenants else None, info.agent, info.user_id)


def _names(all_tenants: bool) -> str:
    return "session, tenant, agent, user" if all_tenants else "session, agent, user"


def _events(told: tuple[StoredItem | Event, ...]) -> list[Event]:
    return [each for each in told if isinstance(each, Event)]


def _print_told(desk: Desk, told: Told, *, with_session: bool) -> None:
    """One line: when, in which session, who, what; as long as the terminal is wide."""
    line = plain(f"{clock(told.at)} ", "dim")
    if with_session:
        line.append_text(plain(f"{clipped(told.session_id, 24):<12} ", "bold"))
    if isinstance(told.what, Event):
        text, who, style = event_words(told.what), told.what.agent or "", "magenta"
    else:
        said = item_words(told.what)
        text, who, style = said.text, said.who, "dim" if said.quiet else ""
    line.append_text(plain(f"{clipped(who, 12):<12} ", "green" if who == "user" else "cyan"))
    line.append_text(plain(clipped(text, max(20, desk.paper.console.width - len(line.plain))), style))
    desk.paper.console.print(line, soft_wrap=True)
