"""What is printed: text of others is only seen, and it fits wherever it goes."""

from __future__ import annotations

import asyncio
import io
import sys

import pytest

from agents_pg_session.cli.charts import lying, upright
from agents_pg_session.cli.options import moment, pairs
from agents_pg_session.cli.paper import Paper, clipped, json_text, plain, seconds
from tests.cli.conftest import Cli
from tests.cli.writing import append
from tests.items import assistant, user


def test_no_text_of_others_reaches_the_terminal_as_a_command() -> None:
    """Escape sequences, C1 controls, markup of ours and characters that turn the line around become visible."""
    seen = plain("\x1b[31mred\x9b2J [bold]b[/bold] \u202eevil \ud800").plain

    assert seen == "␛[31mred�2J [bold]b[/bold] �evil ?"


def test_a_hostile_conversation_is_shown_harmlessly(file: Cli) -> None:
    """What a user typed is a picture of itself in every command that shows it, ids included."""
    asyncio.run(append(file, "s\x1b[2J", [user("\x1b]0;title\x07 [red]x[/red]"), assistant("ok")], agent="a\x1b"))
    for arguments in (("list",), ("show", "s\x1b[2J")):
        answer = file("sessions", *arguments, FORCE_COLOR="", NO_COLOR="1")

        assert answer.code == 0
        assert "\x1b" not in answer.out
        assert "\x07" not in answer.out
    assert "[red]x[/red]" in answer.out


def test_a_stream_without_unicode_is_written_in_ascii(shop: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the encoding is no UTF, rules and bars are ASCII, JSON is escaped, and nothing raises."""
    for as_json in (False, True):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", stream)
        paper = Paper(as_json)
        paper.table(("name",), [("Zoë — ✓",)])
        paper.json({"name": "Zoë"})
        stream.flush()
        written = stream.buffer.getvalue().decode("ascii")
        monkeypatch.undo()

        assert "Zo? ? ?" in written
        assert '{"name": "Zo\\u00eb"}' in written


def test_a_pipe_cuts_nothing(file: Cli) -> None:
    """Without a terminal and without COLUMNS each row is one line, however long its ids are."""
    asyncio.run(append(file, "s" * 300, [user("hi")]))
    answer = file("sessions", "list", width=None)

    assert [line.split()[0] for line in answer.out.splitlines()][2:] == ["s" * 300]


def test_colours_are_for_those_who_want_them(shop: Cli) -> None:
    """FORCE_COLOR colours; a pipe, NO_COLOR and a dumb terminal do not."""
    show = ("sessions", "show", "chat-1", "--tenant", "acme")
    coloured = shop(*show, FORCE_COLOR="1", NO_COLOR="", TERM="xterm-256color")

    assert "\x1b[" in coloured.out
    assert "\x1b[" not in shop(*show, NO_COLOR="").out
    assert "\x1b[" not in shop(*show, TERM="dumb").out
    assert "\x1b[3" not in shop(*show, FORCE_COLOR="1", NO_COLOR="1", TERM="xterm-256color").out


def test_texts_and_durations_as_people_read_them() -> None:
    """A clipped text is one line and says that it is clipped; durations have the unit that tells most."""
    assert clipped("a\n b\tc", 10) == "a b c"
    assert clipped("x" * 50, 10) == "xxxxxxx..."
    assert [seconds(each) for each in (None, 0.012, 1.094, 65.2, 125, 11520)] == [
        *("", "12 ms", "1.09 s", "65.2 s", "2 min 5 s", "3 h 12 min"),
    ]  # fmt: skip


def test_json_of_what_json_does_not_know_is_refused() -> None:
    """Only records, times and collections have a form; an object that strayed in is an error, not its repr."""
    with pytest.raises(TypeError, match="object has no form in JSON"):
        json_text({"a": object()})


@pytest.mark.parametrize("text", ["7", "d", "7y", "yesterday", "2026-13-01", "-3d", "1234567d"])
def test_a_time_that_is_none_says_how_times_are_written(text: str) -> None:
    """What is neither a span nor a date raises `ValueError` with examples."""
    with pytest.raises(ValueError, match=r"--since must be a time like 7d, 12h, 30m, 2026-11-01"):
        moment("--since", text)


def test_times_as_a_shell_has_them() -> None:
    """Spans reach back; dates and times without a zone are UTC."""
    assert str(moment("--since", "90d")) == "90 days, 0:00:00"
    assert str(moment("--since", "2026-11-01")) == "2026-11-01 00:00:00+00:00"
    assert str(moment("--since", "2026-11-01T10:00+02:00")) == "2026-11-01 10:00:00+02:00"
    assert moment("--since", None) is None


def test_metadata_as_a_shell_has_it() -> None:
    """Numbers and booleans are JSON, other words are text, an object is taken whole; anything else is refused."""
    assert pairs("--metadata", ["plan=pro", "seats=5", "trial=true"]) == {"plan": "pro", "seats": 5, "trial": True}
    assert pairs("--metadata", ['{"a": {"b": 1}}', "c==="]) == {"a": {"b": 1}, "c": "=="}
    for wrong in ("plan", "=x", "{", '{"a"', "[1]"):
        with pytest.raises(ValueError, match="key=value or a JSON object"):
            pairs("--metadata", [wrong])


@pytest.mark.parametrize("ascii_only", [True, False])
def test_bars_never_lie(ascii_only: bool) -> None:
    """The longest bar is as long as there is room, a tiny value is seen, and nothing is nothing."""
    lengths = [len(lying(value, 1000, 20, ascii_only=ascii_only).plain) for value in (0, 1, 500, 1000)]
    chart = [line.plain for line in upright([0, 1, 1000], ["a", "b", "c"], 40, height=4, ascii_only=ascii_only)]

    assert lengths == [0, 1, 10, 20]
    assert all(line.isascii() for line in chart) == ascii_only
    assert chart[0].startswith("1,000 ")
    assert [len(line.split()) for line in chart[:4]] == [3, 2, 2, 3]  # scale, axis and bar, then axis and bars
