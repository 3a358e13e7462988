"""The FastAPI example over HTTP: a real server on loopback, a real client, SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import importlib
import json
import random
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from agents import Agent, function_tool
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call

from agents_pg_session import SessionStore
from tests.conftest import Backend

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.parametrize("backend", ["sqlite", "asyncpg"], indirect=True)


@pytest.fixture
def example(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example's module, without a key, on the backend's database."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("AGENTS_PG_URL", backend.url)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("fastapi_app")
    del sys.modules["fastapi_app"]


class Server(uvicorn.Server):
    """A server that says when it listens."""

    def __init__(self, app: Any) -> None:
        super().__init__(uvicorn.Config(app, http="h11", ws="none", log_level="warning"))
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.listening.set()


@pytest.fixture
async def client(example: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the example's server, for a tenant of its own."""
    async with serving(example.app) as url:
        headers = {"X-Tenant": f"tenant-{secrets.token_hex(8)}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
            yield client


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    server = Server(app)
    with listener() as listening:
        task = asyncio.create_task(server.serve(sockets=[listening]))
        ready = asyncio.create_task(server.listening.wait())
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        assert server.started, "the application did not start"
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        await task


def listener() -> socket.socket:
    """A listening socket, on a port below those that are handed to outgoing connections."""
    for port in random.sample(range(15_000, 32_000), 100):
        taken = socket.socket()
        try:
            taken.bind(("127.0.0.1", port))
        except OSError:
            taken.close()
        else:
            return taken
    raise RuntimeError("no free port on loopback")


async def say(client: httpx.AsyncClient, chat: str, text: str) -> list[dict[str, Any]]:
    """Send a message and return the lines of the answer."""
    response = await client.post(f"/chats/{chat}/messages", json={"text": text})
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def spoken(turn: dict[str, Any]) -> list[str]:
    """What was said in a turn, or called or answered by a tool."""
    items = [stored["item"] for stored in turn["items"]]
    said = [item.get("content") or item.get("output") or item.get("name") for item in items]
    return [each if isinstance(each, str) else each[0]["text"] for each in said]


async def test_a_message_is_answered(client: httpx.AsyncClient) -> None:
    """The answer comes as lines of JSON that end with `done`; the conversation holds both sides of it."""
    lines = await say(client, "c1", "Hello")

    assert lines == [{"type": "text", "text": "You said: Hello"}, {"type": "done"}]
    shown = (await client.get("/chats/c1")).json()
    assert [spoken(turn) for turn in shown["turns"]] == [["Hello", "You said: Hello"]]
    assert shown["chat"]["agent"] == "Support"


async def test_an_answer_streams(client: httpx.AsyncClient, example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first words arrive while the model has yet to write the others."""
    written = asyncio.Event()

    async def the_rest(call: ModelCall) -> list[Any]:
        await written.wait()
        return [assistant_message("And here it is.")]

    first = [assistant_message("One moment."), function_call("look", {}, call_id="c1")]
    answering(example, monkeypatch, first, ModelStep.respond(the_rest))
    async with client.stream("POST", "/chats/c1/messages", json={"text": "Where is it?"}) as response:
        lines = response.aiter_lines()
        begun = json.loads(await anext(lines))
        written.set()
        others = [json.loads(line) async for line in lines]

    assert begun == {"type": "text", "text": "One moment."}
    assert others == [{"type": "text", "text": "And here it is."}, {"type": "done"}]


async def test_who_hangs_up_cancels_the_run(
    client: httpx.AsyncClient, example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the reader goes away while the model thinks, the run is over and recorded, and the chat is free again."""
    thinking, stopped = asyncio.Event(), asyncio.Event()

    async def endless(call: ModelCall) -> list[Any]:
        thinking.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return []

    first = [assistant_message("One moment."), function_call("look", {}, call_id="c1")]
    with monkeypatch.context() as patch:
        answering(example, patch, first, ModelStep.respond(endless))
        async with client.stream("POST", "/chats/c1/messages", json={"text": "Where is it?"}) as response:
            lines = response.aiter_lines()
            await anext(lines)
            await thinking.wait()
        await stopped.wait()

    assert (await say(client, "c1", "Hello?"))[-1] == {"type": "done"}
    session = example.app.state.store.session("c1", tenant=client.headers["X-Tenant"])
    assert [run.status for run in await session.runs.list()] == ["completed", "cancelled"]


async def test_conversations_are_listed_by_activity(client: httpx.AsyncClient) -> None:
    """The chat with the newest message comes first, and `after` goes on where the page ended."""
    for chat in ("c1", "c2", "c3", "c1"):
        await say(client, chat, "Hello")
    first = (await client.get("/chats", params={"limit": 2})).json()
    second = (await client.get("/chats", params={"limit": 2, "after": first["after"]})).json()

    assert [chat["session_id"] for chat in first["chats"]] == ["c1", "c3"]
    assert [chat["session_id"] for chat in second["chats"]] == ["c2"]
    assert second["after"] is None


async def test_tenants_see_their_own(client: httpx.AsyncClient) -> None:
    """The same chat id is another conversation for another tenant, and nothing of the first shows."""
    await say(client, "c1", "Please refund A-1042")
    other = {"X-Tenant": f"other-{secrets.token_hex(8)}"}

    assert (await client.get("/chats", headers=other)).json()["chats"] == []
    assert (await client.get("/approvals", headers=other)).json()["approvals"] == []
    assert (await client.get("/chats/c1", headers=other)).status_code == 404
    assert (await client.post("/approvals/c1", headers=other, json={"approve": True})).status_code == 404


@pytest.mark.parametrize(
    ("approve", "said", "status"),
    [(True, "A-1042: 249.00 EUR refunded", "succeeded"), (False, "not approved", "rejected")],
    ids=["approved", "rejected"],
)
async def test_an_approval_comes_with_a_second_request(
    client: httpx.AsyncClient, example: Any, approve: bool, said: str, status: str
) -> None:
    """A refund waits in the inbox until somebody decides; then the run goes on, and the inbox is empty."""
    lines = await say(client, "c1", "Please refund A-1042")
    waiting = (await client.get("/approvals")).json()["approvals"]
    decided = await client.post("/approvals/c1", json={"approve": approve})

    asked = {"tool_name": "refund", "arguments": {"order_id": "A-1042", "amount": 249}}
    assert lines == [{"type": "waiting", "for": [asked]}]
    assert [(each["session_id"], len(each["approvals"])) for each in waiting] == [("c1", 1)]
    assert asked.items() <= waiting[0]["approvals"][0].items()
    assert said in decided.json()["answer"]
    assert (await client.get("/approvals")).json()["approvals"] == []
    session = example.app.state.store.session("c1", tenant=client.headers["X-Tenant"])
    assert [tool_run.status for tool_run in await session.tool_runs.list()] == [status]
    assert [run.status for run in await session.runs.list()] == ["completed", "interrupted"]


async def test_one_of_many_decides(client: httpx.AsyncClient) -> None:
    """Of five decisions at once one counts, the others are told that it is taken; so is who comes later."""
    await say(client, "c1", "Please refund A-1042")
    at_once = [client.post("/approvals/c1", json={"approve": True}) for _ in range(5)]
    decided = sorted(response.status_code for response in await asyncio.gather(*at_once))
    later = await client.post("/approvals/c1", json={"approve": False})

    assert decided == [200, 409, 409, 409, 409]
    assert later.status_code == 409
    turns = (await client.get("/chats/c1")).json()["turns"]
    assert [spoken(turn)[1:] for turn in turns] == [
        ["refund", "A-1042: 249.00 EUR refunded", "I hear: A-1042: 249.00 EUR refunded"]
    ]


async def test_a_chat_that_waits_takes_no_messages(client: httpx.AsyncClient) -> None:
    """A message to a chat whose run waits for an approval is refused, and the run can still be resumed."""
    await say(client, "c1", "Please refund A-1042")
    refused = await client.post("/chats/c1/messages", json={"text": "Hello?"})

    assert refused.status_code == 409
    assert "approval" in refused.json()["detail"]
    assert (await client.post("/approvals/c1", json={"approve": True})).status_code == 200


async def test_messages_at_once_are_answered_one_after_the_other(client: httpx.AsyncClient) -> None:
    """Three messages sent to one chat at the same time make three whole turns."""
    await asyncio.gather(*(say(client, "c1", f"Message {number}") for number in range(3)))

    turns = [spoken(turn) for turn in (await client.get("/chats/c1")).json()["turns"]]
    assert sorted(turns) == [[f"Message {number}", f"You said: Message {number}"] for number in range(3)]


async def test_what_cannot_be_is_refused(client: httpx.AsyncClient) -> None:
    """Unknown chats are 404; a foreign cursor, an endless page, an id or a tenant that cannot be are 422."""
    statuses = {
        "/chats/unknown": 404,
        "/chats?after=forged": 422,
        "/chats?limit=100000": 422,
        "/chats/a%00b": 422,
    }
    for path, status in statuses.items():
        assert (await client.get(path)).status_code == status, path
    del client.headers["X-Tenant"]
    assert (await client.get("/chats")).status_code == 422


async def test_a_database_that_is_away_is_503(client: httpx.AsyncClient, example: Any) -> None:
    """Reading and writing say that the service is unavailable, never that a chat is empty."""
    store, example.app.state.store = example.app.state.store, SessionStore.open(unreachable(), retry_for=0.1)
    answers = [await client.get("/chats"), await client.get("/chats/c1"), await client.get("/health")]
    answers.append(await client.post("/chats/c1/messages", json={"text": "Hello"}))
    await example.app.state.store.close()
    example.app.state.store = store

    assert [answer.status_code for answer in answers] == [503] * 4
    assert (await client.get("/health")).status_code == 200


def unreachable() -> str:
    """A database on a port where nobody listens."""
    with listener() as taken:
        return f"postgresql://127.0.0.1:{taken.getsockname()[1]}/nobody"


@function_tool
def look() -> str:
    """Look for something."""
    return "nothing yet"


def answering(example: Any, monkeypatch: pytest.MonkeyPatch, *script: Any) -> None:
    """Let the example's agent follow *script*, and give it a tool."""
    agent = Agent[None](name="Support", model=ScriptedModel(script), tools=[look])
    monkeypatch.setattr(example, "support_agent", lambda: agent)
