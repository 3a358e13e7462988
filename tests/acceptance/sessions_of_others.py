"""How the sessions in docs/conformance.md are opened: ours, and the SDK's own `SQLAlchemySession`, as its docs say.

python -m agents_pg_session.testing tests.acceptance.sessions_of_others:sdk_with_one_engine --close …:give_back
"""

from __future__ import annotations

import asyncio
import weakref
from dataclasses import dataclass, field
from typing import Any

from agents.extensions.memory import SQLAlchemySession
from agents.memory import Session
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from agents_pg_session import PGSession


def ours(session_id: str, url: str) -> Session:
    """A handle as the README opens it, with all defaults."""
    return PGSession.from_url(session_id, url=url, create_tables=True)


def ours_impatient(session_id: str, url: str) -> Session:
    """The same, giving up sooner: the suite asks for what happens when the database stays away."""
    return PGSession.from_url(session_id, url=url, create_tables=True, retry_for=1.5, command_timeout=0.8)


def asyncpg_url(url: str) -> str:
    """The SDK's session takes what SQLAlchemy takes."""
    return make_url(url).set(drivername="postgresql+asyncpg").render_as_string(hide_password=False)


def sdk_from_url(session_id: str, url: str) -> Session:
    """The first way in its docs: an engine per handle."""
    return SQLAlchemySession.from_url(session_id, url=asyncpg_url(url), create_tables=True)


@dataclass
class _Shared:
    """An application's engine, one per database and event loop, as SQLAlchemy asks for."""

    engine: AsyncEngine
    handles: set[int] = field(default_factory=set)


_engines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Shared]] = weakref.WeakKeyDictionary()


async def sdk_with_one_engine(session_id: str, url: str) -> Session:
    """The second way in its docs: an engine that the application manages."""
    return shared(session_id, url)


async def sdk_with_pre_ping(session_id: str, url: str) -> Session:
    """The same with `pool_pre_ping=True`, which SQLAlchemy recommends against connections that died idle."""
    return shared(session_id, url, pool_pre_ping=True)


def shared(session_id: str, url: str, **settings: Any) -> Session:
    engines = _engines.setdefault(asyncio.get_running_loop(), {})
    if (found := engines.get(url)) is None:
        found = engines[url] = _Shared(create_async_engine(asyncpg_url(url), **settings))
    session = SQLAlchemySession(session_id, engine=found.engine, create_tables=True)
    found.handles.add(id(session))
    return session


async def give_back(session: SQLAlchemySession) -> None:
    """The application ends its engine with its last handle."""
    for engines in list(_engines.values()):
        for url, found in list(engines.items()):
            if found.engine is session.engine:
                found.handles.discard(id(session))
                if not found.handles:
                    del engines[url]
                    await found.engine.dispose()
                return
    await session.engine.dispose()
