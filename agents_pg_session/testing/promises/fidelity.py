"""What goes in comes out: any JSON, any id."""

from __future__ import annotations

import json
from typing import Any, cast

from agents_pg_session.testing.promises.registry import keeps, promise
from agents_pg_session.testing.promises.trial import Item, Trial, history, user

IDS = {
    "quotes and statements": "'; DROP TABLE agent_messages; --",
    "emoji": "chat 🎉 Zoë",
    "placeholders": ":name %s %(x)s {x} $1 ? \\",
    "wildcards": "%_*",
    "blanks": "  ",
    "line breaks": "a\r\n\tb",
}


async def survives(trial: Trial, *values: object) -> None:
    """Each value comes back exactly, from a read and from a pop.

    -0.0 is not 0.0, 1 not 1.0, and keys keep their order.
    """
    session = await trial.open()
    for value in values:
        sent = cast("Item", {"type": "x", "value": value})
        await session.add_items([sent])
        read, popped = await session.get_items(limit=1), await session.pop_item()
        for got in (read[0] if read else None, popped):
            keeps(json.dumps(got) == json.dumps(sent), f"{_short(value)} came back as {_short(got)}")


@promise("fidelity")
async def nul_survives(trial: Trial) -> None:
    """A NUL character in a text comes back, as the output of a tool may well hold one."""
    await survives(trial, "\0", "a\0b\\u0000")


@promise("fidelity")
async def lone_surrogates_survive(trial: Trial) -> None:
    """Half a surrogate pair, as a stream that was cut in two leaves behind, comes back."""
    await survives(trial, "\ud800", "\udfff x \ud83d")


@promise("fidelity")
async def text_is_only_text(trial: Trial) -> None:
    """Emoji, escapes, SQL and placeholders in a text are characters and nothing else."""
    await survives(trial, "🎉 Zoë \u2028", "'; DROP TABLE agent_messages; --", IDS["placeholders"], "\\", '"', "")


@promise("fidelity")
async def numbers_survive(trial: Trial) -> None:
    """Integers beyond 64 bits, -0.0, 1e2 and floats to their last digit come back as they were."""
    await survives(trial, 2**64, -(2**200), 1e2, -0.0, 1.7976931348623157e308, 5e-324, 0.1 + 0.2, 100, 1)


@promise("fidelity")
async def keys_keep_their_order(trial: Trial) -> None:
    """Keys come back in the order they had, so that a provider's prompt cache still fits."""
    await survives(trial, {"b": 1, "a": {"d": 2, "c": 3}, "": {"": ""}, "A": None})


@promise("fidelity")
async def nesting_survives(trial: Trial) -> None:
    """Lists and objects may be nested 20 levels deep, and empty ones stay what they are."""
    deep: Any = "bottom"
    for level in range(20):
        deep = [deep] if level % 2 else {"in": deep}
    await survives(trial, deep, [[], {}, [[]], None, True])


@promise("fidelity")
async def a_large_item_survives(trial: Trial) -> None:
    """An item of 5 MB comes back."""
    await survives(trial, "ü\n" * 1_700_000)


@promise("fidelity")
async def any_object_is_an_item(trial: Trial) -> None:
    """An item without type or role, such as an encrypted envelope, comes back with no key added."""
    session = await trial.open()
    odd = [{"__enc__": 1, "v": 1, "payload": "gAAAA"}, {}, {"type": None}, {"type": 5, "role": ["x"]}]
    await session.add_items(cast("list[Item]", odd))

    keeps((read := await session.get_items()) == odd, f"read {read}")


@promise("fidelity")
async def any_id_is_a_name(trial: Trial) -> None:
    """Ids are values, never SQL: quotes, statements, emoji, wildcards, blanks, 250 characters."""
    names = {**IDS, "length": "x" * 200}
    sessions = {label: await trial.open(f"{trial.new_id()}{name}") for label, name in names.items()}
    for label, session in sessions.items():
        await session.add_items([user(label)])

    for label, session in sessions.items():
        keeps(await session.get_items() == [user(label)], f"an id with {label} reads something else")
        keeps(await session.pop_item() == user(label), f"an id with {label} pops something else")
        await session.clear_session()


@promise("fidelity")
async def a_refused_batch_writes_nothing(trial: Trial) -> None:
    """One item that is no JSON refuses its whole batch with an error, and the session goes on."""
    session = await trial.open()
    await session.add_items(history(1))
    try:
        await session.add_items([user("good"), cast("Item", {"role": "user", "content": object()}), user("good")])
        refused = False
    except Exception:
        refused = True

    keeps(refused, "it took an object() for an item")
    keeps(await session.get_items() == history(1), "part of the batch was written")
    await session.add_items(history(1, "next "))


def _short(value: object) -> str:
    return text if len(text := repr(value)) < 60 else f"{text[:57]}…"
