"""A tool that needs approval: the run is put away, listed in an inbox, and taken up by exactly one of many workers.

    python examples/approvals.py

Each step opens a store of its own, as if it were another process on another machine: all they share is the database,
which is approvals.db in the current folder, or the PostgreSQL that AGENTS_PG_URL names. Without OPENAI_API_KEY the
model is scripted.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

from agents import Agent, Runner, function_tool, set_tracing_disabled
from agents.items import TResponseOutputItem
from agents.testing import ScriptedModel, assistant_message, function_call

from agents_pg_session import PGSession, SessionConflict, SessionStore

URL = os.environ.get("AGENTS_PG_URL") or "sqlite:///approvals.db"
TENANT = f"shop-{uuid4().hex[:8]}"  # every run of this file has an inbox of its own


@function_tool(needs_approval=True)
def refund(order_id: str, amount: float) -> str:
    """Pay money back."""
    return f"{order_id}: {amount:.2f} EUR refunded"


def support_agent(*script: Sequence[TResponseOutputItem]) -> Agent[None]:
    """Return the agent; *script* is what its model says when there is no key for a real one."""
    agent = Agent[None](name="Support", instructions="Refund what the customer asks for.", tools=[refund])
    return agent if os.environ.get("OPENAI_API_KEY") else agent.clone(model=ScriptedModel(script))


@asynccontextmanager
async def opened() -> AsyncIterator[SessionStore]:
    async with SessionStore.open(URL) as store:
        if URL.startswith("sqlite"):
            await store.create_tables()  # in production, the migrations do it
        yield store


async def ask(order_id: str, amount: float) -> None:
    """Run until the agent wants to pay, and put the run away: this process could end here, and be deployed anew."""
    async with opened() as store:
        session = store.session(f"chat-{order_id}", tenant=TENANT, user_id="ada")
        call = function_call("refund", {"order_id": order_id, "amount": amount}, call_id=f"call_{order_id}")
        async with session.recording() as run:
            message = f"Please refund {amount:.2f} EUR for order {order_id}."
            result = await Runner.run(support_agent([call]), message, session=session, hooks=run.hooks)
            await session.pause(result)


async def read_inbox() -> list[str]:
    """List who waits, and for what: one query, whatever process the runs were in."""
    async with opened() as store:
        waiting = await store.waiting(tenant=TENANT)
        for each in waiting:
            for approval in each.approvals:
                print(f"   inbox  {each.session_id} asks for {approval.tool_name} {approval.arguments}")
        return [each.session_id for each in waiting]


async def decide(session_id: str, *, approve: bool) -> None:
    """Take a run up and let it go on: `resume` gives it to one worker, whoever else tries is told so."""
    async with opened() as store:
        agent = support_agent([assistant_message("The money is on its way." if approve else "I cannot refund that.")])
        session = store.session(session_id, tenant=TENANT)
        state = await session.resume(agent)
        await too_late(session_id)
        for request in state.get_interruptions():
            if approve:
                state.approve(request)
            else:
                state.reject(request, rejection_message="The shop says no: the order is too old.")
        async with session.recording() as run:
            result = await Runner.run(agent, state, session=session, hooks=run.hooks)
        print(f"  answer  {session_id}: {result.final_output}")
        await show(session)


async def too_late(session_id: str) -> None:
    """Another worker, who clicked a moment later."""
    async with opened() as store:
        try:
            await store.session(session_id, tenant=TENANT).resume(support_agent())
        except SessionConflict as conflict:
            print(f"too late  {conflict}")


async def show(session: PGSession) -> None:
    """What is on record: who was asked, what was answered, what became of it."""
    tool_run = await session.tool_runs.latest()
    assert tool_run is not None
    events = [event.kind for event in await session.events.list()]
    print(f"  record  {tool_run.tool_name} {tool_run.status}; {', '.join(events)}")


async def main() -> None:
    if not os.environ.get("OPENAI_API_KEY"):
        set_tracing_disabled(True)
    await ask("A-1042", 249)
    await ask("A-0007", 1200)
    await read_inbox()
    await decide("chat-A-1042", approve=True)
    await decide("chat-A-0007", approve=False)
    print(f"   inbox  {len(await read_inbox())} waiting")


asyncio.run(main())
