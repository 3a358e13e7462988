"""What these tests write before they look."""

from __future__ import annotations

from typing import Any

from agents import RunContextWrapper
from agents.usage import Usage

from agents_pg_session import SessionStore
from agents_pg_session.projection import Item
from tests.cli.conftest import Cli


async def append(cli: Cli, session_id: str, items: list[Item], *, tenant: str = "", **labels: Any) -> None:
    """Append to a session, as a run that used a few tokens."""
    assert cli.url is not None
    async with SessionStore.open(cli.url) as store:
        wrapper = RunContextWrapper(context=None, usage=Usage())
        wrapper.usage.add(Usage(requests=1, input_tokens=400, output_tokens=25, total_tokens=425))
        await store.session(session_id, tenant=tenant, **labels).add_items(items, wrapper=wrapper)
