"""A load whose every word is remembered, and a recount of the tables against it.

Writers append batches with names of their own to sessions that they share, read, record events, save snapshots and
pop. What each was told is kept; afterwards a plain connection counts what is there. The library is not asked.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Any, Self

import asyncpg

from agents_pg_session import PGSession, SessionStore, StorageUnavailable
from agents_pg_session.projection import Item
from tests.items import call, output, user
from tests.recount import miscounted

FAILED = "An error occurred while running the tool. Please try again."

#: Items, and those that were popped since: each with its position and the id of its append.
EVER_STORED = """
SELECT position, append_id::text, item::text FROM agents.items WHERE session_id = $1
 UNION ALL
SELECT (payload ->> 'position')::bigint, payload ->> 'append_id', (payload -> 'item')::text
  FROM agents.events WHERE session_id = $1 AND kind = 'item_popped'
 ORDER BY 1
"""
POPPED = "SELECT (payload -> 'item')::text FROM agents.events WHERE session_id = $1 AND kind = 'item_popped'"
RECORDED = "SELECT payload ->> 'name' FROM agents.events WHERE session_id = $1 AND kind = 'note'"
SAVED = "SELECT content ->> 'name' FROM agents.snapshots WHERE session_id = $1 AND kind = 'note'"
STILL_AT_WORK = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'agents_pg_session' AND datname = $1"


class Fate(Enum):
    """What a writer was told."""

    ACKNOWLEDGED = "acknowledged"
    IN_DOUBT = "in doubt"
    REFUSED = "nothing was written"


@dataclass
class Recount:
    """What the tables hold against what the writers were told; *faults* says in words what must not be."""

    acknowledged: int = 0
    in_doubt: int = 0
    refused: int = 0
    lost: int = 0
    doubled: int = 0
    torn: int = 0
    misplaced: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> dict[str, int]:
        """The numbers, for the tally."""
        return {name: number for name, number in vars(self).items() if isinstance(number, int)}

    def check(self, name: str, fate: Fate, count: int) -> None:
        """Count one named write that is there *count* times."""
        self.acknowledged += fate is Fate.ACKNOWLEDGED
        self.in_doubt += fate is Fate.IN_DOUBT
        self.refused += fate is Fate.REFUSED
        allowed = {Fate.ACKNOWLEDGED: (1,), Fate.IN_DOUBT: (0, 1), Fate.REFUSED: (0,)}[fate]
        if count not in allowed:
            self.lost += count == 0
            self.doubled += count > 0
            self.faults.append(f"{name} ({fate.value}) is there {count} times")


class Load:
    """`async with Load(stores, names):` many writers at work until the block ends; then `recount`.

    Writers are dealt to the *stores* in turn, and to the sessions called *names*.
    """

    def __init__(self, stores: Sequence[SessionStore], names: Sequence[str], *, writers: int = 32) -> None:
        self._stores = stores
        self._names = names
        self._count = writers
        self._writers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._acknowledged_at = 0.0
        self.acknowledged = 0  #: appends
        self.gap = 0.0  #: the longest time between two of them, in seconds
        self.appends: defaultdict[str, dict[str, Fate]] = defaultdict(dict)  #: by session and by the batch's name
        self.others: defaultdict[str, dict[str, Fate]] = defaultdict(dict)  #: events and snapshots
        self.popped: defaultdict[str, list[Item]] = defaultdict(list)

    async def __aenter__(self) -> Self:
        self._acknowledged_at = asyncio.get_running_loop().time()
        for number in range(self._count):
            session = self._stores[number % len(self._stores)].session(self._names[number % len(self._names)])
            self._writers.append(asyncio.create_task(self._write(session, number)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping = True
        await asyncio.gather(*self._writers, return_exceptions=kind is not None)

    async def further(self, appends: int) -> None:
        """Return when so many more appends were acknowledged; raise what ended a writer, should one have ended."""
        goal = self.acknowledged + appends
        while self.acknowledged < goal:
            for writer in self._writers:
                if writer.done():
                    await writer
            await asyncio.sleep(0.005)

    async def _write(self, session: PGSession, writer: int) -> None:
        name = session.session_id
        number = 0
        while not self._stopping:
            batch = f"w{writer}.{number}"
            fate = self.appends[name][batch] = await self._told(session.add_items(items_of(batch)))
            if fate is Fate.ACKNOWLEDGED:
                self._acknowledge()
            match number % 5:
                case 0:
                    noted = session.events.record("note", {"name": f"event {batch}"})
                    self.others[name][f"event {batch}"] = await self._told(noted)
                case 1:
                    saved = session.snapshots.save("note", {"name": f"snapshot {batch}"})
                    self.others[name][f"snapshot {batch}"] = await self._told(saved)
                case 2:
                    await self._told(self._pop(session))
                case _:
                    await self._told(session.get_items(limit=3))
            number += 1

    async def _pop(self, session: PGSession) -> None:
        if (item := await session.pop_item()) is not None:
            self.popped[session.session_id].append(item)

    async def _told(self, verb: Awaitable[object]) -> Fate:
        try:
            await verb
        except StorageUnavailable as error:
            return Fate.REFUSED if "nothing was written" in str(error) else Fate.IN_DOUBT
        return Fate.ACKNOWLEDGED

    def _acknowledge(self) -> None:
        now = asyncio.get_running_loop().time()
        self.gap = max(self.gap, now - self._acknowledged_at)
        self._acknowledged_at = now
        self.acknowledged += 1

    @property
    def _in_doubt(self) -> bool:
        """Whether a write that nobody waits for any more may still be on its way."""
        told = (*self.appends.values(), *self.others.values())
        return any(fate is Fate.IN_DOUBT for fates in told for fate in fates.values())

    async def recount(self, url: str) -> Recount:
        """Compare all that the writers were told with the tables of the server at *url*."""
        recount = Recount()
        connection = await asyncpg.connect(url)
        try:
            database = await connection.fetchval("SELECT current_database()")
            while self._in_doubt and await connection.fetchval(STILL_AT_WORK, database):
                await asyncio.sleep(0.01)  # what nobody waits for any more may still be about to commit
            for name in self._names:
                await self._recount_session(connection, name, recount)
        finally:
            await connection.close()
        return recount

    async def _recount_session(self, connection: asyncpg.Connection, session: str, recount: Recount) -> None:
        stored = await connection.fetch(EVER_STORED, session)
        self._recount_appends(session, stored, recount)
        popped = Counter([row[0] for row in await connection.fetch(POPPED, session)])
        for item in self.popped[session]:
            recount.check(f"the pop of {item}", Fate.ACKNOWLEDGED, popped[json.dumps(item, separators=(",", ":"))])
        there = Counter([row[0] for row in await connection.fetch(f"{RECORDED} UNION ALL {SAVED}", session)])
        for name, fate in self.others[session].items():
            recount.check(name, fate, there[name])
        if counters := await miscounted(connection, session):
            recount.faults.append(f"the counters of {session} and a recount of them: {counters}")

    def _recount_appends(self, session: str, stored: Sequence[Any], recount: Recount) -> None:
        places: defaultdict[str, list[tuple[int, str, str]]] = defaultdict(list)
        for position, append_id, item in stored:
            places[name_of(json.loads(item))].append((position, append_id, item))
        for batch in places.keys() - self.appends[session].keys():
            recount.faults.append(f"nobody appended {batch}")
        newest: dict[str, int] = {}
        for batch, fate in self.appends[session].items():
            found = places[batch]
            expected = [json.loads(json.dumps(item)) for item in items_of(batch)]
            copies = len({append_id for _, append_id, _ in found})
            recount.check(batch, fate, copies)
            first = found[0][0] if found else 0
            whole = [json.loads(item) for _, _, item in found] == expected * copies
            if not whole or (copies == 1 and [each[0] for each in found] != [first, first + 1, first + 2]):
                recount.torn += 1
                recount.faults.append(f"{batch} is torn: {found}")
            if fate is Fate.ACKNOWLEDGED and found:
                writer = batch.partition(".")[0]
                if first < newest.get(writer, 0):
                    recount.misplaced += 1
                    recount.faults.append(f"{batch} stands before an earlier append of its writer")
                newest[writer] = first


def items_of(batch: str) -> list[Item]:
    """Return the three items of a batch, each of which says whose it is; every third tool run failed."""
    failed = batch.endswith(("0", "3", "6", "9"))
    return [user(batch), call(batch), output(batch, FAILED if failed else "done")]


def name_of(item: dict[str, Any]) -> str:
    """Return the name of the batch an item belongs to."""
    return str(item.get("call_id") or item.get("content"))
