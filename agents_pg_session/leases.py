"""One run at a time: a lease on the session's row, kept by a heartbeat.

The lease is two columns of a row, so it works behind any pooler and ends by itself when its holder dies. It keeps apart
those who ask for it; and a holder that lost it (its process stood still for too long) cannot append any more.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from types import TracebackType
from typing import Generic, TypeVar
from uuid import uuid4

from tenacity import AsyncRetrying, RetryError, retry_if_result, stop_after_delay, wait_random_exponential

from agents_pg_session.errors import SessionError
from agents_pg_session.labels import LONGEST, checked_seconds
from agents_pg_session.ledgers.items import Items
from agents_pg_session.ledgers.scope import Scope
from agents_pg_session.patience import PARTING
from agents_pg_session.texts import shown

__all__ = ["Exclusive"]

_Session = TypeVar("_Session")

logger = logging.getLogger("agents_pg_session.leases")


class Exclusive(Generic[_Session]):
    """The block in which a session is run by nobody else who asks for it too."""

    def __init__(self, session: _Session, scope: Scope, items: Items, *, wait: float, lease_for: float) -> None:
        if isinstance(wait, bool) or not isinstance(wait, int | float) or not wait >= 0:
            raise ValueError(f"wait must be a number of seconds, zero or more, not {shown(wait)}")
        self._session = session
        self._scope = scope
        self._items = items
        self._wait = float(min(wait, LONGEST))
        self._lease_for = checked_seconds("lease_for", lease_for)
        self._lease_id = str(uuid4())
        self._lost = False
        self._heart: asyncio.Task[None] | None = None

    async def __aenter__(self) -> _Session:
        if self._items.lease_id is not None:
            raise self._scope.database.conflict(
                "lease", f"session {self._scope.key.session_id!r}: this handle runs it alone already"
            )
        attempts = AsyncRetrying(
            retry=retry_if_result(lambda taken: not taken),
            wait=wait_random_exponential(multiplier=0.02, max=0.5),
            stop=stop_after_delay(self._wait),
        )
        try:
            await attempts(self._take)
        except RetryError:
            key = self._scope.key
            raise self._scope.database.conflict(
                "lease", f"session {key.session_id!r} is run by somebody else (waited {self._wait:g} s)"
            ) from None
        except asyncio.CancelledError:
            await self._release(PARTING)  # the try under way may have taken it
            raise
        self._items.lease_id = self._lease_id
        self._heart = asyncio.create_task(self._beat(), name=f"lease of {self._scope.key.session_id}")
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._heart is not None
        self._heart.cancel()
        self._items.lease_id = None
        try:
            # First: whoever cancels this block may do so again at each await.
            await self._release(None if kind is None else PARTING)
        finally:
            await asyncio.wait([self._heart])
        if self._lost and error is None:
            raise self._scope.database.conflict(
                "lease",
                f"session {self._scope.key.session_id!r}: the lease was lost while the block ran: it stood still for "
                f"longer than {self._lease_for:g} s and somebody else took it, or the session was deleted "
                "or has expired",
            )

    async def _take(self) -> bool:
        key, database = self._scope.key, self._scope.database
        lease = partial(database.sql.lease, key, self._lease_id, self._lease_for, self._scope.labels)
        return await self._scope.change(lease) is not None

    async def _beat(self) -> None:
        key, database = self._scope.key, self._scope.database
        while not self._lost:
            await asyncio.sleep(self._lease_for / 3)
            try:
                renew = database.sql.renew(key, self._lease_id, self._lease_for)
                self._lost = not await database.write(renew, database.budget())
            except SessionError as failure:
                logger.warning("could not renew the lease: %s", failure)

    async def _release(self, at_most: float | None) -> None:
        key, database = self._scope.key, self._scope.database
        try:
            await database.write(database.sql.release(key, self._lease_id), database.budget(at_most=at_most))
        except SessionError as failure:
            logger.info("could not release the lease, it ends by itself: %s", failure)
