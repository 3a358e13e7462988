"""What a promise works with: sessions, a proxy, an observer, a server of its own; all of it ended afterwards."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import asyncpg
from agents import TResponseInputItem as Item
from agents.memory import Session
from sqlalchemy import make_url

from agents_pg_session.testing.promises.subject import Opened, Subject
from agents_pg_session.testing.proxy import Proxy
from agents_pg_session.testing.server import Server, find_binaries

__all__ = ["Item", "Trial", "at_address", "happened", "history", "ticks", "until", "user"]

T = TypeVar("T")

#: Seconds that ending one session may take before the kit goes on without it.
_TO_END = 10.0

_OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND "
_OTHERS += "backend_type = 'client backend'"


def user(text: str) -> Item:
    return cast("Item", {"role": "user", "content": text})


def history(count: int, of: str = "") -> list[Item]:
    """Return *count* items that can be told apart."""
    return [user(f"{of}{number}") for number in range(count)]


async def ticks(count: int) -> None:
    """Let everybody else have *count* turns on the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Return whether *condition* came true in time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110 - what is waited for is elsewhere
                await asyncio.sleep(0.02)
            return True
    return False


async def happened(proxy: Proxy, faults: int, task: asyncio.Future[Any]) -> None:
    """Wait until *proxy* has done more than so many *faults*, or *task* got by without."""
    while proxy.faults == faults and not task.done():  # noqa: ASYNC110 - the proxy has no event for it
        await asyncio.sleep(0.002)


class Trial:
    """One promise put to one subject."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._opened: list[Opened] = []
        self._proxies: list[Proxy] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self.subject.prepare(self.subject.url)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for proxy in self._proxies:
            proxy.refusing, proxy.fault = False, None
            proxy.heal()
        await self.close_all()
        await self._stack.aclose()

    def cut(self) -> None:
        """Cut every connection through the proxies: nothing waits for them any more."""
        for proxy in self._proxies:
            proxy.refusing = True
            proxy.cut_all()

    # -- sessions

    def new_id(self) -> str:
        return f"conformance-{secrets.token_hex(8)}"

    async def open(self, session_id: str | None = None, url: str | None = None) -> Session:
        """Open a handle on a conversation, a new one if not told which; it is closed after the promise."""
        opened = await self.subject.opened(session_id or self.new_id(), url or self.subject.url)
        self._opened.append(opened)
        return opened.session

    async def close(self, session: Session) -> None:
        """End a handle the way its owner would."""
        for opened in self._opened:
            if opened.session is session:
                await opened.close()

    async def close_all(self) -> None:
        """End all handles there are."""
        while self._opened:
            opened = self._opened.pop()
            with suppress(Exception):  # what happens here is not what was asked
                async with asyncio.timeout(_TO_END):
                    await opened.close()

    def can_close(self, session: Session) -> bool:
        """Whether there is a way to end this handle."""
        return any(opened.session is session and opened.end is not None for opened in self._opened)

    # -- databases

    async def proxied(self) -> tuple[Proxy, str]:
        """Return a proxy before the subject's server, and the URL that leads through it."""
        proxy = await self._stack.enter_async_context(Proxy(make_url(self.subject.url).port or 5432))
        self._proxies.append(proxy)
        return proxy, at_address(self.subject.url, "127.0.0.1", proxy.port)

    async def new_database(self) -> str:
        """Return the URL of an empty database on the subject's server; it is dropped after the promise."""
        name = f"conformance_{secrets.token_hex(6)}"
        await self.ask(f"CREATE DATABASE {name}")
        self._stack.push_async_callback(self.ask, f"DROP DATABASE {name} WITH (FORCE)")
        return make_url(self.subject.url).set(database=name).render_as_string(hide_password=False)

    async def own_server(self) -> tuple[Server, str]:
        """Return a server that may be killed, its tables created, and the subject's kind of URL to it."""
        binaries = find_binaries()
        assert binaries is not None, "asked without a server"
        server = await asyncio.to_thread(Server, binaries)
        self._stack.push_async_callback(asyncio.to_thread, server.stop)
        await asyncio.to_thread(server.start)
        url = make_url(server.url).set(drivername=make_url(self.subject.url).drivername)
        text = url.render_as_string(hide_password=False)
        await self.subject.prepare(text)
        return server, text

    async def ask(self, sql: str, url: str | None = None) -> Any:
        """Ask the database for one value, past the session."""
        async with self.observer(url) as observer:
            return await observer.fetchval(sql)

    @asynccontextmanager
    async def observer(self, url: str | None = None) -> AsyncIterator[asyncpg.Connection]:
        """A connection that looks at what the session did."""
        plain = make_url(url or self.subject.url).set(drivername="postgresql")
        connection = await asyncpg.connect(plain.render_as_string(hide_password=False))
        try:
            yield connection
        finally:
            await connection.close()

    async def looking_on(self) -> asyncpg.Connection:
        """The same, until the promise has been asked."""
        return await self._stack.enter_async_context(self.observer())

    async def over_or_locked(self, call: asyncio.Future[Any], observer: asyncpg.Connection) -> bool:
        """Whether *call* has ended, or somebody waits for a lock."""
        return call.done() or bool(await observer.fetchval(f"SELECT count(*) {_OTHERS} AND wait_event_type = 'Lock'"))

    async def connections(self, observer: asyncpg.Connection) -> int:
        """How many others are connected to the observer's database."""
        return int(await observer.fetchval(f"SELECT count(*) {_OTHERS}"))

    async def settled(self, observer: asyncpg.Connection) -> None:
        """Wait until the server has ended what lost connections had begun."""

        async def quiet() -> bool:
            return not await observer.fetchval(f"SELECT count(*) {_OTHERS} AND state <> 'idle'")

        await until(quiet, 3)

    async def rows(self) -> int | None:
        """How many rows all tables of the database hold; None if nobody can look inside."""
        if not self.subject.on_postgres:
            return _rows_of_sqlite(make_url(self.subject.url).database)
        tables = "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables "
        tables += "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        async with self.observer() as observer:
            names = [row[0] for row in await observer.fetch(tables)]
            return sum([int(await observer.fetchval(f"SELECT count(*) FROM {name}")) for name in names])

    # -- other event loops

    async def in_a_loop_of_its_own(self, work: Callable[[], Coroutine[Any, Any, T]], seconds: float = 30) -> T:
        """Run *work* in another thread, with `asyncio.run`, for at most that long."""

        async def bounded() -> T:
            async with asyncio.timeout(seconds):
                return await work()

        return await asyncio.to_thread(lambda: asyncio.run(bounded()))


def at_address(url: str, host: str, port: int) -> str:
    """Return *url* with another host and port."""
    return make_url(url).set(host=host, port=port).render_as_string(hide_password=False)


def _rows_of_sqlite(path: str | None) -> int | None:
    if not path or path == ":memory:" or path.startswith("file:"):
        return None
    with closing(sqlite3.connect(path)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return sum(int(connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]) for name in names)
