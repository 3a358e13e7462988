"""`PGSession` on PostgreSQL: storing items only, and with the full record of the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agents import Agent, ModelResponse, RunContextWrapper, RunHooks, Usage, function_tool
from agents.tool_context import ToolContext

from agents_pg_session import PGSession, SessionStore
from agents_pg_session.projection import Item
from benchmarks.contenders.base import POOL_SIZE, Ports, SessionContender
from benchmarks.workload import READ

__all__ = ["FullRecord", "Plain", "open_store", "play"]


@function_tool
def look_up_order(query: str) -> str:
    """Look an order up."""
    return query


AGENT = Agent[Any](name="support", tools=[look_up_order])


async def open_store(url: str, *, schema: str = "agents", pool_size: int = POOL_SIZE) -> SessionStore:
    """Open a store with its tables made, on a pool of the size all contenders have."""
    store = SessionStore.open(url, schema=schema, engine_kwargs={"pool_size": pool_size})
    await store.create_tables()
    return store


class Plain(SessionContender):
    """Handles from a store; the Runner passes no wrapper, so items are all there is to store."""

    def __init__(self, name: str, store: SessionStore) -> None:
        super().__init__(name)
        self.store = store

    @classmethod
    async def open(cls, ports: Ports, database: str, name: str) -> Plain:
        return cls(name, await open_store(ports.url(database), pool_size=ports.pool_size))

    def handle(self, session_id: str) -> PGSession:
        return self.store.session(session_id)

    async def close(self) -> None:
        await self.store.close()


class FullRecord(Plain):
    """The same with the run's wrapper and hooks: tool runs, tokens, events and labels ride along with the append.

    What the Runner does around a turn is done here by hand, so that nothing else of the SDK is measured: all other
    contenders would pay for that too.
    """

    def handle(self, session_id: str) -> PGSession:
        return self.store.session(session_id, agent="support", user_id="user-1")

    async def append(self, session_id: str, items: list[Item]) -> None:
        session, wrapper = self.handle(session_id), RunContextWrapper[Any](context=None)
        await play(session.hooks(), wrapper, items)
        await session.add_items(items, wrapper=wrapper)

    async def latest(self, session_id: str, limit: int | None) -> Sequence[object]:
        return await self.handle(session_id).get_items(limit, wrapper=RunContextWrapper(context=None))

    async def pop(self, session_id: str) -> None:
        await self.handle(session_id).pop_item(wrapper=RunContextWrapper(context=None))

    async def clear(self, session_id: str) -> None:
        await self.handle(session_id).clear_session(wrapper=RunContextWrapper(context=None))

    async def turn(self, session_id: str, items: list[Item]) -> None:
        session, wrapper = self.handle(session_id), RunContextWrapper[Any](context=None)
        await session.get_items(READ, wrapper=wrapper)
        await play(session.hooks(), wrapper, items)
        await session.add_items(items, wrapper=wrapper)


async def play(hooks: RunHooks[Any], wrapper: RunContextWrapper[Any], items: list[Item]) -> None:
    """Fire the hooks of a turn with one tool call, as the Runner does."""
    await hooks.on_agent_start(wrapper, AGENT)  # type: ignore[arg-type]
    for item in items:
        if not isinstance(item, dict) or item.get("type") != "function_call":
            continue
        await _model(hooks, wrapper)
        call: dict[str, Any] = dict(item)
        context = ToolContext[Any](None, wrapper.usage, call["name"], call["call_id"], call["arguments"])
        await hooks.on_tool_start(context, AGENT, look_up_order)
        await hooks.on_tool_end(context, AGENT, look_up_order, "found")
    await _model(hooks, wrapper)
    await hooks.on_agent_end(wrapper, AGENT, "done")  # type: ignore[arg-type]


async def _model(hooks: RunHooks[Any], wrapper: RunContextWrapper[Any]) -> None:
    usage = Usage(requests=1, input_tokens=900, output_tokens=120, total_tokens=1020)
    await hooks.on_llm_start(wrapper, AGENT, None, [])
    wrapper.usage.add(usage)
    await hooks.on_llm_end(wrapper, AGENT, ModelResponse(output=[], usage=usage, response_id=None))
