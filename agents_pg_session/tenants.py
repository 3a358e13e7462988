"""Whose session it is: a tenant that is known, or one that each run's context tells."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from agents import RunContextWrapper

from agents_pg_session.errors import SessionError
from agents_pg_session.labels import checked_id
from agents_pg_session.statements import Key
from agents_pg_session.texts import described, shown

__all__ = ["Tenant", "Whose"]

#: A tenant, or how to tell it from a run: `lambda run: run.context.org_id`.
Tenant = str | Callable[[RunContextWrapper[Any]], str]


class Whose:
    """The key of one handle's session. It never falls back to another tenant: without an answer it raises."""

    def __init__(self, tenant: Tenant, session_id: str) -> None:
        self._told = tenant if callable(tenant) else None
        self._known = None if callable(tenant) else Key(checked_id("tenant", tenant), session_id)
        self._session_id = session_id

    def __repr__(self) -> str:
        tenant = self._told if self._known is None else self._known.tenant_id
        return f"{self._session_id!r}, tenant={tenant!r}" if tenant else repr(self._session_id)

    def key(self) -> Key:
        """Return the key outside of any run. Raises `SessionError` where only a run can tell the tenant."""
        if self._known is None:
            raise SessionError(
                f"session {self._session_id!r}: its tenant is told by a run's context, and this call is no run's; "
                'open the session with tenant="…" to look at it'
            )
        return self._known

    def key_in(self, run: RunContextWrapper[Any]) -> Key:
        """Return the key in a run. Raises `SessionError` when the run's context does not tell the tenant."""
        if self._told is None:
            return self.key()
        where = f"session {self._session_id!r}: the run's context does not tell its tenant"
        try:
            tenant: object = self._told(run)
        except Exception as error:
            raise SessionError(f"{where} ({described(error)})") from error
        if not isinstance(tenant, str) or not tenant:
            if inspect.iscoroutine(tenant):
                tenant.close()  # an asynchronous function tells it too late
            raise SessionError(f"{where}, but {shown(tenant)}")
        return Key(checked_id("tenant", tenant), self._session_id)
