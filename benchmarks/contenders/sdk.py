"""The SDK's own sessions: `SQLAlchemySession` on asyncpg, and `RedisSession`."""

from __future__ import annotations

import redis.asyncio as redis
from agents.extensions.memory import RedisSession, SQLAlchemySession
from agents.memory import SessionABC
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.contenders.base import Ports, SessionContender

__all__ = ["SDKContender", "SDKRedis", "SDKSQLAlchemy"]


class SDKContender(SessionContender):
    """Any session of the SDK; *keep* keeps a handle per session, otherwise each call makes one."""

    def __init__(self, name: str, *, keep: bool) -> None:
        super().__init__(name)
        self._keep = keep
        self._kept: dict[str, SessionABC] = {}

    def make(self, session_id: str) -> SessionABC:
        raise NotImplementedError

    def handle(self, session_id: str) -> SessionABC:
        if not self._keep:
            return self.make(session_id)
        if session_id not in self._kept:
            self._kept[session_id] = self.make(session_id)
        return self._kept[session_id]


class SDKSQLAlchemy(SDKContender):
    """One engine for all sessions, which is the better half of how it is used: `from_url` makes one per handle."""

    def __init__(self, name: str, engine: AsyncEngine, *, keep: bool) -> None:
        super().__init__(name, keep=keep)
        self.engine = engine

    @classmethod
    async def open(cls, ports: Ports, database: str, name: str, *, keep: bool) -> SDKSQLAlchemy:
        url = ports.url(database).replace("postgresql", "postgresql+asyncpg")
        engine = create_async_engine(url, pool_size=ports.pool_size, max_overflow=0)
        await SQLAlchemySession("first", engine=engine, create_tables=True).get_items()
        return cls(name, engine, keep=keep)

    def make(self, session_id: str) -> SessionABC:
        return SQLAlchemySession(session_id, engine=self.engine)

    async def close(self) -> None:
        await self.engine.dispose()


class SDKRedis(SDKContender):
    """One client for all sessions."""

    def __init__(self, name: str, client: redis.Redis) -> None:
        super().__init__(name, keep=False)
        self.client = client

    @classmethod
    async def open(cls, ports: Ports, policy: str, name: str) -> SDKRedis:
        pool = redis.BlockingConnectionPool(
            host="127.0.0.1", port=ports.redis[policy], max_connections=ports.pool_size, timeout=60
        )
        client = redis.Redis(connection_pool=pool)
        await client.ping()
        return cls(name, client)

    def make(self, session_id: str) -> SessionABC:
        return RedisSession(session_id, redis_client=self.client)

    async def close(self) -> None:
        await self.client.aclose(close_connection_pool=True)
