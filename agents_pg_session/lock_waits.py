"""What may end the work of an upgrade: its own limit for locks, and no limit that a role or a database sets.

Whoever waits for a strong lock on a table stands in front of everybody who comes after, also of those who would not
have had to wait for its holder. So an upgrade waits for its locks a short while only, lets go, and comes again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["LIFT", "Wait", "Witness", "lift_limits", "limit_lock_waits"]

logger = logging.getLogger("agents_pg_session.migrations")

#: The least a statement is given to get its locks (seconds), however much the ones before it took.
_LEAST = 0.1

#: Seconds until an index build that still waits for the same transaction says so again.
_REMIND_AFTER = 30.0


#: Lift what a role or a database sets against the statements of an application, for one transaction: an upgrade may
#: take long, and its lock is held by a transaction that is idle on purpose. (Not every server knows all of them.)
LIFT = """
SELECT set_config(name, '0', true) FROM pg_settings
 WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')
"""

# The same as long as the connection lasts, for what works outside of transactions: an index that is built concurrently.
# Not `lock_timeout`: what that ends is tried again.
_LIFT_FOR_GOOD = """
SELECT set_config(name, '0', false) FROM pg_settings
 WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout',
                'idle_session_timeout')
"""


def lift_limits(connection: Any, _record: object) -> None:
    """Lift the limits of a new connection, if it is one to the server itself: for SQLAlchemy's event `connect`.

    Behind a pooler the next statement may run on another connection of the server, and somebody else's on this one. The
    process that a pooler says it is, is not the one that answers.
    """
    cursor = connection.cursor()
    cursor.execute("SELECT pg_backend_pid()")
    [answering] = cursor.fetchone()
    driver_connection = connection.driver_connection
    info = getattr(driver_connection, "info", None)  # psycopg's
    if answering == (driver_connection.get_server_pid() if info is None else info.backend_pid):
        cursor.execute(_LIFT_FOR_GOOD)
    cursor.close()
    connection.commit()


def limit_lock_waits(connection: Connection, seconds: float) -> None:
    """Give each transaction of *connection* so many seconds for all its statements to get their locks.

    Beyond that the server ends it with SQLSTATE 55P03; no other limit does. Statements in autocommit are not limited:
    an index that is built concurrently keeps nobody waiting, and would be left invalid.
    """
    left = seconds
    since = 0.0
    begun = False

    def begin(_connection: Connection) -> None:
        nonlocal left, begun
        left, begun = seconds, True

    def before(connection: Connection, cursor: Any, *_about: object) -> None:
        nonlocal since, begun
        since = time.monotonic()
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            if begun:
                cursor.execute(LIFT)
                begun = False
            cursor.execute(f"SET LOCAL lock_timeout = '{max(left, _LEAST) * 1000:.0f}ms'")

    def after(*_about: object) -> None:
        nonlocal left
        left -= time.monotonic() - since

    event.listen(connection, "begin", begin)
    event.listen(connection, "before_cursor_execute", before)
    event.listen(connection, "after_cursor_execute", after)


_WAITS = text(
    """
    -- What a connection of an upgrade waits for, and who holds it: a row per holder.
    SELECT w.mode, w.locktype, format('%s.%s', n.nspname, c.relname) AS relation, w.relation IS NULL AS is_transaction,
           b.pid, b.application_name, b.usename, b.state, b.backend_type, b.xact_start,
           extract(epoch FROM clock_timestamp() - b.xact_start) AS seconds
      FROM pg_stat_activity a
      JOIN pg_locks w ON w.pid = a.pid AND NOT w.granted
      LEFT JOIN pg_class c ON c.oid = w.relation
      LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
      CROSS JOIN LATERAL unnest(pg_blocking_pids(a.pid)) AS holder (pid)
      LEFT JOIN pg_stat_activity b ON b.pid = holder.pid
     WHERE a.datname = current_database() AND a.application_name = :name AND a.wait_event_type = 'Lock'
     ORDER BY b.xact_start
    """
)


@dataclass(frozen=True)
class Wait:
    """One lock that was waited for, and whoever held it."""

    what: str
    holders: tuple[str, ...]
    pids: tuple[int, ...]
    is_transaction: bool  #: for a transaction to end, whatever it has locked: so does the build of an index

    def __str__(self) -> str:
        return f"{self.what} held by {'; '.join(self.holders)}"


class Witness:
    """Looks from a connection of its own at what the connections called *name* wait for."""

    def __init__(self, engine: AsyncEngine, name: str, *, every: float) -> None:
        self._engine = engine
        self._name = name
        self._every = every
        self._told: tuple[int, ...] = ()
        self._told_at = 0.0
        self._ended = asyncio.Event()
        self.last: Wait | None = None  #: the last wait for a lock on a table that was seen

    def end(self) -> None:
        """Let `watch` end: cancelled instead, it would leave a connection behind that was being made."""
        self._ended.set()

    async def watch(self) -> None:
        """Look until told to end; where the database does not let us look, nothing is seen, and no harm done."""
        try:
            async with self._engine.connect() as plain:
                connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
                while not self._ended.is_set():
                    rows = (await connection.execute(_WAITS, {"name": self._name})).all()
                    if rows:
                        self._see(_wait(rows))
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._every):
                            await self._ended.wait()
        except (SQLAlchemyError, OSError) as error:
            logger.debug("cannot see who holds locks: %s", type(error).__name__)

    def _see(self, wait: Wait) -> None:
        """Remember a wait for a lock, and say at once what the build of an index waits for: that may take long."""
        now = time.monotonic()
        if not wait.is_transaction:
            self.last = wait
        elif wait.pids != self._told or now > self._told_at + _REMIND_AFTER:
            self._told, self._told_at = wait.pids, now
            logger.info("waiting for %s to end; nobody else has to wait meanwhile", "; ".join(wait.holders))


def _wait(rows: Any) -> Wait:
    first = rows[0]
    what = "a transaction" if first.is_transaction else f"a lock ({first.mode}) on {first.relation}"
    holders = tuple(dict.fromkeys(map(_holder, rows)))
    return Wait(what, holders, tuple(row.pid for row in rows if row.pid), first.is_transaction)


def _holder(row: Any) -> str:
    """Say who it is, as far as the server tells our role: it hides other roles' sessions from most."""
    if row.pid is None:
        return "a prepared transaction (pg_prepared_xacts lists them)"
    if row.state is None and not row.xact_start:
        who = row.backend_type or "hidden from this role: pg_read_all_stats would show it"
        return f"pid {row.pid} ({who})"
    name = row.application_name or row.backend_type or "without application_name"
    since = "" if row.xact_start is None else f", its transaction open since {row.xact_start:%Y-%m-%d %H:%M:%S%z}"
    seconds = "" if row.seconds is None else f" ({float(row.seconds):.0f} s)"
    return f"pid {row.pid} ({name}, role {row.usename}, {row.state or 'active'}{since}{seconds})"
