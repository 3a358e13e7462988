"""Fetch Redis with Debian's own apt, without root: `python -m benchmarks.fetch_redis`, which the Makefile runs.

Debian's redis-server goes into `redis/` of the running Python's environment. Where there is no Debian nothing is
fetched: the benchmarks then look on the PATH, and leave Redis out with a sentence if there is none either.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.debian import codename, fetch, on_debian

INTO = Path(sys.prefix) / "redis"

#: Debian keeps the server in redis-tools, under another of its names.
PACKAGE, PROGRAM = "redis-tools", "usr/bin/redis-check-rdb"


def main() -> None:
    if not on_debian():
        print("Redis is fetched on Debian only; elsewhere the benchmarks take the one on the PATH")
        return
    said = fetch(PACKAGE, PROGRAM, INTO, suite=codename(), called="redis-server")
    print(f"{said} is in {INTO}")


if __name__ == "__main__":
    main()
