"""Answering tool calls that nobody will answer any more: only where `repair` is told so by name.

The output says that the tool was interrupted, in the words in which the SDK tells a model of an error. It is appended
as the library appends, and only if the session still is what was looked at.
"""

from __future__ import annotations

import json
from typing import Any, cast

from agents_pg_session.entries import Guard, Labels, compose
from agents_pg_session.operations.doctor.asking import Asked, Asking
from agents_pg_session.operations.doctor.items import SESSION_ITEMS, orphans, session_values
from agents_pg_session.operations.doctor.locked import Change
from agents_pg_session.operations.doctor.pairing import Pairing, Said
from agents_pg_session.projection import Item
from agents_pg_session.reports import Note
from agents_pg_session.statements import Key

__all__ = ["INTERRUPTED", "answered"]

#: What the model is told, in the SDK's own form of an error.
INTERRUPTED = (
    "An error occurred while running the tool. Please try again. Error: the tool was interrupted, and nobody recorded"
    " whether it took effect"
)

#: Times a session is looked at again that others have gone on with.
_TRIES = 3


async def answered(asking: Asking, asked: Asked, key: Key, dry_run: bool) -> list[Change]:
    """Append an output for each call of the last turn that has none, and return what was appended."""
    for _ in range(_TRIES):
        rows = await asking.rows(SESSION_ITEMS, **session_values(key, asked))
        pairing = Pairing()
        for row in rows:
            pairing.read(row)
        open_calls = {each.position: each for each in pairing.calls()} if rows else {}
        told = orphans(key, pairing, rows[0]) if rows else ()
        calls = [open_calls[each.position] for each in told if each.kind == "call_without_output" and each.position]
        outputs = [(call, output) for call in calls if (output := _output(call)) is not None]
        if not outputs:
            return []
        changes = [Change("orphans", f"{call.type} at {call.position}", None, "interrupted") for call, _ in outputs]
        guard = Guard(rows[0].last_position, rows[0].item_count)
        if dry_run or await _append(asking, key, guard, [output for _, output in outputs], changes):
            return changes
    return []  # whoever goes on with the session answers them, or the next repair does


async def _append(asking: Asking, key: Key, guard: Guard, outputs: list[Item], changes: list[Change]) -> bool:
    """Append the outputs and the event that says so; False where the session has gone on."""
    entry = compose(outputs, Labels(), guard=guard)
    said = {"changes": [{"repair": each.repair, "what": each.what, "after": each.after} for each in changes]}
    entry = entry._replace(
        answers=tuple(each._replace(status="failed", error=INTERRUPTED) for each in entry.answers),
        notes=(*entry.notes, Note("repaired", json.dumps(said))),
        status=None,  # a session that was ended stays so
    )
    database = asking.database
    for patient in (False, True):
        if await database.write(database.sql.append(key, entry, patient=patient), database.budget()):
            return True
    return False


def _output(call: Said) -> Item | None:
    """Return the output that says so; None where there is no such output (a computer answers with a picture)."""
    fields: dict[str, Any]
    match call.type:
        case "function_call" | "custom_tool_call":
            fields = {"call_id": call.call_id, "output": INTERRUPTED}
        case "shell_call":
            ended = {"stdout": "", "stderr": INTERRUPTED, "outcome": {"type": "exit", "exit_code": 1}}
            fields = {"call_id": call.call_id, "output": [ended]}
        case "apply_patch_call":
            fields = {"call_id": call.call_id, "status": "failed", "output": INTERRUPTED}
        case "local_shell_call":
            fields = {"id": call.call_id, "call_id": call.call_id, "output": INTERRUPTED}
        case _:
            return None
    return cast("Item", {"type": f"{call.type}_output", **fields})
