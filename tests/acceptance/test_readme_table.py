"""Every row of the README's "I want to … → call" table runs as it stands there."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
from agents import RunHooks, Runner
from agents.extensions.memory.encrypt_session import EncryptedSession
from agents.memory import OpenAIResponsesCompactionSession
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from agents_pg_session import PGSession, SessionStore, Window
from tests.acceptance.agents_for_tests import QUIET, calls, says, scripted
from tests.acceptance.test_readme import README
from tests.items import user


def rows() -> list[tuple[str, tuple[str, ...]]]:
    """Return each row's wish and the code in its call column, up to the colon behind which it is explained."""
    [table] = re.findall(r"^\| I want to … \| call \|\n\|.*\n((?:\|.*\n)+)", README, flags=re.MULTILINE)
    cells = (re.fullmatch(r"\| (.+?) \| (.*?) ?\|", line) for line in table.splitlines())
    wishes = [(cell[1], tuple(re.findall(r"`([^`]+)`", cell[2]))) for cell in cells if cell]
    return [(wish, tuple(filter(_is_call, code))) for wish, code in wishes if code]


def _is_call(code: str) -> bool:
    """An assignment, a block or a call; not a name that the prose mentions."""
    return not re.fullmatch(r"[\w.]+(?:\(\))?", code) and not code.startswith("page.")


def test_the_table_is_read_whole() -> None:
    """Each row that is no heading has something to run."""
    assert len(rows()) >= 45
    assert all(code for _, code in rows())


@pytest.fixture(scope="module")
def table_url(migrated_database: Callable[[], str]) -> str:
    """A database for the table alone: its rows are about session user-123."""
    return migrated_database()


async def prepared(url: str, stack: AsyncExitStack) -> dict[str, Any]:
    """Return the names the table uses, in front of a conversation that has everything it speaks of."""
    store = await stack.enter_async_context(SessionStore.open(url))
    engine: AsyncEngine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    stack.push_async_callback(engine.dispose)
    for used in ("user-123", "user-123-b"):
        await store.session(used).delete()
    session = store.session("user-123", user_id="u-42", agent="support", metadata={"plan": "pro"})
    agent = scripted(
        calls("broken", "c1", city="Rome"), says("No parcel."), calls("refund", "c2", amount=5), says("Hi")
    )
    await Runner.run(agent, "Where is my parcel?", session=session, run_config=QUIET, hooks=session.hooks())
    await session.add_items([user("Hello?"), user("Still there?")])
    await session._atomic_replace_items([*await session.get_items(), user("compacted")])
    for version in ("a parcel", "a parcel, lost"):
        await session.snapshots.save("summary", version)
    result = await Runner.run(agent, "Refund it.", session=session, run_config=QUIET)
    await session.pause(result)

    async def write(items: list[Any]) -> str:
        return f"{len(items)} items"

    return {
        **{each.__name__: each for each in (PGSession, SessionStore, Window, Runner, timedelta)},
        **{each.__name__: each for each in (EncryptedSession, OpenAIResponsesCompactionSession)},
        "store": store,
        "session": session,
        "engine": engine,
        "url": url,
        "agent": agent,
        "result": result,
        "write": write,
        "cursor": None,
        "mine": RunHooks[Any](),
    }


@pytest.mark.parametrize(("wish", "code"), rows(), ids=[wish for wish, _ in rows()])
async def test_a_row_runs(wish: str, code: tuple[str, ...], table_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the table says to call can be called so."""
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    async with AsyncExitStack() as stack:
        names = await prepared(table_url, stack)
        for each in code:
            value = await evaluated(each, names)
            if hasattr(value, "close") and value is not names["session"]:
                await value.close()


async def evaluated(code: str, names: dict[str, Any]) -> object:
    """Run one snippet; its value if it is an expression."""
    try:
        compiled = compile(code, "README.md", "eval", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError:
        compiled = compile(code, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(compiled, names)
    return await result if inspect.isawaitable(result) else result
