"""Figures as tables: the same ones for the terminal and for docs/benchmarks.md.

Where contenders stand side by side, the number in brackets is how many times as fast `PGSession` with the full record
is: below 1, the other one is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.contenders import FULL
from benchmarks.figures import Figure, Results
from benchmarks.goals import verdicts
from benchmarks.parts.foreign_keys import WITH
from benchmarks.parts.together import ALONE, APPENDS, IN_LIBRARY, LIBRARY, TOGETHER, TURNS

__all__ = ["SECTIONS", "Sheet", "sections"]

_BYTES = ((2**30, "GB"), (2**20, "MB"), (2**10, "kB"))


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sections(results: Results) -> dict[str, list[Sheet]]:
    """Return every section that this run has figures for."""
    filled = {name: [sheet for sheet in make(results) if sheet.rows] for name, make in SECTIONS.items()}
    return {name: sheets for name, sheets in filled.items() if sheets}


def _goals(results: Results) -> Iterable[Sheet]:
    rows = tuple((each.figure, each.goal, each.measured, each.verdict, each.how) for each in verdicts(results))
    yield Sheet("Goals", ("figure", "goal", "measured", "verdict", "how"), rows)


def _machine(results: Results) -> Iterable[Sheet]:
    yield Sheet("Machine and versions", ("what", "which"), tuple(results.machine.items()))


def _round_trips(results: Results) -> Iterable[Sheet]:
    yield _by_verb(
        results, "round trips", "Round trips, counted between client and server", lambda each, _: _number(each)
    )


def _latency(results: Results) -> Iterable[Sheet]:
    for delay in sorted({each.at for each in results.of("latency") if each.at is not None}):
        title = f"Latency, median ms (p95 / p99), {delay:g} ms of added delay each way"
        yield _by_verb(results, "latency", title, _timed, at=delay)
    yield _by_verb(results, "client CPU", "CPU of the client per call, median ms", _compared)


def _throughput(results: Results) -> Iterable[Sheet]:
    """One column per number of sessions: rates, then times."""
    for what, title, cell in (
        ("turns", "Turns per second (read 50, append 4), by sessions at once", _compared),
        ("turn", "The same: ms per turn, median (p95 / p99)", _spread),
    ):
        figures = [each for each in results.of("throughput") if each.what == what]
        yield _grid(title, figures, lambda each: f"{each.at:g}", cell, FULL)
    for part, title in (
        ("one session", "16 writers on one session"),
        ("heavy", "Turns with 50 kB of tool output, 16 sessions at once"),
    ):
        yield _grid(title, list(results.of(part)), lambda each: each.unit, _timed, FULL)


def _history(results: Results) -> Iterable[Sheet]:
    for what in dict.fromkeys(each.what for each in results.of("history")):
        figures = [each for each in results.of("history") if each.what == what]
        title = f"{what}, median ms (p95 / p99), by items in the session"
        yield _grid(title, figures, lambda each: f"{each.at:,.0f}", _timed, FULL)
    longest = max((each.at or 0 for each in results.of("decoders")), default=0)
    decoders = [each for each in results.of("decoders") if each.at == longest]
    rows = tuple((each.contender, _number(each), each.note) for each in sorted(decoders, key=lambda each: each.value))
    yield Sheet(f"Decoding {longest:,.0f} items", ("decoder", "ms", "gives back what went in"), rows)


def _sqlite(results: Results) -> Iterable[Sheet]:
    figures = [each for each in results.of("SQLite") if each.what == "turns"]
    yield _grid("SQLite: turns per second, by sessions at once", figures, lambda each: f"{each.at:g}", _compared, FULL)
    yield _by_verb(results, "SQLite verbs", "SQLite: latency, median ms (p95 / p99)", _timed)


def _size(results: Results) -> Iterable[Sheet]:
    figures = [each for each in results.of("size") if each.unit == "ms"]
    yield _by_size("One session among many, median ms (p95 / p99), by items in the database", figures)
    yield _by_size("Pages of 50 and views, median ms (p95 / p99)", list(results.of("lists")))
    largest = max((each["items"] for each in results.plans), default=0)
    rows = tuple(
        (each["what"], *_told(each, ""), *_told(each, "generic_")) for each in results.plans if each["items"] == largest
    )
    columns = ("what", "planned for its values", "pages", "ms", "planned once for all values", "pages", "ms")
    yield Sheet(f"Plans at {largest:,} items, with pages touched and time in the server", columns, rows)


def _told(plan: dict[str, Any], which: str) -> tuple[str, str, str]:
    """What a plan reads, or that it is the same as the other one."""
    same = which and plan[f"{which}scans"] == plan["scans"]
    scans = "the same" if same else "; ".join(plan[f"{which}scans"])
    return scans, str(plan[f"{which}pages"]), f"{plan[f'{which}ms']:.2f}"


def _storage(results: Results) -> Iterable[Sheet]:
    figures = [each for each in results.of("storage") if each.unit == "bytes"]
    yield _grid("Bytes a turn leaves behind", figures, lambda each: each.contender, _plain, None, by_what=True)
    upkeep = [each for each in (*results.of("storage"), *results.of("bloat")) if each not in figures]
    rows = tuple((each.what, _with_unit(each), f"{each.count:,}") for each in upkeep)
    yield Sheet("Upkeep", ("what", "measured", "of"), rows)
    yield _grid(
        "Foreign keys", list(results.of("foreign keys")), lambda each: f"{each.what}, {each.unit}", _timed, WITH
    )


def _together(results: Results) -> Iterable[Sheet]:
    """One row per load: apart, together, and the gain."""
    for apart, joined in ((ALONE, TOGETHER), (LIBRARY, IN_LIBRARY)):
        rows = []
        for part, title in ((TURNS, "turns"), (APPENDS, "appends only")):
            for each in results.of(part):
                gain = results.find(part, f"{each.what}, ratio", joined, each.at)
                other = results.find(part, each.what, joined, each.at)
                if each.contender == apart and gain and other:
                    what = f"{title}, {each.unit if each.unit == 'ms' else 'per second'}, {each.at:g} at once"
                    rows.append((what, _spread(each, None), _spread(other, None), f"{gain.value:.2f} ×", gain.note))
        columns = ("", "a statement each", "one statement for all that wait", "ratio", "appends per statement")
        yield Sheet(apart.partition(",")[0] + ": appends apart and together", columns, tuple(rows))


def _footprint(results: Results) -> Iterable[Sheet]:
    rows = tuple((each.what, each.contender.partition(",")[0], _with_unit(each)) for each in results.of("footprint"))
    yield Sheet("Before anything happens", ("what", "of", "measured"), rows)


SECTIONS: dict[str, Callable[[Results], Iterable[Sheet]]] = {
    "goals": _goals,
    "machine": _machine,
    "round-trips": _round_trips,
    "latency": _latency,
    "throughput": _throughput,
    "together": _together,
    "history": _history,
    "size": _size,
    "storage": _storage,
    "sqlite": _sqlite,
    "footprint": _footprint,
}

# -- shapes of tables

Cell = Callable[[Figure, Figure | None], str]


def _by_verb(results: Results, part: str, title: str, cell: Cell, *, at: float | None = None) -> Sheet:
    figures = [each for each in results.of(part) if each.at == at]
    return _grid(title, figures, lambda each: each.what, cell, FULL)


def _by_size(title: str, figures: Sequence[Figure]) -> Sheet:
    return _grid(
        title, figures, lambda each: f"{each.at:,.0f}", lambda each, _: _spread(each, None), None, by_what=True
    )


def _grid(
    title: str,
    figures: Sequence[Figure],
    column: Callable[[Figure], str],
    cell: Cell,
    beside: str | None,
    *,
    by_what: bool = False,
) -> Sheet:
    """Lay figures out, a row per contender (or per thing that was measured), each cell beside that of *beside*."""
    rows = list(dict.fromkeys(each.what if by_what else each.contender for each in figures))
    columns = list(dict.fromkeys(map(column, figures)))
    cells = {(each.what if by_what else each.contender, column(each)): each for each in figures}

    def shown(row: str, name: str) -> str:
        figure = cells.get((row, name))
        other = cells.get((beside, name)) if beside is not None and row != beside else None
        return "–" if figure is None else cell(figure, other)

    return Sheet(title, ("", *columns), tuple((row, *(shown(row, name) for name in columns)) for row in rows))


# -- cells


def _timed(figure: Figure, ours: Figure | None) -> str:
    """Median, p95 and p99, and how many times as fast ours is."""
    return f"{_spread(figure, None)}{_times(figure, ours)}"


def _compared(figure: Figure, ours: Figure | None) -> str:
    return f"{_number(figure)}{_times(figure, ours)}"


def _plain(figure: Figure, _: Figure | None) -> str:
    return f"{figure.value:,.0f}"


def _spread(figure: Figure, _: Figure | None) -> str:
    if figure.p95 is None or figure.p99 is None:
        return _number(figure)
    return f"{_short(figure.value)} ({_short(figure.p95)} / {_short(figure.p99)})"


def _times(figure: Figure, ours: Figure | None) -> str:
    if ours is None or not figure.value or not ours.value:
        return ""
    more_is_better = figure.unit.endswith("/s")
    ratio = ours.value / figure.value if more_is_better else figure.value / ours.value
    return f" [{ratio:.2f} ×]" if ratio < 10 else f" [{ratio:,.0f} ×]"


def _number(figure: Figure) -> str:
    if figure.unit == "bytes":
        for size, name in _BYTES:
            if figure.value >= 10 * size:
                return f"{figure.value / size:,.1f} {name}"
        return f"{figure.value:,.0f}"
    return f"{figure.value:,.0f}" if figure.unit.endswith("/s") else _short(figure.value)


def _with_unit(figure: Figure) -> str:
    said = _number(figure)
    return said if said[-1] == "B" else f"{said} {figure.unit}"


def _short(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
