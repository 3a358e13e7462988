"""Every cut: the connection dies, or freezes, between any two messages of any verb, in either direction.

Each verb first runs in peace, watched by the proxy: its messages are the points. Then, on sessions prepared alike, it
runs once for each point. An acknowledged verb must have answered and left what the peaceful one did; one that was
cancelled must have taken effect whole, or not at all, also when what was frozen arrives later.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Literal, TypeVar

import asyncpg
import pytest
from sqlalchemy import make_url

from agents_pg_session import SessionStore
from agents_pg_session.testing.proxy import ANSWER, Fault, Message, Proxy, Side
from tests.faults.network import healed
from tests.faults.verbs import COMPOSITE, VERBS, Verb, in_peace, known
from tests.items import user
from tests.sampling import DRIVERS
from tests.tally import Tally

#: Seconds until a frozen connection is given up, for statements and for connecting.
PATIENCE = 0.2

Stage = Literal["statement", "recovery"]
How = Literal["cut", "stall"]
T = TypeVar("T")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Thoroughly, every verb in every way; in the suite every verb is cut, and then meets one of the rest."""
    verbs = list(VERBS)
    stalled, recovering, cancelled = (verbs[part::3] for part in range(3))
    if metafunc.config.option.thorough:
        stalled = recovering = cancelled = verbs
    if metafunc.function is test_a_verb_disturbed_anywhere_takes_effect_once:
        pairs = [*(("cut", verb) for verb in verbs), *(("stall", verb) for verb in stalled)]
        metafunc.parametrize(("how", "verb"), pairs)
    elif metafunc.function is test_a_verb_whose_recovery_is_disturbed_takes_effect_once:
        metafunc.parametrize("verb", recovering)
    elif metafunc.function is test_a_verb_cancelled_anywhere_takes_effect_whole_or_not_at_all:
        metafunc.parametrize("verb", [verb for verb in cancelled if verb not in COMPOSITE])


class _Stop(BaseException):
    """Stops a verb at the moment at which something may go wrong."""


class Undisturbed:
    """What a verb answers and leaves in peace, what was there before it, and the messages it takes."""

    def __init__(self, answer: object, old: object, new: object, messages: Sequence[Message], how: How) -> None:
        self.answer = answer
        self.old = old
        self.new = new
        self.points = points_of(messages, how)
        self._spoken = [message.kind for message in messages if message.side == "client"]

    def holds_its_lock(self, point: Fault) -> bool:
        """Say whether the server has executed and waits for a Sync that is stuck in the network, or may be within a
        transaction (whose BEGIN is the only simple query).

        It holds the session's lock until it learns that nobody is there: from TCP, or when the network heals.
        """
        assert point.passed is not None
        executed = point.side == "client" and self._spoken[point.passed - 1 :][:2] == ["E", "S"]
        return point.how == "stall" and (executed or "Q" in self._spoken)


@asynccontextmanager
async def warm_store(url: str, driver: str) -> AsyncIterator[SessionStore]:
    """A store of one connection, so that what comes next speaks on it; nothing is left checked out of it."""
    # psycopg prepares a statement from its sixth use on: here at once, so that each use takes the same messages.
    connect_args = {"timeout": PATIENCE} if driver == "asyncpg" else {"prepare_threshold": 0}
    async with SessionStore.open(
        make_url(url).set(drivername=f"postgresql+{driver}"),
        retry_for=30,
        command_timeout=PATIENCE,
        engine_kwargs={"pool_size": 1, "connect_args": connect_args},
    ) as store:
        yield store
        assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def undisturbed(
    verb: Verb, how: How, stage: Stage, store: SessionStore, observer: asyncpg.Connection,
    proxy: Proxy, new_id: Callable[[], str],
) -> Undisturbed:  # fmt: skip
    """Run *verb* in peace and return what it does, and every point at which it can be disturbed.

    In the recovery stage its first answer is lost, and the points are those of what follows: connecting, finding out
    what became of it, and perhaps trying again.
    """

    def stop() -> None:
        raise _Stop

    def watch() -> None:
        proxy.watched = []
        proxy.fault = ANSWER if stage == "recovery" else None

    before = store.session(new_id())
    with pytest.raises(_Stop):
        await verb(before, stop)
    old = await known(observer, before)
    first = store.session(new_id())  # prepares the statements, so that the points are those of a warm connection
    await verb(first, in_peace)
    session = store.session(new_id())
    answer = await verb(session, watch)
    messages, proxy.watched = proxy.watched or [], None
    links = list(dict.fromkeys(message.link for message in messages))
    spoken = [message for message in messages if message.link == links[stage == "recovery"]]
    return Undisturbed(answer, old, await known(observer, session), spoken, how)


def points_of(messages: Sequence[Message], how: How) -> list[Fault]:
    """Return a fault before each message of each side."""
    sides: tuple[Side, ...] = ("client", "server")
    return [
        Fault(how, side, passed)
        for side in sides
        for passed in range(sum(message.side == side for message in messages))
    ]


def chosen(verb: str, options: Sequence[T], thorough: bool) -> Sequence[T]:
    """Return all options, or one: another some verbs later, so that a sample of them meets each."""
    return options if thorough else [options[list(VERBS).index(verb) // 3 % len(options)]]


def sample(verb: str, points: Sequence[Fault], thorough: bool, few: int) -> Sequence[Fault]:
    """Return all points, or *few* of them spread over the whole verb, others for the next verb."""
    if thorough or len(points) <= few:
        return points
    first = list(VERBS).index(verb) // 3 % (len(points) // few)
    return [points[(first + index * len(points) // few) % len(points)] for index in range(few)]


async def disturbed(
    verb: Verb, faults: Sequence[Fault], peace: Undisturbed, store: SessionStore, observer: asyncpg.Connection,
    proxy: Proxy, new_id: Callable[[], str],
) -> None:  # fmt: skip
    """Run *verb* while *faults* happen one after the other: it must answer and leave what it does in peace, once."""
    session = store.session(new_id())
    proxy.faults = 0

    def arm() -> None:
        proxy.fault, *proxy.later = faults
        if peace.holds_its_lock(faults[-1]):
            asyncio.get_running_loop().call_later(2 * (1 + len(faults)) * PATIENCE, proxy.heal)

    answer = await verb(session, arm)

    assert proxy.faults == len(faults), faults
    assert answer == peace.answer, faults
    assert await known(observer, session) == peace.new, faults
    await healed(proxy, store)
    assert await known(observer, session) == peace.new, (faults, "arrived late")


async def test_a_verb_disturbed_anywhere_takes_effect_once(
    proxied_url: str, observer: asyncpg.Connection, proxy: Proxy, new_id: Callable[[], str], how: How, verb: str,
    thorough: bool, tally: Tally,
) -> None:  # fmt: skip
    """Cut or frozen between any two messages, the verb answers and leaves what it does in peace, once."""
    for driver in chosen(verb, DRIVERS, thorough):
        async with warm_store(proxied_url, driver) as store:
            peace = await undisturbed(VERBS[verb], how, "statement", store, observer, proxy, new_id)
            for point in sample(verb, peace.points, thorough, 2 if how == "cut" else 1):
                await disturbed(VERBS[verb], [point], peace, store, observer, proxy, new_id)
                tally.add("Every cut", **{f"points {how}": 1, "acknowledged": 1, "lost": 0, "doubled": 0})


async def test_a_verb_whose_recovery_is_disturbed_takes_effect_once(
    proxied_url: str, observer: asyncpg.Connection, proxy: Proxy, new_id: Callable[[], str], verb: str,
    thorough: bool, tally: Tally,
) -> None:  # fmt: skip
    """Its answer was lost; then, while it connects again and finds out, it is cut or frozen anywhere once more."""
    # libpq waits at least two seconds for a server that is silent while it connects: asyncpg shows the same recovery.
    ways: list[tuple[str, How]] = [("asyncpg", "cut"), ("psycopg", "cut"), ("asyncpg", "stall")]
    for driver, how in chosen(verb, ways, thorough):
        async with warm_store(proxied_url, driver) as store:
            peace = await undisturbed(VERBS[verb], how, "recovery", store, observer, proxy, new_id)
            for point in sample(verb, peace.points, thorough, 1):
                await disturbed(VERBS[verb], [ANSWER, point], peace, store, observer, proxy, new_id)
                tally.add("Every cut", **{f"points {how} in recovery": 1, "acknowledged": 1, "lost": 0, "doubled": 0})


async def test_a_verb_cancelled_anywhere_takes_effect_whole_or_not_at_all(
    proxied_url: str, observer: asyncpg.Connection, proxy: Proxy, new_id: Callable[[], str], verb: str,
    thorough: bool, tally: Tally,
) -> None:  # fmt: skip
    """Frozen between any two messages and cancelled, once (and the answer comes) or twice (and it comes too late)."""
    for driver, times in chosen(verb, list(itertools.product(DRIVERS, (1, 2))), thorough):
        async with warm_store(proxied_url, driver) as store:
            peace = await undisturbed(VERBS[verb], "stall", "statement", store, observer, proxy, new_id)
            allowed = [peace.old, peace.new]
            if verb == "claim":  # who is cancelled gives it back
                released = store.session(new_id())
                await VERBS["release"](released, in_peace)
                allowed.append(await known(observer, released))
            for point in sample(verb, peace.points, thorough, 1):
                await VERBS[verb](store.session(new_id()), in_peace)  # the one before lost its connection
                session = store.session(new_id())
                proxy.faults = 0

                def arm(point: Fault = point, peace: Undisturbed = peace) -> None:
                    proxy.fault = point

                working = asyncio.ensure_future(VERBS[verb](session, arm))
                while proxy.faults == 0:
                    await asyncio.sleep(0.001)
                for _ in range(times):
                    working.cancel()
                    await asyncio.sleep(0)
                if times == 1:
                    proxy.heal()
                await asyncio.wait({working})

                assert working.cancelled() or times == 1, (driver, point)
                assert await known(observer, session) in allowed, (driver, point)
                await healed(proxy, store)
                assert await known(observer, session) in allowed, (driver, point, "arrived late")
                if not verb.endswith("nothing"):
                    await session.add_items([user("and on")])
                    assert (await session.get_items())[-1:] == [user("and on")]
                tally.add("Every cut", **{f"points cancelled {times}x": 1, "in part": 0})
