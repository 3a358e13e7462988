"""A session with something of everything, and hands that break it."""

from __future__ import annotations

import secrets
from typing import Any

from agents import RunContextWrapper, Usage
from sqlalchemy import text

from agents_pg_session import PGSession, SessionStore
from agents_pg_session.operations.doctor import Diagnosis, Mended, examine, repair
from tests.items import assistant, call, output, user

__all__ = ["by_hand", "found", "healthy_session", "mended", "new_tenant"]


def new_tenant() -> str:
    return f"doctor-{secrets.token_hex(6)}"


async def healthy_session(store: SessionStore, tenant: str, name: str = "s") -> PGSession:
    """A session of two turns: a call answered in the next append, one that failed, tokens, an event, a pop."""
    session = store.session(name, tenant=tenant, user_id="ada")
    wrapper = RunContextWrapper[Any](context=None)
    wrapper.usage.add(Usage(requests=1, input_tokens=10, output_tokens=20, total_tokens=30))
    await session.add_items([user("Where is it?"), call("c1", "track")], wrapper=wrapper)  # 1, 2
    wrapper.usage.add(Usage(requests=1, input_tokens=1, output_tokens=2, total_tokens=3))
    await session.add_items([output("c1"), assistant("In Lyon")], wrapper=wrapper)  # 3, 4
    await session.add_items([user("by mistake")])  # 5
    await session.pop_item()
    failure = "An error occurred while running the tool. Please try again."
    await session.add_items([user("And now?"), call("c2", "track"), output("c2", failure)])  # 6, 7, 8
    await session.add_items([assistant("I do not know")])  # 9
    return session


async def by_hand(store: SessionStore, tenant: str, *statements: str, session_id: str = "s") -> None:
    """Change rows of one session as a hand with a shell would: `UPDATE sessions SET …`."""
    prefix = "" if store.engine.dialect.name == "sqlite" else "agents."
    async with store.engine.connect() as plain:
        connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
        for statement in statements:
            verb = statement.replace("{}", prefix)
            where = " AND " if " WHERE " in verb else " WHERE "
            await connection.execute(
                text(f"{verb}{where}tenant_id = :tenant_id AND session_id = :session_id".replace("::", "\\:\\:")),
                {"tenant_id": tenant, "session_id": session_id},
            )


async def found(store: SessionStore, tenant: str, **options: Any) -> Diagnosis:
    """Examine the rows of one tenant."""
    only = options.pop("only", ("counters", "orphans", "items", "tool_runs", "leases", "claims", "runs", "expired",
                                "waiting"))  # fmt: skip
    return await examine(store, tenant=tenant, only=only, **options)


async def mended(store: SessionStore, tenant: str, *names: str, **options: Any) -> list[Mended]:
    """Repair the rows of one tenant."""
    told = names or ("counters", "tool_runs", "leases", "claims")
    return [each async for each in repair(store, told, tenant=tenant, **options)]
