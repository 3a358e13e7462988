"""What the SDK expects of a session: the four methods."""

from __future__ import annotations

import inspect
from typing import Any, cast

from agents import RunContextWrapper
from agents.memory import Session, SessionSettings

from agents_pg_session.testing.promises.registry import keeps, promise, unless
from agents_pg_session.testing.promises.trial import Item, Trial, history, user

METHODS = ("get_items", "add_items", "pop_item", "clear_session")


@promise("protocol")
async def it_is_a_session_of_the_sdk(trial: Trial) -> None:
    """The SDK's runtime check accepts it, and it carries the session id it was opened with."""
    name = trial.new_id()
    session = await trial.open(name)

    keeps(isinstance(session, Session), f"{type(session).__name__} is no agents.memory.Session")
    keeps(session.session_id == name, f"session_id is {session.session_id!r}")


@promise("protocol")
async def items_come_back_in_order(trial: Trial) -> None:
    """What several appends added comes back equal, oldest first."""
    session = await trial.open()
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    items = [*history(3), cast("Item", call), user("last")]
    await session.add_items(items[:2])
    await session.add_items(items[2:])

    keeps(await session.get_items() == items, f"read {await session.get_items()}")


@promise("protocol")
async def a_limit_is_the_newest_oldest_first(trial: Trial) -> None:
    """`limit=N` returns the newest N, oldest first, by position or by name, also beyond the history."""
    session, items = await trial.open(), history(10)
    await session.add_items(items)

    for limit in (1, 3, 9, 10, 11, 2**31 - 1):
        keeps(await session.get_items(limit=limit) == items[-limit:], f"limit={limit} returns something else")
    keeps(await session.get_items(3) == items[-3:], "get_items(3) returns something else")


@promise("protocol")
async def a_limit_of_zero_is_nothing(trial: Trial) -> None:
    """`limit=0` is an empty list, not the whole history."""
    session = await trial.open()
    await session.add_items(history(2))

    keeps((found := await session.get_items(limit=0)) == [], f"returned {len(found)} items")


@promise("protocol")
async def settings_limit_when_nobody_says_otherwise(trial: Trial) -> None:
    """`session_settings.limit` is the default, can be set later, and an explicit limit wins over it."""
    session, items = await trial.open(), history(3)
    await session.add_items(items)
    session.session_settings = SessionSettings(limit=2)

    keeps(await session.get_items() == items[-2:], "session_settings.limit is not heeded")
    keeps(await session.get_items(limit=3) == items, "an explicit limit does not win")
    session.session_settings = None
    keeps(await session.get_items() == items, "without settings the history is not whole")


@promise("protocol")
async def an_unknown_session_is_empty(trial: Trial) -> None:
    """Reading, popping and clearing a session nobody wrote to gives `[]` and `None`, not an error."""
    session = await trial.open()

    keeps(await session.get_items() == [], "get_items returns something")
    keeps(await session.get_items(limit=5) == [], "get_items(limit=5) returns something")
    keeps(await session.pop_item() is None, "pop_item returns something")
    await session.clear_session()


@promise("protocol")
async def reading_creates_nothing(trial: Trial) -> None:
    """Reading, popping and clearing an unknown session, or adding nothing to it, leaves no row in the database."""
    await (await trial.open()).add_items(history(1))  # the tables are there
    before = await trial.rows()
    unless(before is None, "nobody can look inside its database")
    session = await trial.open()
    await session.add_items([])
    await session.get_items()
    await session.pop_item()
    await session.clear_session()

    keeps((left := await trial.rows()) == before, f"{before} rows before, {left} afterwards")


@promise("protocol")
async def pop_takes_the_newest(trial: Trial) -> None:
    """Items are popped newest first, then `None`."""
    session, items = await trial.open(), history(3)
    await session.add_items(items)

    keeps(await session.pop_item() == items[2], "not the newest")
    keeps(await session.get_items() == items[:2], "the popped item is still there, or another one is gone")
    keeps([await session.pop_item() for _ in range(3)] == [items[1], items[0], None], "not newest first, then None")


@promise("protocol")
async def clear_takes_everything(trial: Trial) -> None:
    """After a clear the history is empty, and the session goes on."""
    session = await trial.open()
    await session.add_items(history(3))
    await session.clear_session()

    keeps(await session.get_items() == [], "items are left")
    keeps(await session.pop_item() is None, "an item is left to pop")
    await session.add_items(history(1, "new "))
    keeps(await session.get_items() == history(1, "new "), "what is added afterwards is not all there is")


@promise("protocol")
async def an_empty_append_is_nothing(trial: Trial) -> None:
    """`add_items([])` changes nothing."""
    session = await trial.open()
    await session.add_items([])
    keeps(await session.get_items() == [], "it added something")
    await session.add_items(history(2))
    await session.add_items([])

    keeps(await session.get_items() == history(2), "it changed the history")


@promise("protocol")
async def sessions_do_not_see_each_other(trial: Trial) -> None:
    """What is added, popped or cleared in one session touches no other, however similar its id."""
    name = trial.new_id()
    mine, yours = await trial.open(name), await trial.open(name + " ")
    await mine.add_items(history(2, "mine "))
    await yours.add_items(history(1, "yours "))

    keeps(await yours.pop_item() == user("yours 0"), "it popped somebody else's item")
    await yours.clear_session()
    keeps(await mine.get_items() == history(2, "mine "), "somebody else's clear took items")


@promise("protocol")
async def two_handles_are_one_conversation(trial: Trial) -> None:
    """What one handle writes, another handle with the same id reads at once."""
    name = trial.new_id()
    one, two = await trial.open(name), await trial.open(name)
    await one.add_items(history(1, "a"))
    await two.add_items(history(1, "b"))

    keeps(await one.get_items() == await two.get_items() == [user("a0"), user("b0")], "the handles disagree")


@promise("protocol")
async def what_is_stored_is_a_copy(trial: Trial) -> None:
    """Changing an item after it was added, or one that was read, changes nothing in the session."""
    session = await trial.open()
    mine: dict[str, Any] = {"role": "user", "content": [{"type": "input_text", "text": "before"}]}
    await session.add_items([cast("Item", mine)])
    mine["content"][0]["text"] = "after"
    read = await session.get_items()
    read.append(user("not stored"))
    cast("dict[str, Any]", read[0])["content"] = "changed"

    expected = [{"role": "user", "content": [{"type": "input_text", "text": "before"}]}]
    keeps(await session.get_items() == expected, "the change was stored")


@promise("protocol")
async def every_method_takes_the_run(trial: Trial) -> None:
    """Who opts in to the Runner's `wrapper` does so in all four methods, and they take it by keyword.

    The Runner passes it only if all four declare it; `**kwargs` does not count.
    """
    session: Any = await trial.open()
    declared = [name for name in METHODS if "wrapper" in inspect.signature(getattr(session, name)).parameters]
    unless(not declared, "it does not opt in")

    keeps(len(declared) == len(METHODS), f"only {', '.join(declared)} declare it: the Runner passes it to none")
    run = RunContextWrapper[Any](context=None)
    await session.add_items(history(1), wrapper=run)
    keeps(await session.get_items(wrapper=run) == history(1), "get_items returns something else with it")
    keeps(await session.pop_item(wrapper=run) == user("0"), "pop_item returns something else with it")
    await session.clear_session(wrapper=run)
