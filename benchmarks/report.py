"""Where the results go: the terminal, and docs/benchmarks.md between its markers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.figures import Results
from benchmarks.goals import NOT_MEASURED
from benchmarks.tables import Sheet, sections

__all__ = ["fill", "print_tables"]


def print_tables(console: Console, results: Results) -> None:
    """Print every table, the goals last: they are what one looks for; those that nothing was measured for are not."""
    filled = sections(results)
    for name, sheets in sorted(filled.items(), key=lambda each: each[0] == "goals"):
        for sheet in sheets if name != "machine" else ():
            console.print(_rich(sheet))
    for remark in results.remarks:
        console.print(remark)


def fill(page: Path, results: Results) -> None:
    """Put the tables between `<!-- name -->` and `<!-- /name -->`; what stands around them is people's."""
    text = page.read_text()
    filled = {name: "\n\n".join(map(_markdown, sheets)) for name, sheets in sections(results).items()}
    filled["remarks"] = "\n".join(f"- {remark}" for remark in results.remarks)
    for name, body in filled.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{page} has no place for {name}: put {begin} and {end} into it")
        text = pattern.sub(lambda _, block=f"{begin}\n\n{body}\n\n{end}": block, text)  # type: ignore[misc]
    page.write_text(text)


def _rich(sheet: Sheet) -> Table:
    table = Table(*sheet.columns, title=sheet.title, title_justify="left", box=box.SIMPLE_HEAD)
    prose = sheet.title == "Goals" or sheet.title.startswith("Plans")
    for column in table.columns[1:]:
        column.justify, column.no_wrap = ("left", False) if prose else ("right", True)
    for row in sheet.rows:
        if NOT_MEASURED in row:
            continue
        style = "bold" if row[0].startswith("PGSession, full") else None
        # Square brackets are rich's own markup.
        table.add_row(*(cell.replace("[", r"\[") for cell in row), style=_verdict_style(row) or style)
    return table


def _verdict_style(row: tuple[str, ...]) -> str | None:
    if any(cell.startswith("missed by") for cell in row):
        return "red"
    return "green" if any(cell.startswith("reached") for cell in row) else None


def _markdown(sheet: Sheet) -> str:
    lines = [f"**{sheet.title}**", "", _line(sheet.columns), _line("---" for _ in sheet.columns)]
    return "\n".join([*lines, *map(_line, sheet.rows)])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
