"""How long each benchmark takes: `--quick` to see that everything works, the usual, and the big one."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QUICK", "SCALE", "USUAL", "Pace"]


@dataclass(frozen=True, slots=True)
class Pace:
    """Samples, seconds and sizes of one run."""

    name: str
    samples: int  #: of each verb of each contender, without delay
    delayed_samples: int  #: the same with 1 ms of delay, fewer with more
    delays: tuple[float, ...]  #: ms added each way
    sessions: tuple[int, ...]  #: sessions at once
    seconds: float  #: that each contender runs in a round
    rounds: int
    warming: float  #: seconds of load before any of it counts
    heavy: int  #: sessions at once that store large outputs
    lengths: tuple[int, ...]  #: items in one session
    sizes: tuple[int, ...]  #: items in the database
    turns_stored: int  #: to weigh
    appends: int  #: to see bloat; 0 leaves that out
    imports: int
    handles: int


USUAL = Pace(
    name="usual",
    samples=120,
    delayed_samples=30,
    delays=(0, 1, 5),
    sessions=(1, 4, 16, 64, 256),
    seconds=0.8,
    rounds=3,
    warming=0.5,
    heavy=16,
    lengths=(10, 1_000, 10_000, 100_000),
    sizes=(10_000, 100_000, 1_000_000),
    turns_stored=1_000,
    appends=0,
    imports=3,
    handles=10_000,
)
QUICK = Pace(
    name="quick",
    samples=3,
    delayed_samples=2,
    delays=(0, 1),
    sessions=(1, 16),
    seconds=0.15,
    rounds=1,
    warming=0.1,
    heavy=2,
    lengths=(10, 1_000),
    sizes=(10_000,),
    turns_stored=50,
    appends=0,
    imports=1,
    handles=1_000,
)
SCALE = Pace(
    name="scale",
    samples=400,
    delayed_samples=80,
    delays=(0, 1, 5),
    sessions=(1, 4, 16, 64, 256),
    seconds=3.0,
    rounds=5,
    warming=1.0,
    heavy=16,
    lengths=(10, 1_000, 10_000, 100_000),
    sizes=(10_000, 100_000, 1_000_000, 10_000_000),
    turns_stored=5_000,
    appends=1_000_000,
    imports=9,
    handles=10_000,
)
