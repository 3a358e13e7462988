"""What a session of the SDK becomes here: source rows in, rows of our tables out. Pure; no database.

The SDK's tables do not say which rows were one append. What was written at different moments, or as different turns,
was not; where moments are seconds, `appends` knows how a run appends. Each append then goes through `compose`, as one
here does: turns, tool runs, events and counters are those of a session that was written here. What is no item is kept
aside as an event, `undecodable`, at its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple
from uuid import uuid4

from agents_pg_session.entries import Answer, Entry, Labels, ToolRunRow, compose
from agents_pg_session.errors import InvalidItem
from agents_pg_session.operations.sdk_appends import INPUT_ROLES, appends, item_of
from agents_pg_session.operations.sdk_marks import MARK, Mark, iso
from agents_pg_session.operations.sdk_tables import SourceRow, SourceSession, TurnUsage
from agents_pg_session.projection import Item, encode, encode_value

__all__ = ["UNDECODABLE", "Batch", "Growing", "RunningCall"]

#: The event that holds a row which is no item.
UNDECODABLE = "undecodable"

_NO_LABELS = Labels()


class RunningCall(NamedTuple):
    """A call that waits for its output."""

    position: int
    tool_name: str | None


@dataclass(slots=True)
class Batch:
    """Rows of any number of sessions on their way in, by column; whoever writes them knows the tenant."""

    items: list[dict[str, Any]] = field(default_factory=list)
    tool_runs: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)

    def empty(self) -> None:
        """Forget the rows: they are written."""
        for rows in (self.items, self.tool_runs, self.answers, self.events, self.runs):
            rows.clear()


@dataclass(slots=True)
class Growing:
    """A session of ours while rows of the source are added to it."""

    session_id: str
    source: SourceSession
    described: Mapping[str, Any]
    batch: Batch
    user_id: str | None = None
    usage: Mapping[int, TurnUsage] = field(default_factory=dict)
    shared_through: int = 0
    forked_from: str | None = None
    is_here: bool = False  #: its row is there
    now: datetime | None = None  #: by our database's clock: when an import is, and what tells no time of its own
    # What it has come to; a session that is there already begins where it stands.
    last_position: int = 0
    last_event_id: int = 0
    item_count: int = 0
    message_count: int = 0
    turn_count: int = 0
    tool_run_count: int = 0
    tool_error_count: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    created_at: datetime | None = None
    updated_at: datetime | None = None
    active_at: datetime | None = None
    forked_at: datetime | None = None
    forked_through: int | None = None
    running: dict[str, list[RunningCall]] = field(default_factory=dict)
    nameless_running: int = 0
    mark: Mark | None = None  #: of the import before
    # What the report counts.
    rows_read: int = 0
    undecodable: int = 0
    orphan_outputs: list[str] = field(default_factory=list)
    orphan_output_count: int = 0
    run_count: int = 0
    _ids: int = 0
    _last_id: int = 0
    _last: SourceRow | None = None
    _newest: str | None = None
    _clock: datetime | None = None
    _turns: dict[int, tuple[int, datetime | None]] = field(default_factory=dict)
    _held: list[SourceRow] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)
    _input: tuple[str | None, int | None] | None = (
        None  #: when the input that came last was written, if it began a turn
    )

    def waits(self, call_id: str, call: RunningCall) -> None:
        """Take note of a call that waits for its output."""
        self.running.setdefault(call_id, []).append(call)
        if call.tool_name is not None:
            self._names[call_id] = call.tool_name

    def add(self, rows: Sequence[SourceRow]) -> None:
        """Take the next rows; those written at the last moment wait, for more of them may come."""
        moments = groupby([*self._held, *rows], key=lambda row: (row.stamp, row.user_turn))
        groups = [list(group) for _, group in moments]
        self._held = groups.pop() if groups and len(groups[-1]) < len(rows) else []
        for group in groups:
            self._append(group)

    def finish(self) -> str:
        """Take what still waits, and say in the session's own record how far it was imported; return what it says."""
        if self._held:
            self._append(self._held)
            self._held = []
        self._tell_runs()
        payload = self._mark().payload()
        self._event(MARK, payload, None)
        return payload

    @property
    def orphan_calls(self) -> int:
        """Calls that have no output."""
        return sum(map(len, self.running.values())) + self.nameless_running

    def row(self) -> dict[str, Any]:
        """Return the session's row as it is now."""
        created_at = self.created_at or self.source.created_at or self._clock or self.now
        return self._key() | {
            "user_id": self.user_id,
            "last_position": self.last_position,
            "last_event_id": self.last_event_id,
            "item_count": self.item_count,
            "message_count": self.message_count,
            "turn_count": self.turn_count,
            "tool_run_count": self.tool_run_count,
            "tool_error_count": self.tool_error_count,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "forked_from": self.forked_from,
            "forked_through": self.forked_through,
            "forked_at": self.forked_at or (created_at if self.forked_from is not None else None),
            "created_at": created_at,
            "updated_at": _latest(self.updated_at, self.source.updated_at, self._clock) or self.now,
            "active_at": self.active_at or created_at,
        }

    def _append(self, rows: Sequence[SourceRow]) -> None:
        """One append of the source."""
        self._clock = rows[0].created_at or self._clock or self.source.created_at or self.now
        self.created_at = self.created_at or self.source.created_at or self._clock
        kept: list[tuple[SourceRow, Item]] = []
        for row in rows:
            self._count(row)
            item, fault = item_of(row)
            if item is None:
                self._aside(row, self.last_position + len(kept), fault)
            else:
                kept.append((row, item))
        for part in appends(kept):
            try:
                entry = compose([item for _, item in part], _NO_LABELS, names=self._names)
            except InvalidItem:  # seldom, so only now each by itself
                part = list(self._storable(part))
                entry = compose([item for _, item in part], _NO_LABELS, names=self._names)
            if part:
                self._write(entry, [row for row, _ in part])

    def _storable(self, kept: Iterable[tuple[SourceRow, Item]]) -> Iterator[tuple[SourceRow, Item]]:
        position = self.last_position
        for row, item in kept:
            try:
                encode(item, place="item")
            except InvalidItem as error:
                self._aside(row, position, str(error))
            else:
                position += 1
                yield row, item

    def _write(self, entry: Entry, rows: Sequence[SourceRow]) -> None:
        entry = self._joined(entry, rows)
        append_id = str(uuid4())
        run_ids = [self._run_id(row) for row in rows]
        for place, (source, item, run_id) in enumerate(zip(rows, entry.batch.rows, run_ids, strict=True), start=1):
            position, turn = self.last_position + place, self.turn_count + item.turn
            self._at_turn(source, turn)
            if source.key[0] is not None and self.shared_through and source.key[0] <= self.shared_through:
                self.forked_through = position
            self.batch.items.append(
                self._key()
                | item._asdict()
                | {
                    "position": position,
                    "turn": turn,
                    "run_id": run_id,
                    "append_id": append_id,
                    "created_at": self._clock,
                }
            )
        for answer in entry.answers:
            self._answer(answer)
        for tool in entry.tool_runs:
            self._tool_run(tool, run_ids[tool.place - 1])
        for note in entry.notes:
            self._event(note.kind, note.payload, run_ids[0])
        batch = entry.batch
        self.last_position += len(batch.rows)
        self.item_count += len(batch.rows)
        self.message_count += batch.messages
        self.turn_count += batch.turns
        self.tool_run_count += len(entry.tool_runs)
        self.tool_error_count += entry.tool_errors
        if batch.turns:
            self.active_at = self._clock

    def _joined(self, entry: Entry, rows: Sequence[SourceRow]) -> Entry:
        """An input that a page has cut in two, for it is larger than that, is one turn all the same."""
        items, first, last = entry.batch.rows, (rows[0].stamp, rows[0].user_turn), (rows[-1].stamp, rows[-1].user_turn)
        if items[0].turn == 1 and first == self._input:
            items = tuple(item._replace(turn=item.turn - 1) for item in items)
            entry = entry._replace(batch=entry.batch._replace(rows=items, turns=entry.batch.turns - 1))
        self._input = last if items[-1].role in INPUT_ROLES and (entry.batch.turns or first == self._input) else None
        return entry

    def _tool_run(self, tool: ToolRunRow, run_id: str | None) -> None:
        position = self.last_position + tool.place
        self.batch.tool_runs[self.session_id, position] = self._key() | {
            "call_position": position,
            "output_position": None if tool.output_place is None else self.last_position + tool.output_place,
            "call_id": tool.call_id,
            "tool_name": tool.tool_name,
            "tool_type": tool.tool_type,
            "status": tool.status,
            "run_id": run_id,
            "finished_at": None if tool.status == "running" else self._clock,
            "error": tool.error,
            "arguments": None if tool.arguments == "null" else tool.arguments,
            "created_at": self._clock,
        }
        if tool.status == "running" and tool.call_id is not None:
            self.waits(tool.call_id, RunningCall(position, tool.tool_name))
        elif tool.status == "running":
            self.nameless_running += 1

    def _answer(self, answer: Answer) -> None:
        """Give an output to the newest call that still runs under its id."""
        waiting = self.running.get(answer.call_id)
        if not waiting:
            self.orphan_output_count += 1
            if len(self.orphan_outputs) < 10:
                self.orphan_outputs.append(answer.call_id)
            return
        call = waiting.pop()
        if not waiting:
            del self.running[answer.call_id]
            self._names.pop(answer.call_id, None)
        ended = {
            "output_position": self.last_position + answer.place,
            "status": answer.status,
            "error": answer.error,
            "finished_at": self._clock,
        }
        self.tool_error_count += answer.status == "failed"
        written = self.batch.tool_runs.get((self.session_id, call.position))
        if written is not None:
            written.update(ended)
        else:
            self.batch.answers.append(self._key() | {"call_position": call.position} | ended)

    def _aside(self, row: SourceRow, position: int, reason: str) -> None:
        """Keep a row that is no item, as it is; bytes that are no text can be had back by `surrogateescape`."""
        text = row.data if isinstance(row.data, str) else bytes(row.data or b"").decode("utf-8", "surrogateescape")
        payload = {"source_id": row.id, "after_position": position, "reason": reason, "message_data": text}
        self.undecodable += 1
        self._event(UNDECODABLE, encode_value(payload, place="payload"), None)

    def _event(self, kind: str, payload: str | None, run_id: str | None) -> None:
        self.last_event_id += 1
        self.batch.events.append(
            self._key()
            | {
                "event_id": self.last_event_id,
                "kind": kind,
                "run_id": run_id,
                "created_at": self.now if kind == MARK else self._clock,
                "payload": None if payload == "null" else payload,
            }
        )

    def _key(self) -> dict[str, Any]:
        return {"session_id": self.session_id}

    # -- turns whose tokens the source knows

    def _run_id(self, row: SourceRow) -> str | None:
        return f"turn-{row.user_turn}" if row.user_turn in self.usage else None

    def _at_turn(self, row: SourceRow, turn: int) -> None:
        if row.user_turn is not None:
            _, began = self._turns.get(row.user_turn, (0, self._clock))
            self._turns[row.user_turn] = turn, began

    def _tell_runs(self) -> None:
        """One run per turn. The last turn of an import before may have come to an end since."""
        if self.mark is not None and self.mark.user_turn is not None:
            self._turns.setdefault(self.mark.user_turn, (self.mark.turn, None))
            self.input_tokens -= self.mark.spent[0]
            self.output_tokens -= self.mark.spent[1]
        for user_turn, (turn, began) in self._turns.items():
            usage = self.usage.get(user_turn)
            if usage is None:
                continue
            counts = usage._asdict()
            ended = _latest(counts.pop("created_at"), began or self._clock) or self.now
            self.run_count += 1
            self.input_tokens += usage.input_tokens
            self.output_tokens += usage.output_tokens
            self.batch.runs.append(
                self._key()
                | counts
                | {"run_id": f"turn-{user_turn}", "status": "completed", "turn": turn}
                | {"started_at": began or ended, "last_seen_at": ended, "finished_at": ended}
            )

    # -- how far it has come

    def _count(self, row: SourceRow) -> None:
        self.rows_read += 1
        self._ids += row.id
        self._last, self._last_id = row, max(self._last_id, row.id)
        if row.stamp is not None and (self._newest is None or row.stamp > self._newest):
            self._newest = row.stamp

    def _mark(self) -> Mark:
        """What was read, not what there was to read: others may write to the source meanwhile."""
        before, last, source = self.mark, self._last, self.source
        user_turn = max(self._turns, default=before.user_turn if before else None)
        turn = self._turns[user_turn][0] if user_turn in self._turns else 0
        spent = self.usage.get(user_turn) if user_turn is not None else None
        stamps = [each for each in (self._newest, before.newest if before else None) if each is not None]
        return Mark(
            source=self.described,
            session_created_at=iso(source.created_at),
            row_count=self.rows_read + (before.row_count if before else 0),
            ids=self._ids + (before.ids if before else 0),
            last_id=max(self._last_id, before.last_id if before else 0),
            newest=max(stamps, default=None),
            key=last.key if last else (before.key if before else ()),
            last_position=self.last_position,
            item_count=self.item_count,
            usages=len(self.usage),
            tokens=sum(each.total_tokens for each in self.usage.values()),
            user_turn=user_turn,
            turn=turn,
            spent=(spent.input_tokens, spent.output_tokens) if spent else (0, 0),
        )


def _latest(*times: datetime | None) -> datetime | None:
    return max((each for each in times if each is not None), default=None)
