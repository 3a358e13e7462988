"""Paused runs: stored while they wait for an approval, and taken up again by exactly one worker."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agents import Agent, RunState

from agents_pg_session.errors import SessionConflict, SnapshotNotFound
from agents_pg_session.labels import checked_seconds
from agents_pg_session.ledgers.items import Items
from agents_pg_session.ledgers.scope import Scope
from agents_pg_session.ledgers.snapshots import Snapshots
from agents_pg_session.metering import stored_text
from agents_pg_session.projection import encode_value
from agents_pg_session.reports import Note
from agents_pg_session.statements import Snapshotted
from agents_pg_session.tracking import RunBook

if TYPE_CHECKING:
    from agents.items import ToolApprovalItem
    from agents.result import RunResultBase

__all__ = ["RUN_STATE", "pause", "resume"]

#: The kind of snapshot a paused run is.
RUN_STATE = "run_state"


async def pause(
    snapshots: Snapshots, book: RunBook, result: RunResultBase | RunState[Any, Any], options: dict[str, Any]
) -> int:
    """Store a paused run, mark the session waiting and its run interrupted, in one statement."""
    state: RunState[Any, Any] = result if isinstance(result, RunState) else result.to_state()  # type: ignore[attr-defined]
    asked = [_approval(item) for item in state.get_interruptions()]
    if not asked:
        raise ValueError("this run does not wait for an approval: there is nothing to pause")
    context = getattr(result, "context_wrapper", None) or getattr(state, "_context", None)
    run = book.find(context) if context is not None else None
    run = run if run is not None and run.key is not None else None
    run_id = run.run_id if run else None
    told = run is not None and run.has_asked
    notes = [] if told else [Note("approval_asked", json.dumps(each), each["agent"], run_id) for each in asked]
    version = await snapshots.write(
        Snapshotted(
            kind=RUN_STATE,
            content=encode_value(state.to_json(**options), place="the run's state"),
            metadata=json.dumps({"approvals": asked}),
            status="waiting",
            run_id=run_id,
            notes=tuple(notes),
        )
    )
    if run is not None:
        run.has_asked = True
    return version


async def resume(
    scope: Scope, items: Items, agent: Agent[Any], claim_for: float, options: dict[str, Any]
) -> RunState[Any, Any]:
    """Claim the newest paused run and rebuild its state; give it back when it cannot be rebuilt."""
    seconds = checked_seconds("claim_for", claim_for)
    sql, key, claim_id = scope.database.sql, scope.key, str(uuid4())
    try:
        row = await scope.change(partial(sql.claim, key, RUN_STATE, claim_id, seconds))
    except asyncio.CancelledError:
        await scope.database.write(sql.unclaim(key, RUN_STATE, claim_id), scope.database.budget())
        raise
    if row is None or row.version is None:
        raise SnapshotNotFound(f"session {key.session_id!r} has no paused run; `pause` stores one")
    if not row.claimed:
        if row.held:
            raise SessionConflict(f"session {key.session_id!r}: another worker has resumed its paused run")
        raise SessionConflict(
            f"session {key.session_id!r} has gone on since its run was paused (version {row.version}): a state can be "
            "resumed only where it stopped"
        )
    try:
        state: RunState[Any, Any] = await RunState.from_json(agent, json.loads(row.content), **options)
    except BaseException:
        await scope.database.write(sql.unclaim(key, RUN_STATE, claim_id), scope.database.budget())
        raise
    # Should the claim run out and another worker finish first, our append is refused instead of telling it twice.
    items.expect((row.last_position, row.item_count))
    return state


def _approval(item: ToolApprovalItem) -> dict[str, Any]:
    """What a person has to decide on: as JSON the columns and views can hold."""
    arguments: Any = item.arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = stored_text(arguments)
    name = getattr(item, "qualified_name", None) or item.name
    return {
        "tool_name": name,
        "call_id": getattr(item, "call_id", None),
        "agent": stored_text(item.agent.name),
        "arguments": arguments,
    }
