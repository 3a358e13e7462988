"""Several hosts over asyncpg: each gets its own time to answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg

__all__ = ["connect_in_turn"]

#: A server that is starting, stopping or full, and one that is not of the kind the URL asks for.
_ANOTHER_MAY_DO = (
    OSError,
    TimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.PostgresConnectionError,
    asyncpg.TargetServerAttributeNotMatched,
)


async def connect_in_turn(
    host: str | Sequence[str] | None = None,
    port: int | Sequence[int] | None = None,
    *,
    target_session_attrs: str | None = None,
    **arguments: Any,
) -> Any:
    """Connect with asyncpg to the first host that answers and is of the kind asked for.

    asyncpg's own `timeout` is one for all hosts together, so a first host that is silent (a machine that is gone, as in
    a failover) would use up the time of the next one. libpq's `connect_timeout` is per host
    (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-CONNECT-TIMEOUT).
    """
    connect: Any = asyncpg.connect
    if target_session_attrs is not None:
        arguments["target_session_attrs"] = target_session_attrs
    if not _several(host) or not isinstance(port, Sequence) or target_session_attrs == "prefer-standby":
        # To prefer a standby, all hosts have to be known first: asyncpg does that.
        return await connect(host=host, port=port, **arguments)
    failure: Exception | None = None
    for name, number in zip(host or (), port, strict=True):
        try:
            return await connect(host=name, port=number, **arguments)
        except _ANOTHER_MAY_DO as error:
            failure = error
    assert failure is not None
    raise failure


def _several(host: str | Sequence[str] | None) -> bool:
    return host is not None and not isinstance(host, str) and len(host) > 1
