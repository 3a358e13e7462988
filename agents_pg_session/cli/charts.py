"""Bars for a terminal, upright over time and lying beside names: of blocks, or of ASCII where that is all there is."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from rich.text import Text

__all__ = ["lying", "upright"]

_EIGHTHS_UP = " ▁▂▃▄▅▆▇█"
_EIGHTHS_ACROSS = " ▏▎▍▌▋▊▉█"


def lying(value: float, largest: float, width: int, *, ascii_only: bool, style: str = "") -> Text:
    """Return a bar of at most *width* characters; whatever is not nothing can be seen."""
    if value <= 0 or largest <= 0:
        return Text("")
    length = width * min(1.0, value / largest)
    if ascii_only:
        return Text("#" * max(1, round(length)), style)
    full, eighths = divmod(max(1, round(length * 8)), 8)
    return Text("█" * full + (_EIGHTHS_ACROSS[eighths] if eighths else ""), style)


def upright(
    values: Sequence[int], labels: Sequence[str], width: int, *, height: int = 6, ascii_only: bool, style: str = ""
) -> list[Text]:
    """Return lines with a bar for each value, a scale at the left and some *labels* below; *width* characters wide.

    The scale ends at the largest value, and whatever is not nothing can be seen.
    """
    largest = max(values, default=0)
    scale = len(f"{largest:,}")
    room = max(1, (width - scale - 2) // max(1, len(values)))
    gap = 1 if room > 2 else 0
    bar = min(room - gap, 6) or 1
    lines = []
    for level in range(height, 0, -1):
        mark = f"{largest:,}" if level == height else ""
        line = Text(f"{mark:>{scale}} {'|' if ascii_only else '┤' if mark else '│'}", "dim")
        for value in values:
            line.append(_block(value, largest, level, height, ascii_only) * bar + " " * gap, style)
        lines.append(line)
    corner, floor = ("+", "-") if ascii_only else ("└", "─")
    lines.append(Text(f"{'0':>{scale}} {corner}{floor * (len(values) * (bar + gap))}", "dim"))
    lines.append(Text(" " * (scale + 2) + _below(labels, bar + gap), "dim"))
    return lines


def _block(value: int, largest: int, level: int, height: int, ascii_only: bool) -> str:
    """Return what of a bar is seen on a level, counted from 1 at the bottom."""
    if not value:
        return " "
    eighths = max(1, ceil(value / largest * height * 8)) - (level - 1) * 8
    if ascii_only:
        return "#" if eighths >= 4 or (level == 1 and eighths > 0) else " "
    return _EIGHTHS_UP[max(0, min(8, eighths))]


def _below(labels: Sequence[str], step: int) -> str:
    """Write as many labels as fit, each beginning where its bar does."""
    line, room = "", len(labels) * step
    for number, label in enumerate(labels):
        at = number * step
        if at == 0 or len(line) + 2 <= at <= room - len(label):
            line = line.ljust(at) + label
    return line
