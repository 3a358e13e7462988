"""The SDK's own sessions that wrap another session, around ours, on every backend."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from agents import Runner
from agents.extensions.memory import EncryptedSession
from agents.memory import OpenAIResponsesCompactionSession
from openai import AsyncOpenAI
from openai.types.responses import ResponseCompactionItem
from sqlalchemy import text

from agents_pg_session import PGSession, SessionStore
from agents_pg_session.projection import Item
from tests.acceptance.agents_for_tests import QUIET, calls, heard, says, scripted
from tests.items import assistant, user

KEY = "a long enough secret that only this test knows"


async def stored_rows(store: SessionStore, session: PGSession) -> list[tuple[Any, ...]]:
    """Return what the database holds of a session's items, past the library."""
    schema = "agents." if store.engine.dialect.name == "postgresql" else ""
    sql = f"SELECT turn, type, role, call_id, CAST(item AS text) FROM {schema}items WHERE session_id = :id"
    async with store.engine.connect() as connection:
        result = await connection.execute(text(sql), {"id": session.session_id})
        return [tuple(row) for row in result]


def encrypted(session: PGSession) -> EncryptedSession:
    return EncryptedSession(session.session_id, underlying_session=cast("Any", session), encryption_key=KEY)


class CompactionClient:
    """As much of the OpenAI client as compaction uses: it keeps the requests and answers *output*, or raises it."""

    def __init__(self, output: object) -> None:
        self.responses = self
        self.requests: list[dict[str, Any]] = []
        self._output = output

    async def compact(self, **request: Any) -> object:
        self.requests.append(request)
        if isinstance(self._output, Exception):
            raise self._output
        return SimpleNamespace(output=[self._output], usage=None)


def compacting(session: PGSession, client: CompactionClient) -> OpenAIResponsesCompactionSession:
    return OpenAIResponsesCompactionSession(session.session_id, session, client=cast("AsyncOpenAI", client))


async def test_an_encrypted_run_is_remembered(session: PGSession) -> None:
    """A run through a new `EncryptedSession` hears in clear what an earlier one stored."""
    first = scripted(calls("weather", "c1", city="Rome"), says("Sunny"))
    result = await Runner.run(first, "Weather?", session=encrypted(session), run_config=QUIET)
    second = scripted(says("As I said"))
    await Runner.run(second, "Really?", session=encrypted(session), run_config=QUIET)

    assert heard(second) == [*result.to_input_list(), user("Really?")]


async def test_the_database_sees_nothing_of_an_encrypted_run(store: SessionStore, session: PGSession) -> None:
    """Encrypted items are opaque: turn 0, no type, no role, no call id, and nothing readable inside."""
    agent = scripted(calls("weather", "c1", city="Rome"), says("Sunny"))
    await Runner.run(agent, "Weather?", session=encrypted(session), run_config=QUIET)

    rows = await stored_rows(store, session)
    assert [row[:4] for row in rows] == [(0, None, None, None)] * 4
    assert all('"__enc__":1' in row[4] and "Rome" not in row[4] for row in rows)


async def test_encrypted_items_can_be_popped_and_cleared(session: PGSession) -> None:
    """`pop_item` returns the newest item in clear, and `clear_session` leaves nothing."""
    wrapped = encrypted(session)
    await wrapped.add_items([user("one"), assistant("two")])

    assert await wrapped.pop_item() == assistant("two")
    await wrapped.clear_session()
    assert await session.get_items() == []


async def test_compaction_replaces_the_history(session: PGSession) -> None:
    """After a forced compaction the history is what the API returned, and the next run starts from it."""
    client = CompactionClient(ResponseCompactionItem(id="cmp_1", type="compaction", encrypted_content="short"))
    wrapped = compacting(session, client)
    await Runner.run(scripted(says("Hello Ada")), "I am Ada", session=session, run_config=QUIET)
    before = await session.get_items()

    await wrapped.run_compaction({"force": True})
    agent = scripted(says("You are Ada"))
    await Runner.run(agent, "Who am I?", session=wrapped, run_config=QUIET)

    compacted: dict[str, Any] = {"id": "cmp_1", "type": "compaction", "encrypted_content": "short"}
    assert [request["input"] for request in client.requests] == [before]
    assert heard(agent) == [compacted, user("Who am I?")]
    assert (await session.get_items())[:2] == [cast("Item", compacted), user("Who am I?")]


async def test_a_failed_compaction_keeps_the_history(session: PGSession) -> None:
    """When the API fails, what was stored is still there."""
    history = [user("one"), assistant("two")]
    await session.add_items(history)

    with pytest.raises(ConnectionError):
        await compacting(session, CompactionClient(ConnectionError())).run_compaction({"force": True})

    assert await session.get_items() == history
