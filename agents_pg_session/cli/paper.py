"""Printing: tables and words for a person, JSON for a program.

What comes out of a database is shown as text and nothing else: no markup of ours, no control sequence of a terminal,
whatever an agent or its user has said. Times are shown in UTC.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from io import TextIOWrapper
from typing import Any, NoReturn

from rich import box
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

__all__ = [
    "Paper",
    "below",
    "clipped",
    "clock",
    "counted",
    "day_and_clock",
    "figure",
    "json_text",
    "minute",
    "number",
    "plain",
    "rows",
    "seconds",
    "short",
]

#: Control characters as the pictures Unicode has for them; a line's end and a tab are left alone.
_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_PICTURES |= {0x7F: "\u2421"} | dict.fromkeys(range(128, 160), "�")
# What turns the direction of writing around can make a line say something else than it does.
_PICTURES |= dict.fromkeys((*range(8234, 8239), *range(8294, 8298), 8206, 8207), "�")

#: Columns of text for reading where no terminal says how many there are, and how wide a table may then be.
_READING = 100
_AS_WIDE_AS_IT_IS = 10_000


class Paper:
    """Where a command prints: one JSON document, or whatever reads well."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        for stream in (sys.stdout, sys.stderr):
            _show_what_it_can(stream)
        self.console = _Console(highlight=False, soft_wrap=as_json)
        self.reading_width = self.console.width  #: columns for text that is wrapped
        if not self.console.is_terminal and not os.environ.get("COLUMNS"):  # a pipe has no width: nothing is cut there
            self.console.width, self.reading_width = _AS_WIDE_AS_IT_IS, _READING

    @property
    def ascii_only(self) -> bool:
        """Whether only ASCII can be drawn here."""
        return not self.console.encoding.startswith("utf")

    def json(self, value: object) -> None:
        """Print one JSON document on one line; records become objects, times ISO 8601, durations seconds."""
        self.console.file.write(f"{json_text(value, ascii_only=self.ascii_only)}\n")
        self.console.file.flush()

    def print(self, *things: RenderableType) -> None:
        """Print what a person reads; strings are shown as they are, without markup."""
        self.console.print(*(plain(each) if isinstance(each, str) else each for each in things))

    def read(self, *things: RenderableType) -> None:
        """Print what is wrapped to the width of the terminal, one thing below the other."""
        for each in things:
            self.console.print(plain(each) if isinstance(each, str) else each, width=self.reading_width)

    def first_that_fits(self, *tables: Table) -> None:
        """Print the first table that the terminal is wide enough for, or else the last."""
        *wide, last = tables
        options = self.console.options.update(width=_AS_WIDE_AS_IT_IS)
        fitting = (each for each in wide if each.__rich_measure__(self.console, options).maximum <= self.console.width)
        self.print(next(fitting, last))

    def table(self, columns: Sequence[str | Column], lines: Iterable[Sequence[RenderableType | None]]) -> None:
        """Print a table; None is an empty cell."""
        self.print(rows(columns, lines))

    def note(self, text: str) -> None:
        """Say something beside the answer, on standard error: where a list goes on, what is being waited for."""
        sys.stderr.write(f"{plain(text).plain}\n")
        sys.stderr.flush()

    def progress(self, *, in_percent: bool = False) -> Progress:
        """Return a progress bar on standard error, for `with`; it shows nothing where that is no terminal.

        It leaves room at the right, for the ^C of a person: a line that breaks could not be taken away again.
        """
        console = _Console(stderr=True)
        done: ProgressColumn = TaskProgressColumn() if in_percent else MofNCompleteColumn()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), done, TimeElapsedColumn())
        return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        raise  # what was caught there: the desk knows what a closed pipe means


def rows(columns: Sequence[str | Column], lines: Iterable[Sequence[RenderableType | None]]) -> Table:
    """Return a table in the house's style: a head, a rule, no frame. What is too long goes on below, nothing is cut."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        named = Column(column) if isinstance(column, str) else column
        named.overflow = "fold"
        named._index = len(table.columns)
        table.columns.append(named)
    for line in lines:
        table.add_row(*(plain(each) if isinstance(each, str) else each for each in line))
    return table


def below(first: str, *others: str | None) -> Text:
    """Return a cell for a narrow terminal: what is never broken, and in small print below it what belongs to it."""
    return plain(first).append_text(plain("".join(f"\n{each}" for each in others if each), "dim"))


def short(name: str) -> Column:
    """Return a column of short words, which are never broken."""
    return Column(name, no_wrap=True)


def figure(name: str) -> Column:
    """Return a column of numbers or times, which are never broken."""
    return Column(name, justify="right", no_wrap=True)


def plain(text: str, style: str = "") -> Text:
    """Return text of others so that it is only seen: control characters as pictures of themselves."""
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates
        text = text.encode("utf-8", "replace").decode()
    return Text(text.translate(_PICTURES), style=style)


def clipped(text: str, most: int) -> str:
    """Return *text* on one line, at most *most* characters of it."""
    text = " ".join(text[: 4 * most].split()) if len(text) > most or "\n" in text or "\t" in text else text
    return text if len(text) <= most else f"{text[: most - 3]}..."


def json_text(value: object, *, ascii_only: bool = False) -> str:
    """Return *value* as JSON on one line; records become objects, times ISO 8601, durations seconds."""
    return json.dumps(value, default=_jsonable, ensure_ascii=ascii_only)


def day_and_clock(moment: datetime | None) -> str:
    """Return a time in UTC to the second: "2026-11-21 05:11:06"; nothing for no time."""
    return "" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def minute(moment: datetime | None) -> str:
    """Return a time in UTC to the minute: "2026-11-21 05:11"; nothing for no time."""
    return day_and_clock(moment)[:-3]


def clock(moment: datetime) -> str:
    """Return the time of day in UTC: "05:11:06"."""
    return moment.astimezone(UTC).strftime("%H:%M:%S")


def number(value: float) -> str:
    """Return a count as people read it: "12,345"."""
    return f"{value:,.0f}"


def counted(count: int, name: str) -> str:
    """Return a count with what it counts: "1 run", "12,345 runs"."""
    return f"{number(count)} {name}{'' if count == 1 else 's'}"


def seconds(value: float | None) -> str:
    """Return a duration as people read it: "12 ms", "1.09 s", "2 min 5 s", "3 h 12 min"; nothing for none."""
    if value is None:
        return ""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 100:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    if value < 3600:
        return f"{value // 60:.0f} min {value % 60:.0f} s"
    return f"{value // 3600:.0f} h {value % 3600 // 60:.0f} min"


def _show_what_it_can(stream: object) -> None:
    """Have a stream print "?" for what its encoding lacks, instead of failing in the middle of a table."""
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="replace")


def _jsonable(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
