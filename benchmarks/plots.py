"""Pictures of the results, light and readable, into docs/images/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.contenders import FULL, LANGGRAPH, PLAIN, RAW, RAW_FULL, REDIS, REDIS_ALWAYS, SDK, SDK_PER_TURN
from benchmarks.figures import Figure, Results
from benchmarks.parts.history import LIMIT
from benchmarks.parts.sqlite import ADVANCED, SIMPLE

__all__ = ["draw"]

#: Ours stand out; the limit is grey; each of the others keeps its colour in every picture.
_COLOURS = {
    FULL: "#1a56db",
    PLAIN: "#76a9fa",
    RAW_FULL: "#6b7280",
    RAW: "#b4b9c2",
    LIMIT: "#6b7280",
    SDK: "#d97706",
    SDK_PER_TURN: "#f5b95f",
    REDIS: "#e57373",
    REDIS_ALWAYS: "#b91c1c",
    LANGGRAPH: "#0f8a5f",
    ADVANCED: "#d97706",
    SIMPLE: "#f5b95f",
}
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#9ca3af",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "font.size": 10,
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
    "savefig.dpi": 130,
}


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw what there are figures for, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "throughput.png": _throughput,
        "latency.png": _latency,
        "history.png": _history,
        "size.png": _size,
    }
    drawn: list[Path] = []
    with plt.rc_context(_STYLE):
        for name, picture in pictures.items():
            if picture(results, folder / name):
                drawn.append(folder / name)
            plt.close("all")
    return drawn


def _throughput(results: Results, path: Path) -> bool:
    figures = [each for each in results.of("throughput") if each.what == "turns"]
    if len({each.at for each in figures}) < 2:
        return False
    figure, axes = plt.subplots(figsize=(9, 5))
    _lines(axes, figures)
    axes.set_xscale("log", base=2)
    _ticks(axes, figures)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sessions at once")
    axes.set_title("Turns per second: read 50 items, append 4 (more is better)")
    _legend_beside(axes)
    figure.savefig(path, bbox_inches="tight")
    return True


def _latency(results: Results, path: Path) -> bool:
    """One panel per delay: a turn of each contender as a bar."""
    figures = [each for each in results.of("latency") if each.what == "turn"]
    delays = sorted({each.at for each in figures if each.at is not None})
    if not delays:
        return False
    figure, panels = plt.subplots(1, len(delays), figsize=(3.2 * len(delays) + 3, 3.6), sharey=True, squeeze=False)
    for axes, delay in zip(panels[0], delays, strict=True):
        shown = [each for each in figures if each.at == delay][::-1]
        names = [each.contender for each in shown]
        bars = axes.barh(names, [each.value for each in shown], color=[_COLOURS[name] for name in names])
        axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        axes.set_title(f"{delay:g} ms of delay each way", fontsize=10)
        axes.set_xlabel("ms per turn, median")
        axes.margins(x=0.18)
        axes.grid(visible=False, axis="y")
    figure.suptitle("A turn, one caller: read 50 items, append 4 (less is better)", x=0.01, ha="left")
    figure.tight_layout()
    figure.savefig(path, bbox_inches="tight")
    return True


def _history(results: Results, path: Path) -> bool:
    kinds = list(dict.fromkeys(each.what for each in results.of("history")))
    return _panels(results, "history", kinds, path, "items in the session", "ms, median (less is better)")


def _size(results: Results, path: Path) -> bool:
    """The verbs of a session, then the slowest pages."""
    verbs = [each for each in results.of("size") if each.unit == "ms"]
    pages = [each for each in results.of("lists") if each.what.startswith("sessions")]
    if len({each.at for each in pages}) < 2:
        return False
    figure, panels = plt.subplots(1, 2, figsize=(13, 4.5))
    for axes, shown, title in ((panels[0], verbs, "One session among many"), (panels[1], pages, "A page of 50")):
        for what in dict.fromkeys(each.what for each in shown):
            points = [each for each in shown if each.what == what]
            axes.plot([each.at for each in points], [each.value for each in points], marker="o", label=what)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("items in the database, ten per session")
        axes.set_title(f"{title}: ms, median")
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, bbox_inches="tight")
    return True


def _panels(results: Results, part: str, kinds: Sequence[str], path: Path, below: str, beside: str) -> bool:
    if len({each.at for each in results.of(part)}) < 2:
        return False
    figure, panels = plt.subplots(1, len(kinds), figsize=(4.6 * len(kinds), 4.4), squeeze=False)
    for axes, what in zip(panels[0], kinds, strict=True):
        _lines(axes, [each for each in results.of(part) if each.what == what])
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(below)
        axes.set_title(what)
    panels[0][0].set_ylabel(beside)
    handles = {label: line for axes in panels[0] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=3, bbox_to_anchor=(0.5, 0.02))
    figure.tight_layout()
    figure.savefig(path, bbox_inches="tight")
    return True


def _lines(axes: Axes, figures: Iterable[Figure]) -> None:
    figures = list(figures)
    for name in dict.fromkeys(each.contender for each in figures):
        points = [each for each in figures if each.contender == name and each.at is not None]
        style = "--" if _COLOURS[name] in (_COLOURS[RAW], _COLOURS[RAW_FULL]) else "-"
        axes.plot(
            [each.at or 0 for each in points], [each.value for each in points],
            style, marker="o", markersize=4, color=_COLOURS[name], label=name, linewidth=2.4 if name == FULL else 1.6,
        )  # fmt: skip


def _ticks(axes: Axes, figures: Iterable[Figure]) -> None:
    places = sorted({each.at for each in figures if each.at is not None})
    axes.set_xticks(places, [f"{place:g}" for place in places])


def _legend_beside(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
