"""Paused runs: stored while they wait for an approval, and taken up again by exactly one worker."""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agents import Agent, RunState

from agents_pg_session.errors import SessionError, SnapshotNotFound
from agents_pg_session.labels import checked_seconds
from agents_pg_session.ledgers.items import Items
from agents_pg_session.ledgers.mapping import readable
from agents_pg_session.ledgers.scope import Scope
from agents_pg_session.ledgers.snapshots import RUN_STATE, Snapshots
from agents_pg_session.patience import PARTING, Budget
from agents_pg_session.projection import encode_value
from agents_pg_session.reports import Note
from agents_pg_session.statements import Snapshotted
from agents_pg_session.texts import stored_text
from agents_pg_session.tracking import RunBook

if TYPE_CHECKING:
    from agents.items import ToolApprovalItem
    from agents.result import RunResultBase

__all__ = ["Claim", "pause", "resume"]

logger = logging.getLogger("agents_pg_session.pauses")


async def pause(
    snapshots: Snapshots, book: RunBook, result: RunResultBase | RunState[Any, Any], options: dict[str, Any]
) -> int:
    """Store a paused run, mark the session waiting and its run interrupted, in one statement."""
    if not isinstance(result, RunState) and not hasattr(result, "to_state"):
        raise ValueError(f"result must be what Runner.run returned, or its RunState, not {type(result).__name__}")
    state: RunState[Any, Any] = result if isinstance(result, RunState) else result.to_state()
    asked = [_approval(item) for item in state.get_interruptions()]
    if not asked:
        raise ValueError("this run does not wait for an approval: there is nothing to pause")
    context = getattr(result, "context_wrapper", None) or getattr(state, "_context", None)
    run = book.find(context) if context is not None else None
    run = run if run is not None and run.key is not None else None
    run_id = run.run_id if run else None
    told = run is not None and run.has_asked
    notes = [] if told else [Note("approval_asked", json.dumps(each), each["agent"], run_id) for each in asked]
    if run is not None and not run.is_settled:
        notes.append(Note("run_ended", json.dumps({"status": "interrupted", "error": None}), run.agent, run_id))
    version = await snapshots.write(
        Snapshotted(
            kind=RUN_STATE,
            content=encode_value(state.to_json(**options), place="the run's state"),
            metadata=json.dumps({"approvals": asked}),
            status="waiting",
            # Its calls must be the last thing the session says: whoever resumes it answers them.
            expected=run.extent if run else None,
            run_id=run_id,
            notes=tuple(notes),
        )
    )
    if run is not None:
        run.paused()
    return version


async def resume(
    scope: Scope, items: Items, book: RunBook, agent: Agent[Any], claim_for: float, options: dict[str, Any]
) -> tuple[RunState[Any, Any], Claim]:
    """Claim the newest paused run and rebuild its state; give it back when it cannot be rebuilt."""
    seconds = checked_seconds("claim_for", claim_for)
    sql, key, claim = scope.database.sql, scope.key, Claim(scope)
    try:
        row = await scope.change(partial(sql.claim, key, RUN_STATE, claim.claim_id, seconds))
    except asyncio.CancelledError:
        await claim.give_back()
        raise
    if row is None or row.version is None:
        raise SnapshotNotFound(f"session {key.session_id!r} has no paused run; `pause` stores one")
    if not row.claimed:
        if not row.moved:
            raise scope.database.conflict(
                "claim", f"session {key.session_id!r}: another worker has resumed its paused run"
            )
        raise scope.database.conflict(
            "claim",
            f"session {key.session_id!r} has gone on since its run was paused (version {row.version}): a state can be "
            "resumed only where it stopped",
        )
    try:
        place = f"session {key.session_id!r}, snapshot {RUN_STATE!r} version {row.version}"
        stored = readable(place, "content", _state, row.content)
        state: RunState[Any, Any] = await RunState.from_json(agent, stored, **options)
    except BaseException:
        await claim.give_back()
        raise
    # Should the claim run out and another worker finish first, our append is refused instead of telling it twice.
    items.expect(key, (row.last_position, row.item_count))
    asked = [_approval(item) for item in state.get_interruptions()]
    book.resumes({each["call_id"]: each["tool_name"] for each in asked if each["call_id"] and each["tool_name"]})
    return state, claim


def _state(content: str) -> dict[str, Any]:
    """Return what `RunState.to_json` wrote; anything else was not written by `pause`."""
    state = json.loads(content)
    if not isinstance(state, dict) or "$schemaVersion" not in state:
        raise ValueError("no state of a run")
    return state


class Claim:
    """That a worker has a paused run, until it goes on, gives it back, or its time is over."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.claim_id = str(uuid4())

    async def release(self) -> None:
        """Give it back: the next worker may have it at once. Later than the run's next append this does nothing."""
        await self._release(self._scope.database.budget())

    async def give_back(self) -> None:
        """The same on the way out, where something else is to be told: it takes little time, and never raises."""
        try:
            await self._release(self._scope.database.budget(at_most=PARTING))
        except SessionError as failure:
            logger.info("could not give the paused run back, its claim ends by itself: %s", failure)

    async def _release(self, budget: Budget) -> None:
        database = self._scope.database
        await database.write(database.sql.unclaim(self._scope.key, RUN_STATE, self.claim_id), budget)


def _approval(item: ToolApprovalItem) -> dict[str, Any]:
    """What a person has to decide on: as JSON the columns and views can hold."""
    arguments: Any = item.arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
            encode_value(arguments, place="arguments")  # a model may say NaN, or 1e999
        except (ValueError, RecursionError):
            arguments = stored_text(str(item.arguments))
    name = getattr(item, "qualified_name", None) or item.name
    return {
        "tool_name": name,
        "call_id": getattr(item, "call_id", None),
        "agent": stored_text(item.agent.name),
        "arguments": arguments,
    }
