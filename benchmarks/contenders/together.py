"""Appends that travel together: those that wait at the same moment go in one statement; over raw asyncpg, and ours.

A sketch, to see what it would bring: metadata and status are merged as this benchmark's appends need it, and there are
no guards and no outputs of earlier calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import asyncpg

from agents_pg_session.drivers import Driver, Rows, _record_class
from agents_pg_session.projection import Item
from agents_pg_session.statements import Command
from benchmarks.contenders.base import Ports
from benchmarks.contenders.ours import FullRecord, open_store
from benchmarks.contenders.raw import Raw

__all__ = ["STATEMENT", "Alone", "InLibrary", "Together"]

_TURN = 4  #: items of one append
_MOST = 32  #: appends in one statement
_AT_ONCE = 2  #: statements of appends under way: with a connection for everybody, nobody would wait for company
_POOL = 64  #: connections in the library, where an append holds one while it travels with another one

# -- the statement: what append.py composes for one append, for many sessions

_SCALARS = {
    "text": "session_id agent run_agent user_id metadata status run_id run_status trace_id run_error usage_details",
    "bigint": "count events messages turns tool_runs tool_errors_count input_tokens output_tokens requests "
    "cached_tokens reasoning_tokens total_tokens",
    "double precision": "run_started run_finished model_seconds",
    "uuid": "operation_id",
}
#: What an append brings several of: a JSON array first, then lists; all appends' together, each with its owner.
_LISTS = {
    "items": {"types": "text", "roles": "text", "call_ids": "text", "turn_offsets": "bigint"},
    "tool_arguments": {"tool_places": "bigint", "tool_output_places": "bigint", "tool_call_ids": "text",
                       "tool_names": "text", "tool_types": "text", "tool_agents": "text", "tool_statuses": "text",
                       "tool_errors": "text", "tool_started": "double precision",
                       "tool_finished": "double precision"},
    "payloads": {"kinds": "text", "event_run_ids": "text", "event_agents": "text"},
}  # fmt: skip
_COLUMNS = {name: kind for kind, names in _SCALARS.items() for name in names.split()}


def _rows(json_name: str) -> str:
    lists = {f"{json_name}_owners": "bigint", f"{json_name}_nths": "bigint", **_LISTS[json_name]}
    unnested = ", ".join(f"unnest(CAST(:{name} AS {kind}[]))" for name, kind in lists.items())
    return (
        f"ROWS FROM (json_array_elements(CAST(CAST(:{json_name} AS text) AS json)), {unnested})\n"
        f"           AS each (value, owner, nth, {', '.join(_LISTS[json_name])}) ON each.owner = session.place"
    )


# Sorted, so that two statements lock the rows they share in the same order.
_STATEMENT = f"""
WITH given AS MATERIALIZED (
    SELECT * FROM unnest({", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in _COLUMNS.items())})
           WITH ORDINALITY AS each ({", ".join(_COLUMNS)}, place)
), upserted AS (
    INSERT INTO "agents".sessions AS s (
        tenant_id, session_id, agent, user_id, metadata, status, last_position, last_event_id,
        item_count, message_count, turn_count, tool_run_count, tool_error_count, input_tokens, output_tokens,
        created_at, updated_at, active_at)
    SELECT :tenant_id, session_id, coalesce(agent, run_agent), user_id, coalesce(CAST(metadata AS jsonb), '{{}}'),
           coalesce(status, 'active'), count, events, count, messages, turns, tool_runs, tool_errors_count,
           input_tokens, output_tokens, now(), now(), now()
      FROM given ORDER BY session_id
    ON CONFLICT (tenant_id, session_id) DO UPDATE SET
        agent = coalesce(excluded.agent, s.agent),
        user_id = coalesce(excluded.user_id, s.user_id),
        metadata = CASE WHEN excluded.metadata = '{{}}' THEN s.metadata ELSE excluded.metadata END,
        status = excluded.status,
        ended_at = CASE WHEN excluded.status <> 'active' THEN s.ended_at END,
        last_position = s.last_position + excluded.last_position,
        last_event_id = s.last_event_id + excluded.last_event_id,
        item_count = s.item_count + excluded.item_count,
        message_count = s.message_count + excluded.message_count,
        turn_count = s.turn_count + excluded.turn_count,
        tool_run_count = s.tool_run_count + excluded.tool_run_count,
        tool_error_count = s.tool_error_count + excluded.tool_error_count,
        input_tokens = s.input_tokens + excluded.input_tokens,
        output_tokens = s.output_tokens + excluded.output_tokens,
        updated_at = excluded.updated_at,
        active_at = CASE WHEN excluded.turn_count > 0 THEN excluded.active_at ELSE s.active_at END
    WHERE NOT EXISTS (SELECT FROM given WHERE given.session_id = s.session_id
                         AND given.operation_id = ANY (s.fenced_ids))
    RETURNING s.session_id, s.last_position, s.item_count, s.turn_count, s.last_event_id
), session AS MATERIALIZED (
    SELECT given.*, u.last_position, u.item_count, u.turn_count, u.last_position - given.count AS position,
           u.turn_count - given.turns AS turn, u.last_event_id - given.events AS event_id
      FROM upserted u JOIN given USING (session_id)
), inserted AS (
    INSERT INTO "agents".items (
        tenant_id, session_id, position, turn, run_id, append_id, type, role, call_id, created_at, item)
    SELECT :tenant_id, session_id, position + each.nth, turn + each.turn_offsets, run_id, operation_id,
           each.types, each.roles, each.call_ids, now(), each.value
      FROM session JOIN {_rows("items")}
), called AS (
    INSERT INTO "agents".tool_runs (
        tenant_id, session_id, call_position, output_position, call_id, tool_name, tool_type, agent, status, run_id,
        started_at, finished_at, error, arguments, created_at)
    SELECT :tenant_id, session_id, position + tool_places, position + tool_output_places, tool_call_ids, tool_names,
           tool_types, tool_agents, tool_statuses, run_id, now() - make_interval(secs => tool_started),
           CASE WHEN tool_statuses <> 'running' THEN now() - make_interval(secs => coalesce(tool_finished, 0)) END,
           tool_errors, CASE WHEN CAST(each.value AS text) <> 'null' THEN each.value END, now()
      FROM session JOIN {_rows("tool_arguments")}
), run AS (
    INSERT INTO "agents".runs AS r (
        tenant_id, session_id, run_id, status, agent, trace_id, requests, input_tokens, cached_tokens, output_tokens,
        reasoning_tokens, total_tokens, started_at, last_seen_at, finished_at, error, usage_details, turn,
        model_seconds)
    SELECT :tenant_id, session_id, run_id, run_status, run_agent, trace_id, requests, input_tokens, cached_tokens,
           output_tokens, reasoning_tokens, total_tokens, now() - make_interval(secs => run_started), now(),
           now() - make_interval(secs => run_finished), run_error, CAST(usage_details AS json), turn_count,
           model_seconds
      FROM session
    ON CONFLICT (tenant_id, session_id, run_id) DO UPDATE SET
        status = excluded.status, agent = coalesce(excluded.agent, r.agent),
        trace_id = coalesce(excluded.trace_id, r.trace_id),
        requests = r.requests + excluded.requests, input_tokens = r.input_tokens + excluded.input_tokens,
        cached_tokens = r.cached_tokens + excluded.cached_tokens,
        output_tokens = r.output_tokens + excluded.output_tokens,
        reasoning_tokens = r.reasoning_tokens + excluded.reasoning_tokens,
        total_tokens = r.total_tokens + excluded.total_tokens,
        last_seen_at = excluded.last_seen_at, finished_at = excluded.finished_at, error = excluded.error,
        usage_details = coalesce(excluded.usage_details, r.usage_details),
        model_seconds = r.model_seconds + excluded.model_seconds
), noted AS (
    INSERT INTO "agents".events (
        tenant_id, session_id, event_id, kind, run_id, agent, operation_id, created_at, payload)
    SELECT :tenant_id, session_id, event_id + each.nth, kinds, event_run_ids, event_agents, operation_id, now(),
           CASE WHEN CAST(each.value AS text) <> 'null' THEN each.value END
      FROM session JOIN {_rows("payloads")}
)
SELECT place, position, last_position, item_count FROM session
"""
_NAMES = list(dict.fromkeys(re.findall(r"(?<!:):(\w+)", _STATEMENT)))
STATEMENT = re.sub(r"(?<!:):(\w+)", lambda found: f"${_NAMES.index(found[1]) + 1}", _STATEMENT)


@dataclass(slots=True)
class _Waiting:
    values: Mapping[str, Any]
    asked: Any  #: what it takes to send it alone
    answer: asyncio.Future[Any]


class _Line:
    """Appends that wait: whoever comes first takes all of them along. One that waits alone goes as it always did."""

    def __init__(
        self,
        connection: Callable[[], AbstractAsyncContextManager[Any]],
        alone: Callable[[Any, Any], Awaitable[Any]],
        grouped: Callable[[Any, list[_Waiting]], Awaitable[Any]],
    ) -> None:
        self.sizes: list[int] = []  #: of the groups that were sent
        self._connection, self._alone, self._grouped = connection, alone, grouped
        self._waiting: list[_Waiting] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._led = False  #: somebody goes first, on behalf of all that wait
        self._turnstile = asyncio.Semaphore(_AT_ONCE)

    async def append(self, values: Mapping[str, Any], asked: Any) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(values, asked, answer))
        if not self._led:
            await self._send()
        return await answer

    async def _send(self) -> None:
        self._led = True
        async with self._turnstile, self._connection() as connection:
            group = self._take()
            self._led = bool(self._waiting)
            if self._led:
                others = asyncio.create_task(self._send())
                self._sending.add(others)
                others.add_done_callback(self._sending.discard)
            if len(group) > 1:
                with contextlib.suppress(asyncpg.PostgresError):  # One of them is bad: each for itself.
                    for row in await self._grouped(connection, group):
                        group[row["place"] - 1].answer.set_result([row])
                    self.sizes.append(len(group))
                    return
            for each in group:
                self.sizes.append(1)
                try:
                    each.answer.set_result(await self._alone(connection, each.asked))
                except asyncpg.PostgresError as error:
                    each.answer.set_exception(error)

    def _take(self) -> list[_Waiting]:
        """Take those that may go together: one of each session."""
        group: dict[str, _Waiting] = {}
        rest = []
        for each in self._waiting:
            if each.values["session_id"] in group or len(group) == _MOST:
                rest.append(each)
            else:
                group[each.values["session_id"]] = each
        self._waiting = rest
        return list(group.values())


class Alone(Raw):
    """Raw asyncpg without the Runner's objects: what both would pay alike only hides the difference."""

    async def append(self, session_id: str, items: list[Item]) -> None:
        for first in range(0, len(items), _TURN):
            await self._append(session_id, items[first : first + _TURN])


class Together(Alone):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.line = _Line(
            self._connection,
            lambda connection, values: connection.fetch(self._write.sql, *values),
            lambda connection, group: connection.fetch(STATEMENT, *_joined(group)),
        )

    async def _fetch(self, sql: str, values: list[Any]) -> list[Any]:
        if sql != self._write.sql:
            return await super()._fetch(sql, values)
        named = dict(zip(self._write.names, values, strict=True))
        return cast("list[Any]", await self.line.append(named, values))

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        connection = await self._free.get()
        try:
            yield connection
        finally:
            self._free.put_nowait(connection)


class InLibrary(FullRecord):
    """The library, with appends joined where they reach the driver: what is left of the gain behind its Python.

    A sketch: each append holds a connection while it travels with another one, so there is one for everybody.
    """

    @classmethod
    async def open(cls, ports: Ports, database: str, name: str) -> InLibrary:
        contender = cls(name, await open_store(ports.url(database), pool_size=_POOL))
        inner = contender.store._database
        driver = _Joining(inner._driver)
        inner._driver = cast("Driver", driver)
        contender.line = driver.line
        return contender

    line: _Line


class _Joining:
    def __init__(self, driver: Driver) -> None:
        self.rendered, self.is_idle, self._run = driver.rendered, driver.is_idle, driver.run
        self.line = _Line(nullcontext, lambda _, asked: driver.run(*asked), self._grouped)

    async def run(self, connection: Any, command: Command) -> Rows:
        step = command.steps[0]
        text = step.clause.text
        if not all(part in text for part in ("called AS", "run AS", "noted AS")) or "seen AS" in text:
            return await self._run(connection, command)
        return cast("Rows", await self.line.append(cast("Mapping[str, Any]", step.values), (connection, command)))

    async def _grouped(self, _: None, group: list[_Waiting]) -> Any:
        connection, _command = group[0].asked
        return await connection.fetch(STATEMENT, *_joined(group), record_class=_record_class())


def _joined(waiting: list[_Waiting]) -> list[Any]:
    """Return the values of several appends as those of one statement."""
    group = [each.values for each in waiting]
    joined: dict[str, Any] = {name: [each[name] for each in group] for name in _COLUMNS}
    joined["tenant_id"] = group[0]["tenant_id"]
    for name, lists in _LISTS.items():
        lengths = [len(each[next(iter(lists))]) for each in group]
        joined[name] = f"[{','.join(each[name][1:-1] for each in group)}]"
        joined[f"{name}_owners"] = [place for place, length in enumerate(lengths, 1) for _ in range(length)]
        joined[f"{name}_nths"] = [nth for length in lengths for nth in range(1, length + 1)]
        joined |= {column: [value for each in group for value in each[column]] for column in lists}
    return [joined[name] for name in _NAMES]
