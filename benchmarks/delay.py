"""A network that takes its time: a TCP proxy on loopback that holds every chunk back for a while, each way.

It runs in a process of its own, so that its work is not the client's: `async with delayed(port, 1.0) as slower:`.
Inside the benchmark's own process it counts round trips of protocols that the test kit's proxy does not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import sys
from collections.abc import AsyncIterator

__all__ = ["Delay", "delayed"]


class Delay:
    """Forwards to *target* on loopback; every chunk arrives *milliseconds* later, in order."""

    def __init__(self, target: int, milliseconds: float = 0.0) -> None:
        self._target = target
        self._seconds = milliseconds / 1000
        self._links: set[asyncio.Task[None]] = set()
        self.port = 0
        self.round_trips = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Delay]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for link in self._links:
                link.cancel()
            await asyncio.gather(*self._links, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        answered = [True]
        with contextlib.suppress(OSError, asyncio.CancelledError):
            there, onward = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._pump(reader, onward, answered, asks=True))
                    both.create_task(self._pump(there, writer, answered, asks=False))
            except* OSError:
                pass
            finally:
                onward.close()
                writer.close()
        self._links.discard(task)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answered: list[bool], *, asks: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        while data := await source.read(1 << 18):
            if asks and answered[0]:
                self.round_trips += 1
            answered[0] = not asks
            if self._seconds:
                # Timers of one loop fire in the order of their times, so chunks cannot overtake each other.
                loop.call_later(self._seconds, sink.write, data)
            else:
                sink.write(data)
        loop.call_later(self._seconds, sink.close)


@contextlib.asynccontextmanager
async def delayed(target: int, milliseconds: float) -> AsyncIterator[int]:
    """Yield a port that leads to *target*, *milliseconds* away; without a delay it is *target* itself."""
    if not milliseconds:
        yield target
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.delay", str(target), str(milliseconds),
        stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.stdin.close()  # it ends with us, whatever happens to us
        await process.wait()


async def _main(target: int, milliseconds: float) -> None:
    async with Delay(target, milliseconds).listening() as delay:
        print(delay.port, flush=True)
        parent = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(parent), sys.stdin)
        await parent.read()


if __name__ == "__main__":
    # epoll counts in whole milliseconds; select does not.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_main(int(sys.argv[1]), float(sys.argv[2])))
