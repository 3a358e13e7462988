"""Fetch PgBouncer with Debian's own apt, without root: `python -m tests.fetch_pgbouncer`, which the Makefile runs.

One of Debian 12 (1.18: knows nothing of prepared statements) and one of Debian 13 (1.24: tracks them) go into
`pgbouncer/` of the running Python's environment. Where there is no Debian, nothing is fetched: the tests then look on
the PATH, and say so if there is none either.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.debian import fetch, on_debian

SUITES = ("bookworm", "trixie")
INTO = Path(sys.prefix) / "pgbouncer"


def main() -> None:
    if not on_debian():
        print("PgBouncer is fetched on Debian only; elsewhere its tests take the one on the PATH")
        return
    for suite in SUITES:
        said = fetch("pgbouncer", "usr/sbin/pgbouncer", INTO / suite, suite=suite, called="pgbouncer")
        print(f"{said} from {suite} is in {INTO / suite}")


if __name__ == "__main__":
    main()
