"""What is mended under the lock of a session's row: counters, tool runs, leases, claims, and the event that says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection

from agents_pg_session.calls import project_calls
from agents_pg_session.operations.doctor.asking import Asked, Asking, Range
from agents_pg_session.operations.doctor.items import RUNNING, SESSION_ITEMS, STRAY, TAKEN, item_at, session_values
from agents_pg_session.operations.doctor.pairing import Pairing
from agents_pg_session.operations.doctor.sessions import FACTS, fact_values, miscounted
from agents_pg_session.projection import Item, decode
from agents_pg_session.statements import Key, clause
from agents_pg_session.statements.postgres.locks import LOCK

__all__ = ["Change", "mended"]


@dataclass(frozen=True, slots=True)
class Change:
    """One value that was wrong, and what it is now."""

    repair: str
    what: str  #: "item_count", "tool run at 7", "lease"
    before: Any
    after: Any


# Did a try of this repair take effect whose answer was lost?
_DONE = """
SELECT CAST(payload AS text) AS payload FROM {schema}events
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND operation_id = {uuid}
"""

_OWN = "tenant_id = :tenant_id AND session_id = :session_id"

# One tool run as its items have it. Its end is when its output was stored.
_TOOL_RUN = f"""
UPDATE {{schema}}tool_runs
   SET status = :status, output_position = CAST(:output_position AS bigint), error = :error,
       started_at = CASE WHEN CAST(:output_position AS bigint) IS NULL THEN NULL ELSE started_at END,
       finished_at = (SELECT created_at FROM {{schema}}items
                       WHERE {_OWN} AND position = CAST(:output_position AS bigint))
 WHERE {_OWN} AND call_position = :call_position
"""

_COUNTERS = f"""
UPDATE {{schema}}sessions SET {{counters}} WHERE {_OWN}
"""

# Only a lease that still is the one that ran out.
_LEASE = f"""
UPDATE {{schema}}sessions SET lease_id = NULL, lease_until = NULL
 WHERE {_OWN} AND lease_id IS NOT NULL AND lease_until < {{ago:stale_after}}
"""

_CLAIM = f"""
UPDATE {{schema}}snapshots SET claimed_at = NULL, claimed_by = NULL, claimed_until = NULL
 WHERE {_OWN} AND kind = 'run_state' AND claimed_until < {{ago:stale_after}}
   AND version = (SELECT max(version) FROM {{schema}}snapshots WHERE {_OWN} AND kind = 'run_state')
"""

# Say what was changed, behind the last event there is. No `updated_at`: to be mended is not to be at work.
_EVENT = """
INSERT INTO {schema}events (tenant_id, session_id, event_id, kind, operation_id, created_at, payload)
SELECT s.tenant_id, s.session_id, s.last_event_id + 1, 'repaired', {uuid}, {now}, {payload}
  FROM {schema}sessions s
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
"""
_EVENT_ID = f"UPDATE {{schema}}sessions SET last_event_id = last_event_id + 1 WHERE {_OWN}"

_Ask = Callable[..., Any]

_WORDS = {
    True: {"{uuid}": "CAST(:operation_id AS uuid)", "{payload}": "CAST(CAST(:payload AS text) AS json)"},
    False: {"{uuid}": ":operation_id", "{payload}": ":payload"},
}


async def mended(asking: Asking, asked: Asked, key: Key, repairs: frozenset[str], dry_run: bool) -> list[Change]:
    """Mend one session in one transaction, and return what was changed; with *dry_run*, what would be."""
    operation_id = str(uuid4())

    def work(connection: Connection) -> list[Change]:
        def ask(sql: str, **values: Any) -> Any:
            for word, meaning in _WORDS[asking.on_postgres].items():
                sql = sql.replace(word, meaning)
            return connection.execute(clause(asking.text(sql)), {**key._asdict(), **values})

        if not dry_run:
            if asking.on_postgres:
                ask(LOCK)
            for row in ask(_DONE, operation_id=operation_id):
                return [Change(**each) for each in json.loads(row.payload)["changes"]]
        changes = list(_changes(ask, asking, asked, key, repairs, dry_run))
        if changes and not dry_run:
            payload = json.dumps({"changes": [asdict(each) for each in changes]})
            ask(_EVENT, operation_id=operation_id, payload=payload)
            ask(_EVENT_ID)
        return changes

    return await asking.database.transaction("doctor", work, writes=not dry_run)


def _changes(
    ask: _Ask, asking: Asking, asked: Asked, key: Key, repairs: frozenset[str], dry_run: bool
) -> Iterator[Change]:
    """Look again, change what is wrong, and yield it. Tool runs come before the counters that count them."""
    if "tool_runs" in repairs:
        yield from _tool_runs(ask, asking, asked, key, dry_run)
    alone = Range(key, key, 0, 1).values()
    facts = ask(FACTS, **alone, **fact_values(asked)).one_or_none()
    if facts is None:
        return
    # Mended tool runs may have failed: who mends them mends the counter, too.
    wrong = miscounted(facts) if repairs & {"counters", "tool_runs"} else {}
    if "counters" not in repairs:
        wrong = {name: pair for name, pair in wrong.items() if name == "tool_error_count"}
    if wrong and not dry_run:
        sets = ", ".join(f"{name} = :{name}" for name in wrong)
        ask(_COUNTERS.replace("{counters}", sets), **{name: counted for name, (_, counted) in wrong.items()})
    yield from (Change("counters", name, told, counted) for name, (told, counted) in wrong.items())
    if "leases" in repairs and facts.lease_is_stale:
        if not dry_run:
            ask(_LEASE, stale_after=asked.stale_after)
        yield Change("leases", "lease", f"until {facts.lease_until}", None)
    if "claims" in repairs and facts.claimed_until is not None:
        if not dry_run:
            ask(_CLAIM, stale_after=asked.stale_after)
        yield Change("claims", "claim", f"until {facts.claimed_until}", None)


def _tool_runs(ask: _Ask, asking: Asking, asked: Asked, key: Key, dry_run: bool) -> Iterator[Change]:
    alone = Range(key, key, 0, 1).values()
    strays = [row for row in ask(STRAY, **alone) if row.has_call and not row.call_is_gone]
    running = {row.call_position for row in ask(RUNNING, **alone)}
    pairing = Pairing()
    for row in ask(SESSION_ITEMS, **session_values(key, asked)):
        pairing.read(row)
    taken = {row.output_position for row in ask(TAKEN)}
    wrong: dict[int, tuple[str, int | None]] = {
        call: ("running", None) for call, output in pairing.pairs.items() if call in running and output not in taken
    }
    outputs = {call: pairing.pairs[call] for call in wrong}
    for row in strays:
        wrong[row.call_position] = (row.status, row.output_position)
        paired = pairing.pairs.get(row.call_position)
        if row.output_position is not None and not row.output_is_gone:
            outputs[row.call_position] = row.output_position
        elif paired is not None and paired not in taken:
            outputs[row.call_position] = paired
    for call, before in sorted(wrong.items()):
        output = outputs.get(call)
        status, error = ("running", None) if output is None else _outcome(ask, asking, call, output)
        if (status, output) == before:
            continue
        if not dry_run:
            ask(_TOOL_RUN, call_position=call, output_position=output, status=status, error=error)
        told, is_now = ({"status": each[0], "output_position": each[1]} for each in (before, (status, output)))
        yield Change("tool_runs", f"tool run at {call}", told, is_now)


def _outcome(ask: _Ask, asking: Asking, call: int, output: int) -> tuple[str, str | None]:
    """How a call went, by what its items say."""
    items: list[Item] = []
    for position in sorted({call, output}):
        text = ask(item_at(asking), position=position).scalar_one_or_none()
        item = decode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text or "")
        items += [] if item is None else [item]
    told = project_calls(items)
    ended = [(each.status, each.error) for each in told.calls if each.status != "running"]
    ended += [(each.status, each.error) for each in told.outputs]
    return ended[0] if ended else ("succeeded", None)
