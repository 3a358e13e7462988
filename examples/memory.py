"""Long conversations: the model is given a window, or a summary and what came after it; the session keeps everything.

    python examples/memory.py

Sessions go to memory.db in the current folder, or to the PostgreSQL that AGENTS_PG_URL names. Without OPENAI_API_KEY
the models are scripted; what they are given is printed either way.
"""

import asyncio
import os
from textwrap import indent
from typing import Any
from uuid import uuid4

from agents import Agent, RunContextWrapper, RunHooks, Runner, TResponseInputItem, set_tracing_disabled
from agents.testing import ScriptedModel, assistant_message

from agents_pg_session import PGSession, SessionStore, Window

URL = os.environ.get("AGENTS_PG_URL") or "sqlite:///memory.db"

CONVERSATION = [
    ("I am Ada. I am allergic to nuts.", "Noted, Ada: no nuts."),
    ("We are four people on Saturday.", "A table for four on Saturday."),
    ("Make it Sunday, at eight.", "Sunday at eight, then."),
    ("One of us uses a wheelchair.", "I will ask for a table without steps."),
]
SUMMARIES = [
    "Ada, no nuts\nfour people\nSunday at eight",
    "Ada, no nuts\nfour people, one in a wheelchair\nSunday at eight",
]


def agent(name: str, instructions: str, *answers: str) -> Agent[None]:
    """Return an agent; *answers* are what its model says when there is no key for a real one."""
    made = Agent[None](name=name, instructions=instructions)
    if os.environ.get("OPENAI_API_KEY"):
        return made
    return made.clone(model=ScriptedModel([[assistant_message(answer)] for answer in answers]))


class ShowInput(RunHooks[Any]):
    """Print what the model is given."""

    async def on_llm_start(
        self, context: RunContextWrapper[Any], agent: Agent[Any], system_prompt: str | None, input_items: list[Any]
    ) -> None:
        for item in input_items:
            print("   ", said(item))


async def ask(session: PGSession, question: str, answer: str) -> None:
    """Run the waiter, and show what its model was given; `hooks(wrap=…)` keeps the record beside hooks of our own."""
    waiter = agent("Waiter", "Take reservations, in one sentence per answer.", answer)
    await Runner.run(waiter, question, session=session, hooks=session.hooks(wrap=ShowInput()))


def said(message: Any) -> str:
    content = message["content"]
    text = str(content if isinstance(content, str) else content[0]["text"])
    return f"{message['role']}: {text}".replace("\n", "\n        ")


async def main() -> None:
    if not os.environ.get("OPENAI_API_KEY"):
        set_tracing_disabled(True)
    writer = agent("Writer", "Summarise for a colleague: one fact per line, no more than ten.", *SUMMARIES)
    async with SessionStore.open(URL) as store:
        if URL.startswith("sqlite"):
            await store.create_tables()  # in production, the migrations do it
        session = store.session(f"table-{uuid4().hex[:8]}")
        for question, answer in CONVERSATION:
            await session.add_items([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])

        print("A window of one turn: the newest, whole, and the question")
        await ask(store.session(session.session_id, window=Window(turns=1)), "For how many was it?", "I do not know.")

        async def write(items: list[TResponseInputItem]) -> str:
            """Write a summary with an agent that has no session: *items*, and the summary before, are all it gets."""
            request: TResponseInputItem = {"role": "user", "content": "Summarise this."}
            return str((await Runner.run(writer, [*items, request])).final_output)

        # After an answer, or in a job at night: summarise all but the newest two turns. Nothing is deleted.
        await session.summarize(write, keep_turns=2)

        print("\nThe summary, and the turns it has not seen")
        remembering = store.session(session.session_id, window=Window(summary="summary"))
        await ask(remembering, "For how many was it?", "For four, on Sunday at eight.")

        await session.summarize(write)  # the second version is made of the first and what came since

        print("\nThe second summary, alone")
        await ask(remembering, "Is there anything to mind?", "No nuts, and no steps.")

        print("\nWhat the second summary changed")
        print(indent(await session.snapshots.diff("summary", 1, 2), "    "))

        print(f"\nAll {len(await session.get_items())} items are still there.")


asyncio.run(main())
