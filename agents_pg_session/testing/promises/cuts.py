"""A call whose connection is cut between any two of its messages, in either direction: what became of it each time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from agents.memory import Session

from agents_pg_session.testing.promises.trial import Item, Trial, history
from agents_pg_session.testing.proxy import Fault

__all__ = ["CALLS", "Cut", "cut_everywhere", "warmed"]

#: More messages than any sensible call sends; a call that needs fewer ends the search by itself.
_MESSAGES = 60

Call = Callable[[Session, list[Item]], Awaitable[Any]]

CALLS: dict[str, Call] = {
    "append": lambda session, batch: session.add_items(batch),
    "pop": lambda session, _: session.pop_item(),
    "clear": lambda session, _: session.clear_session(),
    "read": lambda session, _: session.get_items(),
}


@dataclass(frozen=True)
class Cut:
    """One call under one cut: what it was to append, what it returned or raised, the history before and after."""

    where: str
    batch: list[Item]
    result: Any
    error: Exception | None
    before: list[Item]
    after: list[Item]

    @property
    def acknowledged(self) -> bool:
        return self.error is None

    def saw(self, what: str) -> str:
        """Return *what* happened, where the cut was and what the caller was told."""
        told = "acknowledged" if self.error is None else type(self.error).__name__
        return f"cut {self.where}: {what} ({told})"


async def cut_everywhere(trial: Trial, verb: str) -> list[Cut]:
    """Cut *verb* after each message of the client, then after each of the server, until it gets by without a cut."""
    return await _cut(trial, verb, [_each_message_of("client"), _each_message_of("server")])


def _each_message_of(side: Literal["client", "server"]) -> Iterable[tuple[str, Fault]]:
    for passed in range(_MESSAGES):
        yield f"after {passed} messages of the {side}", Fault(side=side, passed=passed)


async def _cut(trial: Trial, verb: str, searches: list[Iterable[tuple[str, Fault]]]) -> list[Cut]:
    proxy, url = await trial.proxied()
    name = trial.new_id()
    session, direct = await trial.open(name, url), await trial.open(name)
    cuts: list[Cut] = []
    async with trial.observer() as observer:
        for search in searches:
            for where, fault in search:
                before = await warmed(session, direct)
                batch, result, error = history(2, f"{len(cuts)}."), None, None
                faults, proxy.fault = proxy.faults, fault
                try:
                    result = await CALLS[verb](session, batch)
                except Exception as raised:
                    error = raised
                    await trial.settled(observer)
                cuts.append(Cut(where, batch, result, error, before, await direct.get_items()))
                if proxy.faults == faults:
                    break
            proxy.fault = None
            proxy.cut_all()  # with them goes a fault that has not happened
    return cuts


async def warmed(session: Session, direct: Session) -> list[Item]:
    """Connect *session* anew if it has to, see to it that there is something to take out, and return the history."""
    for _ in range(5):
        with suppress(Exception):
            await session.get_items()
            break
    if len(items := await direct.get_items()) < 2:
        await direct.add_items(history(2))
        items = await direct.get_items()
    return items
