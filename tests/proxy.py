"""A TCP proxy between a client and its server: counts round trips, and does to a connection what networks do.

Runs in the test's own event loop. It forwards bytes as they come; one chunk from the client is one flush of the driver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Literal, Self

Fault = Literal["before", "sent", "answer", "stall"]


class Proxy:
    """`async with Proxy(port) as proxy:` listens on `proxy.port` and forwards to *port*, both on loopback."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self.round_trips = 0
        self.accepted = 0
        self.refusing = False
        self.fault: Fault | None = None  #: what happens to the next statement, once
        self.faults = 0  #: how many have happened

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for link in list(self._links):
            link.cut()
        await asyncio.gather(*(link.ended.wait() for link in list(self._links)))

    def cut_all(self) -> None:
        """Cut every connection there is."""
        for link in list(self._links):
            link.cut()

    def heal(self) -> None:
        """Let stalled connections go on: what was held back reaches the server now."""
        for link in list(self._links):
            link.heal()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        self.accepted += 1
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            await link.run(self._target)
        finally:
            self._links.discard(link)
            link.ended.set()


class _Link:
    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = (reader, writer)
        self._server_writer: asyncio.StreamWriter | None = None
        self._answered = True
        self._drop_answer = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.ended = asyncio.Event()

    async def run(self, target: int) -> None:
        try:
            reader, self._server_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            self.cut()
            return
        await asyncio.gather(
            self._pump(self._client[0], self._server_writer, self._from_client),
            self._pump(reader, self._client[1], self._from_server),
        )
        self.cut()

    def cut(self) -> None:
        self._flowing.set()
        self._client[1].transport.abort()
        if self._server_writer is not None:
            self._server_writer.transport.abort()

    def heal(self) -> None:
        self._flowing.set()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        passes: Callable[[], Awaitable[bool]],
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                if await passes():
                    writer.write(data)
                    await writer.drain()
                    if self._after_forwarding:
                        self.cut()
            if not writer.is_closing():
                writer.write_eof()
        except (OSError, RuntimeError):
            self.cut()

    _after_forwarding = False

    async def _from_client(self) -> bool:
        if self._answered:
            self._proxy.round_trips += 1
            self._answered = False
        fault, self._proxy.fault = self._proxy.fault, None
        if fault is None:
            await self._flowing.wait()
            return True
        self._proxy.faults += 1
        if fault == "before":
            self.cut()
            return False
        if fault == "stall":
            self._flowing.clear()
            await self._flowing.wait()
        self._after_forwarding = fault == "sent"
        self._drop_answer = fault == "answer"
        return True

    async def _from_server(self) -> bool:
        self._answered = True
        if self._drop_answer:
            self.cut()
            return False
        return True
