"""Every verb of a handle and of a store with arguments of every kind, and what a right answer to it looks like."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from hypothesis import strategies as st

from agents_pg_session import PGSession, SessionNotFound, SessionStore
from tests.hostile import strategies as hostile
from tests.items import assistant, call, item, output, user

__all__ = ["CALLS", "Desk", "Opened", "make"]

#: What every session of these harnesses begins with.
BEGINNING: list[Any] = [
    user("How is the weather in Rome?"),
    call("c1", "lookup", '{"city": "Rome"}'),
    output("c1", "18 degrees; 100% sure_ly"),
    assistant('It is 18 degrees: STRAẞE, ﬁne, naïve \ud800 \\ "quoted" \0.'),
    user("And in Paris?"),
    item(type="function_call", call_id="c2", name="lookup", arguments='{"a": NaN}'),
]


@dataclass
class Desk:
    """One session, and what it must hold by now."""

    store: SessionStore
    session: PGSession
    tenant: str
    items: list[tuple[int, Any]] = field(default_factory=list)  #: position, item as it was given
    last: int = 0

    async def state(self) -> Any:
        """Return the session's row: whatever writes to the session changes it."""
        try:
            return await self.session.info()
        except SessionNotFound:
            return None


class Opened(Desk):
    """A desk whose session has its beginning."""

    @classmethod
    async def at(cls, store: SessionStore) -> Opened:
        tenant = f"hostile-{secrets.token_hex(8)}"
        desk = cls(store, store.session("s", tenant=tenant, user_id="ada"), tenant)
        await begun(desk)
        return desk


async def begun(desk: Desk) -> None:
    """Let the desk's session have its beginning, and nothing else."""
    await desk.session.add_items(list(BEGINNING))
    await desk.session.snapshots.save("summary", "It is warm.")
    desk.items, desk.last = list(enumerate(BEGINNING, 1)), len(BEGINNING)


@dataclass(frozen=True)
class Verb:
    """How a verb is called, and what of its answer can be checked."""

    name: str
    required: dict[str, st.SearchStrategy[Any]]
    optional: dict[str, st.SearchStrategy[Any]]
    right: Callable[[Desk, Any, dict[str, Any]], Any] | None = None  #: may be asynchronous
    writes: bool = False

    def arguments(self) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries(self.required, optional=self.optional)


VERBS: list[Verb] = []
_Right = Callable[[Desk, Any, dict[str, Any]], Any]


def verb(
    name: str, required: dict[str, Any] | None = None, *, writes: bool = False, **optional: Any
) -> Callable[[_Right], _Right]:
    """Register a verb with the function that checks its answers."""

    def register(right: _Right) -> _Right:
        VERBS.append(Verb(name, required or {}, optional, right, writes))
        return right

    return register


async def make(desk: Desk, name: str, arguments: dict[str, Any]) -> Any:
    """Make the call."""
    where: Any = desk.session
    if name.startswith("store."):
        where, name = desk.store, name.removeprefix("store.")
        arguments = {"tenant": desk.tenant, **arguments}
    return await functools.reduce(getattr, name.split("."), where)(**arguments)


CURSORS = st.one_of(st.none(), hostile.NAMES)


@verb("get_items", limit=hostile.NUMBERS)
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    limit = given.get("limit", 10**6)
    assert (
        answer == [hostile.as_stored(each) for _, each in desk.items][len(desk.items) - min(limit, len(desk.items)) :]
    )


@verb("add_items", {"items": hostile.ITEMS}, writes=True)
async def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    desk.items += list(enumerate(given["items"], desk.last + 1))
    desk.last += len(given["items"])
    stored = await desk.session.get_items()
    assert stored == [hostile.as_stored(each) for _, each in desk.items]


@verb("turns", limit=st.one_of(st.none(), hostile.NUMBERS), before_position=st.one_of(st.none(), hostile.NUMBERS))
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    limit, before = given.get("limit"), given.get("before_position")
    told = [each for position, each in desk.items if before is None or position < before]
    shown = [stored.item for turn in answer for stored in turn.items]
    assert shown == [hostile.as_stored(each) for each in told][len(told) - len(shown) :]
    assert limit is not None or len(shown) == len(told)
    assert limit is None or len(answer) <= limit


def texts(value: Any) -> list[str]:
    """Every text in a value but for what names things."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        unsaid = ("type", "role", "status", "id", "call_id")
        return [text for key, each in value.items() if key not in unsaid for text in texts(each)]
    return [text for each in value for text in texts(each)] if isinstance(value, list | tuple) else []


SOUGHT = st.one_of(
    hostile.NAMES, st.sampled_from(["strasse", "ROME", "100%", "ly", "_", "\\", '"', "FINE", "fi", "\0", "degrees"])
)


@verb("find", {"text": SOUGHT}, limit=hostile.NUMBERS)
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    wanted = given["text"].casefold()
    stored = [(position, hostile.as_stored(each)) for position, each in desk.items]
    found = [position for position, each in stored if any(wanted in text.casefold() for text in texts(each))]
    assert [each.position for each in answer] == found[::-1][: given.get("limit", 50)]


@verb("end", status=hostile.NAMES, writes=True)
async def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    assert (await desk.session.info()).status == given.get("status", "ended")


@verb("expire", {"end": hostile.MOMENTS}, writes=True)
async def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    state = await desk.state()
    assert state is None or state.expires_at == answer
    try:
        await desk.session.expire(None)
    except SessionNotFound:  # that was in the past, or is by now
        await begun(desk)


@verb("store.purge", {"dry_run": st.just(True)}, older_than=hostile.MOMENTS, status=hostile.NAMES,
      expired=st.sampled_from([True, False, None, 0, 1, "yes"]), batch=hostile.NUMBERS, tenant=hostile.IDS)  # fmt: skip
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    assert answer.dry_run
    assert 0 <= answer.sessions <= answer.seen <= 1


@verb("fork", {"session_id": hostile.IDS}, before_turn=st.one_of(st.none(), hostile.NUMBERS))
async def _(desk: Desk, answer: PGSession, given: dict[str, Any]) -> None:
    read = await answer.get_items()
    stored = [hostile.as_stored(each) for _, each in desk.items]
    assert read == stored[: len(read)]
    assert given.get("before_turn") is not None or len(read) == len(stored)
    assert (answer.tenant, (await answer.info()).forked_from) == (desk.tenant, "s")
    await answer.delete()


async def _write(_items: list[Any]) -> str:
    return "said"


@verb("summarize", {"write": st.just(_write)}, keep_turns=hostile.NUMBERS, kind=hostile.KINDS, writes=True)
async def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    assert answer is None or (await desk.session.snapshots.latest(given.get("kind", "summary"))).content == "said"  # type: ignore[union-attr]


@verb("restore", {"version": hostile.NUMBERS}, writes=True)
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    raise AssertionError("nothing was replaced, so nothing can be restored")


@verb("pause", {"result": hostile.NAMES}, writes=True)
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    raise AssertionError("no run was given, so none can be paused")


@verb("resume", {"agent": hostile.NAMES}, claim_for=hostile.SECONDS, writes=True)
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    raise AssertionError("nothing was paused, so nothing can be resumed")


def page_of(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    """A page holds at most what was asked for, and nothing of another session or tenant."""
    assert len(answer) <= given.get("limit", 1000)
    assert {getattr(each, "tenant", desk.tenant) for each in answer} <= {given.get("tenant", desk.tenant)}


for _name, _filters in {
    "runs.list": {"status": hostile.NAMES, "agent": hostile.NAMES},
    "tool_runs.list": {"status": hostile.NAMES, "tool_name": hostile.NAMES, "run_id": hostile.NAMES},
    "events.list": {"kind": hostile.NAMES, "run_id": hostile.NAMES},
    "snapshots.list": {"kind": hostile.KINDS},
    "store.waiting": {"tenant": hostile.IDS},
    "store.tool_runs": {"status": hostile.NAMES, "tool_name": hostile.NAMES, "since": hostile.MOMENTS},
    "store.sessions": {"user_id": hostile.NAMES, "agent": hostile.NAMES, "status": hostile.NAMES},
}.items():
    verb(_name, {}, limit=hostile.NUMBERS, after=CURSORS, **cast("dict[str, Any]", _filters))(page_of)


@verb("store.sessions", metadata=hostile.METADATA, all_tenants=st.sampled_from([None, 0, 1, 2, "yes", "", []]))
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    assert {each.tenant for each in answer} <= {desk.tenant}


BY = st.one_of(st.sampled_from(["agent", "user", "tenant", "day"]), hostile.NAMES)


@verb("store.usage", {"by": BY}, since=hostile.MOMENTS, until=hostile.MOMENTS)
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    assert answer == []


@verb("runs.get", {"run_id": hostile.NAMES})
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    assert answer is None


@verb("tool_runs.get", {"position": hostile.NUMBERS})
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    assert answer is None or answer.position == given["position"]


@verb("tool_runs.latest", tool_name=hostile.NAMES)
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    assert answer is None or answer.tool_name == given.get("tool_name", answer.tool_name)


@verb(
    "events.record", {"kind": hostile.NAMES}, payload=hostile.ANYTHING, run_id=hostile.NAMES, agent=hostile.NAMES,
    writes=True,
)  # fmt: skip
async def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    event = await desk.session.events.get(answer.event_id)
    assert event is not None
    told = (event.kind, event.payload, event.run_id, event.agent)
    payload = hostile.as_stored(given.get("payload"))
    assert told == (given["kind"], payload, given.get("run_id"), given.get("agent"))


@verb("events.get", {"event_id": hostile.NUMBERS})
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    assert answer is None or answer.event_id == given["event_id"]


@verb("events.latest", kind=hostile.KINDS)
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    assert answer is None or answer.kind == given.get("kind", answer.kind)


@verb(
    "snapshots.save", {"kind": hostile.KINDS, "content": hostile.ANYTHING}, through=hostile.NUMBERS,
    label=hostile.NAMES, metadata=hostile.ANYTHING, writes=True,
)  # fmt: skip
async def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    saved = await desk.session.snapshots.get(given["kind"], answer)
    told = (saved.content, saved.label, saved.metadata, saved.through)
    content, metadata = hostile.as_stored(given["content"]), hostile.as_stored(given.get("metadata"))
    assert told == (content, given.get("label"), metadata, min(given.get("through", desk.last), desk.last))


@verb("snapshots.get", {"kind": hostile.KINDS, "version": hostile.NUMBERS})
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    assert (answer.kind, answer.version) == (given["kind"], given["version"])


@verb("snapshots.latest", {"kind": hostile.KINDS})
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    assert answer is None or answer.kind == given["kind"]


@verb("snapshots.diff", {"kind": hostile.KINDS, "a": hostile.NUMBERS, "b": hostile.NUMBERS})
def _(desk: Desk, answer: Any, given: dict[str, Any]) -> None:
    assert given["a"] != given["b"] or answer == ""


#: One call: its verb and arguments.
CALLS = st.sampled_from(VERBS).flatmap(lambda verb: st.tuples(st.just(verb), verb.arguments()))
