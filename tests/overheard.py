"""Which statements a store sends, as its driver is given them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from agents_pg_session import SessionStore
from agents_pg_session.drivers import Driver, Rows
from agents_pg_session.statements import Command

__all__ = ["Heard", "overheard"]


@dataclass(frozen=True, slots=True)
class Heard:
    """A statement as it was sent over asyncpg, and its values in order, each with its name."""

    sql: str
    names: tuple[str, ...]
    values: tuple[Any, ...]

    def with_values(self, **fresh: Any) -> list[Any]:
        """Return the values with some replaced by name."""
        return [fresh.get(name, value) for name, value in zip(self.names, self.values, strict=True)]


@contextmanager
def overheard(store: SessionStore) -> Iterator[list[Heard]]:
    """Note every statement that *store* sends meanwhile."""
    database = store._database
    listening = _Listening(database._driver)
    database._driver = cast("Driver", listening)
    try:
        yield listening.heard
    finally:
        database._driver = listening.driver


class _Listening:
    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.heard: list[Heard] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.driver, name)

    async def run(self, connection: Any, command: Command) -> Rows:
        for step in command.steps:
            sql, names = self.driver.rendered(step.clause)
            assert not isinstance(step.values, list)
            self.heard.append(Heard(sql, names, tuple(step.values[name] for name in names)))
        return await self.driver.run(connection, command)
