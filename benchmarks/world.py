"""What all benchmarks of a run share: the servers, the pace, and the results."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import asyncpg
import psutil
from rich.console import Console

from agents_pg_session.testing.server import Server
from benchmarks.contenders import DATABASES, Ports
from benchmarks.figures import Results
from benchmarks.pace import QUICK, Pace
from benchmarks.servers import POSTGRES, Redis, postgres, redis_program, redis_version

__all__ = ["World", "clocked", "rotated", "world"]


@dataclass
class World:
    """One run."""

    pace: Pace
    server: Server
    redis: dict[str, Redis]
    console: Console
    results: Results = field(default_factory=Results)

    @property
    def ports(self) -> Ports:
        return Ports(self.server.port, {policy: each.port for policy, each in self.redis.items()})

    async def new_database(self, name: str) -> str:
        """Make an empty database and return its URL; one of that name is dropped."""
        connection = await asyncpg.connect(self.server.url)
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        await connection.execute(f'CREATE DATABASE "{name}"')
        await connection.close()
        return self.ports.url(name)

    async def settle(self) -> None:
        """Write out what earlier benchmarks left, so that the next one does not pay for it."""
        connection = await asyncpg.connect(self.server.url)
        await connection.execute("CHECKPOINT")
        await connection.close()


@contextlib.contextmanager
def world(pace: Pace, console: Console) -> Iterator[World]:
    """Start the servers; they end with the block."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(postgres())
        redis: dict[str, Redis] = {}
        if (program := redis_program()) is not None:
            for policy in ("everysec", "always"):
                redis[policy] = Redis(program, policy)
                stack.callback(redis[policy].stop)
        here = World(pace, server, redis, console)
        for name in DATABASES:
            server.sql(f'CREATE DATABASE "{name}"')
        here.results.machine = _machine(server, pace)
        if pace is QUICK:
            here.results.remarks.append("A quick run: it shows that everything works; its numbers mean little.")
        if (load := os.getloadavg()[0]) > 0.5:
            here.results.remarks.append(f"The machine was busy before this run (load {load:.1f}): do not publish it.")
        if program is None:
            here.results.remarks.append(
                "Redis was left out: this machine has no redis-server, and `make bench` fetches one on Debian only."
            )
        # What was imported for all contenders together is no garbage of any: the collector need not look at it.
        gc.collect()
        gc.freeze()
        yield here


async def clocked(work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Return how many milliseconds *work* took by the clock, and of this process's CPU."""
    began, busy = time.perf_counter(), time.process_time()
    await work()
    return (time.perf_counter() - began) * 1000, (time.process_time() - busy) * 1000


def rotated(names: Sequence[str], by: int) -> list[str]:
    """Return the names in another order each time, so that nobody always comes first or after the same one."""
    start = by % len(names)
    order = [*names[start:], *names[:start]]
    return order if by // len(names) % 2 == 0 else order[::-1]


def _machine(server: Server, pace: Pace) -> dict[str, str]:
    packages = (
        "openai-agents",
        "SQLAlchemy",
        "asyncpg",
        "psycopg",
        "aiosqlite",
        "langgraph-checkpoint-postgres",
        "redis",
    )
    return {
        "cpu": f"{os.cpu_count()} × {_cpu()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GB",
        "system": f"{platform.system()} {platform.release()}, client and server on the same machine, over loopback",
        "Python": platform.python_version(),
        "PostgreSQL": server.sql("SHOW server_version")
        + ", "
        + ", ".join(f"{name} = {value}" for name, value in POSTGRES.items()),
        "Redis": f"{redis_version()}, appendonly yes, appendfsync everysec / always",
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "pace": pace.name,
        "load before": f"{os.getloadavg()[0]:.1f}",
        "taken": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _cpu() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
