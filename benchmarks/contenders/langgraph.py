"""LangGraph's `AsyncPostgresSaver`, doing the equivalent of a turn.

A checkpoint holds the whole list of messages. A graph writes one after each of its steps, and the writes of its tasks
beside it; here a turn is one read of the state and one checkpoint, which is the least it can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from agents_pg_session.projection import Item
from benchmarks.contenders.base import Contender, Ports

__all__ = ["LangGraph"]


@dataclass
class _State:
    """What a running graph knows of its conversation."""

    messages: list[BaseMessage] = field(default_factory=list)
    version: str | None = None
    checkpoint_id: str | None = None


class LangGraph(Contender):
    """*window* is how many messages the state keeps: a graph that trims its history, which is in its favour."""

    def __init__(self, name: str, pool: AsyncConnectionPool[Any], *, window: int | None) -> None:
        super().__init__(name)
        self._pool = pool
        self._window = window
        self._states: dict[str, _State] = {}
        self._saver = AsyncPostgresSaver(pool)

    @classmethod
    async def open(cls, ports: Ports, database: str, name: str, *, window: int | None) -> LangGraph:
        settings = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}  # as its README asks for
        pool = AsyncConnectionPool[Any](
            ports.url(database), min_size=ports.pool_size, max_size=ports.pool_size, kwargs=settings, open=False
        )
        await pool.open(wait=True)
        contender = cls(name, pool, window=window)
        await contender._saver.setup()
        return contender

    async def append(self, session_id: str, items: list[Item]) -> None:
        state = self._states.setdefault(session_id, _State())
        kept = (state.messages + [_message(item) for item in items])[-(self._window or 0) :]
        checkpoint, version = empty_checkpoint(), self._saver.get_next_version(state.version, None)
        checkpoint["channel_values"] = {"messages": kept}
        checkpoint["channel_versions"] = {"messages": version}
        config = _config(session_id, state.checkpoint_id)
        await self._saver.aput(config, checkpoint, {"source": "loop", "step": 1, "parents": {}}, {"messages": version})
        self._states[session_id] = _State(kept, version, checkpoint["id"])

    async def latest(self, session_id: str, limit: int | None) -> Sequence[object]:
        found = await self._saver.aget_tuple(_config(session_id))
        if found is None:
            return []
        messages: list[BaseMessage] = found.checkpoint["channel_values"]["messages"]
        return messages[-limit:] if limit else messages

    async def pop(self, session_id: str) -> None:
        raise NotImplementedError

    async def clear(self, session_id: str) -> None:
        await self._saver.adelete_thread(session_id)
        self._states.pop(session_id, None)

    async def close(self) -> None:
        await self._pool.close()


def _config(session_id: str, checkpoint_id: str | None = None) -> RunnableConfig:
    place = {"thread_id": session_id, "checkpoint_ns": ""}
    return {"configurable": place | ({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}


def _message(item: Item) -> BaseMessage:
    body = cast("dict[str, Any]", item)
    match body.get("type"):
        case "function_call":
            call = {"name": body["name"], "args": {"query": body["arguments"]}, "id": body["call_id"]}
            return AIMessage("", tool_calls=[call], id=body["id"])
        case "function_call_output":
            return ToolMessage(body["output"], tool_call_id=body["call_id"])
        case "message":
            return AIMessage(body["content"][0]["text"], id=body["id"])
        case _:
            return HumanMessage(body["content"])
