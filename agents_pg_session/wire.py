"""What the drivers do not do themselves: give each of several hosts its own time, and hang up at once."""

from __future__ import annotations

import contextlib
import socket
import traceback
from collections.abc import Sequence
from typing import Any

__all__ = ["connect_in_turn", "connect_or_let_go", "hang_up"]


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
    import asyncpg  # here: who uses another driver does not load it

    connect: Any = asyncpg.connect
    another_may_do = (
        OSError,
        TimeoutError,
        # starting, stopping, or full
        asyncpg.CannotConnectNowError,
        asyncpg.AdminShutdownError,
        asyncpg.CrashShutdownError,
        asyncpg.TooManyConnectionsError,
        asyncpg.PostgresConnectionError,
        # not of the kind asked for
        asyncpg.TargetServerAttributeNotMatched,
    )
    if target_session_attrs is not None:
        arguments["target_session_attrs"] = target_session_attrs
    if not _several(host) or not isinstance(port, Sequence) or target_session_attrs == "prefer-standby":
        # To prefer a standby, all hosts have to be known first: asyncpg does that.
        return await connect(host=host, port=port, **arguments)
    failure: Exception | None = None
    for name, number in zip(host or (), port, strict=True):
        try:
            return await connect(host=name, port=number, **arguments)
        except another_may_do as error:
            failure = error
    assert failure is not None
    raise failure


async def connect_or_let_go(*arguments: Any, **keywords: Any) -> Any:
    """Connect with psycopg; when there is no time left for it, close what was being made.

    A connection under way belongs to psycopg's generators only. A cancelled one would stay open, and take its place on
    the server, until the garbage collector finds them in the traceback's cycle.
    """
    from psycopg import AsyncConnection  # here: who uses another driver does not load it

    try:
        return await AsyncConnection.connect(*arguments, **keywords)
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise


def _several(host: str | Sequence[str] | None) -> bool:
    return host is not None and not isinstance(host, str) and len(host) > 1


def hang_up(driver_connection: Any) -> None:
    """End a connection at once, from a callback of its event loop: who waits for an answer on it gets an error now."""
    if hasattr(driver_connection, "terminate"):  # asyncpg
        driver_connection.terminate()
        return
    if driver_connection.closed:
        return
    # psycopg waits for its socket to become readable, which the end of the stream makes it. The socket itself stays
    # open until psycopg closes it: were its number free, somebody else's could take it under psycopg's feet.
    with (
        contextlib.suppress(OSError),  # the server was faster: the socket is connected no more
        socket.fromfd(driver_connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as duplicate,
    ):
        duplicate.shutdown(socket.SHUT_RDWR)
