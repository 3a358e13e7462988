"""Who is compared with whom."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from benchmarks.contenders.base import Contender, Ports
from benchmarks.contenders.langgraph import LangGraph
from benchmarks.contenders.ours import FullRecord, Plain
from benchmarks.contenders.raw import Raw
from benchmarks.contenders.sdk import SDKRedis, SDKSQLAlchemy
from benchmarks.workload import READ

__all__ = [
    "ALL", "DATABASES", "FULL", "LANGGRAPH", "PLAIN", "RAW", "RAW_FULL", "REDIS", "REDIS_ALWAYS", "SDK", "SDK_PER_TURN",
    "Contender", "Ports", "opened",
]  # fmt: skip

FULL = "PGSession, full record"
PLAIN = "PGSession, items only"
RAW_FULL = "raw asyncpg, our statement, full record"
RAW = "raw asyncpg, our statement, items only"
SDK = "SQLAlchemySession, handles kept"
SDK_PER_TURN = "SQLAlchemySession, a handle per turn"
REDIS = "RedisSession, fsync every second"
REDIS_ALWAYS = "RedisSession, fsync always"
LANGGRAPH = "LangGraph AsyncPostgresSaver"

#: Each has a database of its own, so that nobody's rows are in another one's way.
DATABASES = ("full", "plain", "raw_full", "raw", "sdk", "sdk_per_turn", "langgraph")

Opener = Callable[[Ports], Awaitable[Contender]]

ALL: Mapping[str, Opener] = {
    FULL: partial(FullRecord.open, database="full", name=FULL),
    PLAIN: partial(Plain.open, database="plain", name=PLAIN),
    RAW_FULL: partial(Raw.open, database="raw_full", name=RAW_FULL, full=True),
    RAW: partial(Raw.open, database="raw", name=RAW, full=False),
    SDK: partial(SDKSQLAlchemy.open, database="sdk", name=SDK, keep=True),
    SDK_PER_TURN: partial(SDKSQLAlchemy.open, database="sdk_per_turn", name=SDK_PER_TURN, keep=False),
    REDIS: partial(SDKRedis.open, policy="everysec", name=REDIS),
    REDIS_ALWAYS: partial(SDKRedis.open, policy="always", name=REDIS_ALWAYS),
    LANGGRAPH: partial(LangGraph.open, database="langgraph", name=LANGGRAPH, window=READ),
}


@asynccontextmanager
async def opened(
    ports: Ports, *names: str, without: Sequence[str] = (), others: Mapping[str, Opener] | None = None
) -> AsyncIterator[dict[str, Contender]]:
    """Open contenders (all of them if none is named) and close them at the end; Redis only where there is one."""
    openers = {**{name: ALL[name] for name in names or ALL if name not in without}, **(others or {})}
    policies = {REDIS: "everysec", REDIS_ALWAYS: "always"}
    contenders: dict[str, Contender] = {}
    async with AsyncExitStack() as stack:
        for name, opener in openers.items():
            if name in policies and policies[name] not in ports.redis:
                continue
            contenders[name] = await opener(ports)
            stack.push_async_callback(contenders[name].close)
        yield contenders
