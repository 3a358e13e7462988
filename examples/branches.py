"""Edit and regenerate: a conversation forks before a turn, and both branches stay.

    python examples/branches.py

Sessions go to branches.db in the current folder, or to the PostgreSQL that AGENTS_PG_URL names. Without OPENAI_API_KEY
the model is scripted.
"""

import asyncio
import os
from typing import Any
from uuid import uuid4

from agents import Agent, Runner, set_tracing_disabled
from agents.testing import ScriptedModel, assistant_message

from agents_pg_session import PGSession, SessionStore

URL = os.environ.get("AGENTS_PG_URL") or "sqlite:///branches.db"


def guide(answer: str) -> Agent[None]:
    """Return the agent; *answer* is what its model says when there is no key for a real one."""
    agent = Agent[None](name="Guide", instructions="Plan trips, in one sentence per answer.")
    return (
        agent if os.environ.get("OPENAI_API_KEY") else agent.clone(model=ScriptedModel([[assistant_message(answer)]]))
    )


async def ask(session: PGSession, question: str, answer: str) -> None:
    await Runner.run(guide(answer), question, session=session)


async def show(session: PGSession) -> None:
    """Print the conversation by turns, with where it came from."""
    info = await session.info()
    origin = f", from {info.forked_from} up to position {info.forked_through}" if info.forked_from else ""
    print(f"\n{info.session_id}: {info.turn_count} turns{origin}")
    for turn in await session.turns():
        print(f"  {turn.number}  " + "\n     ".join(said(stored.item) for stored in turn.items))


def said(message: Any) -> str:
    """What an item of a conversation without tools says."""
    content = message["content"]
    return f"{message['role']}: {content if isinstance(content, str) else content[0]['text']}"


async def main() -> None:
    if not os.environ.get("OPENAI_API_KEY"):
        set_tracing_disabled(True)
    async with SessionStore.open(URL) as store:
        if URL.startswith("sqlite"):
            await store.create_tables()  # in production, the migrations do it
        trip = store.session(f"trip-{uuid4().hex[:8]}", user_id="ada")
        await ask(trip, "Three days in Rome, please.", "Forum, Vatican, Trastevere.")
        await ask(trip, "And for dinner on day two?", "Da Enzo, if you come early.")
        await ask(trip, "Book a table for two.", "Done: 19:00.")

        # The user edits the second question: everything before it is copied, the rest is another story.
        edited = await trip.fork(f"{trip.session_id}-edited", before_turn=2)
        await ask(edited, "And for dinner on day two, without meat?", "Rifugio Romano, all of it vegan.")

        # The user wants another answer to the same question.
        again = await trip.fork(f"{trip.session_id}-again", before_turn=2)
        await ask(again, "And for dinner on day two?", "Armando al Pantheon.")

        for branch in (trip, edited, again):
            await show(branch)

        # One query finds the branches of a user's conversation, newest first: to show them as 1/3, 2/3, 3/3.
        page = await store.sessions(user_id="ada", limit=100)
        family = [each.session_id for each in page if trip.session_id in (each.session_id, each.forked_from)]
        print(f"\nbranches: {', '.join(family)}")


asyncio.run(main())
