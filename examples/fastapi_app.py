"""A chat service: answers stream, conversations are listed, approvals are given in a request of their own.

    pip install agents-pg-session fastapi uvicorn
    python examples/fastapi_app.py        # http://127.0.0.1:8000/docs; PORT=… for another port

    curl -N localhost:8000/chats/c1/messages -H 'X-Tenant: acme' --json '{"text": "Refund order A-1042, please."}'
    curl localhost:8000/approvals -H 'X-Tenant: acme'
    curl localhost:8000/approvals/c1 -H 'X-Tenant: acme' --json '{"approve": true}'

Sessions go to fastapi_app.db in the current folder, or to the migrated PostgreSQL that AGENTS_PG_URL names. Without
OPENAI_API_KEY the model is scripted. One store per process, one handle per request, no state in between: run as many
of these processes as you like.
"""

import json
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any
from uuid import uuid4

import uvicorn
from agents import Agent, RawResponsesStreamEvent, RunConfig, Runner, function_tool
from agents.items import ToolApprovalItem, TResponseOutputItem
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call
from fastapi import Depends, FastAPI, Header, HTTPException, Path, Request
from fastapi.responses import JSONResponse, StreamingResponse
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel, Field

from agents_pg_session import (
    PGSession,
    SessionConflict,
    SessionError,
    SessionNotFound,
    SessionStore,
    SnapshotNotFound,
    StorageUnavailable,
)

URL = os.environ.get("AGENTS_PG_URL") or "sqlite:///fastapi_app.db"
HAS_KEY = bool(os.environ.get("OPENAI_API_KEY"))
RUN_CONFIG = RunConfig(tracing_disabled=not HAS_KEY)

# -- the agent


@function_tool(needs_approval=True)
def refund(order_id: str, amount: float) -> str:
    """Pay money back; a person has to approve it."""
    return f"{order_id}: {amount:.2f} EUR refunded"


def support_agent() -> Agent[None]:
    agent = Agent[None](name="Support", instructions="Help with orders; each cost 249 EUR.", tools=[refund])
    return agent if HAS_KEY else agent.clone(model=ScriptedModel([ModelStep.respond(scripted)] * 10))


def scripted(call: ModelCall) -> list[TResponseOutputItem]:
    """What the model says without a key: it refunds when asked to, and repeats whatever else it hears."""
    heard = call.input[-1]
    if heard.get("type") == "function_call_output":
        return [assistant_message(f"I hear: {heard['output']}")]
    if "refund" in heard["content"].lower():
        return [function_call("refund", {"order_id": "A-1042", "amount": 249}, call_id=f"call_{uuid4().hex}")]
    return [assistant_message(f"You said: {heard['content']}")]


# -- the application


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the store with the process; `check` refuses to start on a schema that is missing or behind."""
    async with SessionStore.open(URL) as store:
        if URL.startswith("sqlite"):
            await store.create_tables()
        await store.check()
        app.state.store = store
        yield


app = FastAPI(title="Support", lifespan=lifespan)

STATUS_OF = {SessionNotFound: 404, SnapshotNotFound: 404, SessionConflict: 409, StorageUnavailable: 503}


@app.exception_handler(SessionError)
async def refuse(request: Request, error: SessionError) -> JSONResponse:
    """Say what is the matter in the words of the error: they hold neither passwords nor what was said."""
    return JSONResponse({"detail": str(error)}, STATUS_OF.get(type(error), 500))


def the_store(request: Request) -> SessionStore:
    store: SessionStore = request.app.state.store
    return store


def the_tenant(x_tenant: Annotated[str, Header(pattern=r"^[\w-]{1,100}$")]) -> str:
    """Whose data the request may see. In production it comes out of the verified token, and from nowhere else."""
    return x_tenant


Store = Annotated[SessionStore, Depends(the_store)]
Tenant = Annotated[str, Depends(the_tenant)]


def the_session(store: Store, tenant: Tenant, chat_id: Annotated[str, Path(pattern=r"^[\w-]{1,100}$")]) -> PGSession:
    """A handle on the tenant's conversation; it asks no database."""
    return store.session(chat_id, tenant=tenant)


Session = Annotated[PGSession, Depends(the_session)]


@app.get("/health")
async def health(store: Store) -> dict[str, Any]:
    return {"database": (await store.check()).server}


# -- chats


class Message(BaseModel):
    text: str = Field(min_length=1)


@app.post("/chats/{chat_id}/messages")
async def say(message: Message, session: Session) -> StreamingResponse:
    """Answer a message, one JSON object per line: `text` as the model writes it, then `done` or `waiting`."""
    lines = answer(session, message.text)
    first = await anext(lines)  # what goes wrong before the first word is a status, not a broken stream

    async def stream() -> AsyncIterator[str]:
        async with aclosing(lines):
            yield json.dumps(first) + "\n"
            async for line in lines:
                yield json.dumps(line) + "\n"

    return StreamingResponse(stream(), media_type="application/x-ndjson")


async def answer(session: PGSession, text: str) -> AsyncGenerator[dict[str, Any], None]:
    """Run the agent on *text*, alone in this chat; a run that needs a person's approval is put away until then."""
    async with session.exclusive(wait=5), session.recording() as run:
        if (await session.info()).status == "waiting":
            raise HTTPException(409, "this chat waits for an approval: it goes on with POST /approvals/{chat_id}")
        result = Runner.run_streamed(support_agent(), text, session=session, hooks=run.hooks, run_config=RUN_CONFIG)
        async with aclosing(result.stream_events()) as events:  # type: ignore[type-var]  # it is a generator
            async for event in events:
                if isinstance(event, RawResponsesStreamEvent) and isinstance(event.data, ResponseTextDeltaEvent):
                    yield {"type": "text", "text": event.data.delta}
        if result.interruptions:
            await session.pause(result)
    yield {"type": "waiting", "for": asked(result.interruptions)} if result.interruptions else {"type": "done"}


@app.get("/chats")
async def chats(store: Store, tenant: Tenant, after: str | None = None, limit: int = 20) -> dict[str, Any]:
    """List the tenant's conversations, newest activity first; pass `after` on for the next page."""
    try:
        page = await store.sessions(tenant=tenant, limit=limit, after=after)
    except ValueError as error:  # an `after` or a `limit` that cannot be
        raise HTTPException(422, str(error)) from error
    return {"chats": page.records, "after": page.cursor if page.more else None}


@app.get("/chats/{chat_id}")
async def chat(session: Session) -> dict[str, Any]:
    """Show one conversation, turn by turn."""
    return {"chat": await session.info(), "turns": await session.turns()}


# -- approvals


class Decision(BaseModel):
    approve: bool


@app.get("/approvals")
async def inbox(store: Store, tenant: Tenant, after: str | None = None) -> dict[str, Any]:
    """List the runs that wait for a person, with the tools and arguments they ask for."""
    page = await store.waiting(tenant=tenant, after=after)
    return {"approvals": page.records, "after": page.cursor if page.more else None}


@app.post("/approvals/{chat_id}")
async def decide(decision: Decision, session: Session) -> dict[str, Any]:
    """Approve or reject what the chat waits for, and let its run go on: of many who decide at once, one does."""
    state = await session.resume(support_agent())
    for request in state.get_interruptions():
        if decision.approve:
            state.approve(request)
        else:
            state.reject(request)
    async with session.recording() as run:
        result = await Runner.run(support_agent(), state, session=session, hooks=run.hooks, run_config=RUN_CONFIG)
        if result.interruptions:
            await session.pause(result)
    return {"answer": result.final_output, "waiting_for": asked(result.interruptions)}


def asked(interruptions: list[ToolApprovalItem]) -> list[dict[str, Any]]:
    return [{"tool_name": each.name, "arguments": json.loads(each.arguments or "{}")} for each in interruptions]


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
