"""Local work: `PGSession` on a SQLite file beside the SDK's own two sessions, each on a file of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path

from agents.extensions.memory import AdvancedSQLiteSession
from agents.memory import SessionABC, SQLiteSession

from agents_pg_session import SessionStore
from benchmarks.contenders import FULL, PLAIN, Contender
from benchmarks.contenders.ours import FullRecord, Plain
from benchmarks.contenders.sdk import SDKContender
from benchmarks.figures import summary
from benchmarks.parts.throughput import Load, measure
from benchmarks.parts.verbs import VERBS, Trial
from benchmarks.workload import USUAL
from benchmarks.world import World, clocked, rotated

__all__ = ["ADVANCED", "SIMPLE", "sqlite"]

ADVANCED = "AdvancedSQLiteSession"
SIMPLE = "SQLiteSession"


class SDKSQLite(SDKContender):
    """A session of the SDK on SQLite; handles are kept, for each opens its file anew."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, keep=True)
        self._path = path

    def make(self, session_id: str) -> SessionABC:
        if self.name == ADVANCED:
            return AdvancedSQLiteSession(session_id=session_id, db_path=self._path, create_tables=True)
        return SQLiteSession(session_id, self._path)

    async def close(self) -> None:
        for session in self._kept.values():
            if isinstance(session, SQLiteSession):
                session.close()


async def sqlite(world: World) -> None:
    with tempfile.TemporaryDirectory(prefix="agents-pg-bench-") as folder:
        contenders: dict[str, Contender] = {
            FULL: FullRecord(FULL, await _store(Path(folder) / "full.db")),
            PLAIN: Plain(PLAIN, await _store(Path(folder) / "plain.db")),
            ADVANCED: SDKSQLite(ADVANCED, Path(folder) / "advanced.db"),
            SIMPLE: SDKSQLite(SIMPLE, Path(folder) / "simple.db"),
        }
        try:
            await _verbs(world, {name: Trial(contender) for name, contender in contenders.items()})
            for sessions in (1, 16):
                loads = {name: Load(contender, sessions, USUAL) for name, contender in contenders.items()}
                await measure(world, "SQLite", loads, sessions)
        finally:
            for contender in contenders.values():
                await contender.close()


async def _store(path: Path) -> SessionStore:
    store = SessionStore.open(f"sqlite:///{path}")
    await store.create_tables()
    return store


async def _verbs(world: World, trials: dict[str, Trial]) -> None:
    samples: dict[tuple[str, str], list[float]] = {}
    for verb in VERBS[:-1]:
        for number in range(max(3, world.pace.samples // 4)):
            for name in rotated(list(trials), number):
                took, _cpu = await clocked(await trials[name].ready(verb))
                samples.setdefault((verb, name), []).append(took)
    world.results.add(summary("SQLite verbs", verb, name, each[1:], "ms") for (verb, name), each in samples.items())
