"""A network that was out of order, and works again."""

from __future__ import annotations

import asyncio

from agents_pg_session import SessionStore
from agents_pg_session.testing.proxy import Proxy

__all__ = ["healed"]


async def healed(proxy: Proxy, store: SessionStore) -> None:
    """Let everything that was frozen arrive, and wait until the connections nobody uses any more have ended."""
    proxy.heal()
    while proxy.open > store.engine.pool.checkedin():  # type: ignore[attr-defined]
        await asyncio.sleep(0.002)
