"""The smallest drop-in: the README's first example, as a file that runs (`python examples/drop_in.py`)."""

import asyncio

from agents import Agent, Runner

from agents_pg_session import PGSession

agent = Agent(name="Assistant", instructions="Reply very concisely.")
session = PGSession.from_url("user-123", url="sqlite:///sessions.db", create_tables=True)


async def main() -> None:
    for question in ("What city is the Golden Gate Bridge in?", "What state is it in?"):
        print((await Runner.run(agent, question, session=session)).final_output)


asyncio.run(main())
