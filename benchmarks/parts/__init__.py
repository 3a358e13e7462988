"""The benchmarks, in the order they run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from benchmarks.parts.footprint import footprint
from benchmarks.parts.foreign_keys import foreign_keys
from benchmarks.parts.history import history
from benchmarks.parts.latency import latency, round_trips
from benchmarks.parts.size import size
from benchmarks.parts.sqlite import sqlite
from benchmarks.parts.storage import bloat, storage
from benchmarks.parts.throughput import contended, heavy, throughput
from benchmarks.parts.together import together
from benchmarks.world import World

__all__ = ["PARTS", "SCALED", "USUAL"]

PARTS: Mapping[str, Callable[[World], Coroutine[Any, Any, None]]] = {
    "round-trips": round_trips,
    "latency": latency,
    "throughput": throughput,
    "contended": contended,
    "heavy": heavy,
    "together": together,
    "history": history,
    "sqlite": sqlite,
    "foreign-keys": foreign_keys,
    "storage": storage,
    "footprint": footprint,
    "size": size,
    "bloat": bloat,
}

#: What the big run is for: what grows with the database, and an experiment that is no part of the product.
SCALED = ["size", "bloat", "together"]

#: What `make bench` has time for; of size and bloat, what is small.
USUAL = [name for name in PARTS if name != "together"]
