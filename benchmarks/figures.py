"""What was measured: one shape for all benchmarks, and the JSON file it is kept in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Figure", "Results", "median", "percentile", "summary"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number: *value* is the median of *count* samples where there were several."""

    part: str  #: the benchmark it belongs to
    what: str  #: the verb, or what was weighed
    contender: str
    value: float
    unit: str
    at: float | None = None  #: where on the benchmark's axis: ms of delay, sessions at once, items in a session …
    p95: float | None = None
    p99: float | None = None
    count: int = 1
    note: str = ""


@dataclass
class Results:
    """Everything one run measured, and on what."""

    machine: dict[str, str] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    plans: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  #: what was left out, and why

    def add(self, figures: Iterable[Figure]) -> None:
        self.figures.extend(figures)

    def find(self, part: str, what: str, contender: str, at: float | None = None) -> Figure | None:
        """Return one figure; None where it was not measured."""
        key = (part, what, contender, at)
        return next((each for each in self.figures if (each.part, each.what, each.contender, each.at) == key), None)

    def value(self, part: str, what: str, contender: str, at: float | None = None) -> float | None:
        figure = self.find(part, what, contender, at)
        return None if figure is None else figure.value

    def of(self, part: str) -> Iterator[Figure]:
        return (figure for figure in self.figures if figure.part == part)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        saved = json.loads(path.read_text())
        figures = [Figure(**each) for each in saved.pop("figures")]
        return cls(figures=figures, **saved)

    def take_over(self, other: Results, *, larger: bool = False) -> None:
        """Add the parts of *other* that this run did not measure; those by size as well, where *other* went further."""
        ours = {figure.part for figure in self.figures}
        if larger and _furthest(other) > _furthest(self):
            ours -= _BY_SIZE
            self.figures = [figure for figure in self.figures if figure.part not in _BY_SIZE]
            self.plans = []
            if any(other.of("bloat")):
                self.remarks = [remark for remark in self.remarks if "bench-scale" not in remark]
            self.remarks.append(f"Large databases come from the big run of {other.machine['taken']}.")
        self.figures += [figure for figure in other.figures if figure.part not in ours]
        self.plans = self.plans or other.plans


#: Parts that make sense together only, from one run.
_BY_SIZE = {"size", "lists", "bloat"}


def _furthest(results: Results) -> float:
    return max((figure.at or 0 for figure in results.of("size")), default=0)


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least *share* of them do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(samples: Sequence[float]) -> float:
    return percentile(samples, 0.5)


def summary(
    part: str,
    what: str,
    contender: str,
    samples: Sequence[float],
    unit: str,
    *,
    at: float | None = None,
) -> Figure:
    """Sum up samples of one kind."""
    return Figure(
        part, what, contender, median(samples), unit, at,
        percentile(samples, 0.95), percentile(samples, 0.99), len(samples),
    )  # fmt: skip
