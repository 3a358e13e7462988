"""What the package costs before it does anything: its import, and the memory of open handles. In fresh processes."""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial

from benchmarks.contenders import PLAIN, SDK
from benchmarks.figures import Figure, summary
from benchmarks.world import World

__all__ = ["footprint"]

#: How each is imported, set up, and makes handle number `n`.
_MAKERS = {
    PLAIN: (
        "from agents_pg_session import SessionStore",
        "store = SessionStore.open(URL)",
        "store.session(str(n))",
    ),
    SDK: (
        "from agents.extensions.memory import SQLAlchemySession\n"
        "from sqlalchemy.ext.asyncio import create_async_engine",
        "engine = create_async_engine(URL.replace('postgresql', 'postgresql+asyncpg'))",
        "SQLAlchemySession(str(n), engine=engine)",
    ),
}

_CODE = """
import gc, json, time
URL, COUNT = {url!r}, {count}
began = time.perf_counter()
import agents
imported_sdk = time.perf_counter()
{imports}
imported = time.perf_counter()
import psutil
{setup}
def make(n):
    return {make}
handles = [make(-1)]
gc.collect()
before = psutil.Process().memory_info().rss
handles += [make(n) for n in range(COUNT)]
gc.collect()
grown = psutil.Process().memory_info().rss - before
print(json.dumps([(imported_sdk - began) * 1000, (imported - imported_sdk) * 1000, grown / COUNT]))
"""


async def footprint(world: World) -> None:
    """Nothing connects here: handles are cheap as long as they only exist."""
    sdk: list[float] = []
    for name, (imports, setup, make) in _MAKERS.items():
        count = world.pace.handles
        code = partial(_CODE.format, url=world.server.url, imports=imports, setup=setup, make=make)
        asked = [await _ask(code(count=1)) for _ in range(world.pace.imports)]
        sdk += [each[0] for each in asked]
        [_, _, memory] = await _ask(code(count=count))
        world.results.add([
            summary("footprint", "import, after the SDK's own", name, [each[1] for each in asked], "ms"),
            Figure("footprint", "memory per 10,000 open handles", name, memory * 10_000, "bytes", count=count),
        ])  # fmt: skip
    world.results.add([summary("footprint", "import of the SDK (agents)", "the SDK", sdk, "ms")])


async def _ask(code: str) -> list[float]:
    """Run *code* in a Python of its own and return the numbers it prints."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"this failed in a fresh process:\n{code}")
    numbers: list[float] = json.loads(said)
    return numbers
