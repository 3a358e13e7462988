"""A whole conversation as it happened: its turns with what the record says of them, each thing in its place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from agents_pg_session.ledgers.mapping import event
from agents_pg_session.records import Event, Page, Run, SessionInfo, StoredItem, ToolRun, Turn
from agents_pg_session.session import PGSession
from agents_pg_session.statements import Command, Key, Step, Subject, clause, quoted_prefix
from agents_pg_session.store import SessionStore

__all__ = ["Conversation", "ToldTurn", "merged", "read_conversation"]

_Listed = TypeVar("_Listed", Run, ToolRun)

#: Events that are looked at from behind: of a session that has more, the older ones are left out.
_EVENTS = 5000

_NEWEST_EVENTS = """
-- The newest events of one session, newest first: the primary key from behind.
SELECT e.session_id, e.event_id, e.kind, e.run_id, e.agent, CAST(e.payload AS text) AS payload, e.created_at
  FROM {schema}events e
 WHERE e.tenant_id = :tenant_id AND e.session_id = :session_id
 ORDER BY e.event_id DESC
 LIMIT :limit
"""


@dataclass(frozen=True, slots=True)
class ToldTurn:
    """A turn with its runs, and its items and events in the order they happened."""

    turn: Turn
    told: tuple[StoredItem | Event, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A session as a person reads it; tool runs by the position of their call."""

    info: SessionInfo
    turns: tuple[ToldTurn, ...]
    tool_runs: dict[int, ToolRun]
    earlier: int  #: how many turns there are before these
    aside: tuple[Event, ...]  #: what happened while there was no turn to tell it in: all items are gone


async def read_conversation(store: SessionStore, session: PGSession, turns: int | None = None) -> Conversation:
    """Return the newest *turns* turns of a session, all of them with None, and what the record says of these.

    Raises `SessionNotFound` before the first append.
    """
    info = await session.info()
    shown = await session.turns(turns)
    start = shown[0].started_at if shown else None
    first_turn, first_position = (shown[0].number, shown[0].position) if shown else (0, 0)
    runs = await _back_to(session.runs.list, lambda run: run.turn, first_turn)
    tool_runs = await _back_to(session.tool_runs.list, lambda each: each.position, first_position)
    calls = {each.position: each for each in tool_runs}
    events = await _events(store, session, info.event_count)
    if info.turn_count > len(shown) and start is not None:
        begun = {run.run_id for run in runs}
        events = [each for each in events if each.created_at >= start or each.run_id in begun]
    told = tuple(_told(shown, events, runs)) if shown else ()
    before = 0 if not shown else max(0, info.turn_count - sum(1 for each in shown if each.number > 0))
    return Conversation(info, told, calls, before, () if shown else tuple(events))


def merged(items: Sequence[StoredItem], events: Sequence[Event]) -> Iterator[StoredItem | Event]:
    """Yield items and events as they happened, each in its own order.

    Between the two only their times tell, except that a run starts before its items; what happened at the same time as
    an item was told with it, and stands behind it.
    """
    waiting = list(events)
    for item in items:
        while waiting and _comes_before(waiting[0], item):
            yield waiting.pop(0)
        yield item
    yield from waiting


def _comes_before(event: Event, item: StoredItem) -> bool:
    starts_it = event.kind == "run_started" and event.run_id is not None and event.run_id == item.run_id
    return starts_it or event.created_at < item.created_at


def _told(turns: Sequence[Turn], events: Sequence[Event], runs: Sequence[Run]) -> Iterator[ToldTurn]:
    """Share what happened out among the turns: an event belongs to its run's turn, else to the one it happened in."""
    of_run = {run.run_id: run.turn for run in runs}
    numbers = {turn.number for turn in turns}
    homes: dict[int, list[Event]] = {turn.number: [] for turn in turns}
    for each in events:
        number = of_run.get(each.run_id or "", -1)
        homes[number if number in numbers else _turn_at(turns, each.created_at)].append(each)
    for turn in turns:
        its_runs = tuple(run for run in reversed(runs) if run.turn == turn.number)
        yield ToldTurn(turn, tuple(merged(turn.items, homes[turn.number])), its_runs)


def _turn_at(turns: Sequence[Turn], moment: datetime) -> int:
    begun = [turn.number for turn in turns if turn.started_at <= moment]
    return begun[-1] if begun else turns[0].number


async def _back_to(
    pages: Callable[..., Awaitable[Page[_Listed]]], place: Callable[[_Listed], int], first: int
) -> list[_Listed]:
    """Return what a list of newest first holds, back to the one at that place."""
    found: list[_Listed] = []
    after = None
    while True:
        page = await pages(limit=200, after=after)
        found += [each for each in page if place(each) >= first]
        if not page.more or place(page[len(page) - 1]) < first:
            return found
        after = page.cursor


async def _events(store: SessionStore, session: PGSession, count: int) -> list[Event]:
    if not count:
        return []
    database, key = store._database, Key(session.tenant, session.session_id)
    sql = _NEWEST_EVENTS.replace("{schema}", quoted_prefix(database.schema))
    values = {**key._asdict(), "limit": _EVENTS}
    rows = await database.read(Command(Subject("events", key), (Step(clause(sql), values),)))
    return [event(row) for row in reversed(rows)]
