"""What a promise is, and the list of them."""

from __future__ import annotations

import asyncio
import inspect
import unittest
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agents_pg_session.testing.promises.subject import Needs, Subject
from agents_pg_session.testing.promises.trial import Trial

__all__ = ["PROMISES", "Broken", "NotApplicable", "Promise", "keeps", "promise", "unless"]

#: After a promise ran out of time, seconds that what it started has to end once its connections are cut.
_TO_LET_GO = 5.0


class Broken(AssertionError):
    """The promise does not hold; the first line says what was seen."""


class NotApplicable(unittest.SkipTest):
    """The promise says nothing about this session, or cannot be asked here. pytest shows it as skipped."""


@dataclass(frozen=True, slots=True)
class Promise:
    """One thing that a session is held to. `str(promise)` is its name, `sentence` what is promised."""

    name: str
    group: str
    sentence: str
    needs: Needs
    races: bool  #: whether it was kept may be luck: ask several times
    within: float  #: seconds; who takes longer has broken it
    ask: Callable[[Trial], Awaitable[None]]

    def __str__(self) -> str:
        return self.name

    async def check(self, subject: Subject) -> None:
        """Return if *subject* keeps the promise.

        Raises `Broken` (or whatever its session raised) if not, and `NotApplicable` where it cannot be asked.
        """
        if reason := subject.lacks(self.needs):
            raise NotApplicable(reason)
        async with Trial(subject) as trial:
            asking = asyncio.ensure_future(self.ask(trial))
            try:
                await asyncio.wait({asking}, timeout=self.within)
            finally:
                late = not asking.done()
                if late:  # also when whoever asks was cancelled
                    await _end(asking, trial)
            if late:
                raise Broken(f"no end within {self.within:.0f} s")
            asking.result()


async def _end(asking: asyncio.Future[None], trial: Trial) -> None:
    """Give up a promise that hangs: first what it waits for, then itself, in case it waits for something else."""
    asking.add_done_callback(lambda late: late.cancelled() or late.exception())  # seen: being late is what counts
    trial.cut()
    asking.cancel()
    await asyncio.wait({asking}, timeout=_TO_LET_GO)


#: Every promise, in the order in which a person would ask.
PROMISES: list[Promise] = []


def promise(
    group: str, *, needs: Needs = "nothing", races: bool = False, within: float = 180
) -> Callable[[Callable[[Trial], Awaitable[None]]], Callable[[Trial], Awaitable[None]]]:
    """Put a function on the list; the first paragraph of its docstring is the promise."""

    def register(ask: Callable[[Trial], Awaitable[None]]) -> Callable[[Trial], Awaitable[None]]:
        name = getattr(ask, "__name__", "")
        sentence = " ".join((inspect.getdoc(ask) or "").split("\n\n")[0].split())
        PROMISES.append(Promise(name, group, sentence, needs, races, within, ask))
        return ask

    return register


def keeps(kept: bool, otherwise: str) -> None:
    """Raise `Broken` with what was seen instead, unless *kept*."""
    if not kept:
        raise Broken(otherwise)


def unless(absent: bool, reason: str) -> None:
    """Raise `NotApplicable` for *reason* if what the promise is about is *absent*."""
    if absent:
        raise NotApplicable(reason)
