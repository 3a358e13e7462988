"""Our side of an import from the SDK's tables: what is here of the sessions that come, and how their rows go in.

The rows go in as those of an archive do (`loading`). What is asked here needs more than that: where a session stands
that was imported before, for the next import goes on there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from agents_pg_session.drivers import Row
from agents_pg_session.operations.loading import Loader, RowOf
from agents_pg_session.operations.sdk_marks import MARK, Mark
from agents_pg_session.operations.sdk_rows import Batch, Growing, RunningCall
from agents_pg_session.operations.shapes import SESSIONS, Shape, Values, shapes, told_time
from agents_pg_session.passages import Passage
from agents_pg_session.statements import Key, Step, clause, quoted_prefix
from agents_pg_session.statements.sqlite.words import NOW

__all__ = ["QUESTIONS", "Raced", "Target", "changed", "written"]

Rows = Iterable[Mapping[str, Any]]


class Raced(Exception):
    """Somebody else created one of these sessions meanwhile; nothing was written, look again."""


_NOW = """
-- What time it is here: when an import is.
SELECT {now} AS now
"""

_STATES = """
-- What is here of the sessions that come, and how far each was imported before. Where they are to be written, other
-- writers are kept away until the import of these is in.
SELECT s.session_id, s.user_id, s.last_position, s.last_event_id, s.item_count, s.message_count, s.turn_count,
       s.tool_run_count, s.tool_error_count, s.input_tokens, s.output_tokens, s.forked_from, s.forked_through,
       s.forked_at, s.created_at, s.updated_at, s.active_at,
       (SELECT CAST(e.payload AS text) FROM {schema}events e
         WHERE e.tenant_id = s.tenant_id AND e.session_id = s.session_id AND e.kind = '{mark}'
         ORDER BY e.event_id DESC LIMIT 1) AS mark
  FROM {schema}sessions s
 WHERE s.tenant_id = :tenant_id AND s.session_id {among}
 ORDER BY s.session_id{lock}
"""

_RUNNING = """
-- The calls of a session that wait for their outputs, oldest first.
SELECT call_position, call_id, tool_name FROM {schema}tool_runs
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND status = 'running'
 ORDER BY call_position
"""

_TOLD_RUNS = """
-- Which of these runs of a session are here already.
SELECT run_id FROM {schema}runs
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND run_id {among}
"""

#: What is asked here: text by name, to be filled with the words of a dialect.
QUESTIONS = {"now": _NOW, "states": _STATES, "running": _RUNNING, "told_runs": _TOLD_RUNS}

_COUNTERS = (
    "last_position",
    "last_event_id",
    "item_count",
    "message_count",
    "turn_count",
    "tool_run_count",
    "tool_error_count",
    "input_tokens",
    "output_tokens",
)
_TIMES = ("forked_at", "created_at", "updated_at", "active_at")
_COSTS = ("requests", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "total_tokens")
_ENDED = ("output_position", "status", "error", "finished_at")

_WRITTEN = {
    SESSIONS: ("user_id", *_COUNTERS, "forked_from", "forked_through", *_TIMES),
    "items": ("position", "turn", "run_id", "append_id", "type", "role", "call_id", "created_at", "item"),
    "tool_runs": ("call_position", *_ENDED, "call_id", "tool_name", "tool_type", "run_id", "created_at", "arguments"),
    "runs": ("run_id", "status", *_COSTS, "turn", "started_at", "last_seen_at", "finished_at"),
    "events": ("event_id", "kind", "run_id", "created_at", "payload"),
}
_CHANGED = {
    SESSIONS: _WRITTEN[SESSIONS],
    "tool_runs": ("call_position", *_ENDED),
    "runs": ("run_id", *_COSTS, "last_seen_at", "finished_at"),
}


def written() -> dict[str, Shape]:
    """Return what an import writes of each table; the other columns have their defaults."""
    return {name: shapes()[name].only(frozenset(columns)) for name, columns in _WRITTEN.items()}


def changed() -> dict[str, Shape]:
    """Return what a later import changes of the rows that an earlier one wrote."""
    return {name: shapes()[name].only(frozenset(columns)) for name, columns in _CHANGED.items()}


class Target:
    """Our tables for one tenant."""

    def __init__(self, schema: str | None, tenant_id: str, loader: Loader) -> None:
        self._postgres = schema is not None
        self._prefix = quoted_prefix(schema)
        self._tenant_id = tenant_id
        self._loader = loader
        self._written, self._changed = written(), changed()

    async def now(self, passage: Passage) -> datetime:
        """Return what time it is."""
        [row] = await self._ask(passage, "now", now="now()" if self._postgres else NOW)
        return _moment(row.now)

    async def states(self, passage: Passage, session_ids: Sequence[str], *, lock: bool) -> dict[str, Row]:
        """Return what is here of these sessions, and keep them as they are until the transaction ends."""
        locked = "\n   FOR NO KEY UPDATE OF s" if lock and self._postgres else ""
        found = await self._ask(passage, "states", {"among": list(session_ids)}, lock=locked)
        return {row.session_id: row for row in found}

    async def take_up(self, passage: Passage, growing: Growing, state: Row, mark: Mark | None) -> None:
        """Begin where a session stands; without a mark it is one that nobody has written to yet: a fence, a lease."""
        growing.is_here, growing.mark = True, mark
        if mark is None:
            growing.user_id = growing.user_id or state.user_id
            return
        growing.user_id, growing.forked_from = state.user_id, state.forked_from
        for name in (*_COUNTERS, "forked_through"):
            setattr(growing, name, getattr(state, name))
        for name in _TIMES:
            value = getattr(state, name)
            setattr(growing, name, None if value is None else _moment(value))
        for call in await self._ask(passage, "running", {"session_id": growing.session_id}):
            if call.call_id is not None:
                growing.waits(call.call_id, RunningCall(call.call_position, call.tool_name))

    async def write(self, passage: Passage, batch: Batch, sessions: Sequence[Growing]) -> None:
        """Write the rows of *batch*, those of new sessions first. Raises `Raced` where one is there by now."""
        shape = self._written[SESSIONS]
        new = [each for each in sessions if not each.is_here]
        if new and await self._loader.open(passage, shape, self._rows(shape, [each.row() for each in new])) < len(new):
            raise Raced
        here = [each.row() for each in sessions if each.is_here]
        for each in new:
            each.is_here = True
        await self._change(passage, SESSIONS, here)
        await self._put(passage, "items", batch.items)
        await self._put(passage, "tool_runs", batch.tool_runs.values())
        await self._change(passage, "tool_runs", batch.answers)
        await self._put_runs(passage, batch.runs, [each for each in sessions if each.mark is not None])
        await self._put(passage, "events", batch.events)

    async def _put_runs(self, passage: Passage, runs: Sequence[Mapping[str, Any]], known: Sequence[Growing]) -> None:
        """A turn of the source is one run; what it cost may have been told after its items were imported."""
        here: set[tuple[str, str]] = set()
        for session in known:
            ids = [run["run_id"] for run in runs if run["session_id"] == session.session_id]
            values = {"session_id": session.session_id, "among": ids}
            told = await self._ask(passage, "told_runs", values) if ids else ()
            here |= {(session.session_id, row.run_id) for row in told}
        await self._change(passage, "runs", [run for run in runs if (run["session_id"], run["run_id"]) in here])
        await self._put(passage, "runs", [run for run in runs if (run["session_id"], run["run_id"]) not in here])

    async def _put(self, passage: Passage, table: str, rows: Rows) -> None:
        if told := self._rows(self._written[table], rows):
            await self._loader.put(passage, self._written[table], told)

    async def _change(self, passage: Passage, table: str, rows: Rows) -> None:
        if told := self._rows(self._changed[table], rows):
            await self._loader.change(passage, self._changed[table], told)

    def _rows(self, shape: Shape, rows: Rows) -> list[RowOf]:
        names = [field.name for field in shape.fields]
        return [(Key(self._tenant_id, row["session_id"]), _values(names, row)) for row in rows]

    async def _ask(
        self, passage: Passage, question: str, values: Mapping[str, Any] | None = None, **words: str
    ) -> Sequence[Row]:
        bound = {"tenant_id": self._tenant_id, **(values or {})}
        words |= {"schema": self._prefix, "mark": MARK}
        if self._postgres:
            words["among"] = "= ANY (CAST(:among AS text[]))"
        else:  # no list can be bound
            words["among"] = "IN (SELECT value FROM json_each(:among))"
            bound["among"] = json.dumps(bound.get("among"))
        sql = QUESTIONS[question]
        for name, meaning in words.items():
            sql = sql.replace("{" + name + "}", meaning)
        return await passage.run(Step(clause(sql), bound))


def _values(names: Sequence[str], row: Mapping[str, Any]) -> Values:
    return [told_time(value) if isinstance(value := row[name], datetime) else value for name in names]


def _moment(value: datetime | str) -> datetime:
    """Return a time that a driver tells; SQLite's are text, in UTC without saying so."""
    if not isinstance(value, str):
        return value
    moment = datetime.fromisoformat(value)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
