"""The server beside what this package needs of it: settings, versions, transaction ids, other people's transactions,
dead rows. Only what follows from how the package works; nothing here is ever changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agents_pg_session.database import COMMAND_TIMEOUT
from agents_pg_session.engine import POOL
from agents_pg_session.operations.doctor.asking import Asking
from agents_pg_session.operations.doctor.findings import Finding, Place
from agents_pg_session.tables import TABLES

__all__ = ["activity_findings", "bloat_findings", "server_findings"]

#: The oldest server this package is tested on.
OLDEST_SERVER = 150_000

#: Transaction ids that are left when a database is worth a look: PostgreSQL itself warns at 40 million, and refuses
#: writes at 3 million.
IDS_LEFT = 500_000_000

#: Seconds a transaction may idle with locks of ours, or somebody may wait for one, before that is told.
IDLE_FOR = 60

#: Updates of `sessions` below which the share that was HOT says nothing, and the share that it should not fall below.
UPDATES, HOT_SHARE = 10_000, 0.5

#: Dead rows below which nobody has to care, and their share.
DEAD_ROWS, DEAD_SHARE = 10_000, 0.2

# The settings that matter, as our own connections see them.
_SETTINGS = """
-- What the server is, and the settings that matter here.
SELECT current_setting('server_version_num') AS version_num, current_setting('server_version') AS version,
       pg_is_in_recovery() AS is_standby, current_setting('fsync') AS fsync,
       current_setting('full_page_writes') AS full_page_writes,
       current_setting('synchronous_commit') AS synchronous_commit, current_setting('autovacuum') AS autovacuum,
       current_setting('track_counts') AS track_counts,
       current_setting('server_encoding') AS server_encoding,
       current_setting('max_connections') AS max_connections,
       current_setting('superuser_reserved_connections') AS reserved_connections,
       (SELECT CAST(setting AS bigint) FROM pg_settings WHERE name = 'statement_timeout') AS statement_timeout,
       (SELECT CAST(setting AS bigint) FROM pg_settings
         WHERE name = 'idle_in_transaction_session_timeout') AS idle_timeout,
       (SELECT age(datfrozenxid) FROM pg_database WHERE datname = current_database()) AS database_age
"""

# Tables of ours that autovacuum leaves alone.
_UNVACUUMED = """
-- Tables of ours that autovacuum was switched off for.
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema_name AND c.relkind = 'r'
   AND array_to_string(c.reloptions, ' ') ~* 'autovacuum_enabled=(false|off|0|no)'
 ORDER BY c.relname
"""

# Whoever keeps a lock on a table of ours while doing nothing, or waits for one.
_ACTIVITY = """
-- Who idles in a transaction with a lock on a table of ours, and who waits for such a lock.
SELECT a.pid, coalesce(a.application_name, '') AS application, coalesce(a.usename, '') AS role,
       a.state LIKE 'idle in transaction%' AS is_idle, c.relname AS of_table, l.mode,
       CAST(extract(epoch FROM now() - CASE WHEN l.granted THEN a.state_change ELSE a.query_start END) AS bigint)
       AS seconds
  FROM pg_locks l
  JOIN pg_class c ON c.oid = l.relation
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE n.nspname = :schema_name AND c.relkind = 'r' AND a.pid <> pg_backend_pid()
   AND (a.state LIKE 'idle in transaction%' AND a.state_change < now() - make_interval(secs => :idle_for)
        OR NOT l.granted AND a.query_start < now() - make_interval(secs => :idle_for))
 ORDER BY seconds DESC, a.pid, c.relname
"""

# Dead rows and kinds of updates, by the server's own statistics.
_BLOAT = """
-- Dead rows of our tables, and how many updates wrote no index.
SELECT relname, n_live_tup AS live, n_dead_tup AS dead, n_tup_upd AS updates, n_tup_hot_upd AS hot,
       CAST(greatest(last_autovacuum, last_vacuum) AS text) AS vacuumed,
       pg_size_pretty(pg_table_size(relid)) AS table_size, pg_size_pretty(pg_indexes_size(relid)) AS index_size
  FROM pg_stat_user_tables
 WHERE schemaname = :schema_name
 ORDER BY relname
"""


async def server_findings(asking: Asking) -> list[Finding]:
    """Examine settings, version and transaction ids."""
    [row] = await asking.rows(_SETTINGS)
    unvacuumed = await asking.rows(_UNVACUUMED, schema_name=asking.schema)
    findings = [*_durability(row), *_limits(row), *_age(row), *_kind(row)]
    if row.autovacuum == "off" or row.track_counts == "off" or unvacuumed:
        names = [each.relname for each in unvacuumed]
        findings.append(
            _of_server(
                "fault" if not unvacuumed else "warning",
                "autovacuum is off" + (f" for {', '.join(names)}" if names else ""),
                "Each append leaves a dead row of its session: without vacuum tables grow without end, and transaction"
                " ids run out.",
                "; ".join(f"ALTER TABLE {asking.schema}.{name} RESET (autovacuum_enabled)" for name in names)
                or "ALTER SYSTEM SET autovacuum = on, then SELECT pg_reload_conf()",
            )
        )
    return findings


def _of_server(severity: Any, what: str, why: str, do: str) -> Finding:
    return Finding(severity, "server", what, why, do)


def _durability(row: Any) -> Iterator[Finding]:
    if row.fsync == "off":
        why = "After a crash of the machine the whole database may be damaged beyond repair."
        yield _of_server("fault", "fsync is off", why, "ALTER SYSTEM SET fsync = on, then SELECT pg_reload_conf()")
    if row.full_page_writes == "off":
        why = "After a crash of the machine pages may be half old and half new."
        do = "ALTER SYSTEM SET full_page_writes = on, then SELECT pg_reload_conf()"
        yield _of_server("fault", "full_page_writes is off", why, do)
    if row.synchronous_commit == "off":
        why = "An append that was acknowledged may be lost in a crash: the newest third of a second, as a rule."
        do = "ALTER ROLE … RESET synchronous_commit (or SET it on)"
        yield _of_server("warning", "synchronous_commit is off", why, do)


def _limits(row: Any) -> Iterator[Finding]:
    timeout = COMMAND_TIMEOUT * 1000
    if 0 < row.statement_timeout < timeout:
        yield _of_server(
            "warning",
            f"statement_timeout is {row.statement_timeout} ms, less than a store's command_timeout ({timeout:.0f} ms)",
            "The server ends statements that the store would still have waited for, and they are tried again.",
            f"ALTER ROLE … SET statement_timeout = '{COMMAND_TIMEOUT:.0f}s', or a lower command_timeout for stores",
        )
    if 0 < row.idle_timeout < 1000:
        yield _of_server(
            "warning",
            f"idle_in_transaction_session_timeout is {row.idle_timeout} ms",
            "A change among busy writers is a short transaction of several statements: a slow network alone ends it.",
            "ALTER ROLE … SET idle_in_transaction_session_timeout = '5s'",
        )
    room = int(row.max_connections) - int(row.reserved_connections)
    if room < POOL["pool_size"]:
        yield _of_server(
            "warning",
            f"max_connections leaves {room} connections, less than one store's pool ({POOL['pool_size']})",
            "One busy process takes all of them, and the next one is refused.",
            "raise max_connections, lower pool_size in engine_kwargs, or put PgBouncer in between",
        )


def _age(row: Any) -> Iterator[Finding]:
    left = 2**31 - int(row.database_age)
    if left < IDS_LEFT:
        yield _of_server(
            "fault" if left < 40_000_000 else "warning",
            f"{left:,} transaction ids are left in this database",
            "At 3 million the server refuses every write until it is vacuumed.",
            "find what holds vacuum back (old transactions, replication slots, prepared transactions), then VACUUM"
            " (FREEZE)",
        )


def _kind(row: Any) -> Iterator[Finding]:
    if int(row.version_num) < OLDEST_SERVER:
        why = "This package is tested from PostgreSQL 15 on."
        yield _of_server("warning", f"the server is PostgreSQL {row.version}", why, "upgrade the server")
    if row.server_encoding != "UTF8":
        why = "Items are JSON in any language: what the encoding has no character for is refused."
        do = "dump the database and restore it into one that was created WITH ENCODING 'UTF8'"
        yield _of_server("fault", f"the database's encoding is {row.server_encoding}, not UTF8", why, do)
    if row.is_standby:
        why = "Nothing can be written here, and reads may be behind the primary."
        do = "examine the primary too: the URL's target_session_attrs=primary finds it"
        yield _of_server("note", "this server is a standby", why, do)


async def activity_findings(asking: Asking) -> list[Finding]:
    """Examine who stands in the way right now; of other roles only what the server shows to this one."""
    rows = await asking.rows(_ACTIVITY, schema_name=asking.schema, idle_for=float(IDLE_FOR))
    ours = [row for row in rows if row.of_table in TABLES]
    findings = []
    for is_idle, what, why, do in (
        (
            True,
            "idle in a transaction with locks on our tables",
            "Vacuum cannot remove what it may still want to see, and migrations wait for its locks.",
            "SELECT pg_terminate_backend(pid), and find out who forgot to commit",
        ),
        (
            False,
            "waiting for a lock on our tables",
            "Whoever comes after it waits, too: somebody holds a lock as no verb of this package does.",
            "SELECT pid, pg_blocking_pids(pid) FROM pg_stat_activity, then end whoever blocks",
        ),
    ):
        by_pid = {row.pid: row for row in ours if bool(row.is_idle) == is_idle}
        if by_pid:
            count = f"{len(by_pid)} connection{' is' if len(by_pid) == 1 else 's are'}"
            places = tuple(Place(_who(row)) for row in list(by_pid.values())[:5])
            findings.append(Finding("warning", "activity", f"{count} {what}", why, do, len(by_pid), places))
    return findings


def _who(row: Any) -> str:
    name = f" ({row.application})" if row.application else ""
    return f"pid {row.pid}{name}, role {row.role}: {row.mode} on {row.of_table}, for {row.seconds} s"


async def bloat_findings(asking: Asking) -> list[Finding]:
    """Examine dead rows and HOT updates, by the server's own statistics: they are estimates."""
    rows = [row for row in await asking.rows(_BLOAT, schema_name=asking.schema) if row.relname in TABLES]
    dead = [row for row in rows if row.dead > DEAD_ROWS and row.dead > DEAD_SHARE * (row.live + row.dead)]
    findings = []
    if dead:
        findings.append(
            Finding(
                "warning",
                "bloat",
                f"{len(dead)} table{'' if len(dead) == 1 else 's'} with many dead rows",
                "Reads walk over them, and the table does not get smaller by itself.",
                "; ".join(f"VACUUM (ANALYZE) {asking.schema}.{row.relname}" for row in dead),
                len(dead),
                tuple(
                    Place(
                        f"{row.relname}: {row.dead:,} dead beside {row.live:,} rows, {row.table_size} and"
                        f" {row.index_size} of indexes, last vacuum {row.vacuumed or 'never'}"
                    )
                    for row in dead
                ),
            )
        )
    sessions = next((row for row in rows if row.relname == "sessions"), None)
    if sessions is not None and sessions.updates > UPDATES and sessions.hot < HOT_SHARE * sessions.updates:
        findings.append(
            Finding(
                "warning",
                "bloat",
                f"only {sessions.hot / sessions.updates:.0%} of the updates of sessions were HOT",
                "Each append updates its session's row; where that writes indexes too, appends are slower and indexes"
                " grow.",
                f"see that sessions has its fillfactor and no index of your own on a column that appends change; then"
                f" VACUUM (ANALYZE) {asking.schema}.sessions",
            )
        )
    return findings
