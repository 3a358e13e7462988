"""Chat, pause for an approval, resume elsewhere, then ask the database what happened: `make demo` runs this file.

Without OPENAI_API_KEY the model is scripted and nothing leaves the machine; with it, a real model answers. The session
goes to quickstart.db in the current folder, or to the PostgreSQL that AGENTS_PG_URL names. Every run is a new session.
"""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from itertools import count, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from uuid import uuid4

from agents import Agent, Runner, RunResult, Usage, function_tool, set_tracing_disabled
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

from agents_pg_session import SchemaOutdated, SessionStore

URL = os.environ.get("AGENTS_PG_URL") or f"sqlite+aiosqlite:///{Path('quickstart.db').resolve()}"
SESSION_ID = f"quickstart-{uuid4().hex[:8]}"

OF_THIS_SESSION = "WHERE tenant_id = '' AND session_id = :session_id"
ITEMS = f"""\
SELECT position, turn, type, role, call_id, CAST(item AS text) AS item
FROM agents.items
{OF_THIS_SESSION} ORDER BY position"""
ROWS_BEHIND = {
    "Where does it stand?": f"""\
SELECT agent, status, turn_count, item_count, tool_run_count, tool_error_count, total_tokens
FROM agents.session_summary
{OF_THIS_SESSION}""",
    "Which tool failed, and why?": f"""\
SELECT tool_name, status, round(CAST(duration_seconds AS numeric), 3) AS seconds, error
FROM agents.tool_run_details
{OF_THIS_SESSION} ORDER BY call_position""",
    "What did each run cost?": f"""\
SELECT turn, status, agent, requests, input_tokens, cached_tokens, output_tokens
FROM agents.runs
{OF_THIS_SESSION} ORDER BY started_at""",
    "What else happened?": f"""\
SELECT event_id, kind, agent, CAST(payload AS text) AS payload
FROM agents.events
{OF_THIS_SESSION} AND kind NOT LIKE 'run%' ORDER BY event_id""",
    "What does it remember?": f"""\
SELECT kind, version, through_position, length(CAST(content AS text)) AS characters
FROM agents.snapshots
{OF_THIS_SESSION}""",
    "What was said last, verbatim?": ITEMS + " DESC LIMIT 3",
}

console = Console(highlight=False)
Rows = Sequence[Mapping[str, Any]]
Step = Sequence[TResponseOutputItem]
tracked = count(1)
USAGE = Usage(requests=1, input_tokens=310, output_tokens=24, total_tokens=334)  # what a scripted answer "costs"


@function_tool
async def find_order(order_id: str) -> str:
    """Look up what was bought, for how much."""
    await asyncio.sleep(0.04)
    return f"{order_id}: espresso machine, 249.00 EUR, paid"


@function_tool
async def track_parcel(order_id: str) -> str:
    """Say where the parcel of an order is."""
    await asyncio.sleep(0.12)
    if next(tracked) == 1:
        raise ConnectionError("the carrier's server is away")
    return f"{order_id}: delivered yesterday at 16:40"


@function_tool(needs_approval=True)
def refund(order_id: str, amount: float) -> str:
    """Pay money back; a person has to approve it."""
    return f"{order_id}: {amount:.2f} EUR refunded"


def support_agent(*script: Step) -> Agent[None]:
    """Return the agent, new each time; *script* is what its model says when there is no key for a real one."""
    agent = Agent[None](
        name="Support",
        instructions="Help with the order. Use the tools without asking back, and once more when one fails. "
        "Refund the full price when asked to.",
        tools=[find_order, track_parcel, refund],
    )
    return agent if os.environ.get("OPENAI_API_KEY") else agent.clone(model=ScriptedModel(script, default_usage=USAGE))


async def say(store: SessionStore, message: str, *script: Step) -> RunResult:
    """Run the agent on one message, recorded, with a handle of its own; what waits for approval is put away."""
    session = store.session(SESSION_ID, user_id="ada")
    async with session.recording() as run:
        result = await Runner.run(support_agent(*script), message, session=session, hooks=run.hooks)
        if result.interruptions:
            await session.pause(result)
    return result


async def chat() -> None:
    """Talk twice: the second run knows what the first was told."""
    async with SessionStore.open(URL) as store:
        await store.create_tables()
        call = function_call("find_order", {"order_id": "A-1042"}, call_id="call_1")
        answer = assistant_message("That is your espresso machine for 249.00 EUR. It is paid.")
        await say(store, "Hi, I am asking about order A-1042.", [call], [answer])
        narrate("run 1", "asked about an order")
        calls = [function_call("track_parcel", {"order_id": "A-1042"}, call_id=f"call_{each}") for each in (2, 3)]
        answer = assistant_message("It was delivered yesterday at 16:40.")
        await say(store, "Has it arrived?", calls[:1], calls[1:], [answer])
        narrate("run 2", 'asked through another handle: does it know what "it" is? A tool fails on the way')


async def ask_for_refund() -> bool:
    """Run until the tool that needs approval; false if the model did not ask for it."""
    async with SessionStore.open(URL) as store:
        call = function_call("refund", {"order_id": "A-1042", "amount": 249}, call_id="call_4")
        result = await say(store, "It is broken. Refund it, please.", [call])
        narrate("run 3", "waits for approval" if result.interruptions else "done without asking for approval")
        return bool(result.interruptions)


async def approve_and_resume() -> None:
    """Find who waits, and go on where the run stopped: another store, another handle, another agent."""
    async with SessionStore.open(URL) as store:
        for waiting in await store.waiting():
            if waiting.session_id == SESSION_ID:
                asked = ", ".join(f"{each.tool_name} {each.arguments}" for each in waiting.approvals)
                narrate("inbox", f"{waiting.agent} asks on behalf of {waiting.user_id}: {asked}")
        agent = support_agent([assistant_message("Done: 249.00 EUR are on their way back to you.")])
        session = store.session(SESSION_ID)
        state = await session.resume(agent)
        for request in state.get_interruptions():
            state.approve(request)
        async with session.recording() as run:
            await Runner.run(agent, state, session=session, hooks=run.hooks)
        narrate("run 4", "approved and resumed, as another process would: all it had is the session's name")


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
    narrate("with", command_line())


def command_line() -> str:
    """Return the command that shows this conversation, as it can be typed here."""
    here = Path(".venv/bin/agents-pg-session")
    where = "" if os.environ.get("AGENTS_PG_URL") else " \\\n            --url sqlite:///quickstart.db"
    return f"{here if here.exists() else here.name} sessions show {SESSION_ID}{where}"


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
    """Lay out rows; the last column takes the width that the others leave."""
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
    try:
        await chat()
    except SchemaOutdated as outdated:
        raise SystemExit(f"{outdated}; or remove quickstart.db and begin anew") from None
    if await ask_for_refund():
        await approve_and_resume()
    await show_what_is_stored()


if __name__ == "__main__":
    asyncio.run(main())
