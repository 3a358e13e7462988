"""docs/observability.md keeps its word: its blocks run, and its tables name what there is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from agents_pg_session import SessionStore
from agents_pg_session.testing.proxy import ANSWER, Proxy
from tests import programs
from tests.items import user
from tests.postgres.conftest import proxied_url, proxy
from tests.watching import watching

__all__ = ["proxied_url", "proxy"]

PAGE = (Path(__file__).parents[2] / "docs" / "observability.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the page's fenced blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def named(section: str) -> set[str]:
    """Return what the first columns of a section's tables name."""
    text = re.split(r"^#+ ", PAGE.partition(f"\n## {section}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    first = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    return {name for column in first for name in re.findall(r"`([\w.]+)`", column)}


@pytest.mark.parametrize("number", range(2))
def test_a_block_runs(number: int, python: programs.Python, tmp_path: Path) -> None:
    """Each Python block runs by itself, in a process of its own, and prints what the page says."""
    environment = {**os.environ, "OPENAI_AGENTS_DISABLE_TRACING": "1"}
    result = python("-c", blocks("python")[number], cwd=tmp_path, env=environment)

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (blocks("text")[0] if number == 0 else "")


async def test_the_tables_name_what_is_told(proxied_url: str, proxy: Proxy, new_id: Callable[[], str]) -> None:
    """Every attribute, event and metric that is told is on the page, and the page names no other."""
    with watching() as watch:
        async with SessionStore.open(proxied_url, engine_kwargs={"pool_size": 1}, retry_for=0.3) as store:
            session = store.session(new_id(), tenant="acme", expect="unchanged")
            await session.add_items([user("1")])
            proxy.fault = ANSWER
            await session.get_items()
            await store.session(session.session_id, tenant="acme").add_items([user("2")])
            with pytest.raises(Exception, match="another writer"), watch.tracer.start_as_current_span("run") as run:
                await session.add_items([user("3")])
            async with store.engine.connect():  # the only one
                with pytest.raises(Exception, match="unavailable"):
                    await session.get_items()
            proxy.fault, proxy.refusing = ANSWER, True
            with pytest.raises(Exception, match="once, whole, or not at all"):
                await store.session(new_id()).add_items([user("4")])
            proxy.refusing = False
            metrics = {metric.name for metric in watch.metrics()}
        async with SessionStore.open(proxied_url, schema="nowhere") as store:
            with pytest.raises(Exception, match="nowhere"):
                await store.session(new_id()).get_items()

    spans = watch.spans()
    attributes = {name for span in spans for name in span.attributes or {}}
    events = {event.name for span in [*spans, run] for event in span.events}  # type: ignore[attr-defined]
    assert attributes | events - {"exception"} == named("Spans")
    assert metrics == named("Metrics")
