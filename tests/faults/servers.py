"""Servers that a test may kill: each at the newest revision."""

from __future__ import annotations

from typing import Any

from agents_pg_session.migrations import main as migrate
from agents_pg_session.testing.server import Server, find_binaries

__all__ = ["migrated_server"]


def migrated_server(**options: Any) -> Server:
    """Return a running server of our own, with the package's tables; *options* are those of `Server`."""
    binaries = find_binaries()
    assert binaries is not None, "no PostgreSQL was found; agents_pg_session.testing.server says where it looks"
    server = Server(binaries, **options)
    server.start()
    migrate(["-x", f"url={server.url}", "upgrade", "head"])
    return server
