"""Items as the SDK stores them, in few words."""

from __future__ import annotations

from typing import Any, cast

from agents_pg_session.projection import Item


def user(text: str) -> Item:
    return cast("Item", {"role": "user", "content": text})


def assistant(text: str) -> Item:
    return cast("Item", {"role": "assistant", "content": text})


def call(call_id: str, name: str = "lookup", arguments: str = "{}") -> Item:
    return cast("Item", {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments})


def output(call_id: str, text: str = "done") -> Item:
    return cast("Item", {"type": "function_call_output", "call_id": call_id, "output": text})


def item(**fields: Any) -> Item:
    return cast("Item", fields)
