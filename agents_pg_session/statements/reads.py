"""Reading the record: one text for both dialects, with the few words they say differently filled in.

A session's own lists walk the primary key, once it is known not to have expired. Lists across sessions walk an index
that begins with the tenant and ends with the sort key; over all tenants they walk it once per tenant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from agents_pg_session.statements import Command, Key, Step, Subject, clause, quoted_prefix

__all__ = ["TOOL_RUN_STATUSES", "Reads"]

TOOL_RUN_STATUSES = ("running", "succeeded", "failed", "rejected")

_SESSION = """
    s.tenant_id, s.session_id, s.status, s.agent, s.user_id, CAST(s.metadata AS text) AS metadata,
    s.item_count, s.message_count, s.turn_count, s.tool_run_count, s.tool_error_count, s.last_event_id,
    s.input_tokens, s.output_tokens, s.last_position, s.created_at, s.updated_at, s.active_at, s.ended_at,
    s.expires_at, s.forked_from, s.forked_through"""
_RUN = """
    r.session_id, r.run_id, r.status, r.agent, r.trace_id, r.turn, r.requests, r.input_tokens, r.cached_tokens,
    r.output_tokens, r.reasoning_tokens, r.total_tokens, r.model_seconds, r.started_at, r.last_seen_at, r.finished_at,
    r.error, CAST(r.usage_details AS text) AS details"""
_TOOL_RUN = """
    t.tenant_id, t.session_id, t.call_position, t.output_position, t.call_id, t.tool_name, t.tool_type, t.status,
    t.agent, t.run_id, CAST(t.arguments AS text) AS arguments, t.error, t.created_at, t.started_at, t.finished_at"""
_EVENT = """
    e.session_id, e.event_id, e.kind, e.run_id, e.agent, CAST(e.payload AS text) AS payload, e.created_at"""
_SNAPSHOT = """
    n.session_id, n.kind, n.version, n.through_position, CAST(n.content AS text) AS content, n.label,
    CAST(n.metadata AS text) AS metadata, n.created_at, n.claimed_by, n.claimed_until"""
_ITEM = """
    i.position, i.turn, i.run_id, i.created_at, CAST(i.item AS text) AS item"""
_SUMS = """
    count(*) AS runs, coalesce(sum(r.requests), 0) AS requests, coalesce(sum(r.input_tokens), 0) AS input_tokens,
    coalesce(sum(r.cached_tokens), 0) AS cached_tokens, coalesce(sum(r.output_tokens), 0) AS output_tokens,
    coalesce(sum(r.reasoning_tokens), 0) AS reasoning_tokens, coalesce(sum(r.total_tokens), 0) AS total_tokens"""

# Sessions with a run that waits: what it asks for is in the paused run itself or, where nobody saved that, in the calls
# of the last turn that have no output.
_WAITING = """
    s.tenant_id, s.session_id, s.agent, s.user_id, CAST(s.metadata AS text) AS metadata, s.active_at,
    n.version, CAST(n.metadata AS text) AS asked, n.created_at AS paused_at, n.claimed_until,
    CAST((SELECT {json_list}({json_object}('tool_name', t.tool_name, 'call_id', t.call_id, 'agent', t.agent,
                                      'arguments', {json_arguments}))
       FROM (SELECT t.* FROM {schema}tool_runs t
               JOIN {schema}items i ON i.tenant_id = t.tenant_id AND i.session_id = t.session_id
                                   AND i.position = t.call_position
              WHERE t.tenant_id = s.tenant_id AND t.session_id = s.session_id AND t.status = 'running'
                AND i.turn = s.turn_count
              ORDER BY t.call_position LIMIT 100) AS t) AS text) AS running"""
_ALIVE = "(s.expires_at IS NULL OR s.expires_at > {now})"
_PAUSED = """
  LEFT JOIN {schema}snapshots n
    ON n.tenant_id = s.tenant_id AND n.session_id = s.session_id AND n.kind = 'run_state'
   AND n.through_position = s.last_position
   AND n.version = (SELECT max(m.version) FROM {schema}snapshots m
                     WHERE m.tenant_id = s.tenant_id AND m.session_id = s.session_id AND m.kind = 'run_state')"""

# Every tenant there is, one index probe each.
_TENANTS = """
WITH RECURSIVE tenants AS (
    (SELECT tenant_id FROM {table} ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT o.tenant_id FROM {table} o WHERE o.tenant_id > tenants.tenant_id ORDER BY o.tenant_id LIMIT 1)
      FROM tenants WHERE tenants.tenant_id IS NOT NULL
)
"""

_WORDS = {
    "postgresql": {
        "now": "now()",
        "json_list": "json_agg",
        "json_object": "json_build_object",
        "json_arguments": "t.arguments",
        "day": "to_char(r.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
        "like": "ILIKE",
        "fenced": "cardinality(s.fenced_ids) > 0",
    },
    "sqlite": {
        "now": "strftime('%Y-%m-%d %H\\:%M\\:%f', 'now')",
        "json_list": "json_group_array",
        "json_object": "json_object",
        # A row that was edited by hand may hold no JSON: then it is shown as text.
        "json_arguments": "json(CASE WHEN json_valid(CAST(t.arguments AS text)) THEN CAST(t.arguments AS text)"
        " ELSE json_quote(CAST(t.arguments AS text)) END)",
        "day": "substr(r.started_at, 1, 10)",
        "like": "LIKE",
        "fenced": "false",
    },
}

#: What a statement may ask of metadata on SQLite, whose parser goes no deeper and whose expressions grow no longer.
_SQLITE_DEPTH = 7
_SQLITE_VALUES = 300

# What is rare in the metadata is found through its index, what is common by walking the list: which of them, only the
# values tell. PostgreSQL would plan once for all values from the sixth use on; to that plan this adds the cost of
# counting to a billion, of which its own condition lets nobody begin. From a plan for these values it vanishes.
_FOR_THESE_VALUES = """(CAST(:for_these_values AS boolean)
       OR (SELECT count(*) FROM generate_series(1, 1000000000) WHERE NOT CAST(:for_these_values AS boolean)) > 0)"""

By = Literal["agent", "user", "tenant", "day"]
Since = datetime | timedelta | None
Values = dict[str, Any]


class Reads:
    """What can be asked about sessions; each answers a command whose rows are mapped by the ledgers."""

    def __init__(self, schema: str | None) -> None:
        self._dialect = "sqlite" if schema is None else "postgresql"
        # The schema last: whatever its name contains is a name.
        self._words = {**_WORDS[self._dialect], "schema": quoted_prefix(schema)}

    def info(self, key: Key) -> Command:
        # The row that a fence leaves where no session is does not make one.
        there = f"NOT (s.last_position = 0 AND s.last_event_id = 0 AND {{fenced}}) AND {_ALIVE}"
        return self._of(key, "info", f"SELECT {_SESSION}\n  FROM {{schema}}sessions s{_key('s')} AND {there}")

    def erasable(self, key: Key) -> Command:
        """Which row a delete is to erase, and whether it is a session that has not expired."""
        there = "NOT (s.last_position = 0 AND s.last_event_id = 0 AND {fenced})"
        sql = f"SELECT s.created_at, {_ALIVE} AS alive\n  FROM {{schema}}sessions s{_key('s')} AND {there}"
        return self._of(key, "info", sql)

    def sessions(
        self, tenant: str | None, filters: Mapping[str, str | None], metadata: str | None, after: list[Any] | None,
        limit: int,
    ) -> Command:  # fmt: skip
        where, values = self._filters("s", filters)
        where += ["s.last_position + s.last_event_id > 0", _ALIVE]  # a lease or a fence alone is no conversation
        if metadata is not None:
            more, bound = self._contains("s.metadata", metadata)
            if filters.get("user_id") is not None:
                # A user's sessions are few: reading them beats an index of what many sessions have.
                more = [f"({each}) IS TRUE" for each in more]
            where, values = where + more, values | bound
        order = ("active_at", "session_id", *(("tenant_id",) if tenant is None else ()))
        return self._across("sessions", "s", _SESSION, "", tenant, where, values, order, after, limit)

    def waiting(self, tenant: str | None, after: list[Any] | None, limit: int) -> Command:
        order = ("active_at", "session_id", *(("tenant_id",) if tenant is None else ()))
        where = ["s.status = 'waiting'", _ALIVE]
        return self._across("sessions", "s", _WAITING, _PAUSED, tenant, where, {}, order, after, limit)

    def all_tool_runs(
        self, tenant: str | None, status: str | None, tool_name: str | None, since: Since, after: list[Any] | None,
        limit: int,
    ) -> Command:  # fmt: skip
        where, values = self._tool_run_filters(status, tool_name)
        self._since("t.created_at", since, where, values)
        where.append(_not_expired("s.tenant_id = t.tenant_id AND s.session_id = t.session_id"))
        order = ("created_at", "session_id", "call_position", *(("tenant_id",) if tenant is None else ()))
        return self._across("tool_runs", "t", _TOOL_RUN, "", tenant, where, values, order, after, limit)

    def usage_by(self, by: By, tenant: str | None, since: Since, until: datetime | None) -> Command:
        of = {"agent": "r.agent", "user": "s.user_id", "tenant": "r.tenant_id", "day": "{day}"}[by]
        join = ""
        if by == "user":
            join = "\n  JOIN {schema}sessions s ON s.tenant_id = r.tenant_id AND s.session_id = r.session_id"
        where, values = [], {}
        if tenant is not None:
            where, values = ["r.tenant_id = :tenant_id"], {"tenant_id": tenant}
        self._since("r.started_at", since, where, values)
        if until is not None:
            where.append(f"r.started_at < {self._moment('until')}")
            values["until"] = self._bound(until)
        conditions = "\n WHERE " + " AND ".join(where) if where else ""
        if tenant is None and where and self._dialect == "postgresql":
            each = " AND ".join(("r.tenant_id = tenants.tenant_id", *where))
            runs = f"tenants CROSS JOIN LATERAL (SELECT * FROM {{schema}}runs r WHERE {each} OFFSET 0) AS r"
            tenants = _TENANTS.replace("{table}", "{schema}runs")
            sql = f"{tenants}SELECT {of} AS of, {_SUMS}\n  FROM {runs}{join}\n GROUP BY 1 ORDER BY 1"
            return self._command(Subject("usage"), sql, values)
        sql = f"SELECT {of} AS of, {_SUMS}\n  FROM {{schema}}runs r{join}{conditions}\n GROUP BY 1 ORDER BY 1"
        return self._command(Subject("usage"), sql, values)

    def usage(self, key: Key) -> Command:
        sql = f"SELECT r.turn, {_SUMS}\n  FROM {{schema}}runs r{_where('r')}\n GROUP BY r.turn ORDER BY r.turn"
        return self._of(key, "usage", sql)

    def runs(self, key: Key, filters: Mapping[str, str | None], after: list[Any] | None, limit: int) -> Command:
        where, values = self._filters("r", filters)
        return self._list(key, "runs", "r", _RUN, where, values, ("started_at", "run_id"), after, limit)

    def run(self, key: Key, run_id: str) -> Command:
        sql = f"SELECT {_RUN}\n  FROM {{schema}}runs r{_where('r')} AND r.run_id = :run_id"
        return self._of(key, "run", sql, run_id=run_id)

    def tool_runs(
        self, key: Key, status: str | None, filters: Mapping[str, str | None], after: list[Any] | None, limit: int
    ) -> Command:
        where, values = self._tool_run_filters(status, None)
        more, bound = self._filters("t", filters)
        where, values = where + more, values | bound
        return self._list(key, "tool_runs", "t", _TOOL_RUN, where, values, ("call_position",), after, limit)

    def tool_run(self, key: Key, position: int) -> Command:
        sql = f"SELECT {_TOOL_RUN}\n  FROM {{schema}}tool_runs t{_where('t')} AND t.call_position = :position"
        return self._of(key, "tool_run", sql, position=position)

    def events(self, key: Key, filters: Mapping[str, str | None], after: int, limit: int) -> Command:
        where, values = self._filters("e", filters)
        conditions = "".join(f" AND {each}" for each in where)
        sql = (
            f"SELECT {_EVENT}\n  FROM {{schema}}events e{_where('e')} AND e.event_id > :after{conditions}"
            "\n ORDER BY e.event_id LIMIT :limit"
        )
        return self._of(key, "events", sql, after=after, limit=limit + 1, **values)

    def event(self, key: Key, event_id: int) -> Command:
        sql = f"SELECT {_EVENT}\n  FROM {{schema}}events e{_where('e')} AND e.event_id = :event_id"
        return self._of(key, "event", sql, event_id=event_id)

    def latest_event(self, key: Key, filters: Mapping[str, str | None]) -> Command:
        where, values = self._filters("e", filters)
        return self._list(key, "events", "e", _EVENT, where, values, ("event_id",), None, 0)

    def snapshots(self, key: Key, kind: str | None, after: list[Any] | None, limit: int) -> Command:
        where, values = self._filters("n", {"kind": kind})
        order = ("version",) if kind is not None else ("kind", "version")
        return self._list(key, "snapshots", "n", _SNAPSHOT, where, values, order, after, limit)

    def snapshot(self, key: Key, kind: str, version: int) -> Command:
        version_of = "n.kind = :kind AND n.version = CAST(:version AS bigint)"
        sql = f"SELECT {_SNAPSHOT}\n  FROM {{schema}}snapshots n{_where('n')} AND {version_of}"
        return self._of(key, "snapshot", sql, kind=kind, version=version)

    def stored_items(self, key: Key, before_position: int | None, limit: int) -> Command:
        after = None if before_position is None else [before_position]
        return self._list(key, "items", "i", _ITEM, [], {}, ("position",), after, limit - 1)

    def find(self, key: Key, pattern: str, before_position: int | None, limit: int) -> Command:
        like = ["CAST(i.item AS text) {like} :pattern ESCAPE '!'"]
        after = None if before_position is None else [before_position]
        return self._list(key, "items", "i", _ITEM, like, {"pattern": pattern}, ("position",), after, limit - 1)

    def _of(self, key: Key, verb: str, sql: str, **values: object) -> Command:
        return self._command(Subject(verb, key), sql, {**key._asdict(), **values})

    def _list(
        self, key: Key, table: str, alias: str, columns: str, where: list[str], values: Values,
        order: tuple[str, ...], after: list[Any] | None, limit: int,
    ) -> Command:  # fmt: skip
        """A page of a session's own rows, newest first."""
        sort, more, bound = self._keyset(alias, order, after)
        conditions = "".join(f" AND {each}" for each in (*where, *more))
        sql = f"SELECT {columns}\n  FROM {{schema}}{table} {alias}{_where(alias)}{conditions}\n{sort} LIMIT :limit"
        return self._of(key, table, sql, limit=limit + 1, **values, **bound)

    def _across(
        self, table: str, alias: str, columns: str, join: str, tenant: str | None, where: list[str], values: Values,
        order: tuple[str, ...], after: list[Any] | None, limit: int,
    ) -> Command:  # fmt: skip
        """A page of one tenant's rows, or of all tenants' (None), newest first."""
        sort, more, bound = self._keyset(alias, order, after)
        values = {**values, **bound, "limit": limit + 1}
        conditions = [*where, *more]
        each_tenant = tenant is None and self._dialect == "postgresql"
        if tenant is not None:
            conditions.insert(0, f"{alias}.tenant_id = :tenant_id")
            values["tenant_id"] = tenant
        elif each_tenant:
            conditions.insert(0, f"{alias}.tenant_id = tenants.tenant_id")
        clause_where = "\n WHERE " + " AND ".join(conditions) if conditions else ""
        sql = f"SELECT {columns}\n  FROM {{schema}}{table} {alias}{join}{clause_where}\n{sort} LIMIT :limit"
        if each_tenant:
            outer = sort.replace(f"{alias}.", "page.")
            tenants = _TENANTS.replace("{table}", f"{{schema}}{table}")
            sql = f"{tenants}SELECT page.*\n  FROM tenants CROSS JOIN LATERAL (\n{sql}) AS page\n{outer} LIMIT :limit"
        return self._command(Subject(table), sql, values)

    def _tool_run_filters(self, status: str | None, tool_name: str | None) -> tuple[list[str], Values]:
        where, values = self._filters("t", {"tool_name": tool_name})
        if status is not None:
            # Spelled out, for the planner to see that the index of what did not succeed has it.
            assert status in TOOL_RUN_STATUSES, "the ledgers check it"
            where.append(f"t.status = '{status}'")
        return where, values

    def _filters(self, alias: str, filters: Mapping[str, str | None]) -> tuple[list[str], Values]:
        given = {column: value for column, value in filters.items() if value is not None}
        return [f"{alias}.{column} = :{column}" for column in given], dict(given)

    def _keyset(self, alias: str, order: tuple[str, ...], after: list[Any] | None) -> tuple[str, list[str], Values]:
        columns = ", ".join(f"{alias}.{column}" for column in order)
        sort = " ORDER BY " + ", ".join(f"{alias}.{column} DESC" for column in order)
        if after is None:
            return sort, [], {}
        places = [self._place(f"after_{index}", value) for index, value in enumerate(after)]
        bound = {
            f"after_{index}": self._bound(value) if isinstance(value, datetime) else value
            for index, value in enumerate(after)
        }
        return sort, [f"({columns}) < ({', '.join(places)})"], bound

    def _place(self, name: str, value: object) -> str:
        if isinstance(value, datetime):
            return self._moment(name)
        return f"CAST(:{name} AS bigint)" if isinstance(value, int) else f":{name}"

    def _since(self, column: str, since: Since, where: list[str], values: Values) -> None:
        if isinstance(since, timedelta):  # by the database's clock
            values["seconds"] = since.total_seconds()
            earlier = "now() - make_interval(secs => CAST(:seconds AS double precision))"
            if self._dialect == "sqlite":
                earlier = "strftime('%Y-%m-%d %H\\:%M\\:%f', 'now', printf('-%.3f seconds', :seconds))"
            where.append(f"{column} >= {earlier}")
        elif since is not None:
            values["since"] = self._bound(since)
            where.append(f"{column} >= {self._moment('since')}")

    def _moment(self, name: str) -> str:
        return f":{name}" if self._dialect == "sqlite" else f"CAST(CAST(:{name} AS text) AS timestamptz)"

    def _bound(self, moment: datetime) -> str:
        """As SQLite holds times, as text; PostgreSQL reads the ISO form whatever its settings.

        That is text with milliseconds where we wrote it, with microseconds where it came from elsewhere and has any.
        """
        utc = moment.astimezone(UTC)
        if self._dialect == "sqlite":
            precision = "microseconds" if utc.microsecond % 1000 else "milliseconds"
            return utc.replace(tzinfo=None).isoformat(" ", precision)
        return utc.isoformat()

    def _contains(self, column: str, metadata: str) -> tuple[list[str], Values]:
        """Containment, as jsonb's `@>` has it; on SQLite spelled out."""
        if self._dialect == "postgresql":
            contained = f"{column} @> CAST(CAST(:metadata AS text) AS jsonb)"
            return [contained, _FOR_THESE_VALUES], {"metadata": metadata, "for_these_values": True}
        values: Values = {}
        valid = f"CASE WHEN json_valid({column}) THEN {column} END"  # what was edited by hand contains nothing
        conditions = list(_contained(valid, json.loads(metadata), values))
        if len(values) > _SQLITE_VALUES:
            raise ValueError("metadata asks for more than SQLite looks for at once")
        return conditions, values

    def _command(self, subject: Subject, sql: str, values: Values) -> Command:
        for word, meaning in self._words.items():
            sql = sql.replace("{" + word + "}", meaning)
        return Command(subject, (Step(clause(sql), values),))


def _key(alias: str) -> str:
    return f"\n WHERE {alias}.tenant_id = :tenant_id AND {alias}.session_id = :session_id"


def _where(alias: str) -> str:
    """A session's own rows, none if it has expired: asked once per statement."""
    return f"{_key(alias)}\n   AND {_not_expired('s.tenant_id = :tenant_id AND s.session_id = :session_id')}"


def _not_expired(session: str) -> str:
    """A value, not a join: one probe of the primary key wherever the planner puts it."""
    return f"((SELECT s.expires_at FROM {{schema}}sessions s WHERE {session}) <= {{now}}) IS NOT TRUE"


def _contained(document: str, wanted: Any, values: Values, depth: int = 1) -> Iterator[str]:
    """Spell out that a JSON document in SQLite contains *wanted*: every key of an object, every element of a list."""
    if depth > _SQLITE_DEPTH:
        raise ValueError(f"metadata asks for more than SQLite looks for at once: {_SQLITE_DEPTH} levels of nesting")
    pairs = wanted.items() if isinstance(wanted, dict) else ((None, each) for each in wanted)
    for key, value in pairs:
        name = f"each_{len(values)}"
        values[f"{name}_value"] = value if isinstance(value, str | int | float) else None
        conditions = [f"{name}.type IN ({_json_types(value)})"]
        if key is not None:
            values[f"{name}_key"] = key
            conditions.append(f"{name}.key = :{name}_key")
        if isinstance(value, dict | list):
            conditions.extend(_contained(f"{name}.value", value, values, depth + 1))
        elif type(value) is int and abs(value) >= 2**63:  # a number to SQLite only as text
            values[f"{name}_value"] = str(value)
            conditions.append(f"{document} -> {name}.fullkey = :{name}_value")
        elif type(value) in (str, int, float):
            conditions.append(f"{name}.value = :{name}_value")
        yield f"EXISTS (SELECT 1 FROM json_each({document}) AS {name} WHERE {' AND '.join(conditions)})"


def _json_types(value: object) -> str:
    match value:
        case bool():
            return "'true'" if value else "'false'"
        case str():
            return "'text'"
        case int() | float():
            return "'integer', 'real'"
        case dict():
            return "'object'"
        case list():
            return "'array'"
        case _:
            return "'null'"
