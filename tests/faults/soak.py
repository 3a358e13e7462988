"""Soak: mixed load on a real PostgreSQL while something goes wrong every few seconds, then a recount.

`make soak` runs it for 30 minutes. *Writers* share a few sessions and remember what they were told (`load.py`);
*walkers* do one verb after the other, each on a session of its own, and compare what it leaves with what it leaves in
peace (`verbs.py`); some of them are cancelled in the middle. Every round is recounted and erased, so that what grows
would be ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import asyncpg
import psutil
from sqlalchemy import make_url

from agents_pg_session import PGSession, SessionStore, StorageUnavailable
from agents_pg_session.testing.proxy import Fault, Proxy
from agents_pg_session.testing.server import Server
from tests.faults.load import Load
from tests.faults.servers import migrated_server
from tests.faults.verbs import COMPOSITE, VERBS, in_peace, known

__all__ = ["Report", "Sample", "soak"]

_T = TypeVar("_T")

ROUND = 20.0  #: seconds of writing between two recounts
SAMPLE_EVERY = 1.0
WRITERS = 16
WALKERS = 8
RETRY_FOR = 60.0  #: longer than anything that goes wrong here

LOCK_ONE = """
SELECT FROM agents.sessions WHERE session_id = $1 FOR UPDATE
"""
TERMINATE_SOME = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
 WHERE application_name = 'agents_pg_session' AND random() < 0.3
"""
CONNECTED = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'agents_pg_session'"


#: What a connection of our own says when the server has gone.
AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


@dataclass(frozen=True)
class Sample:
    """What the process and the server used at one moment."""

    seconds: float
    memory: int  #: resident bytes of this process
    connections: int | None  #: of ours at the server; None while the server is away
    tasks: int
    verbs: int  #: done since the beginning
    faults: int


@dataclass
class Report:
    """What happened: `wrong` says in words what must not be."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class _Soak:
    def __init__(self, server: Server, proxy: Proxy, stores: list[SessionStore], dice: random.Random) -> None:
        self._server = server
        self._proxy = proxy
        self._stores = stores
        self._dice = dice
        self._names: list[str] = []
        self._load: Load | None = None  #: at work now
        self._peaceful: dict[str, tuple[object, object]] = {}
        self.report = Report()

    async def learn(self) -> None:
        """Run each verb in peace, to know what it leaves."""
        connection = await asyncpg.connect(self._server.url)
        for name, verb in VERBS.items():
            session = self._stores[0].session(_new_name())
            answer = await verb(session, in_peace)
            self._peaceful[name] = (answer, await known(connection, session))
        await connection.close()

    async def write(self, until: float) -> None:
        """Rounds of shared writing, each recounted and erased."""
        clock = asyncio.get_running_loop().time
        while clock() < until:
            self._names = [_new_name() for _ in range(6)]
            async with Load(self._stores, self._names, writers=WRITERS) as load:
                self._load = load
                await asyncio.sleep(min(ROUND, max(0.5, until - clock())))
            recount = await self._patiently(partial(load.recount, self._server.url))
            self._load = None
            self.report.counts.update(recount.numbers)
            self.report.counts["rounds recounted"] += 1
            self.report.counts["appends acknowledged"] += load.acknowledged
            self.report.wrong += recount.faults
            for name in self._names:
                await self._stores[0].session(name).delete()

    async def walk(self, number: int, until: float) -> None:
        """One verb after the other, each on a session of its own; now and then the walker is cancelled."""
        clock = asyncio.get_running_loop().time
        while clock() < until:
            name = self._dice.choice(list(VERBS))
            session = self._stores[number % len(self._stores)].session(_new_name())
            walking = asyncio.ensure_future(VERBS[name](session, in_peace))
            cancel = name not in COMPOSITE and self._dice.random() < 0.1
            if cancel:
                await asyncio.sleep(self._dice.random() * 0.01)
                walking.cancel()
            try:
                answer = await walking
            except asyncio.CancelledError:
                if not cancel:
                    raise
                self.report.counts["verbs cancelled"] += 1
            except StorageUnavailable as error:
                self.report.wrong.append(f"{name} gave up although the database was away for less: {error}")
            except Exception as error:
                self.report.wrong.append(f"{name} raised {error!r}")
            else:
                left = await self._patiently(partial(self._known, session))
                self.report.counts["verbs compared"] += 1
                if (answer, left) != self._peaceful[name]:
                    self.report.wrong.append(f"{name} left {left} where {self._peaceful[name][1]} was expected")
            await self._erase(session)

    async def _erase(self, session: PGSession) -> None:
        await session.delete()
        with suppress(ValueError):
            await self._stores[0].session(f"{session.session_id} copy").delete()

    async def _known(self, session: PGSession) -> object:
        connection = await asyncpg.connect(self._server.url)
        try:
            return await known(connection, session)
        finally:
            await connection.close()

    async def trouble(self, until: float, crash_every: float) -> None:
        """Something goes wrong every few seconds, and now and then the server crashes."""
        clock = asyncio.get_running_loop().time
        kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "all connections cut": self._cut_all,
            "connection cut between messages": self._cut_somewhere,
            "network frozen": self._freeze,
            "server unreachable": self._refuse,
            "backends terminated": self._terminate,
            "a session's row locked": self._lock,
        }
        crash: Callable[[], Awaitable[None]] = self._crash
        next_crash = clock() + crash_every / 2
        while clock() < until - 2:
            if clock() >= next_crash:
                kind, make = "server crashed", crash
                next_crash += crash_every
            else:
                kind, make = self._dice.choice(list(kinds.items()))
            with suppress(*AWAY):
                await make()
                self.report.faults[kind] += 1
            await asyncio.sleep(min(self._dice.uniform(0.5, 4.0), max(0.0, until - clock())))

    async def _cut_all(self) -> None:
        self._proxy.cut_all()

    async def _cut_somewhere(self) -> None:
        for _ in range(10):
            self._proxy.fault = Fault("cut", self._dice.choice(("client", "server")), self._dice.randrange(8))
            await asyncio.sleep(0.02)
        self._proxy.fault = None

    async def _freeze(self) -> None:
        self._proxy.stall_all()
        try:
            await asyncio.sleep(self._dice.uniform(0.2, 3.0))
        finally:
            self._proxy.heal()

    async def _refuse(self) -> None:
        self._proxy.refusing = True
        self._proxy.cut_all()
        try:
            await asyncio.sleep(self._dice.uniform(0.1, 1.5))
        finally:
            self._proxy.refusing = False

    async def _terminate(self) -> None:
        connection = await asyncpg.connect(self._server.url)
        await connection.execute(TERMINATE_SOME)
        await connection.close()

    async def _lock(self) -> None:
        if self._names:
            connection = await asyncpg.connect(self._server.url)
            async with connection.transaction():
                await connection.execute(LOCK_ONE, self._dice.choice(self._names))
                await asyncio.sleep(self._dice.uniform(0.1, 1.0))
            await connection.close()

    async def _crash(self) -> None:
        await asyncio.to_thread(self._server.crash)
        await asyncio.sleep(0.2)
        await asyncio.to_thread(self._server.start)

    async def sample(self, until: float) -> None:
        """Look every second at what the process and the server use."""
        clock = asyncio.get_running_loop().time
        begun, process = clock(), psutil.Process()
        while clock() < until:
            connections: int | None = None
            with suppress(*AWAY):
                connection = await asyncpg.connect(self._server.url, timeout=5)
                connections = await connection.fetchval(CONNECTED)
                await connection.close()
            self.report.samples.append(
                Sample(
                    seconds=round(clock() - begun, 1),
                    memory=process.memory_info().rss,
                    connections=connections,
                    tasks=len(asyncio.all_tasks()),
                    verbs=self._done(),
                    faults=self.report.faults.total(),
                )
            )
            await asyncio.sleep(SAMPLE_EVERY)

    def _done(self) -> int:
        counts = self.report.counts
        at_work = 0 if self._load is None else self._load.acknowledged
        return counts["appends acknowledged"] + counts["verbs compared"] + at_work

    async def _patiently(self, look: Callable[[], Awaitable[_T]]) -> _T:
        """Look with a connection of our own, again after each crash."""
        while True:
            try:
                return await look()
            except AWAY:
                await asyncio.sleep(0.1)


@asynccontextmanager
async def _stores(url: str, port: int) -> AsyncIterator[list[SessionStore]]:
    """One store per driver, both behind the proxy; at the end nothing is left checked out."""
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(
                SessionStore.open(
                    make_url(url).set(drivername=f"postgresql+{driver}", port=port),
                    retry_for=RETRY_FOR,
                    command_timeout=2,
                    engine_kwargs={"pool_size": 8},
                )
            )
            for driver in ("asyncpg", "psycopg")
        ]
        yield stores
        assert [store.engine.pool.checkedout() for store in stores] == [0, 0]  # type: ignore[attr-defined]


async def soak(server: Server, seconds: float, *, crash_every: float = 60.0, seed: int | None = None) -> Report:
    """Run the load and the trouble on *server*, migrated already, and return what was counted."""
    async with Proxy(server.port) as proxy, _stores(server.url, proxy.port) as stores:
        soaking = _Soak(server, proxy, stores, random.Random(seed))
        await soaking.learn()
        until = asyncio.get_running_loop().time() + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(soaking.write(until))
            for number in range(WALKERS):
                group.create_task(soaking.walk(number, until))
            group.create_task(soaking.trouble(until, crash_every))
            group.create_task(soaking.sample(until))
    return soaking.report


def _new_name() -> str:
    return f"soak-{secrets.token_hex(8)}"


def growth(samples: list[Sample]) -> float:
    """Return the memory of the last tenth as a ratio of what it was after the first fifth."""
    tenth = max(1, len(samples) // 10)
    early, late = samples[2 * tenth : 3 * tenth], samples[-tenth:]
    return (sum(each.memory for each in late) / len(late)) / (sum(each.memory for each in early) / len(early))


def draw(samples: list[Sample], path: Path) -> None:
    """Draw memory, connections, tasks and the verbs done, over time."""
    import matplotlib.pyplot as plt  # here: only who draws needs it

    figure, axes = plt.subplots(2, 2, figsize=(10, 5), sharex=True, layout="constrained")
    minutes = [each.seconds / 60 for each in samples]
    lines = {
        "resident memory, MB": [each.memory / 1e6 for each in samples],
        "connections at the server": [each.connections for each in samples],
        "tasks of the event loop": [each.tasks for each in samples],
        "appends and compared verbs, thousands": [each.verbs / 1e3 for each in samples],
    }
    for axis, (title, values) in zip(axes.flat, lines.items(), strict=True):
        axis.plot(minutes, values, linewidth=1.2, color="#336791")
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("minutes")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Soak, say what was counted, draw it; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--plot", type=Path, default=Path("build/soak.png"))
    options = parser.parse_args()
    logging.getLogger("agents_pg_session").setLevel(logging.ERROR)  # each retry is a warning, and there are thousands
    server = migrated_server()
    try:
        print(f"{options.minutes:g} minutes on PostgreSQL {server.sql('SHOW server_version')}, seed {options.seed}")
        report = asyncio.run(soak(server, options.minutes * 60, seed=options.seed))
    finally:
        server.stop()
    draw(report.samples, options.plot)
    options.plot.with_suffix(".json").write_text(json.dumps([asdict(each) for each in report.samples]))
    for name, count in [*report.counts.items(), *report.faults.items()]:
        print(f"{count:>12,}  {name}")
    used = [each.connections for each in report.samples if each.connections is not None]
    print(f"{growth(report.samples):>12.2f}  memory at the end, as a ratio of what it was after the first fifth")
    print(f"{max(used):>12}  connections at most that the server knew of: 16, and dead ones until it noticed")
    print(f"drawn in {options.plot}")
    for each in report.wrong[:20]:
        print(f"WRONG: {each[:2000]}")
    print("nothing was lost, nothing was doubled" if not report.wrong else f"{len(report.wrong)} things were wrong")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
