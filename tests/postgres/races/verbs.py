"""Every mutating verb, and the moments of a session at which two of them may meet."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import asyncpg
from agents import RunState
from agents.result import RunResult
from agents.run import Runner

from agents_pg_session import Event, PGSession, SessionConflict, SessionStore
from agents_pg_session.leases import Exclusive
from agents_pg_session.ledgers.history import CompactionSnapshot
from agents_pg_session.projection import Item
from tests.acceptance.agents_for_tests import QUIET, calls, scripted
from tests.items import assistant, call, output, user
from tests.postgres.races.lines import FAILED, masked

#: A conversation with a replaced history, a summary, a call that still runs, and …
TALK = "talk"  #: … a paused run
ASKED = "asked"  #: … a run that waits and was not paused yet
TAKEN = "taken"  #: … a paused run that a worker has resumed
LEASED = "leased"  #: … somebody who runs it alone
NOTHING = "nothing"  #: no session at all
FENCED = "fenced"  #: no session, but the row that a fence left behind
MOMENTS = (TALK, ASKED, TAKEN, LEASED, NOTHING, FENCED)


@dataclass
class Actor:
    """One of the two who want something at once, each in a process of its own."""

    session: PGSession
    expecting: PGSession  #: has read the session, and expects no change
    compaction: CompactionSnapshot | None = None  #: what it has read of the session, to compact it
    meanwhile: Callable[[], Awaitable[object]] | None = None  #: what happens while its model writes a summary


@dataclass
class Stage:
    """A session at some moment, and who is there."""

    session_id: str
    one: Actor
    other: Actor
    result: RunResult | None = None  #: of the run that waits for an approval
    runner: PGSession | None = None  #: the handle that ran it
    worker: PGSession | None = None  #: the handle that resumed it
    holder: PGSession | None = None  #: the handle that runs the session alone
    leases: list[Exclusive[PGSession]] = field(default_factory=list)

    @property
    def copy_id(self) -> str:
        return f"{self.session_id} copy"

    @property
    def source_id(self) -> str:
        return f"{self.session_id} source"


Verb = Callable[[Stage, Actor], Awaitable[object]]


@asynccontextmanager
async def staged(
    moment: str, session_id: str, left: SessionStore, right: SessionStore, by_hand: asyncpg.Connection
) -> AsyncIterator[Stage]:
    """Bring a session to a moment, with an actor in each of two processes."""
    actors = [
        Actor(store.session(session_id), store.session(session_id, expect="unchanged")) for store in (left, right)
    ]
    stage = Stage(session_id, actors[0], actors[1])
    await left.session(stage.source_id).add_items([user("elsewhere")])
    if moment == FENCED:
        sql = "INSERT INTO agents.sessions (tenant_id, session_id, fenced_ids) VALUES ('', $1, $2)"
        await by_hand.execute(sql, session_id, ["00000000-0000-4000-8000-000000000000"])
    elif moment != NOTHING:
        await _talked(moment, stage, left.session(session_id))
    for actor in actors:
        await actor.expecting.get_items()
        actor.compaction = await actor.session._get_compaction_snapshot(2)
    try:
        yield stage
    finally:
        for lease in stage.leases:
            with contextlib.suppress(SessionConflict):  # somebody erased the session meanwhile
                await lease.__aexit__(None, None, None)


async def _talked(moment: str, stage: Stage, session: PGSession) -> None:
    await session.add_items([user("1"), call("c1"), output("c1"), assistant("2")])
    await session._atomic_replace_items([user("short")])
    await session.snapshots.save("summary", "so far")
    await session.add_items([call("c2"), call("c2"), user("and?")])
    agent = scripted(calls("refund", "r1", amount=5))
    stage.runner = session
    stage.result = await Runner.run(agent, "refund", session=session, hooks=session.hooks(), run_config=QUIET)
    if moment != ASKED:
        await session.pause(stage.result)
    if moment == TAKEN:
        stage.worker = own_handle(session)
        await stage.worker.resume(scripted())
    if moment == LEASED:
        stage.holder = own_handle(session)
        await take_lease(stage, stage.holder)


def own_handle(session: PGSession) -> PGSession:
    return PGSession(session.session_id, engine=session._database)


async def take_lease(stage: Stage, session: PGSession) -> bool:
    lease = session.exclusive(wait=0)
    await lease.__aenter__()
    stage.leases.append(lease)
    return True


async def leave(stage: Stage, _: Actor) -> None:
    lease = stage.leases.pop()
    await lease.__aexit__(None, None, None)


async def renew(stage: Stage, _: Actor) -> bool:
    """One beat of the lease's heart."""
    assert stage.holder is not None
    database, lease = stage.holder._database, stage.leases[0]
    beat = database.sql.renew(stage.holder._scope.key, lease._lease_id, 30)
    return bool(await database.write(beat, database.budget()))


async def summarise(_: Stage, by: Actor) -> int | None:
    async def write(items: list[Item]) -> str:
        if by.meanwhile is not None:
            await by.meanwhile()
        return f"short of {len(items)}"

    return await by.session.summarize(write)


async def delete(_: Stage, by: Actor) -> None:
    """What it answers is left out: each of two says that the session was there when it asked."""
    await by.session.delete()


async def compact(_: Stage, by: Actor) -> bool:
    assert by.compaction is not None
    return await by.compaction.replace_suffix(0, [user("compacted")])


async def fork_in(stage: Stage, by: Actor) -> PGSession:
    source = PGSession(stage.source_id, engine=by.session._database)
    return await source.fork(stage.session_id)


async def pause(stage: Stage, _: Actor) -> int:
    assert stage.runner is not None
    assert stage.result is not None
    return await stage.runner.pause(stage.result)


#: What anybody may do to a session at any moment.
VERBS: dict[str, Verb] = {
    "append": lambda _, by: by.session.add_items([user("hi"), call("c3"), output("c3"), assistant("ok")]),
    "append if unchanged": lambda _, by: by.expecting.add_items([user("as expected"), output("c2")]),
    "call": lambda _, by: by.session.add_items([call("c2")]),
    "output": lambda _, by: by.session.add_items([output("c2", FAILED)]),
    "pop": lambda _, by: by.session.pop_item(),
    "clear": lambda _, by: by.session.clear_session(),
    "save": lambda _, by: by.session.snapshots.save("summary", "saved"),
    "summarise": summarise,
    "record": lambda _, by: by.session.events.record("note", {"a": 1}),
    "resume": lambda _, by: by.session.resume(scripted()),
    "end": lambda _, by: by.session.end(),
    "expire": lambda _, by: by.session.expire(datetime(2199, 1, 1, tzinfo=UTC)),
    "expire now": lambda _, by: by.session.expire(datetime(2020, 1, 1, tzinfo=UTC)),
    "fork": lambda stage, by: by.session.fork(stage.copy_id),
    "fork in": fork_in,
    "replace": lambda _, by: by.session._atomic_replace_items([user("replaced"), assistant("ok")]),
    "compact": compact,
    "restore": lambda _, by: by.session.restore(1),
    "lease": lambda stage, by: take_lease(stage, own_handle(by.session)),
    "delete": delete,
}

#: What only somebody can do who is there at that moment.
OF_MOMENT: dict[str, dict[str, Verb]] = {
    TALK: {"pause": pause},
    ASKED: {"pause": pause},
    TAKEN: {
        "go on": lambda stage, _: stage.worker.add_items([output("r1", "5 refunded")]),  # type: ignore[union-attr]
        "give back": lambda stage, _: stage.worker.release(),  # type: ignore[union-attr]
    },
    LEASED: {
        "append alone": lambda stage, _: stage.holder.add_items([user("alone")]),  # type: ignore[union-attr]
        "renew": renew,
        "leave": leave,
    },
    NOTHING: {},
    FENCED: {},
}


def verb_of(moment: str, name: str) -> Verb:
    return OF_MOMENT[moment].get(name) or VERBS[name]


def pairs_at(moment: str) -> list[tuple[str, str]]:
    """Return each two verbs that may meet, once.

    What is the same as at another moment is left out, and so is what one handle would do twice at once.
    """
    special, common = list(OF_MOMENT[moment]), list(VERBS)
    pairs = [(one, other) for place, one in enumerate(special) for other in [*special[place + 1 :], *common]]
    if moment in (TALK, NOTHING, FENCED):
        pairs += [(one, other) for place, one in enumerate(common) for other in common[place:]]
    return pairs


def told(answer: object) -> object:
    """What a verb answered or raised, as a value that can be compared with another one's."""
    match answer:
        case BaseException():
            return [type(answer).__name__, masked(str(answer))]
        case PGSession():
            return "a session"
        case RunState():
            return [each.call_id for each in answer.get_interruptions()]
        case Event():
            return [answer.event_id, answer.kind]
        case datetime():
            return answer.isoformat()
    return masked(answer)


async def attempted(working: Awaitable[Any]) -> object:
    """Return what a verb tells, also if that is an error."""
    try:
        return told(await working)
    except Exception as error:
        return told(error)
