"""What is ours in the SDK's four methods, on every backend.

What any session of the SDK is held to stands in `agents_pg_session/testing/promises`, and
tests/acceptance/test_conformance.py runs it on every backend.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
from agents.memory import Session, SessionSettings
from sqlalchemy import text

from agents_pg_session import PGSession, SessionStore
from tests.conftest import Backend
from tests.items import user


@pytest.mark.parametrize("limit", [10, 11, 2147483647, 2**63, 10**30])
async def test_a_limit_beyond_the_history_returns_all(session: PGSession, limit: int) -> None:
    """A limit may be larger than the history, and larger than any database's integers."""
    await session.add_items([user(str(number)) for number in range(10)])

    assert len(await session.get_items(limit=limit)) == 10


async def test_a_negative_limit_is_refused(session: PGSession) -> None:
    """A negative limit has no meaning."""
    with pytest.raises(ValueError, match="limit must be a whole number, zero or more, not -1"):
        await session.get_items(limit=-1)


@pytest.mark.parametrize("settings", [SessionSettings(limit=2), {"limit": 2}])
async def test_settings_limit_when_nobody_says_otherwise(
    store: SessionStore, new_id: Callable[[], str], settings: SessionSettings | dict[str, int]
) -> None:
    """`session_settings.limit` is the default; an explicit limit wins over it."""
    session = store.session(new_id(), session_settings=settings)
    await session.add_items([user("1"), user("2"), user("3")])

    assert await session.get_items() == [user("2"), user("3")]
    assert await session.get_items(limit=3) == [user("1"), user("2"), user("3")]


async def test_settings_can_be_set_later(session: PGSession) -> None:
    """`session_settings` is settable, with an object, a dict or None."""
    await session.add_items([user("1"), user("2")])

    session.session_settings = {"limit": 1}
    assert session.session_settings == SessionSettings(limit=1)
    assert await session.get_items() == [user("2")]
    session.session_settings = None
    assert await session.get_items() == [user("1"), user("2")]


async def test_an_empty_append_changes_nothing(session: PGSession, store: SessionStore) -> None:
    """`add_items([])` is no call to the database: not even the session comes into being."""
    await session.add_items([])

    assert await rows_of(store, session) == 0


async def test_positions_are_never_handed_out_twice(session: PGSession, store: SessionStore) -> None:
    """Neither a pop nor a clear gives a position back."""
    await session.add_items([user("1"), user("2"), user("3")])
    await session.pop_item()
    await session.add_items([user("4")])
    assert await positions_of(store, session) == [1, 2, 4]

    await session.clear_session()
    await session.add_items([user("5")])

    assert await positions_of(store, session) == [5]


async def test_sessions_do_not_see_each_other(store: SessionStore, new_id: Callable[[], str]) -> None:
    """Neither another session id nor another tenant with the same id shares anything."""
    name = new_id()
    mine, yours = store.session(name, tenant="acme"), store.session(name, tenant="acme ")
    other = store.session(name)
    await mine.add_items([user("mine")])
    await yours.add_items([user("yours")])

    await other.clear_session()
    assert await mine.get_items() == [user("mine")]
    assert await yours.pop_item() == user("yours")
    assert await mine.get_items() == [user("mine")]
    assert await other.get_items() == []


async def test_it_is_a_session_of_the_sdk(session: PGSession) -> None:
    """The SDK's runtime check accepts a handle, and finds `wrapper` in all four methods."""
    methods = (session.get_items, session.add_items, session.pop_item, session.clear_session)

    assert isinstance(session, Session)
    for method in methods:
        assert inspect.signature(method).parameters["wrapper"].kind is inspect.Parameter.KEYWORD_ONLY


async def test_rows_edited_into_nonsense_are_skipped_and_not_counted(
    session: PGSession, store: SessionStore, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that holds no JSON object is logged without its contents; the limit counts the others."""
    await session.add_items([user("1"), user("2"), user("secret"), user("4"), user("secret")])
    await edit(
        store, backend, "UPDATE {}items SET item = '\"secret\"' WHERE session_id = :id AND position IN (3, 5)", session
    )

    assert await session.get_items() == [user("1"), user("2"), user("4")]
    assert await session.get_items(limit=2) == [user("2"), user("4")]
    assert await session.pop_item() == user("4")
    assert "position 5" in caplog.text
    assert "secret" not in caplog.text


async def test_labels_reach_the_row_with_the_first_append(
    store: SessionStore, backend: Backend, new_id: Callable[[], str]
) -> None:
    """Agent, user and metadata are on the session's row as soon as there is one.

    A later handle fills in and replaces.
    """
    name = new_id()
    metadata = {"plan": "pro", "name": "Zoë 🎉"}
    await store.session(name, agent="support", user_id="u-42", metadata=metadata).add_items([user("hi")])
    assert await labels_of(store, backend, name) == ("support", "u-42", "pro")

    await store.session(name).add_items([user("again")])
    assert await labels_of(store, backend, name) == ("support", "u-42", "pro")
    await store.session(name, agent="billing", metadata={"plan": "free"}).add_items([user("again")])

    assert await labels_of(store, backend, name) == ("billing", "u-42", "free")


async def rows_of(store: SessionStore, session: PGSession) -> int:
    prefix = prefix_of(store)
    async with store.engine.connect() as connection:
        sql = text(f"SELECT count(*) FROM {prefix}sessions WHERE session_id = :id")
        count: int = (await connection.execute(sql, {"id": session.session_id})).scalar_one()
    return count


async def positions_of(store: SessionStore, session: PGSession) -> list[int]:
    async with store.engine.connect() as connection:
        sql = text(f"SELECT position FROM {prefix_of(store)}items WHERE session_id = :id ORDER BY position")
        return list((await connection.execute(sql, {"id": session.session_id})).scalars())


async def labels_of(store: SessionStore, backend: Backend, name: str) -> tuple[str, str, str]:
    plan = "json_extract(metadata, '$.plan')" if backend.name == "sqlite" else "metadata ->> 'plan'"
    async with store.engine.connect() as connection:
        sql = text(f"SELECT agent, user_id, {plan} FROM {prefix_of(store)}sessions WHERE session_id = :id")
        agent, user_id, plan = (await connection.execute(sql, {"id": name})).one()
    return agent, user_id, plan


async def edit(store: SessionStore, backend: Backend, sql: str, session: PGSession) -> None:
    async with store.engine.connect() as connection:
        await connection.execute(text(sql.format(prefix_of(store))), {"id": session.session_id})


def prefix_of(store: SessionStore) -> str:
    return "" if store.engine.dialect.name == "sqlite" else "agents."
