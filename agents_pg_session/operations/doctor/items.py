"""Looking through the items: orphans, rows that hold no item, and tool runs that say something else than their items.

Items are read in pages; of a page come only those that have to do with tools, and those that look wrong. What looks
like trouble is looked at once more, the whole session in one statement, before anybody is told: between two pages a
writer may have replaced what the first one showed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import groupby
from typing import Any

from agents_pg_session.drivers import Row, Rows
from agents_pg_session.operations.doctor.asking import IN_RANGE, Asked, Asking, Range
from agents_pg_session.operations.doctor.findings import Complaint
from agents_pg_session.operations.doctor.pairing import NAMED_OTHERWISE, TOOL_ITEMS, Pairing
from agents_pg_session.projection import decode
from agents_pg_session.statements import Key

__all__ = [
    "EXAMINED",
    "RUNNING",
    "SESSION_ITEMS",
    "STRAY",
    "TAKEN",
    "item_at",
    "looked_through",
    "orphans",
    "session_values",
]

#: The examinations that reading the items answers.
EXAMINED = frozenset({"orphans", "items", "tool_runs"})

#: Items one statement looks at.
PAGE = 1000

_TYPES = ", ".join(f"'{each}'" for each in TOOL_ITEMS)
_NAMED_OTHERWISE = ", ".join(f"'{each}'" for each in NAMED_OTHERWISE)
# The item itself only where its call's id is in it and nowhere else.
_NAMED_BY = f"""CASE WHEN {{i}}.type IN ({_NAMED_OTHERWISE}) OR {{i}}.call_id IS NULL AND {{i}}.type IN ({_TYPES})
            THEN CAST({{i}}.item AS text) END AS named_by"""

# Too deep, or a number too long, for the decoder: very long, so that almost no item has to be looked through.
_LONG = """length({text}) > 500 AND length({text}) - length(replace(replace({text}, '[', ''), '{', '')) > 500
             OR length({text}) > 4300 AND {digits} LIKE {row_of_digits}"""
_DIGITS_POSTGRES = "translate({text}, '123456789', '000000000')"
_DIGITS_SQLITE = "replace(" * 9 + "{text}" + "".join(f", '{digit}', '0')" for digit in range(1, 10))
# What a decoder might not take; the decoder has the last word.
_STRANGE = {
    True: "json_typeof(p.item) <> 'object' OR "
    + _LONG.replace("{digits}", _DIGITS_POSTGRES)
    .replace("{row_of_digits}", "'%' || repeat('0', 4300) || '%'")
    .replace("{text}", "CAST(p.item AS text)"),
    False: "CASE WHEN json_valid(CAST(p.item AS text)) THEN json_type(CAST(p.item AS text)) <> 'object' ELSE 1 END"
    " OR typeof(p.item) = 'blob' OR "
    + _LONG.replace("{digits}", _DIGITS_SQLITE)
    .replace("{row_of_digits}", "'%' || hex(zeroblob(2150)) || '%'")
    .replace("{text}", "CAST(p.item AS text)"),
}

# Of the next items of a range those that matter, and the last one: where the next page begins.
_PAGE = f"""
-- Of the next items those that have to do with tools, or look as if they were no item.
SELECT * FROM (
    SELECT p.tenant_id, p.session_id, p.position, p.turn, p.type, p.call_id, {_NAMED_BY.replace("{i}", "p")},
           p.type IN ({_TYPES}) AS is_tool, {{strange}} AS is_strange,
           lead(p.position) OVER (ORDER BY p.tenant_id, p.session_id, p.position) IS NULL AS is_last
      FROM (SELECT * FROM {{schema}}items i
             WHERE {IN_RANGE.replace("{t}", "i")}{{after}}
             ORDER BY i.tenant_id, i.session_id, i.position
             LIMIT :page) AS p) AS looked_at
 WHERE is_tool OR is_strange OR is_last
 ORDER BY tenant_id, session_id, position
"""

# All that has to do with tools in one session, and what the session says of itself at that moment.
SESSION_ITEMS = f"""
-- All calls and outputs of one session, and what it says of itself at that moment.
SELECT i.position, i.turn, i.type, i.call_id, {_NAMED_BY.replace("{i}", "i")}, s.turn_count,
       s.last_position, s.item_count,
       s.status = 'waiting' OR s.last_position = (
           SELECT n.through_position FROM {{schema}}snapshots n
            WHERE n.tenant_id = :tenant_id AND n.session_id = :session_id AND n.kind = 'run_state'
            ORDER BY n.version DESC LIMIT 1) AS is_paused,
       s.updated_at > {{ago:quiet_for}} AS is_busy
  FROM {{schema}}sessions s
  JOIN {{schema}}items i ON i.tenant_id = s.tenant_id AND i.session_id = s.session_id
 WHERE s.tenant_id = :tenant_id AND s.session_id = :session_id
   AND i.tenant_id = :tenant_id AND i.session_id = :session_id AND i.type IN ({_TYPES})
   AND (s.expires_at IS NULL OR s.expires_at > {{now}})
 ORDER BY i.position
"""

# What a decoder has to make of one row; as bytes where the column may hold anything.
_ITEM = """
SELECT CAST(item AS {kind}) AS item FROM {schema}items
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND position = :position
"""

# Calls that still run, of sessions whose items tell all of it: no history was replaced, and no fork copied them.
RUNNING = f"""
-- Calls that still run, by sessions.
SELECT t.tenant_id, t.session_id, t.call_position
  FROM {{schema}}tool_runs t
  JOIN {{schema}}sessions s ON s.tenant_id = t.tenant_id AND s.session_id = t.session_id
 WHERE {IN_RANGE.replace("{t}", "t")} AND t.status = 'running' AND t.call_id IS NOT NULL
   AND t.call_position > coalesce(s.forked_through, 0)
   AND NOT EXISTS (SELECT 1 FROM {{schema}}events e
                    WHERE e.tenant_id = t.tenant_id AND e.session_id = t.session_id AND e.kind = 'history_replaced')
"""

_GONE = """{t}.position IS NULL AND {place} > coalesce(s.cleared_through, 0) AND {place} > coalesce(s.forked_through, 0)
       AND NOT EXISTS (SELECT 1 FROM {schema}events e
                        WHERE e.tenant_id = t.tenant_id AND e.session_id = t.session_id
                          AND (e.kind = 'history_replaced'
                               OR e.kind = 'session_cleared' AND s.cleared_through IS NULL))"""

# Tool runs that cannot be: a call or an output that is nowhere, and none took it out; over without an output, or
# running with one. (A search for tools that the API ran itself is over without one.)
STRAY = f"""
-- Tool runs whose items are gone without a reason, or that are over without an output.
SELECT * FROM (
    SELECT t.tenant_id, t.session_id, t.call_position, t.output_position, t.status,
           {_GONE.replace("{t}.position", "c.position").replace("{place}", "t.call_position")} AS call_is_gone,
           t.output_position IS NOT NULL
           AND {_GONE.replace("{t}.position", "o.position").replace("{place}", "t.output_position")} AS output_is_gone,
           c.position IS NOT NULL AS has_call
      FROM {{schema}}tool_runs t
      JOIN {{schema}}sessions s ON s.tenant_id = t.tenant_id AND s.session_id = t.session_id
      LEFT JOIN {{schema}}items c ON c.tenant_id = t.tenant_id AND c.session_id = t.session_id
                                 AND c.position = t.call_position
      LEFT JOIN {{schema}}items o ON o.tenant_id = t.tenant_id AND o.session_id = t.session_id
                                 AND o.position = t.output_position
     WHERE {IN_RANGE.replace("{t}", "t")}) AS looked_at
 WHERE call_is_gone OR output_is_gone
    OR status = 'running' AND output_position IS NOT NULL
    OR status <> 'running' AND output_position IS NULL AND has_call
       AND NOT EXISTS (SELECT 1 FROM {{schema}}tool_runs n
                        WHERE n.tenant_id = looked_at.tenant_id AND n.session_id = looked_at.session_id
                          AND n.call_position = looked_at.call_position AND n.tool_type = 'tool_search')
 ORDER BY tenant_id, session_id, call_position
"""

# Outputs that some tool run of a session has.
TAKEN = """
SELECT output_position FROM {schema}tool_runs
 WHERE tenant_id = :tenant_id AND session_id = :session_id AND output_position IS NOT NULL
"""

_Found = dict[Key, Pairing]


def session_values(key: Key, asked: Asked) -> dict[str, Any]:
    """Return the values of `SESSION_ITEMS`."""
    return {**key._asdict(), "quiet_for": asked.quiet_for}


async def looked_through(
    asking: Asking, sessions: Range, asked: Asked, examinations: frozenset[str]
) -> AsyncIterator[Complaint]:
    """Yield what is to be said of the items and tool runs of a range."""
    running: dict[Key, frozenset[int]] = {}
    if "tool_runs" in examinations:
        for complaint in _strays(await asking.rows(STRAY, **sessions.values())):
            yield complaint
        rows = await asking.rows(RUNNING, **sessions.values())
        by_key = groupby(rows, lambda row: Key(row.tenant_id, row.session_id))
        for key, calls in by_key:
            running[key] = running.get(key, frozenset()) | {row.call_position for row in calls}
    if examinations <= {"tool_runs"} and not running:
        return
    pairings: _Found = {}
    async for row in _read(asking, sessions, "items" in examinations):
        key = Key(row.tenant_id, row.session_id)
        for complete in [each for each in pairings if each != key]:
            async for complaint in _judged(asking, complete, pairings.pop(complete), asked, examinations):
                yield complaint
        if row.is_strange and (strange := await _undecodable(asking, key, row.position)) is not None:
            yield strange
        if row.is_tool:
            pairings.setdefault(key, Pairing()).read(row, running.get(key, frozenset()))
    for key, pairing in pairings.items():
        async for complaint in _judged(asking, key, pairing, asked, examinations):
            yield complaint


async def _read(asking: Asking, sessions: Range, looks_inside: bool) -> AsyncIterator[Row]:
    """Read what matters of the items of a range, page by page."""
    strange = _STRANGE[asking.on_postgres] if looks_inside else "false"
    after, values = "", dict[str, Any](sessions.values())
    while True:
        sql = _PAGE.replace("{strange}", f"({strange})").replace("{after}", after)
        rows = await asking.rows(sql, page=PAGE, **values)
        for row in rows:
            yield row
        if not rows:
            return
        after = "\n               AND (i.tenant_id, i.session_id, i.position) > (:tenant_id, :session_id, :position)"
        values |= {name: getattr(rows[-1], name) for name in ("tenant_id", "session_id", "position")}


async def _judged(
    asking: Asking, key: Key, suspected: Pairing, asked: Asked, examinations: frozenset[str]
) -> AsyncIterator[Complaint]:
    """Look at a session once more, whole, where the pages showed anything odd."""
    if not (suspected.outputs or suspected.pairs or suspected.calls()):
        return
    rows = await asking.rows(SESSION_ITEMS, **session_values(key, asked))
    if not rows:
        return
    pairing = Pairing()
    for row in rows:
        pairing.read(row, frozenset(suspected.pairs))
    if "orphans" in examinations:
        for complaint in orphans(key, pairing, rows[0]):
            yield complaint
    if "tool_runs" in examinations and pairing.pairs:
        taken = {row.output_position for row in await asking.rows(TAKEN, **key._asdict())}
        for call, output in pairing.pairs.items():
            if output not in taken:
                yield Complaint("tool_run_status", key, f"is 'running', but its output is at {output}", call)


def orphans(key: Key, pairing: Pairing, session: Row) -> Iterator[Complaint]:
    """Yield what has no counterpart; a call of the last turn only where nobody may be at work on it."""
    for each in pairing.outputs:
        yield Complaint("output_without_call", key, f"{each.type} {each.call_id}", each.position)
    for each in pairing.calls():
        if each.turn != session.turn_count:
            yield Complaint("old_call_without_output", key, f"{each.type} {each.call_id}", each.position)
        elif not session.is_paused and not session.is_busy:
            yield Complaint("call_without_output", key, f"{each.type} {each.call_id}", each.position)


def _strays(rows: Rows) -> Iterator[Complaint]:
    for row in rows:
        key = Key(row.tenant_id, row.session_id)
        if row.call_is_gone:
            yield Complaint("tool_run_lost", key, "its call is not there", row.call_position)
        elif row.output_is_gone:
            kind = "tool_run_status" if row.has_call else "tool_run_lost"
            yield Complaint(kind, key, f"its output at {row.output_position} is not there", row.call_position)
        elif row.status == "running":
            yield Complaint(
                "tool_run_status", key, f"is 'running' with an output at {row.output_position}", row.call_position
            )
        else:
            yield Complaint("tool_run_status", key, f"is '{row.status}' without an output", row.call_position)


def item_at(asking: Asking) -> str:
    """Return the statement for one item."""
    return _ITEM.replace("{kind}", "text" if asking.on_postgres else "blob")


async def _undecodable(asking: Asking, key: Key, position: int) -> Complaint | None:
    for row in await asking.rows(item_at(asking), **key._asdict(), position=position):
        item = row.item
        if isinstance(item, bytes):
            try:
                item = item.decode()
            except UnicodeDecodeError:
                item = ""
        if item is None or decode(item) is None:
            shown = (item or "no text")[:40]
            return Complaint("undecodable", key, f"begins with {shown!r}", position)
    return None
