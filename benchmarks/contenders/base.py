"""What every contender can be asked, in the words of a session."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agents.memory import Session

from agents_pg_session.projection import Item
from benchmarks.workload import READ

__all__ = ["POOL_SIZE", "Contender", "Ports", "SessionContender"]

#: Connections each contender may hold: the same for all.
POOL_SIZE = 15


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the servers are, seen from the client: the servers themselves, or proxies in front of them."""

    postgres: int
    redis: Mapping[str, int] = field(default_factory=dict)  #: by policy
    pool_size: int = POOL_SIZE

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.postgres}/{database}"


class Contender(ABC):
    """One way to keep sessions. A handle is made per turn, as a web handler does, unless its name says otherwise."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    async def append(self, session_id: str, items: list[Item]) -> None:
        """Append a turn."""

    @abstractmethod
    async def latest(self, session_id: str, limit: int | None) -> Sequence[object]:
        """Read the newest items; all of them without a limit."""

    @abstractmethod
    async def pop(self, session_id: str) -> None:
        """Take the newest item out. Raises `NotImplementedError` where there is no such thing."""

    @abstractmethod
    async def clear(self, session_id: str) -> None:
        """Take all items out."""

    @abstractmethod
    async def close(self) -> None:
        """Give all connections back."""

    async def turn(self, session_id: str, items: list[Item]) -> None:
        """Read what the model is given, and append what the turn brought."""
        await self.latest(session_id, READ)
        await self.append(session_id, items)


class SessionContender(Contender):
    """Any session of the SDK's protocol."""

    @abstractmethod
    def handle(self, session_id: str) -> Session:
        """Return the handle that one turn uses."""

    async def append(self, session_id: str, items: list[Item]) -> None:
        await self.handle(session_id).add_items(items)

    async def latest(self, session_id: str, limit: int | None) -> Sequence[object]:
        return await self.handle(session_id).get_items(limit)

    async def pop(self, session_id: str) -> None:
        await self.handle(session_id).pop_item()

    async def clear(self, session_id: str) -> None:
        await self.handle(session_id).clear_session()

    async def turn(self, session_id: str, items: list[Item]) -> None:
        session = self.handle(session_id)
        await session.get_items(READ)
        await session.add_items(items)
