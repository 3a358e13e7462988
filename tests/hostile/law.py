"""The law of this folder: whatever is asked, the answer is right, or an error of ours that names what will not do."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

import agents_pg_session
from agents_pg_session import SchemaOutdated, SessionError, SessionStore, StorageUnavailable
from tests.tally import Tally

__all__ = ["QUIET", "Bench", "Refused", "judged"]

#: The same cases each time, and nothing left behind on disk.
QUIET = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)

PACKAGE = str(Path(agents_pg_session.__file__).parent)

#: Seconds after which a call hangs: much more than any of them may take.
HANGS = 60


@dataclass(frozen=True)
class Refused:
    """An error of ours."""

    error: Exception


async def judged(
    call: Callable[[], Awaitable[Any]], *arguments: str, away: bool = False, scrawled: bool = False
) -> Any:
    """Return what *call* answers, or `Refused`; fail on an error that is not ours, or says nothing about *arguments*.

    *away* allows for a database that cannot be reached, as with an invented URL; *scrawled* for rows that were edited
    by hand, which only the database may find out.
    """
    try:
        async with asyncio.timeout(HANGS):
            return await call()
    except (SessionError, ValueError, TypeError) as failure:
        refused = Refused(failure)
    error: Exception = refused.error
    said = str(error)
    assert 0 < len(said) < 2000, f"{type(error).__name__} of {len(said)} characters"
    if type(error) in (ValueError, TypeError):
        assert _raised_in(error).startswith(PACKAGE), f"not a check of ours: {error!r} in {_raised_in(error)}"
        assert any(name in said for name in arguments), f"{said!r} names none of {arguments}"
        return refused
    assert isinstance(error, SessionError), f"not an error of ours: {error!r}"
    assert away or not isinstance(error, StorageUnavailable | SchemaOutdated), said
    assert away or scrawled or "the database refused" not in said, f"found out by the database only: {said}"
    return refused


def _raised_in(error: BaseException) -> str:
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename


@dataclass
class Bench:
    """A store on one backend in a loop of its own, for examples that are generated outside of any loop."""

    backend: str
    url: str
    runner: asyncio.Runner
    store: SessionStore
    thorough: bool
    tally: Tally
    counts: Counter[str] = field(default_factory=Counter)

    def explore(
        self, strategy: SearchStrategy[Any], check: Callable[[Any], Awaitable[None]], *, few: int, many: int
    ) -> None:
        """Run *check* on *few* generated cases, or *many* with --thorough; the same ones each time."""
        count = many if self.thorough else few

        @settings(QUIET, max_examples=count)
        @given(strategy)
        def example(case: Any) -> None:
            self.runner.run(_awaited(check(case)))

        example()

    async def judged(self, call: Callable[[], Awaitable[Any]], *arguments: str, away: bool = False) -> Any:
        """Judge one call and count it."""
        answer = await judged(call, *arguments, away=away)
        self.counts["refused" if isinstance(answer, Refused) else "answered"] += 1
        return answer


async def _awaited(awaitable: Awaitable[None]) -> None:
    await awaitable
