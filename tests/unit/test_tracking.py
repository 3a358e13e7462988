"""What a run learns from the items it sees, without a database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agents import Usage
from hypothesis import given
from hypothesis import strategies as st

from agents_pg_session.projection import Item
from agents_pg_session.tracking import MAX_ITEMS, TrackedRun
from tests.items import assistant, call, item, output, user

ITEMS = st.one_of(
    st.sampled_from(["a", "b"]).map(output),
    st.builds(call, st.sampled_from("ab"), st.sampled_from(["find", "book"])),
    st.sampled_from(
        [
            user("hi"),
            assistant("hi"),
            item(role="user", type="function_call_output", call_id="a"),
            item(role="user", type="function_call", call_id="b", name="find"),
            item(type="shell_call", call_id="a"),
            item(type="shell_call_output", call_id="a"),
            item(type=5, call_id="a"),
            item(type="function_call", call_id=5, name="find"),
        ]
    ),
)


def names_after(names: dict[str, str], items: Sequence[Item]) -> dict[str, str]:
    """The same, read as a person would: one item after the other."""
    each: Any
    for each in items[-MAX_ITEMS:]:
        kind, call_id = each.get("type"), each.get("call_id")
        if each.get("role") == "user":
            names = {}
        if isinstance(kind, str) and isinstance(call_id, str):
            names = {known: name for known, name in names.items() if known != call_id}
            if not kind.endswith("_output"):
                names[call_id] = each.get("name", "shell")
    return names


@given(known=st.dictionaries(st.sampled_from("abc"), st.just("known")), items=st.lists(ITEMS, max_size=2 * MAX_ITEMS))
def test_calls_wait_until_answered_or_talked_over(known: dict[str, str], items: list[Item]) -> None:
    """A call waits for its output until that comes, or until somebody asks something new."""
    run = TrackedRun(Usage())
    run.names = dict(known)
    run.saw(items)

    assert run.names == names_after(known, items)
