"""Chat, pause for an approval, resume elsewhere, then look at the rows with plain SQL: `make demo` runs this file.

Without OPENAI_API_KEY the model is scripted and nothing leaves the machine; with it, a real model answers. The session
goes to quickstart.db in the current folder, or to the PostgreSQL that AGENTS_PG_URL names. Every run is a new session.
"""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from uuid import uuid4

from agents import Agent, Runner, RunResult, RunState, function_tool, set_tracing_disabled
from agents.items import TResponseOutputItem
from agents.testing import ScriptedModel, assistant_message, function_call
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from sqlalchemy import make_url, text

from agents_pg_session import SessionStore

URL = os.environ.get("AGENTS_PG_URL") or f"sqlite+aiosqlite:///{Path('quickstart.db').resolve()}"
SESSION_ID = f"quickstart-{uuid4().hex[:8]}"

OF_THIS_SESSION = "WHERE tenant_id = '' AND session_id = :session_id"
ITEMS = f"""\
SELECT position, turn, type, role, call_id, CAST(item AS text) AS item
FROM agents.items
{OF_THIS_SESSION} ORDER BY position"""
ROWS_BEHIND = {
    "The session's row": f"""\
SELECT user_id, agent, status, turn_count, item_count, message_count, last_position, created_at, updated_at
FROM agents.sessions
{OF_THIS_SESSION}""",
    "Its items": ITEMS,
    "Its events": f"SELECT event_id, kind, agent, created_at FROM agents.events\n{OF_THIS_SESSION} ORDER BY event_id",
}

console = Console(highlight=False)
Rows = Sequence[Mapping[str, Any]]
Step = Sequence[TResponseOutputItem]


@function_tool
def find_order(order_id: str) -> str:
    """Look up what was bought, for how much."""
    return f"{order_id}: espresso machine, 249.00 EUR, paid"


@function_tool
def track_parcel(order_id: str) -> str:
    """Say where the parcel of an order is."""
    return f"{order_id}: delivered yesterday at 16:40"


@function_tool(needs_approval=True)
def refund(order_id: str, amount: float) -> str:
    """Pay money back; a person has to approve it."""
    return f"{order_id}: {amount:.2f} EUR refunded"


def support_agent(*script: Step) -> Agent[None]:
    """Return the agent, new each time; *script* is what its model says when there is no key for a real one."""
    agent = Agent[None](
        name="Support",
        instructions="Help with the order. Use the tools without asking back; refund the full price when asked to.",
        tools=[find_order, track_parcel, refund],
    )
    return agent if os.environ.get("OPENAI_API_KEY") else agent.clone(model=ScriptedModel(script))


async def say(store: SessionStore, message: str, *script: Step) -> RunResult:
    """Run the agent on one message, with a handle of its own."""
    session = store.session(SESSION_ID, user_id="ada", agent="Support")
    return await Runner.run(support_agent(*script), message, session=session)


async def chat() -> None:
    """Talk twice: the second run knows what the first was told."""
    async with SessionStore.open(URL) as store:
        await store.create_tables()
        call = function_call("find_order", {"order_id": "A-1042"}, call_id="call_1")
        answer = assistant_message("That is your espresso machine for 249.00 EUR. It is paid.")
        await say(store, "Hi, I am asking about order A-1042.", [call], [answer])
        narrate("run 1", "asked about an order")
        call = function_call("track_parcel", {"order_id": "A-1042"}, call_id="call_2")
        await say(store, "Has it arrived?", [call], [assistant_message("It was delivered yesterday at 16:40.")])
        narrate("run 2", 'asked through another handle: does it know what "it" is?')


async def ask_for_refund() -> str | None:
    """Run until the tool that needs approval, and return the paused run as a string; None if the model did not ask."""
    async with SessionStore.open(URL) as store:
        call = function_call("refund", {"order_id": "A-1042", "amount": 249}, call_id="call_3")
        result = await say(store, "It is broken. Refund it, please.", [call])
        waiting = ", ".join(f"{each.name} {each.arguments}" for each in result.interruptions)
        narrate("run 3", f"waits for approval: {waiting}" if waiting else "done without asking for approval")
        return json.dumps(result.to_state().to_json()) if waiting else None


async def approve_and_resume(paused: str) -> None:
    """Go on where the run stopped, knowing nothing but the string: another store, another handle, another agent."""
    async with SessionStore.open(URL) as store:
        agent = support_agent([assistant_message("Done: 249.00 EUR are on their way back to you.")])
        state = await RunState.from_json(agent, json.loads(paused))
        for request in state.get_interruptions():
            state.approve(request)
        await Runner.run(agent, state, session=store.session(SESSION_ID))
        narrate("resumed", f"from {len(paused):,} characters of JSON, with a new store, handle and agent")


async def show_what_is_stored() -> None:
    """Read everything back with SQL that works in psql and sqlite3, and lay it out."""
    async with SessionStore.open(URL) as store:
        headline("The conversation")
        console.print(conversation(await select(store, ITEMS)))
        for title, sql in ROWS_BEHIND.items():
            if rows := await select(store, sql):
                headline(title)
                console.print(Padding(Syntax(spelled(store, sql), "sql", theme="ansi_dark", word_wrap=True), (0, 2)))
                console.print(Padding(table(rows), (1, 2, 0, 2)))
    headline("Look yourself")
    narrate("database", make_url(URL).render_as_string(hide_password=True))
    narrate("session", SESSION_ID)


def spelled(store: SessionStore, sql: str) -> str:
    """Return the SQL as this database wants it: SQLite has no schemas."""
    return sql.replace("agents.", "") if store.engine.dialect.name == "sqlite" else sql


async def select(store: SessionStore, sql: str) -> Rows:
    async with store.engine.connect() as connection:
        result = await connection.execute(text(spelled(store, sql)), {"session_id": SESSION_ID})
        return [dict(row) for row in result.mappings()]


def narrate(what: str, how: str) -> None:
    console.print(Text.assemble((f"{what:>9}", "bold green"), " ", how))


def headline(title: str) -> None:
    console.print()
    console.rule(f"[bold]{title}", align="left", style="dim")


def conversation(rows: Rows) -> Table:
    """Lay out who said and did what, turn by turn."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", width=9)
    for turn, items in groupby(rows, key=itemgetter("turn")):
        grid.add_row(Text(f"turn {turn}", style="dim"))
        for row in items:
            grid.add_row(*spoken(json.loads(row["item"])))
    return grid


def spoken(item: dict[str, Any]) -> tuple[Text, Text]:
    """Return who says or does what in one item."""
    match item.get("type"):
        case "function_call":
            arguments = ", ".join(f"{name}={value!r}" for name, value in json.loads(item["arguments"]).items())
            return Text("call", style="magenta"), Text(f"{item['name']}({arguments})", style="magenta")
        case "function_call_output":
            return Text("output", style="cyan"), Text(str(item["output"]), style="cyan")
        case other:
            content = item.get("content") or ""
            said = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
            return Text(item.get("role") or str(other), style="bold"), Text(said)


def table(rows: Rows) -> Table:
    """Lay out rows, a single one upright; the last column takes the width that the others leave."""
    if len(rows) == 1:
        rows = [{"column": name, "value": value} for name, value in rows[0].items()]
    table = Table(box=box.HORIZONTALS, show_edge=False, padding=(0, 1, 0, 0), expand=True)
    *first, last = rows[0]
    for name in first:
        widest = max(len(name), *(len(str(row[name])) for row in rows))
        table.add_column(name, no_wrap=True, width=min(widest, 20))
    table.add_column(last, no_wrap=True, ratio=1)
    for row in rows:
        table.add_row(*("NULL" if value is None else escape(str(value)) for value in row.values()))
    return table


async def main() -> None:
    if not os.environ.get("OPENAI_API_KEY"):
        set_tracing_disabled(True)
    headline("Talking")
    await chat()
    if paused := await ask_for_refund():
        await approve_and_resume(paused)
    await show_what_is_stored()


if __name__ == "__main__":
    asyncio.run(main())
