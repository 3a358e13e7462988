"""The session that is asked: how to open one, and on which database."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from agents.memory import Session
from sqlalchemy import make_url

from agents_pg_session.testing.server import find_binaries

__all__ = ["Needs", "Opened", "Subject"]

#: nothing; a PostgreSQL server; one on this machine, to put a proxy before it; one of our own, to be killed.
Needs = Literal["nothing", "postgres", "proxy", "server"]

_LOOPBACK = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Subject:
    """How sessions are opened: `Subject(open_session, "postgresql://…")`.

    *open* takes a session id and a database URL, which is not always *url*: it may lead through a proxy, or to another
    server. It returns a session, or awaits one, or is a context manager that yields one. What it returns is ended by
    leaving the context, by *close* if given, or by its own `close()`, if it has one.

    *create_tables* takes a URL; give it where opening a session does not create what is missing.
    """

    open: Callable[[str, str], Any]
    url: str
    create_tables: Callable[[str], Any] | None = None
    close: Callable[[Any], Any] | None = None
    name: str = "the session"

    @property
    def on_postgres(self) -> bool:
        return make_url(self.url).get_backend_name().startswith("postgres")

    def lacks(self, needs: Needs) -> str | None:
        """Return what is missing to ask something that *needs* this; None if nothing is."""
        if needs != "nothing" and not self.on_postgres:
            return "it is about PostgreSQL"
        if needs == "proxy" and make_url(self.url).host not in _LOOPBACK:
            return "the proxy reaches only servers on this machine"
        if needs == "server" and find_binaries() is None:
            return "no PostgreSQL was found that may be killed"
        return None

    async def prepare(self, url: str) -> None:
        """Create the tables in the database at *url*, if that is a call of its own."""
        if self.create_tables is not None:
            await _awaited(self.create_tables(url))

    async def opened(self, session_id: str, url: str) -> Opened:
        """Return an open session and how to end it."""
        made = await _awaited(self.open(session_id, url))
        if hasattr(made, "__aenter__"):
            return Opened(await made.__aenter__(), lambda: made.__aexit__(None, None, None))
        if hasattr(made, "__enter__"):
            return Opened(made.__enter__(), lambda: made.__exit__(None, None, None))
        if (close := self.close) is not None:
            return Opened(made, lambda: close(made))
        return Opened(made, getattr(made, "close", None))


@dataclass(frozen=True)
class Opened:
    """A session, and what ends it; None if nothing does."""

    session: Session
    end: Callable[[], Any] | None

    async def close(self) -> None:
        if self.end is not None:
            await _awaited(self.end())


async def _awaited(value: Any) -> Any:
    return await value if isinstance(value, Awaitable) or inspect.isawaitable(value) else value
