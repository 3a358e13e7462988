"""What the harnesses counted: how much was tried, acknowledged, lost and doubled, as a table at the end of the run."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime

__all__ = ["Tally"]


class Tally:
    """`tally.add("Crash", crashes=1, acknowledged=412, lost=0)`: numbers of one harness add up over its tests."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, harness: str, **numbers: int) -> None:
        self._counts[harness].update(numbers)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def lines(self, versions: str) -> Iterator[str]:
        """Yield a Markdown table, ready for docs/guarantees.md."""
        yield f"{datetime.now(UTC):%Y-%m-%d}, {versions}, Python {platform.python_version()}"
        yield ""
        yield "| harness | counted |"
        yield "|---|---|"
        for harness, counts in sorted(self._counts.items()):
            yield f"| {harness} | {', '.join(f'{name} {count:,}' for name, count in counts.items())} |"
