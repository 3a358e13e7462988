"""`python -m benchmarks`: run them, print the tables, keep the figures, draw the plots and fill docs/benchmarks.md.

Without options it takes less than ten minutes and writes build/benchmarks.json, docs/images/*.png and
docs/benchmarks.md. `--quick` and `--only` are for looking: they write build/benchmarks-partial.json and leave the
documentation alone, unless told to `--publish`. `--scale` is the big run; what only that can measure is kept in
build/benchmarks-scale.json, and later runs show it beside their own.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from rich.console import Console

from benchmarks import pace
from benchmarks.figures import Results
from benchmarks.parts import PARTS, SCALED, USUAL
from benchmarks.report import fill, print_tables
from benchmarks.world import world

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
IMAGES = ROOT / "docs" / "images"
BUILD = ROOT / "build"


def main() -> None:
    options = _options()
    console = Console(width=None if Console().is_terminal else 230)
    at = pace.QUICK if options.quick else pace.SCALE if options.scale else pace.USUAL
    if options.show:
        results = Results.load(options.show)
    else:
        names = options.only or (SCALED if options.scale else USUAL)
        results = _run(console, at, names)
        partial = options.quick or options.only
        results.save(BUILD / f"benchmarks{'-partial' if partial else '-scale' if options.scale else ''}.json")
    print_tables(console, results)
    if options.publish or not (options.quick or options.only or options.show):
        _publish(console, results)


def _run(console: Console, at: pace.Pace, names: list[str]) -> Results:
    with world(at, console) as here:
        for name in names:
            began = time.perf_counter()
            with console.status(name):
                asyncio.run(PARTS[name](here))
            console.print(f"[dim]{name}: {time.perf_counter() - began:.1f} s[/dim]")
        return here.results


def _publish(console: Console, results: Results) -> None:
    """Fill the documentation; a part that this run left out comes from the last whole one, or from the big one."""
    for name in ("benchmarks-scale", "benchmarks"):
        if (path := BUILD / f"{name}.json").is_file():
            results.take_over(Results.load(path), larger=name == "benchmarks-scale")
    from benchmarks.plots import draw  # only here: what measures does not carry matplotlib around

    fill(PAGE, results)
    drawn = draw(results, IMAGES)
    console.print(f"{PAGE.relative_to(ROOT)} is filled; drawn: {', '.join(path.name for path in drawn)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, metavar="NAME", help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing: show the figures of an earlier run")
    parser.add_argument("--publish", action="store_true", help="fill docs/benchmarks.md also from a part")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument("--quick", action="store_true", help="under a minute: does everything work?")
    speed.add_argument("--scale", action="store_true", help="up to 10⁷ items and 10⁶ appends: an hour or so")
    return parser.parse_args()


if __name__ == "__main__":
    main()
