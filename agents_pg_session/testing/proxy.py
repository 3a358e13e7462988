"""A TCP proxy between a client and its PostgreSQL: it reads the messages, counts them, and does to a connection what
networks do.

It runs in the test's own event loop and speaks the frames of the protocol
(https://www.postgresql.org/docs/current/protocol-message-formats.html), so a connection can be cut or frozen between
any two messages, in either direction. It does not speak TLS: what is encrypted has no boundaries to see.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

__all__ = ["ANSWER", "BEFORE", "SENT", "STALL", "Fault", "Message", "Proxy", "Side"]

Side = Literal["client", "server"]

#: Asks whether TLS or GSS encryption may be had: answered by a single byte instead of a message.
_ENCRYPTION_REQUESTS = (80877103, 80877104)

#: What ends a flush of the client: Sync, Flush, or a simple Query.
_ENDS_A_FLUSH = frozenset("SHQ")


@dataclass(frozen=True, slots=True)
class Message:
    """One message: on which connection, counted from 1, who sent it, and its type byte (or `startup`, `encryption`)."""

    link: int
    side: Side
    kind: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the connection that speaks next: after *passed* messages of *side*, no further one gets through.

    `cut` ends the connection in both directions. `stall` freezes it, both directions, until `Proxy.heal`.
    """

    how: Literal["cut", "stall"] = "cut"
    side: Side = "client"
    passed: int | None = 0  #: how many of its messages still get through; None for all of one flush of the client


BEFORE = Fault()  #: the statement never leaves
SENT = Fault(passed=None)  #: the statement leaves whole, and the connection dies at once: it may have arrived
ANSWER = Fault(side="server")  #: the server got it and answered; the answer is lost
STALL = Fault("stall")  #: everything is swallowed


class Proxy:
    """`async with Proxy(port) as proxy:` listens on `proxy.port` and forwards to *port*, both on loopback."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self.round_trips = 0
        self.asked_bytes = 0  #: that clients have sent
        self.accepted = 0
        self.refusing = False
        self.fault: Fault | None = None  #: what happens to the connection that speaks next, once
        self.later: list[Fault] = []  #: what happens after that, one by one, to those that speak then
        self.faults = 0  #: how many have happened
        self.watched: list[Message] | None = None  #: set it to a list, and every message is noted there

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def open(self) -> int:
        """How many connections go through it now."""
        return len(self._links)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        links = list(self._links)
        self.cut_all()
        await asyncio.gather(*(link.ended.wait() for link in links))

    def cut_all(self) -> None:
        """Cut every connection there is."""
        for link in list(self._links):
            link.cut()

    def stall_all(self) -> None:
        """Freeze every connection there is: what is sent from now on waits for `heal`."""
        for link in list(self._links):
            link.stall()

    def heal(self) -> None:
        """Let stalled connections go on: what was held back arrives now."""
        for link in list(self._links):
            link.heal()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        self.accepted += 1
        link = _Link(self, reader, writer, self.accepted)
        self._links.add(link)
        try:
            await link.run(self._target)
        finally:
            self._links.discard(link)
            link.ended.set()


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self._proxy = proxy
        self._number = number
        self._client = (reader, writer)
        self._server_writer: asyncio.StreamWriter | None = None
        self._frames = {"client": _Frames(self._client_head), "server": _Frames(self._server_head)}
        self._fault: Fault | None = None
        self._passed = 0
        self._answered = True
        self._begun = self._asked = False
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
            self._pump("client", self._client[0], self._server_writer),
            self._pump("server", reader, self._client[1]),
        )
        self.cut()

    def cut(self) -> None:
        self._flowing.set()
        self._client[1].transport.abort()
        if self._server_writer is not None:
            self._server_writer.transport.abort()

    def stall(self) -> None:
        self._flowing.clear()

    def heal(self) -> None:
        self._flowing.set()

    async def _pump(self, side: Side, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                if side == "client":
                    self._client_speaks()
                await self._forward(side, data, writer)
            await self._flowing.wait()
            if not writer.is_closing():
                writer.write_eof()
        except (OSError, RuntimeError):
            self.cut()

    def _client_speaks(self) -> None:
        if self._answered:
            self._proxy.round_trips += 1
            self._answered = False
        if self._proxy.fault is not None:
            self._fault, self._proxy.fault = self._proxy.fault, None
            self._passed = 0

    async def _forward(self, side: Side, data: bytes, writer: asyncio.StreamWriter) -> None:
        """Pass on what there is, message by message where it matters."""
        self._answered = self._answered or side == "server"
        self._proxy.asked_bytes += len(data) if side == "client" else 0
        kinds = list(self._frames[side].split(data))
        if self._proxy.watched is not None:
            self._proxy.watched += [Message(self._number, side, kind) for kind, _ in kinds if kind]
        if self._fault is None or self._fault.side != side:
            await self._send(b"".join(part for _, part in kinds), writer)
            return
        for kind, part in kinds:
            if self._fault is not None and kind and self._fault.passed is not None:
                if self._passed >= self._fault.passed:
                    await self._fail()
                self._passed += 1
            await self._send(part, writer)
            if self._fault is not None and self._fault.passed is None and kind in _ENDS_A_FLUSH:
                await self._fail()

    async def _fail(self) -> None:
        """The fault happens now; who was frozen goes on when healed."""
        assert self._fault is not None
        how, self._fault = self._fault.how, None
        self._proxy.faults += 1
        self._proxy.fault = self._proxy.later.pop(0) if self._proxy.later else None
        if how == "stall":
            self.stall()
            return
        self.cut()
        raise ConnectionAbortedError

    async def _send(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        await self._flowing.wait()
        writer.write(data)
        await writer.drain()

    # -- how long a message is

    def _client_head(self, head: bytes) -> tuple[str, int] | None:
        if self._begun:
            return _typed(head)
        if len(head) < 8:
            return None
        if int.from_bytes(head[4:8], "big") in _ENCRYPTION_REQUESTS:
            self._asked = True
            return "encryption", int.from_bytes(head[:4], "big")
        self._begun = True
        return "startup", int.from_bytes(head[:4], "big")

    def _server_head(self, head: bytes) -> tuple[str, int] | None:
        if self._asked and head[:1] in (b"N", b"S") and not self._begun:
            self._asked = False
            return "encryption", 1
        return _typed(head)


def _typed(head: bytes) -> tuple[str, int] | None:
    return (chr(head[0]), 1 + int.from_bytes(head[1:5], "big")) if len(head) >= 5 else None


class _Frames:
    """Finds the messages in a stream of bytes, however it was cut into chunks."""

    def __init__(self, head: Callable[[bytes], tuple[str, int] | None]) -> None:
        self._head = head
        self._short = b""  #: the beginning of a message, too short to say how long it is
        self._left = 0  #: what the current message still has

    def split(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """Yield the parts of *data*: each with the kind of the message that begins there, or "" where one goes on."""
        data, self._short = self._short + data, b""
        while data:
            if self._left:
                part, data = data[: self._left], data[self._left :]
                self._left -= len(part)
                yield "", part
                continue
            if (found := self._head(data)) is None:
                self._short = data
                return
            kind, length = found
            part, data = data[:length], data[length:]
            self._left = length - len(part)
            yield kind, part
