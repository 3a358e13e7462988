"""What `get_items` gives the model of a long conversation, and summaries of what it no longer gives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from agents import Runner
from agents.memory import SessionSettings

from agents_pg_session import PGSession, SessionStore, Window
from agents_pg_session.projection import Item
from agents_pg_session.windows import Placed, as_system_message, select
from tests.acceptance.agents_for_tests import QUIET, calls, heard, says, scripted
from tests.items import assistant, call, item, output, user


@pytest.fixture
def open_session(store: SessionStore, new_id: Callable[[], str]) -> Callable[..., PGSession]:
    """Open handles on one conversation, with this or that window."""
    name = new_id()
    return lambda window=None, **options: store.session(name, window=window, **options)


async def conversation(session: PGSession, turns: int = 4) -> list[Item]:
    """Turns of six items: a question, reasoning that leads to two calls, and their outputs in reverse."""
    for number in range(1, turns + 1):
        one, two = f"a{number}", f"b{number}"
        await session.add_items([user(f"question {number}")])
        await session.add_items([item(type="reasoning", id=f"r{number}", summary=[]), call(one), call(two)])
        await session.add_items([output(two), output(one)])
    return await session.get_items()


async def placed(session: PGSession) -> list[Placed]:
    return [Placed(each.position, each.turn, each.item) for turn in await session.turns() for each in turn.items]


def texts_of(items: list[Item]) -> list[object]:
    """In short: what was said, or the call id."""
    return [each.get("content") or each.get("call_id") or each.get("type") for each in items]


# -- windows


async def test_a_plain_session_has_no_window(session: PGSession) -> None:
    """Without a window the SDK's semantics hold: everything, or the newest so many items, split or not."""
    history = await conversation(session, 2)

    assert len(history) == 12
    assert await session.get_items(1) == history[-1:]
    session.session_settings = SessionSettings(limit=3)
    assert await session.get_items() == history[-3:]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 11, 12, 24, 100])
async def test_a_window_of_items_splits_nothing(open_session: Callable[..., PGSession], count: int) -> None:
    """At most so many of the newest, from where nothing is split; a few more where that would leave nothing."""
    history = await conversation(open_session())
    shown = await open_session(Window(items=count)).get_items()

    calls_shown = {each["call_id"] for each in shown if each.get("type") == "function_call"}  # type: ignore[typeddict-item]
    outputs = {each["call_id"] for each in shown if each.get("type") == "function_call_output"}  # type: ignore[typeddict-item]
    assert shown == history[len(history) - len(shown) :] != []
    assert calls_shown == outputs
    assert shown[0].get("type") in (None, "reasoning")
    assert len(shown) <= max(count, 6)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
async def test_a_window_of_turns_is_whole_turns(open_session: Callable[..., PGSession], count: int) -> None:
    """The newest so many questions with all that answers them."""
    history = await conversation(open_session())

    assert await open_session(Window(turns=count)).get_items() == history[-6 * count :]


@pytest.mark.parametrize(
    "window",
    [*(Window(items=count) for count in (1, 5, 40, 45, 90, 400)), *(Window(turns=count) for count in (1, 2, 3, 9))],
    ids=lambda window: f"items={window.items}" if window.items else f"turns={window.turns}",
)
async def test_a_window_asks_for_as_many_rows_as_it_takes(
    open_session: Callable[..., PGSession], window: Window
) -> None:
    """Long turns, late outputs and responses across the edge: the same as from all items at once."""
    session = open_session()
    await session.add_items([item(role="system", content="be kind")])
    await session.add_items([user("1"), call("late"), assistant("wait")])
    await session.add_items([user("2"), *(assistant(str(number)) for number in range(150))])
    await session.add_items([item(type="reasoning", id="r", summary=[]), *(call(str(number)) for number in range(40))])
    await session.add_items([output(str(number)) for number in range(40)])
    await session.add_items([output("late"), output("of nobody")])
    await session.add_items([user("3"), item(__enc__=1), assistant("end")])

    assert await open_session(window).get_items() == select(window, await placed(session))


async def test_an_explicit_limit_wins(open_session: Callable[..., PGSession]) -> None:
    """Who says how many gets so many, whatever the window; the window outranks the settings."""
    history = await conversation(open_session())
    session = open_session(Window(turns=1), session_settings=SessionSettings(limit=2))

    assert await session.get_items(3) == history[-3:]
    assert await session.get_items(0) == []
    assert await session.get_items() == history[-6:]


@pytest.mark.parametrize("window", [Window(items=3), Window(turns=1), Window(summary="summary")])
async def test_a_window_on_nothing(open_session: Callable[..., PGSession], window: Window) -> None:
    """An empty session is empty, whatever of it is shown."""
    assert await open_session(window).get_items() == []


async def test_the_model_hears_the_window_and_nothing_is_lost(open_session: Callable[..., PGSession]) -> None:
    """A run with tools and a pause goes well behind a window; the session keeps every item."""
    session = open_session(Window(turns=1))
    await conversation(session)
    agent = scripted(calls("weather", "w", city="Rome"), calls("refund", "r", amount=1), says("Done"))
    state = (await Runner.run(agent, "Refund", session=session, run_config=QUIET)).to_state()
    state.approve(state.get_interruptions()[0])
    await Runner.run(agent, state, session=session, run_config=QUIET)
    other = scripted(says("Bye"))
    await Runner.run(other, "Thanks", session=session, run_config=QUIET)

    assert texts_of(heard(other))[0] == "Refund"
    assert len(await open_session().get_items()) == 24 + 6 + 2


@pytest.mark.parametrize(
    "options",
    [{}, {"items": 1, "turns": 1}, {"items": 0}, {"turns": -1}, {"items": True}, {"turns": 1.5}, {"summary": ""}],
    ids=str,
)
def test_a_window_has_one_measure(options: dict[str, int]) -> None:
    """Items, turns or a summary: exactly one of them, and more than none."""
    with pytest.raises(ValueError, match=r"Window\("):
        Window(**options)  # type: ignore[arg-type]


def test_a_window_is_a_window(store: SessionStore) -> None:
    """A number is no window: it does not say of what."""
    with pytest.raises(ValueError, match="window must be a Window"):
        store.session("x", window=5)  # type: ignore[arg-type]


# -- summaries


def counting(asked: list[list[Item]]) -> Callable[[list[Item]], Awaitable[str]]:
    """A writer that keeps what it was asked to summarise."""

    async def write(items: list[Item]) -> str:
        asked.append(items)
        return f"summary {len(asked)}"

    return write


async def test_a_summary_stands_for_what_it_has_seen(open_session: Callable[..., PGSession]) -> None:
    """The window gives the summary and what came after it; nothing is deleted."""
    session, windowed, asked = open_session(), open_session(Window(summary="summary")), list[list[Item]]()
    history = await conversation(session, 2)
    before = await windowed.get_items()
    version = await session.summarize(counting(asked))
    alone = await windowed.get_items()
    await session.add_items([user("question 3")])

    [snapshot] = await session.snapshots.list("summary")
    assert before == history
    assert asked == [history]
    assert (version, snapshot.content, snapshot.through) == (1, "summary 1", 12)
    assert alone == [as_system_message("summary 1")]
    assert await windowed.get_items() == [as_system_message("summary 1"), user("question 3")]
    assert await session.get_items() == [*history, user("question 3")]


async def test_each_summary_builds_on_the_one_before(open_session: Callable[..., PGSession]) -> None:
    """The writer is given the previous summary and the items since; where there are none, it is not asked."""
    session, asked = open_session(), list[list[Item]]()
    await session.add_items([user("1")])
    versions = [await session.summarize(counting(asked)), await session.summarize(counting(asked))]
    await session.add_items([user("2"), assistant("2")])
    versions.append(await session.summarize(counting(asked)))

    assert versions == [1, None, 2]
    assert asked == [[user("1")], [as_system_message("summary 1"), user("2"), assistant("2")]]
    assert [each.content for each in await session.snapshots.list("summary")] == ["summary 2", "summary 1"]
    assert await session.snapshots.diff("summary", 1, 2) != ""


async def test_the_newest_turns_are_left_alone(open_session: Callable[..., PGSession]) -> None:
    """With *keep_turns*, the model keeps hearing those word for word; with too many there is nothing to do."""
    session, asked = open_session(Window(summary="summary")), list[list[Item]]()
    history = await conversation(session, 3)
    nothing = await session.summarize(counting(asked), keep_turns=3)
    version = await session.summarize(counting(asked), keep_turns=1)

    assert (nothing, version) == (None, 1)
    assert asked == [history[:12]]
    assert await session.get_items() == [as_system_message("summary 1"), *history[12:]]


async def test_a_summary_never_splits_a_call_from_its_output(open_session: Callable[..., PGSession]) -> None:
    """A call whose output came in a kept turn is kept with it, and so is what lies between."""
    session, asked = open_session(Window(summary="summary")), list[list[Item]]()
    await session.add_items([user("1"), assistant("1")])
    await session.add_items([user("2"), call("late")])
    await session.add_items([user("3"), output("late")])
    await session.summarize(counting(asked), keep_turns=1)

    assert asked == [[user("1"), assistant("1"), user("2")]]
    assert texts_of((await session.get_items())[1:]) == ["late", "3", "late"]


async def test_no_output_is_shown_without_its_call(open_session: Callable[..., PGSession]) -> None:
    """A call that waits is left to the next summary: until then the window shows it, and its output too."""
    session, asked = open_session(Window(summary="summary")), list[list[Item]]()
    await session.add_items([user("1"), call("c1")])
    await session.summarize(counting(asked))
    await session.add_items([output("c1"), assistant("1")])
    shown = await session.get_items()
    await session.summarize(counting(asked))

    answered = [call("c1"), output("c1"), assistant("1")]
    assert shown == [as_system_message("summary 1"), *answered]
    assert asked == [[user("1")], [as_system_message("summary 1"), *answered]]


async def test_summaries_of_several_kinds(open_session: Callable[..., PGSession]) -> None:
    """Each kind has versions and a window of its own, and says in its own way what it stands for."""

    def render(text: str) -> Item:
        return user(f"earlier: {text}")

    short = open_session(Window(summary="short", render=render))
    asked: list[list[Item]] = []
    await short.add_items([user("1")])
    await short.summarize(counting(asked), kind="short")
    await short.summarize(counting(asked))
    await short.add_items([user("2")])
    await short.summarize(counting(asked), kind="short")

    assert asked == [[user("1")], [user("1")], [user("earlier: summary 1"), user("2")]]
    assert await short.get_items() == [user("earlier: summary 3")]
    assert await open_session(Window(summary="summary")).get_items() == [as_system_message("summary 2"), user("2")]


async def test_a_writer_that_fails_leaves_everything_as_it_was(open_session: Callable[..., PGSession]) -> None:
    """What it raises comes out unchanged, and no version is saved."""
    session = open_session()
    await session.add_items([user("1")])

    async def broken(items: list[Item]) -> str:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await session.summarize(broken)
    for number in (-1, 1.5, "1"):
        with pytest.raises(ValueError, match="keep_turns must"):
            await session.summarize(broken, keep_turns=number)  # type: ignore[arg-type]
    assert await session.snapshots.latest("summary") is None


async def test_nothing_to_summarise(open_session: Callable[..., PGSession]) -> None:
    """An empty session is not summarised, and does not come to be by the attempt."""
    session, asked = open_session(), list[list[Item]]()

    assert await session.summarize(counting(asked)) is None
    assert asked == []
    assert await session.snapshots.latest("summary") is None


async def test_a_summary_saved_by_hand(open_session: Callable[..., PGSession]) -> None:
    """Whatever JSON is saved as a summary, the window shows it as text, from where it says it has seen."""
    session, windowed = open_session(), open_session(Window(summary="summary"))
    await session.add_items([user("1"), user("2"), user("3")])
    await session.snapshots.save("summary", {"topic": "é"}, through=1)
    early = await windowed.get_items()
    await session.snapshots.save("summary", "a\0b")

    assert early == [as_system_message('{"topic": "é"}'), user("2"), user("3")]
    assert await windowed.get_items() == [as_system_message("a\0b")]


async def test_the_next_run_hears_the_summary(open_session: Callable[..., PGSession]) -> None:
    """A run behind a summary starts from it, and appends as ever."""
    session = open_session(Window(summary="summary"))
    await Runner.run(scripted(says("Hello Ada")), "I am Ada", session=session, run_config=QUIET)
    await session.summarize(counting([]))
    agent = scripted(calls("weather", "w", city="Rome"), says("Sunny"))
    await Runner.run(agent, "Weather?", session=session, run_config=QUIET)

    assert texts_of(heard(agent))[:2] == [as_system_message("summary 1").get("content"), "Weather?"]
    assert len(await open_session().get_items()) == 6
