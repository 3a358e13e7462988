"""The SDK's own `Runner` on our sessions, on every backend."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from agents import RunConfig, RunContextWrapper, Runner, RunState
from agents.exceptions import UserError
from agents.memory import Session, SessionSettings

from agents_pg_session import PGSession, SessionStore
from agents_pg_session.projection import Item
from tests.acceptance.agents_for_tests import QUIET, calls, heard, says, scripted
from tests.conftest import Backend
from tests.items import output, user


def in_short(items: list[Item]) -> list[tuple[str | None, ...]]:
    """Return what tells one item from another: type or role, and call id or text."""
    short: list[tuple[str | None, ...]] = []
    for item in items:
        fields: dict[str, Any] = dict(item)
        content = fields.get("content")
        text = content if isinstance(content, str) or content is None else content[0]["text"]
        short.append((fields.get("role") or fields.get("type"), fields.get("call_id") or text))
    return short


def test_a_session_is_what_the_sdk_calls_a_session(session: PGSession) -> None:
    """`isinstance(session, agents.memory.Session)` holds."""
    assert isinstance(session, Session)


async def test_the_second_run_remembers_the_first(store: SessionStore, new_id: Callable[[], str]) -> None:
    """A run through another handle hears what an earlier run said, word for word."""
    session_id = new_id()
    await Runner.run(scripted(says("Hello Ada")), "I am Ada", session=store.session(session_id), run_config=QUIET)
    agent = scripted(says("You are Ada"))
    await Runner.run(agent, "Who am I?", session=store.session(session_id), run_config=QUIET)

    assert in_short(heard(agent)) == [("user", "I am Ada"), ("assistant", "Hello Ada"), ("user", "Who am I?")]


async def test_tool_calls_and_outputs_are_stored_in_order(session: PGSession) -> None:
    """Parallel calls, then their outputs, then the answer: read back equal to what the Runner kept itself."""
    two_calls = [calls("weather", "c1", city="Rome"), calls("weather", "c2", city="Oslo")]
    result = await Runner.run(scripted(two_calls, says("Sunny")), "Weather?", session=session, run_config=QUIET)

    stored = await session.get_items()
    assert stored == result.to_input_list()
    assert in_short(stored) == [
        ("user", "Weather?"),
        ("function_call", "c1"),
        ("function_call", "c2"),
        ("function_call_output", "c1"),
        ("function_call_output", "c2"),
        ("assistant", "Sunny"),
    ]


async def test_a_streamed_run_is_stored_like_any_other(session: PGSession) -> None:
    """`run_streamed` leaves the same items as `run`, once its events were read."""
    agent = scripted(calls("weather", "c1", city="Rome"), says("Sunny"))
    result = Runner.run_streamed(agent, "Weather?", session=session, run_config=QUIET)
    async for _ in result.stream_events():
        pass

    assert await session.get_items() == result.to_input_list()
    assert len(await session.get_items()) == 4


@pytest.fixture
def thread_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The main thread's own loop, where `run_sync` runs: closed after the test."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    loop.close()
    asyncio.set_event_loop(None)


def test_run_sync_takes_one_handle_from_loop_to_loop(
    backend: Backend, new_id: Callable[[], str], thread_loop: asyncio.AbstractEventLoop
) -> None:
    """One `from_url` handle serves two `run_sync` calls in a thread, and a third in a thread with its own loop."""
    session = PGSession.from_url(new_id(), url=backend.url)

    def run_elsewhere() -> None:
        asyncio.run(Runner.run(scripted(says("re three")), "three", session=session, run_config=QUIET))

    async def read_and_close() -> list[Item]:
        async with session:
            return await session.get_items()

    Runner.run_sync(scripted(says("re one")), "one", session=session, run_config=QUIET)
    Runner.run_sync(scripted(says("re two")), "two", session=session, run_config=QUIET)
    thread = threading.Thread(target=run_elsewhere)
    thread.start()
    thread.join()
    stored = thread_loop.run_until_complete(read_and_close())

    assert [text for _, text in in_short(stored)] == ["one", "re one", "two", "re two", "three", "re three"]


async def test_a_paused_run_resumes_elsewhere(backend: Backend, new_id: Callable[[], str]) -> None:
    """A run paused for approval goes on from its JSON with another store and agent, and stores nothing twice."""
    session_id = new_id()
    async with SessionStore.open(backend.url) as store:
        agent = scripted(calls("refund", "c1", amount=5))
        paused = await Runner.run(agent, "Refund", session=store.session(session_id), run_config=QUIET)
        state = json.dumps(paused.to_state().to_json())
    async with SessionStore.open(backend.url) as store:
        agent = scripted(says("Done"))
        resumed = await RunState.from_json(agent, json.loads(state))
        [request] = resumed.get_interruptions()
        resumed.approve(request)
        await Runner.run(agent, resumed, session=store.session(session_id), run_config=QUIET)
        stored = await store.session(session_id).get_items()

    assert in_short(stored) == [
        ("user", "Refund"),
        ("function_call", "c1"),
        ("function_call_output", "c1"),
        ("assistant", "Done"),
    ]
    assert stored[2] == output("c1", "5 refunded")


async def test_a_rejected_call_is_answered_in_the_history(session: PGSession) -> None:
    """A run whose tool call a person rejects stores one output for it, and goes on."""
    agent = scripted(calls("refund", "c1", amount=5), says("As you wish"))
    paused = await Runner.run(agent, "Refund", session=session, run_config=QUIET)
    state = paused.to_state()
    state.reject(state.get_interruptions()[0])
    await Runner.run(agent, state, session=session, run_config=QUIET)

    assert [kind for kind, _ in in_short(await session.get_items())] == [
        "user",
        "function_call",
        "function_call_output",
        "assistant",
    ]


async def test_a_tool_that_raises_is_answered_in_the_history(session: PGSession) -> None:
    """The error text the model heard is what is stored as the call's output, and the run goes on."""
    agent = scripted(calls("broken", "c1", city="Rome"), says("Sorry"))
    await Runner.run(agent, "Weather?", session=session, run_config=QUIET)

    stored = await session.get_items()
    assert in_short(stored)[2:] == [("function_call_output", "c1"), ("assistant", "Sorry")]
    assert heard(agent) == stored[:3]
    assert "error" in str(dict(stored[2])["output"])


async def test_a_run_that_fails_keeps_what_came_before(session: PGSession) -> None:
    """When a tool ends the run, earlier turns stay, and the next run on the session works."""
    agent = scripted(calls("weather", "c1", city="Rome"), calls("fatal", "c2", city="Oslo"))
    with pytest.raises(UserError, match="no station in Oslo"):
        await Runner.run(agent, "Weather?", session=session, run_config=QUIET)
    before = await session.get_items()
    agent = scripted(says("Better now"))
    await Runner.run(agent, "Again", session=session, run_config=QUIET)

    assert in_short(before)[:3] == [("user", "Weather?"), ("function_call", "c1"), ("function_call_output", "c1")]
    assert (await session.get_items())[: len(before)] == before
    assert in_short(await session.get_items())[-2:] == [("user", "Again"), ("assistant", "Better now")]


@pytest.mark.parametrize("how", ["session", "run"])
async def test_a_limit_shortens_what_the_model_hears(store: SessionStore, new_id: Callable[[], str], how: str) -> None:
    """The session's settings, or the run's, limit how much history the model hears; all of it stays stored."""
    limit = SessionSettings(limit=2)
    session = store.session(new_id(), session_settings=limit if how == "session" else None)
    config = RunConfig(tracing_disabled=True, session_settings=limit if how == "run" else None)
    for number in range(3):
        await Runner.run(scripted(says(f"re {number}")), str(number), session=session, run_config=config)
    agent = scripted(says("re 3"))
    await Runner.run(agent, "3", session=session, run_config=config)

    assert [text for _, text in in_short(heard(agent))] == ["2", "re 2", "3"]
    assert len(await session.get_items(limit=100)) == 8


class Recording(PGSession):
    """A session that remembers which run context each method was called with."""

    seen: list[tuple[str, RunContextWrapper[Any] | None]]

    async def get_items(self, limit: int | None = None, *, wrapper: RunContextWrapper[Any] | None = None) -> list[Item]:
        self.seen.append(("get_items", wrapper))
        return await super().get_items(limit, wrapper=wrapper)

    async def add_items(self, items: list[Item], *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        self.seen.append(("add_items", wrapper))
        await super().add_items(items, wrapper=wrapper)

    async def pop_item(self, *, wrapper: RunContextWrapper[Any] | None = None) -> Item | None:
        self.seen.append(("pop_item", wrapper))
        return await super().pop_item(wrapper=wrapper)

    async def clear_session(self, *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        self.seen.append(("clear_session", wrapper))
        await super().clear_session(wrapper=wrapper)


@pytest.fixture
async def recording(backend: Backend, new_id: Callable[[], str]) -> AsyncIterator[Recording]:
    async with Recording.from_url(new_id(), url=backend.url) as session:
        session.seen = []
        yield session


async def test_the_runner_hands_over_its_context(recording: Recording) -> None:
    """All methods called within one run get that run's context, the same object each time."""
    agent = scripted(calls("weather", "c1", city="Rome"), says("Sunny"))
    result = await Runner.run(agent, "Weather?", session=recording, run_config=QUIET)

    assert [name for name, _ in recording.seen] == ["get_items", "add_items", "add_items", "add_items"]
    assert all(wrapper is result.context_wrapper for _, wrapper in recording.seen)


async def test_every_method_opts_in_to_the_context(recording: Recording) -> None:
    """The Runner's own question, asked of the handle: do all four methods take `wrapper`?"""
    wrapper = RunContextWrapper[Any](context=None)
    await recording.add_items([user("one")], wrapper=wrapper)
    await recording.get_items(wrapper=wrapper)
    await recording.pop_item(wrapper=wrapper)
    await recording.clear_session(wrapper=wrapper)

    assert recording.seen == [
        ("add_items", wrapper),
        ("get_items", wrapper),
        ("pop_item", wrapper),
        ("clear_session", wrapper),
    ]
