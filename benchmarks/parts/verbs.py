"""One contender doing one verb at a time, with everything that has to be there before it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count

from benchmarks.contenders import Contender
from benchmarks.workload import HEAVY, READ, USUAL, Profile, fresh_id

__all__ = ["HEAVY_TURN", "VERBS", "Trial"]

HEAVY_TURN = "heavy turn"
VERBS = ("first append", "append", "latest 50", "pop", "clear", "turn", HEAVY_TURN)


class Trial:
    """A contender with sessions of its own: what is measured is only what `ready` returns."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self._sessions: dict[Profile, str] = {}
        self._numbers = count(1)
        self._popped, self._items_to_pop = fresh_id(), 0

    async def ready(self, verb: str) -> Callable[[], Awaitable[object]]:
        """Prepare one verb and return it, not yet begun. Raises `NotImplementedError` for what it cannot do."""
        contender, number = self.contender, next(self._numbers)
        items, session_id = USUAL.turn(number), fresh_id()
        match verb:
            case "first append":
                return lambda: contender.append(session_id, items)
            case "append":
                session_id = await self._filled(USUAL)
                return lambda: contender.append(session_id, items)
            case "latest 50":
                session_id = await self._filled(USUAL)
                return lambda: contender.latest(session_id, READ)
            case "pop":
                return await self._ready_to_pop()
            case "clear":
                await contender.append(session_id, items)
                return lambda: contender.clear(session_id)
            case "turn":
                session_id = await self._filled(USUAL)
                return lambda: contender.turn(session_id, items)
            case _:
                session_id, items = await self._filled(HEAVY), HEAVY.turn(number)
                return lambda: contender.turn(session_id, items)

    async def _ready_to_pop(self) -> Callable[[], Awaitable[object]]:
        if self._items_to_pop == 0:
            turns = [item for number in range(10) for item in USUAL.turn(number)]
            await self.contender.append(self._popped, turns)
            self._items_to_pop = len(turns)
        self._items_to_pop -= 1
        return lambda: self.contender.pop(self._popped)

    async def _filled(self, profile: Profile) -> str:
        """Return a session with as many items as are read."""
        if profile not in self._sessions:
            session_id = self._sessions[profile] = fresh_id()
            for number in range(READ // 4 + 1):
                await self.contender.append(session_id, profile.turn(number))
        return self._sessions[profile]
