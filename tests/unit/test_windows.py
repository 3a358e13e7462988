"""What of a session the model is given, without a database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_pg_session.projection import Item, project
from agents_pg_session.windows import (
    Placed,
    Window,
    as_system_message,
    enough,
    first_fetch,
    is_safe_start,
    safe_start,
    select,
    summary_boundary,
    whole,
)
from tests.items import assistant, call, item, output, user

PAIRS = [
    ("function_call", "function_call_output"),
    ("custom_tool_call", "custom_tool_call_output"),
    ("computer_call", "computer_call_output"),
    ("shell_call", "shell_call_output"),
    ("local_shell_call", "local_shell_call_output"),
    ("apply_patch_call", "apply_patch_call_output"),
    ("apply_patch_call", "custom_tool_call_output"),
    ("custom_tool_call", "apply_patch_call_output"),
    ("tool_search_call", "tool_search_output"),
    ("program", "program_output"),
]
THINKING = item(type="reasoning", id="rs_1", summary=[])
ENVELOPE = item(__enc__=1, v=1, payload="opaque")

# Few ids, so that they collide: late outputs, orphans, ids used again and parallel calls all come up.
IDS = st.sampled_from(["a", "b", "c"])
SOMETHING = st.one_of(
    st.just(user("hi")),
    st.just(assistant("hello")),
    st.just(THINKING),
    st.just(ENVELOPE),
    IDS.map(call),
    IDS.map(output),
    IDS.map(lambda each: item(type="shell_call", call_id=each)),
    IDS.map(lambda each: item(type="shell_call_output", call_id=each)),
    st.just(item(type="tool_search_call", call_id=None)),
    st.just(item(type="tool_search_output", call_id=None)),
)
SESSIONS = st.lists(SOMETHING, max_size=40)
COUNTS = st.integers(1, 8)
WINDOWS = st.one_of(
    COUNTS.map(lambda count: Window(items=count)),
    COUNTS.map(lambda count: Window(turns=count)),
    st.just(Window(summary="summary")),
)
JUNK = st.dictionaries(
    st.sampled_from(["type", "role", "call_id", "id", "approval_request_id", "__enc__"]),
    st.one_of(
        st.none(),
        st.integers(),
        st.lists(st.text(), max_size=1),
        st.sampled_from([name for pair in PAIRS for name in pair]),
        st.sampled_from(["user", "assistant", "reasoning", "mcp_approval_response"]),
    ),
)


def placed(items: Sequence[Item]) -> list[Placed]:
    """The rows of a session that got *items* in one append."""
    rows = project(items).rows
    return [Placed(position, row.turn, each) for position, (row, each) in enumerate(zip(rows, items, strict=True), 1)]


def safe_starts(items: Sequence[Item]) -> list[int]:
    return [index for index in range(len(items) + 1) if is_safe_start(items, index)]


def start_of(selected: Sequence[Item], items: Sequence[Item]) -> int:
    """Where in *items* a selection starts, found by identity: equal items are not the same item."""
    return next((index for index, each in enumerate(items) if selected and each is selected[0]), len(items))


def answers(items: Sequence[Item]) -> dict[int, int]:
    """Which output answers which call, found the slow way: the latest before it that is like it and has no answer."""
    found: dict[int, int] = {}
    dicts = cast("Sequence[dict[str, Any]]", items)
    for index, each in enumerate(dicts):
        for earlier in range(index - 1, -1, -1):
            pair = (dicts[earlier].get("type"), each.get("type"))
            same = pair in PAIRS and dicts[earlier].get("call_id") == each.get("call_id")
            if same and earlier not in found.values():
                found[index] = earlier
                break
    return found


def orphans(items: Sequence[Item]) -> list[Item]:
    answered = answers(items)
    outputs = {output for _, output in PAIRS}
    return [each for index, each in enumerate(items) if dict(each).get("type") in outputs and index not in answered]


def copies(items: Sequence[Item]) -> list[Item]:
    return [cast("Item", dict(each)) for each in items]


# What a window is


@pytest.mark.parametrize("fields", [{}, {"items": 5, "turns": 5}, {"turns": 5, "summary": "summary"}])
def test_a_window_has_one_measure(fields: dict[str, Any]) -> None:
    """None, or two of them, is refused with what to write instead."""
    with pytest.raises(ValueError, match=r"one measure: Window\(items=50\), Window\(turns=10\) or Window\(summary="):
        Window(**fields)


@pytest.mark.parametrize("name", ["items", "turns"])
@pytest.mark.parametrize("count", [0, -1, True, 2.0, "5"])
def test_a_count_is_one_or_more(name: str, count: Any) -> None:
    """A window of nothing is refused with what to write instead."""
    with pytest.raises(ValueError, match=rf"{name} must be a whole number, one or more, not .*: Window\({name}=10\)"):
        Window(**{name: count})


@pytest.mark.parametrize("kind", ["", 5])
def test_a_summary_is_a_kind_of_snapshot(kind: Any) -> None:
    """Anything but its name is refused with what to write instead."""
    with pytest.raises(ValueError, match=r'summary must be a kind of snapshot, not .*: Window\(summary="summary"\)'):
        Window(summary=kind)


def test_how_many_rows_to_ask_for_first() -> None:
    """A few more than the wanted items, some dozens for turns, all that the summary has not seen."""
    assert first_fetch(Window(items=50)) == 66
    assert first_fetch(Window(turns=1)) == 64
    assert first_fetch(Window(turns=10)) == 160
    assert first_fetch(Window(summary="summary")) is None


# Where a window may start


@pytest.mark.parametrize(("called", "answered"), PAIRS)
def test_a_call_stays_with_its_output(called: str, answered: str) -> None:
    """No start lies between the two, whatever kind of tool it is."""
    items = [user("go"), item(type=called, call_id="1"), assistant("…"), item(type=answered, call_id="1")]

    assert safe_starts(items) == [0, 1, 4]


def test_an_approval_stays_with_its_request() -> None:
    """An MCP approval names its request by another field."""
    request = item(type="mcp_approval_request", id="mcpr_1")
    items = [user("go"), request, item(type="mcp_approval_response", approval_request_id="mcpr_1", approve=True)]

    assert safe_starts(items) == [0, 1, 3]


def test_a_local_shell_output_may_name_its_call_by_id() -> None:
    """The SDK writes call_id, the API's schema says id: both find the call."""
    items = [item(type="local_shell_call", call_id="1", id="ls_1"), item(type="local_shell_call_output", id="1")]

    assert safe_starts(items) == [0, 2]


def test_tool_searches_without_an_id_pair_up_in_order() -> None:
    """The searches the API runs itself have no call_id."""
    search, found = item(type="tool_search_call", call_id=None), item(type="tool_search_output", call_id=None)

    assert safe_starts([search, found, search, found]) == [0, 2, 4]


def test_an_id_may_be_used_again() -> None:
    """An output answers the latest call that waits; the next one starts anew."""
    assert safe_starts([call("1"), output("1"), call("1"), output("1")]) == [0, 2, 4]
    assert safe_starts([call("1"), call("1"), output("1")]) == [0, 1, 3]


def test_a_pending_call_binds_nothing() -> None:
    """A call that waits for its output, or never got one, is an item like any other."""
    assert safe_starts([user("go"), call("1"), user("never mind"), assistant("fine")]) == [0, 1, 2, 3, 4]


def test_reasoning_stays_with_what_follows() -> None:
    """The API refuses a message without its reasoning, and reasoning without its message."""
    assert safe_starts([user("go"), THINKING, THINKING, assistant("done"), user("more")]) == [0, 1, 4, 5]


def test_a_pending_call_stays_with_the_reasoning_of_its_response() -> None:
    """Of two parallel calls the second has no reasoning of its own: it needs the one before the first."""
    assert safe_starts([THINKING, call("1"), call("2"), output("1"), assistant("done")]) == [0, 4, 5]


def test_a_hosted_output_does_not_end_the_response() -> None:
    """What the API itself ran stands in the middle of a response; the message after it needs the same reasoning."""
    search, found = item(type="tool_search_call", call_id=None), item(type="tool_search_output", call_id=None)

    assert safe_starts([THINKING, search, found, call("1"), output("1"), assistant("done")]) == [0, 5, 6]


def test_reasoning_begins_anew_within_a_response() -> None:
    """What has reasoning of its own needs no earlier one."""
    searched = item(type="web_search_call", id="ws_1")

    assert safe_starts([THINKING, searched, THINKING, assistant("done")]) == [0, 2, 4]


def test_an_orphan_is_no_start() -> None:
    """An output whose call is gone is not the first thing a model sees."""
    assert safe_starts([user("go"), output("gone"), assistant("done")]) == [0, 2, 3]


def test_an_envelope_binds_nothing() -> None:
    """Of encrypted items nobody knows what belongs together: each may be a start."""
    assert safe_starts([ENVELOPE, ENVELOPE, ENVELOPE]) == [0, 1, 2, 3]


def test_a_safe_start_is_not_before_the_wanted_one() -> None:
    """A window holds at most what was wanted."""
    assert safe_start([user("go"), call("1"), output("1"), assistant("done")], 2) == 3


def test_a_little_more_is_better_than_nothing() -> None:
    """When no later start leaves anything, it is the next earlier one; past the end there is nothing to look for."""
    items = [user("go"), THINKING, call("1"), call("2"), output("1"), output("2")]

    assert [safe_start(items, start) for start in (-1, 3, 5, 6)] == [0, 1, 1, 6]
    assert safe_start([output("gone")], 0) == 1


def test_whole_leaves_out_what_answers_nothing() -> None:
    """An output without its call goes; a call without its output stays, it may be waiting for approval."""
    items = [output("gone"), call("1"), output("1"), output("1"), call("2")]

    assert whole(items) == [call("1"), output("1"), call("2")]


# What the model is given


def test_the_newest_items() -> None:
    """The newest N, oldest first, fewer where the N-th would split something."""
    rows = placed([user("go"), call("1"), output("1"), assistant("done"), user("more")])

    assert select(Window(items=2), rows) == [assistant("done"), user("more")]
    assert select(Window(items=3), rows) == [assistant("done"), user("more")]
    assert select(Window(items=4), rows) == [call("1"), output("1"), assistant("done"), user("more")]
    assert select(Window(items=9), rows) == [row.item for row in rows]


def test_more_than_the_newest_items_when_they_are_one_response() -> None:
    """Parallel calls longer than the window are shown whole."""
    response = [THINKING, call("1"), call("2"), output("1"), output("2")]

    assert select(Window(items=2), placed([user("go"), *response])) == response


def test_a_late_output_does_not_pull_in_all_since_its_call() -> None:
    """Approved ten turns later, an output whose call has left the window is left out, and the window stays small."""
    chat = [each for number in range(10) for each in (user(f"{number}"), assistant(f"{number}"))]
    rows = placed([user("go"), call("1"), *chat, output("1")])

    assert select(Window(items=3), rows) == chat[-2:]
    assert select(Window(turns=1), rows) == chat[-2:]
    assert select(Window(items=30), rows) == [row.item for row in rows]


def test_the_newest_turns() -> None:
    """Each from its input to the last item that answers it."""
    turns = [[user(f"{number}"), call(f"{number}"), output(f"{number}"), assistant("done")] for number in range(4)]
    rows = placed([each for turn in turns for each in turn])

    assert select(Window(turns=2), rows) == turns[2] + turns[3]
    assert select(Window(turns=9), rows) == [row.item for row in rows]


def test_a_turn_that_was_popped_is_not_counted() -> None:
    """The newest two turns are two that are there."""
    rows = [Placed(1, 1, user("one")), Placed(3, 2, user("two")), Placed(9, 7, user("seven"))]

    assert select(Window(turns=2), rows) == [user("two"), user("seven")]


def test_a_summary_and_everything_after_it() -> None:
    """The text comes first, as a system message; outputs whose calls it has seen are left out."""
    rows = placed([output("seen"), user("go"), assistant("done")])

    assert select(Window(summary="summary"), rows, "They spoke.") == [
        {"role": "system", "content": "Summary of the conversation so far:\nThey spoke."},
        user("go"),
        assistant("done"),
    ]
    assert as_system_message("They spoke.") == select(Window(summary="summary"), [], "They spoke.")[0]


def test_a_summary_is_rendered_as_you_like() -> None:
    """Any item can stand for the summary."""
    assert select(Window(summary="notes", render=assistant), placed([user("go")]), "So far") == [
        assistant("So far"),
        user("go"),
    ]


def test_before_the_first_summary_there_is_everything() -> None:
    """No snapshot yet is no message about nothing."""
    assert select(Window(summary="summary"), placed([user("go")])) == [user("go")]


# When more rows are needed


def test_items_need_no_more_than_the_margin_where_nothing_spans_it() -> None:
    """In a turn without end, a few rows beyond the window settle it: the turn is not read back to its start."""
    steps = [each for number in range(500) for each in (call(f"{number}"), output(f"{number}"))]
    rows = placed([user("go"), *steps])

    assert enough(Window(items=50), rows[-66:], complete=False)
    assert select(Window(items=50), rows[-66:]) == steps[-50:]


def test_items_need_more_rows_when_their_calls_are_not_there() -> None:
    """Whether an output is an orphan can only be told from its turn's start."""
    rows = placed([user("go"), *(call(f"{n}") for n in range(40)), *(output(f"{n}") for n in range(40))])

    assert not enough(Window(items=10), rows[-26:], complete=False)
    assert not enough(Window(items=10), rows[-52:], complete=False)
    assert enough(Window(items=10), rows, complete=True)
    assert len(select(Window(items=10), rows)) == 80


def test_items_need_more_rows_when_an_output_may_have_its_call() -> None:
    """What looks like an orphan moves the start, should its call turn up in the same turn."""
    late = [call("1"), output("1"), assistant("1"), output("late"), assistant("2")]
    rows = placed([user("go"), call("late"), *late])

    assert not enough(Window(items=2), rows[2:], complete=False)
    assert select(Window(items=2), rows) == [assistant("2")]


def test_items_need_more_rows_when_reasoning_may_lead_to_them() -> None:
    """A response is known from its reasoning, or from what ended the one before."""
    rows = placed([user("go"), THINKING, call("1"), assistant("1"), THINKING, assistant("2")])

    assert not enough(Window(items=3), rows[2:], complete=False)
    assert enough(Window(items=2), rows[2:], complete=False)


def test_items_need_more_rows_when_orphans_leave_too_few() -> None:
    """Orphans are not counted: an older item may still be among the newest N."""
    rows = placed([user("go"), assistant("1"), output("gone"), output("gone"), assistant("2")])

    assert not enough(Window(items=2), rows[2:], complete=False)
    assert select(Window(items=2), rows) == [assistant("1"), assistant("2")]


def test_encrypted_items_need_no_more_than_the_margin() -> None:
    """Envelopes have neither turns nor pairs: the newest N are the newest N."""
    rows = placed([ENVELOPE] * 100)

    assert enough(Window(items=10), rows[-26:], complete=False)
    assert select(Window(items=10), rows[-26:]) == [ENVELOPE] * 10


def test_turns_need_rows_until_an_older_turn_is_seen() -> None:
    """Only then the oldest wanted turn is there from its start."""
    rows = placed([user("one"), assistant("1"), user("two"), assistant("2")])

    assert not enough(Window(turns=1), rows[2:], complete=False)
    assert enough(Window(turns=1), rows[1:], complete=False)
    assert enough(Window(turns=5), rows, complete=True)


def test_a_summary_needs_all_it_has_not_seen() -> None:
    """A gap between the summary and the window would be forgotten by both."""
    rows = placed([user("one"), assistant("1")])

    assert not enough(Window(summary="summary"), rows, complete=False)
    assert enough(Window(summary="summary"), rows, complete=True)


# What may be summarised


def test_the_newest_turns_are_not_summarised() -> None:
    """All before them may be; nothing when there are no more."""
    rows = placed([user("one"), assistant("1"), user("two"), assistant("2"), user("three"), assistant("3")])

    assert [summary_boundary(rows, keep) for keep in (0, 1, 2, 3, 9)] == [6, 4, 2, 0, 0]
    assert summary_boundary([], 1) == 0
    with pytest.raises(ValueError, match="keep_turns must be zero or more, not -1"):
        summary_boundary(rows, -1)


def test_a_call_is_not_summarised_away_from_its_output() -> None:
    """A call answered in a kept turn stays with it."""
    rows = placed([user("one"), assistant("1"), user("two"), call("1"), user("three"), output("1")])

    assert summary_boundary(rows, 1) == 3


# Whatever happens


@given(session=SESSIONS, window=WINDOWS)
def test_a_selection_is_what_is_whole_of_the_newest(session: list[Item], window: Window) -> None:
    """It is a suffix of the session, without the outputs whose calls are not in it."""
    items = copies(session)
    selected = select(window, placed(items))

    assert selected == whole(items[start_of(selected, items) :])


@given(session=SESSIONS, window=WINDOWS)
def test_a_selection_has_calls_and_outputs_together(session: list[Item], window: Window) -> None:
    """An output is shown only with its call, and a call that was answered only with its output."""
    items = copies(session)
    shown = {id(each) for each in select(window, placed(items))}

    for answered, called in answers(items).items():
        assert (id(items[answered]) in shown) == (id(items[called]) in shown)
    assert not any(id(each) in shown for each in orphans(items))


@given(session=SESSIONS, count=COUNTS)
def test_a_selection_does_not_start_after_its_reasoning(session: list[Item], count: int) -> None:
    """What stands right before the window is not reasoning, unless an input cut that short."""
    items = copies(session)
    start = start_of(select(Window(items=count), placed(items)), items)

    if 0 < start < len(items) and items[start - 1] == THINKING:
        assert items[start] in (user("hi"), ENVELOPE)


@given(session=SESSIONS, count=COUNTS)
def test_a_selection_has_more_than_wanted_only_instead_of_nothing(session: list[Item], count: int) -> None:
    """It is larger than N only if no start among the newest N would be safe, and never larger than their turns."""
    items = copies(session)
    rows = placed(items)
    selected = select(Window(items=count), rows)

    if len(selected) > count:
        turn = rows[len(rows) - count].turn
        start = start_of(selected, items)
        assert rows[start].turn == turn
        assert not any(
            is_safe_start(items[start:], index) for index in range(len(selected) - count, len(items) - start)
        )


@given(session=SESSIONS, count=COUNTS)
def test_a_selection_of_turns_has_them_whole(session: list[Item], count: int) -> None:
    """N turns, each from its first item to its last, but for late outputs."""
    rows = placed(session)
    newest = sorted({row.turn for row in rows})[-count:]

    assert select(Window(turns=count), rows) == whole([row.item for row in rows if row.turn in newest])


@settings(max_examples=500)
@given(session=SESSIONS, window=WINDOWS, fetched=st.integers(0, 40))
def test_enough_is_enough(session: list[Item], window: Window, fetched: int) -> None:
    """What is selected from enough rows is what would be selected from all of them."""
    rows = placed(session)
    some = rows[max(0, len(rows) - fetched) :]

    if enough(window, some, complete=len(some) == len(rows)):
        assert select(window, some) == select(window, rows)


@given(session=SESSIONS, keep=st.integers(0, 5))
def test_a_summary_boundary_splits_nothing(session: list[Item], keep: int) -> None:
    """What follows the boundary is whole by itself, and the kept turns are among it."""
    rows = placed(session)
    boundary = summary_boundary(rows, keep)
    kept = set(sorted({row.turn for row in rows})[-keep:] if keep else ())

    assert is_safe_start([row.item for row in rows], boundary) or boundary == 0
    assert not any(row.turn in kept for row in rows[:boundary])


@given(session=st.lists(JUNK.map(lambda fields: item(**fields)), max_size=12), window=WINDOWS)
def test_any_dict_is_an_item(session: list[Item], window: Window) -> None:
    """Whatever an item holds, windows have an answer."""
    rows = placed(session)

    assert all(each in session for each in select(window, rows))
    assert isinstance(enough(window, rows, complete=False), bool)
    assert 0 <= summary_boundary(rows, 1) <= len(rows)


def test_a_long_session_takes_no_longer_per_item() -> None:
    """Forty thousand items in one turn, no safe start but the first two: each is looked at a few times."""
    count = 20_000
    items = [user("go"), *(call(f"{n}") for n in range(count)), *(output(f"{n}") for n in range(count))]
    rows = [Placed(position, 1, each) for position, each in enumerate(items, 1)]

    assert enough(Window(items=50), rows, complete=False)
    assert len(select(Window(items=50), rows)) == 2 * count
