"""Figures over many sessions: how much went on when, which tools are slow, what fails.

Each question reads the rows of its time and no others, through the index that begins with the tenant and ends with the
time (`ix_runs_recent`, `ix_tool_runs_recent`). Over all tenants, PostgreSQL walks that index once per tenant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from agents_pg_session.drivers import Rows
from agents_pg_session.labels import checked_flag, checked_id, checked_number
from agents_pg_session.ledgers.mapping import moment, tool_run
from agents_pg_session.records import ToolRun, UsageOf
from agents_pg_session.statements import Command, Step, Subject, clause, quoted_prefix
from agents_pg_session.store import SessionStore

__all__ = [
    "Bucket",
    "Period",
    "Scope",
    "Since",
    "Statistics",
    "ToolFigures",
    "slow_tools",
    "slowest_tool_runs",
    "statistics",
]

#: Up to here time is told by the hour, up to there by the day, and beyond by the month: so many fit beside each other.
_BY_THE_HOUR, _BY_THE_DAY = timedelta(hours=49), timedelta(days=62)

_SINCE = """
-- From when to when, by the database's clock.
SELECT {now} AS until, {earlier} AS since
"""

_RUNS = """
-- How many sessions had a run that began in each hour, day or month (UTC), and how many runs those were.
SELECT {bucket_of_run} AS bucket, count(*) AS runs,
       count(DISTINCT length(r.tenant_id) || ' ' || r.tenant_id || ' ' || r.session_id) AS sessions,
       count(CASE WHEN r.status = 'failed' THEN 1 END) AS failed_runs
  FROM {runs} AS r
 GROUP BY 1
 ORDER BY 1
"""

_TOOL_RUNS = """
-- How many tool runs began in each hour, day or month (UTC), and how many of them failed.
SELECT {bucket_of_tool_run} AS bucket, count(*) AS tool_runs,
       count(CASE WHEN t.status = 'failed' THEN 1 END) AS failed_tool_runs
  FROM {tool_runs} AS t
 GROUP BY 1
 ORDER BY 1
"""

_SLOW = """
-- How long each tool took: the time within which half of its runs and 95 in 100 were done (nearest rank), the longest.
-- Only runs with hooks are measured; the others are counted.
SELECT tool_name, count(*) AS runs, count(seconds) AS measured,
       count(CASE WHEN status = 'failed' THEN 1 END) AS failed,
       min(CASE WHEN place >= 0.5 * of THEN seconds END) AS p50,
       min(CASE WHEN place >= 0.95 * of THEN seconds END) AS p95,
       max(seconds) AS longest
  FROM (SELECT timed.*, count(seconds) OVER (PARTITION BY tool_name) AS of,
               row_number() OVER (PARTITION BY tool_name ORDER BY seconds IS NULL, seconds) AS place
          FROM (SELECT t.tool_name, t.status, {seconds} AS seconds FROM {tool_runs} AS t) AS timed) AS ranked
 GROUP BY tool_name
 ORDER BY p95 DESC NULLS LAST, tool_name
 LIMIT :limit
"""

_SLOWEST = """
-- The single tool runs that took longest; what they were asked in sessions that have expired is not told any more.
SELECT t.tenant_id, t.session_id, t.call_position, t.output_position, t.call_id, t.tool_name, t.tool_type, t.status,
       t.agent, t.run_id, CAST(t.arguments AS text) AS arguments, t.error, t.created_at, t.started_at, t.finished_at
  FROM {tool_runs} AS t
 WHERE t.finished_at IS NOT NULL AND t.started_at IS NOT NULL
   AND ((SELECT s.expires_at FROM {schema}sessions s
          WHERE s.tenant_id = t.tenant_id AND s.session_id = t.session_id) <= {present}) IS NOT TRUE
 ORDER BY {seconds} DESC, t.created_at DESC
 LIMIT :limit
"""

# The rows of a table that are asked about: of one tenant, or tenant by tenant.
_OF_ONE = "(SELECT * FROM {schema}{table} o WHERE o.tenant_id = :tenant_id AND o.{time} >= {earlier})"
_OF_ALL = """(
    WITH RECURSIVE tenants AS (
        (SELECT tenant_id FROM {schema}{table} ORDER BY tenant_id LIMIT 1)
        UNION ALL
        SELECT (SELECT n.tenant_id FROM {schema}{table} n WHERE n.tenant_id > tenants.tenant_id
                 ORDER BY n.tenant_id LIMIT 1)
          FROM tenants WHERE tenants.tenant_id IS NOT NULL
    )
    SELECT o.* FROM tenants CROSS JOIN LATERAL (
        SELECT * FROM {schema}{table} e
         WHERE e.tenant_id = tenants.tenant_id AND e.{time} >= {earlier} OFFSET 0) AS o)"""
_OF_ALL_ON_SQLITE = "(SELECT * FROM {schema}{table} o WHERE o.{time} >= {earlier})"

_WORDS = {
    "postgresql": {
        "present": "now()",
        "now": "to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24\\:MI\\:SS')",
        "earlier_shown": "to_char(({earlier}) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24\\:MI\\:SS')",
        "ago": "now() - make_interval(secs => CAST(:since AS double precision))",
        "at": "CAST(CAST(:since AS text) AS timestamptz)",
        "hour": "to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24')",
        "day": "to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
        "month": "to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM')",
        "seconds": "CAST(extract(epoch FROM t.finished_at - t.started_at) AS double precision)",
    },
    "sqlite": {
        "present": "strftime('%Y-%m-%d %H\\:%M\\:%f', 'now')",
        "now": "strftime('%Y-%m-%d %H\\:%M\\:%S', 'now')",
        "earlier_shown": "{earlier}",
        "ago": "strftime('%Y-%m-%d %H\\:%M\\:%f', 'now', printf('-%.3f seconds', :since))",
        "at": ":since",
        "hour": "substr({time}, 1, 13)",
        "day": "substr({time}, 1, 10)",
        "month": "substr({time}, 1, 7)",
        "seconds": "(julianday(t.finished_at) - julianday(t.started_at)) * 86400.0",
    },
}

Since = timedelta | datetime


@dataclass(frozen=True, slots=True)
class Bucket:
    """An hour, a day or a month (UTC): what began in it."""

    at: datetime
    sessions: int = 0  #: sessions in which a run began
    runs: int = 0
    failed_runs: int = 0
    tool_runs: int = 0
    failed_tool_runs: int = 0


@dataclass(frozen=True, slots=True)
class ToolFigures:
    """How long the runs of one tool took, in seconds; None where no hooks measured any."""

    tool_name: str | None
    runs: int
    measured: int
    failed: int
    p50: float | None
    p95: float | None
    longest: float | None


@dataclass(frozen=True, slots=True)
class Period:
    """From when to when, by the database's clock."""

    since: datetime
    until: datetime
    by: Literal["hour", "day", "month"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """What went on in a period."""

    period: Period
    over_time: tuple[Bucket, ...]  #: every hour, day or month of the period, also those in which nothing began
    tools: tuple[ToolFigures, ...]  #: the slowest first
    agents: tuple[UsageOf, ...]  #: the most expensive first


async def statistics(
    store: SessionStore, *, since: Since, tenant: str = "", all_tenants: bool = False, limit: int = 10
) -> Statistics:
    """Return how much went on since then, by hour up to two days, by day up to two months; the *limit* slowest tools.

    A session counts in each hour, day or month in which a run of it began.
    """
    scope = Scope(store, since, tenant, all_tenants)
    period = await scope.period()
    words = {
        f"bucket_of_{one}": scope.words[period.by].replace("{time}", f"{row}.{column}") for one, row, column in _TIMES
    }
    begun = {row.bucket: row for row in await scope.ask("stats", _RUNS, words)}
    tools_used = {row.bucket: row for row in await scope.ask("stats", _TOOL_RUNS, words)}
    over_time = tuple(_buckets(period, begun, tools_used))
    tools = await slow_tools(store, since=since, tenant=tenant, all_tenants=all_tenants, limit=limit)
    agents = await store.usage(by="agent", since=since, tenant=tenant, all_tenants=all_tenants)
    return Statistics(period, over_time, tuple(tools), tuple(sorted(agents, key=lambda each: -each.total_tokens)))


async def slow_tools(
    store: SessionStore, *, since: Since, tenant: str = "", all_tenants: bool = False, limit: int = 20
) -> list[ToolFigures]:
    """Return how long each tool took since then, the slowest first: by the time in which 95 of 100 runs were done."""
    rows = await Scope(store, since, tenant, all_tenants).ask(
        "slow tools", _SLOW, {}, limit=checked_number("limit", limit)
    )
    return [
        ToolFigures(row.tool_name, row.runs, row.measured, row.failed, row.p50, row.p95, row.longest) for row in rows
    ]


async def slowest_tool_runs(
    store: SessionStore, *, since: Since, tenant: str = "", all_tenants: bool = False, limit: int = 20
) -> list[ToolRun]:
    """Return the tool runs since then that took longest."""
    scope = Scope(store, since, tenant, all_tenants)
    return [
        tool_run(row)
        for row in await scope.ask("slowest tool runs", _SLOWEST, {}, limit=checked_number("limit", limit))
    ]


_TIMES = (("run", "r", "started_at"), ("tool_run", "t", "created_at"))


class Scope:
    """Whose rows, and since when: what every question here has in common."""

    def __init__(self, store: SessionStore, since: Since, tenant: str, all_tenants: bool) -> None:
        if checked_flag("all_tenants", all_tenants) and tenant:
            raise ValueError("tenant and all_tenants exclude each other")
        self._database = store._database
        self._database.require_open()
        on_postgres = self._database.schema is not None
        self.dialect = "postgresql" if on_postgres else "sqlite"
        self.words = _WORDS[self.dialect]
        self._values: dict[str, Any] = {} if all_tenants else {"tenant_id": checked_id("tenant", tenant)}
        self._earlier = self.words["ago" if isinstance(since, timedelta) else "at"]
        self._since = _bound(since, on_postgres)
        self._of = (_OF_ALL if on_postgres else _OF_ALL_ON_SQLITE) if all_tenants else _OF_ONE

    async def period(self) -> Period:
        """Return from when to when, and whether hours or days tell more of it."""
        shown = self.words["earlier_shown"].replace("{earlier}", self._earlier)
        sql = _SINCE.replace("{now}", self.words["now"]).replace("{earlier}", shown)
        [row] = await self._run("stats", sql, {"since": self._since})
        since, until = moment(row.since), moment(row.until)
        long = until - since
        return Period(since, until, "hour" if long <= _BY_THE_HOUR else "day" if long <= _BY_THE_DAY else "month")

    async def ask(self, verb: str, sql: str, words: dict[str, str], **values: object) -> Rows:
        for table, time in (("tool_runs", "created_at"), ("runs", "started_at")):
            source = self._of.replace("{table}", table).replace("{time}", time)
            sql = sql.replace("{" + table + "}", source)
        for word, meaning in {**words, **self.words, "earlier": self._earlier}.items():
            sql = sql.replace("{" + word + "}", meaning)
        return await self._run(verb, sql, {**self._values, "since": self._since, **values})

    async def _run(self, verb: str, sql: str, values: dict[str, Any]) -> Rows:
        sql = sql.replace("{schema}", quoted_prefix(self._database.schema))
        return await self._database.read(Command(Subject(verb), (Step(clause(sql), values),)))


def _bound(since: Since, on_postgres: bool) -> float | str:
    if isinstance(since, timedelta):
        return since.total_seconds()
    utc = since.astimezone(UTC)
    return utc.isoformat() if on_postgres else utc.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _buckets(period: Period, begun: dict[str, Any], tools_used: dict[str, Any]) -> Iterator[Bucket]:
    """Yield every hour, day or month of the period; rows are found under the name the database gives it."""
    name, step = _STEPS[period.by]
    at = _floor(period.since, period.by)
    while at <= period.until:
        run, tool = begun.get(at.strftime(name)), tools_used.get(at.strftime(name))
        runs = (run.sessions, run.runs, run.failed_runs) if run is not None else (0, 0, 0)
        yield Bucket(at, *runs, *((tool.tool_runs, tool.failed_tool_runs) if tool is not None else (0, 0)))
        at = _floor(at + step, period.by)


#: How the database calls an hour, a day or a month, and a step that surely ends in the next one.
_STEPS = {
    "hour": ("%Y-%m-%d %H", timedelta(hours=1)),
    "day": ("%Y-%m-%d", timedelta(days=1)),
    "month": ("%Y-%m", timedelta(days=31)),
}


def _floor(moment: datetime, by: str) -> datetime:
    moment = moment.replace(minute=0, second=0, microsecond=0)
    moment = moment if by == "hour" else moment.replace(hour=0)
    return moment.replace(day=1) if by == "month" else moment
