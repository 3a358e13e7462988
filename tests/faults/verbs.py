"""What can be done to a session, each with the moment at which something may go wrong; and all that is known of it.

A verb prepares its session, says `arm()`, and does what it is named after.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import asyncpg
from agents import RunHooks, Runner, Usage

from agents_pg_session import PGSession, SessionError, Window
from agents_pg_session.purging import Purge, rule_of
from tests.acceptance.agents_for_tests import QUIET, calls, says, scripted
from tests.items import assistant, call, output, user

__all__ = ["COMPOSITE", "FAILED", "HISTORY", "VERBS", "Arm", "Verb", "in_peace", "known", "paused"]

#: Makes the next statement the one that something happens to; does nothing in peace.
Arm = Callable[[], None]
Verb = Callable[[PGSession, Arm], Awaitable[object]]

FAILED = "An error occurred while running the tool. Please try again."
HISTORY = [user("1"), call("c1"), output("c1"), call("c2"), assistant("2")]

#: All that is known of a session, but for times and random ids, beside which it must be the same.
EVERYTHING = """
SELECT json_build_object(
    'session', (SELECT to_jsonb(s) - '{session_id,created_at,updated_at,active_at,ended_at,forked_at,forked_from,
                                       fenced_ids,lease_id,lease_until}'::text[]
                       || jsonb_build_object('leased', lease_id IS NOT NULL, 'over', ended_at IS NOT NULL)
                  FROM agents.sessions s
                 WHERE session_id = $1 AND last_position + last_event_id > 0),
    'items', (SELECT json_agg(to_jsonb(i) - '{session_id,run_id,append_id,created_at}'::text[] ORDER BY position)
                FROM agents.items i WHERE session_id = $1),
    'tool_runs', (SELECT json_agg(to_jsonb(t) - '{session_id,run_id,created_at,started_at,finished_at}'::text[]
                                  ORDER BY call_position)
                    FROM agents.tool_runs t WHERE session_id = $1),
    'runs', (SELECT json_agg(to_jsonb(r) - '{session_id,run_id,trace_id,started_at,last_seen_at,finished_at,
                                             model_seconds,usage_details}'::text[] ORDER BY started_at)
               FROM agents.runs r WHERE session_id = $1),
    'events', (SELECT json_agg(to_jsonb(e) - '{session_id,run_id,operation_id,created_at,payload}'::text[]
                               || jsonb_build_object('payload', CASE json_typeof(payload)
                                      WHEN 'object' THEN to_jsonb(payload) - '{append_id,append_ids,from}'::text[]
                                      ELSE to_jsonb(payload) END) ORDER BY event_id)
                 FROM agents.events e WHERE session_id = $1),
    'snapshots', (SELECT json_agg(json_build_array(kind, version, through_position, label, claimed_by IS NOT NULL)
                                  ORDER BY kind, version)
                    FROM agents.snapshots n WHERE session_id = $1),
    'copies', (SELECT json_agg(json_build_array(c.item_count, c.tool_run_count, c.last_event_id,
                                                (SELECT count(*) FROM agents.items i WHERE i.session_id = c.session_id),
                                                (SELECT count(*) FROM agents.events e
                                                  WHERE e.session_id = c.session_id)))
                 FROM agents.sessions c WHERE forked_from = $1)
)
"""


async def known(observer: asyncpg.Connection, session: PGSession) -> object:
    """Return all that is known of *session* and its forks; a row that only holds fenced ids is no session."""
    return await observer.fetchval(EVERYTHING, session.session_id)


class Cutting(RunHooks[None]):
    """A user's own hooks: something happens to the append that tells of the first answer of the model."""

    def __init__(self, arm: Arm) -> None:
        self._arm = arm
        self._armed = False

    async def on_llm_end(self, *_: Any) -> None:
        if not self._armed:
            self._armed = True
            self._arm()


# -- items


async def append(session: PGSession, arm: Arm) -> None:
    await session.add_items(HISTORY)
    arm()
    await session.add_items([user("3"), call("c3"), output("c3", FAILED), call("c4")])


async def first_append(session: PGSession, arm: Arm) -> None:
    arm()
    await session.add_items([user("1"), call("c1"), assistant("2")])


async def late_output(session: PGSession, arm: Arm) -> None:
    await session.add_items(HISTORY)
    arm()
    await session.add_items([output("c2", FAILED), user("4")])


async def pop(session: PGSession, arm: Arm) -> object:
    await session.add_items(HISTORY)
    arm()
    return await session.pop_item()


async def pop_output(session: PGSession, arm: Arm) -> object:
    await session.add_items([*HISTORY, output("c2", FAILED)])
    arm()
    return await session.pop_item()


async def clear(session: PGSession, arm: Arm) -> None:
    await session.add_items(HISTORY)
    arm()
    await session.clear_session()


async def latest(session: PGSession, arm: Arm) -> object:
    await session.add_items(HISTORY)
    arm()
    return await session.get_items(limit=3)


async def all_items(session: PGSession, arm: Arm) -> object:
    await session.add_items(HISTORY)
    arm()
    return await session.get_items()


async def window(session: PGSession, arm: Arm) -> object:
    await session.add_items(HISTORY)
    narrow = PGSession(session.session_id, engine=session._database, window=Window(summary="summary"))
    arm()
    return await narrow.get_items()


# -- runs


async def append_of_a_run(session: PGSession, arm: Arm) -> None:
    agent = scripted([calls("weather", "r1", city="Rome"), calls("broken", "r2", city="X")], says("done"))
    await Runner.run(agent, "hi", session=session, hooks=session.hooks(wrap=Cutting(arm)), run_config=QUIET)


async def recording_of_a_failure(session: PGSession, arm: Arm) -> None:
    await session.add_items(HISTORY)
    with contextlib.suppress(Exception):
        async with session.recording() as run:
            try:
                await Runner.run(
                    scripted(calls("fatal", "r1", city="X")), "hi", session=session, hooks=run.hooks, run_config=QUIET
                )
            finally:
                arm()


async def recording_of_more_tokens(session: PGSession, arm: Arm) -> None:
    """The run's end was told; what is left are figures, without an event."""
    async with session.recording() as run:
        result = await Runner.run(scripted(says("hi")), "hi", session=session, hooks=run.hooks, run_config=QUIET)
        result.context_wrapper.usage.add(Usage(requests=1, input_tokens=7, output_tokens=3, total_tokens=10))
        arm()


async def paused(session: PGSession) -> None:
    """Leave a run that waits for an approval."""
    await pause(session, in_peace)


async def pause(session: PGSession, arm: Arm) -> int:
    agent = scripted(calls("refund", "r1", amount=5))
    result = await Runner.run(agent, "refund", session=session, hooks=session.hooks(), run_config=QUIET)
    arm()
    return await session.pause(result)


async def claim(session: PGSession, arm: Arm) -> list[str | None]:
    await paused(session)
    arm()
    state = await session.resume(scripted())
    return [each.call_id for each in state.get_interruptions()]


async def release(session: PGSession, arm: Arm) -> None:
    await paused(session)
    await session.resume(scripted())
    arm()
    await session.release()


async def run_alone(session: PGSession, arm: Arm) -> None:
    await session.add_items(HISTORY)
    arm()
    async with session.exclusive(wait=0):
        await session.add_items([user("alone")])


async def leave_alone(session: PGSession, arm: Arm) -> None:
    await session.add_items(HISTORY)
    async with session.exclusive(wait=0):
        arm()


# -- memory


async def save(session: PGSession, arm: Arm) -> int:
    await session.add_items(HISTORY)
    await session.snapshots.save("summary", "one")
    arm()
    return await session.snapshots.save("summary", "two", label="second")


async def record(session: PGSession, arm: Arm) -> object:
    await session.add_items(HISTORY)
    arm()
    event = await session.events.record("escalated", {"why": "angry"}, agent="Support")
    return event.event_id, event.payload


async def fork(session: PGSession, arm: Arm) -> object:
    await session.add_items(HISTORY)
    await session.snapshots.save("summary", "one")
    arm()
    copy = await session.fork(f"{session.session_id} copy")
    return await copy.get_items()


async def replace(session: PGSession, arm: Arm) -> bool:
    await session.add_items(HISTORY)
    arm()
    return await session._atomic_replace_items([user("short"), assistant("2")])


async def compact(session: PGSession, arm: Arm) -> bool:
    await session.add_items(HISTORY)
    snapshot = await session._get_compaction_snapshot(10)
    assert snapshot is not None
    arm()
    return await snapshot.replace_suffix(1, [assistant("short")])


async def restore(session: PGSession, arm: Arm) -> None:
    await session.add_items(HISTORY)
    await session._atomic_replace_items([user("short")])
    await session.add_items([user("more")])
    arm()
    await session.restore(1)


# -- the whole session


async def end(session: PGSession, arm: Arm) -> None:
    await session.add_items(HISTORY)
    arm()
    await session.end("closed")


async def expire(session: PGSession, arm: Arm) -> object:
    await session.add_items(HISTORY)
    arm()
    return await session.expire(datetime(2199, 1, 1, tzinfo=UTC))


async def append_after_the_end(session: PGSession, arm: Arm) -> None:
    """The first statement of such an append finds the session expired, the ones after it begin it anew."""
    await session.add_items(HISTORY)
    await session.snapshots.save("summary", "one")
    await session.expire(datetime(2020, 1, 1, tzinfo=UTC))
    arm()
    await session.add_items([user("3"), call("c3"), output("c2"), output("c3", FAILED)])


async def purge(session: PGSession, arm: Arm) -> None:
    """The first statement of a purge only looks, the second one removes; what a lost one removed is not counted, and
    what a lost one still has locked is passed over: the next purge finds it.
    """
    own = PGSession(session.session_id, engine=session._database, tenant="purged")
    await own.add_items(HISTORY)
    await own.expire(datetime(2020, 1, 1, tzinfo=UTC))
    arm()
    rule = rule_of("purged", older_than=None, status=None, expired=True)
    while (await Purge(session._database, rule, batch=1, dry_run=False).run(None)).passed_over:
        await asyncio.sleep(0.01)


async def delete(session: PGSession, arm: Arm) -> bool:
    """The first statement of a delete only looks, the second one erases."""
    await session.add_items(HISTORY)
    await session.snapshots.save("summary", "one")
    arm()
    return await session.delete()


def on_nothing(work: Callable[[PGSession], Awaitable[object]]) -> Verb:
    """Return a verb on a session that is not there."""

    async def verb(session: PGSession, arm: Arm) -> object:
        arm()
        try:
            return await work(session)
        except SessionError as error:
            return type(error)

    return verb


def in_peace() -> None:
    """Nothing happens."""


def _named(verbs: Iterable[Verb]) -> dict[str, Verb]:
    return {getattr(verb, "__name__", "").replace("_", " "): verb for verb in verbs}


VERBS: dict[str, Verb] = {
    **_named((append, first_append, late_output, pop, pop_output, clear, latest, all_items, window)),
    **_named((append_of_a_run, recording_of_a_failure, recording_of_more_tokens, pause, claim, release)),
    **_named((run_alone, leave_alone, save, record, fork, replace, compact, restore, end, delete)),
    **_named((expire, append_after_the_end, purge)),
    "pop on nothing": on_nothing(lambda session: session.pop_item()),
    "clear on nothing": on_nothing(lambda session: session.clear_session()),
    "replace on nothing": on_nothing(lambda session: session._atomic_replace_items([user("1")])),
    "restore on nothing": on_nothing(lambda session: session.restore(1)),
    "claim on nothing": on_nothing(lambda session: session.resume(scripted())),
    "end on nothing": on_nothing(lambda session: session.end()),
    "expire on nothing": on_nothing(lambda session: session.expire(None)),
    "delete on nothing": on_nothing(lambda session: session.delete()),
}

#: More than one change: who is cancelled in the middle leaves what it had done.
COMPOSITE = {
    "append of a run",
    "recording of a failure",
    "recording of more tokens",
    "run alone",
    "leave alone",
}
