"""`runs silent`."""

from __future__ import annotations

import asyncio

import pytest
from agents import Runner
from agents.testing import UnexpectedModelCall
from sqlalchemy import text

from agents_pg_session import SessionStore
from tests.acceptance.agents_for_tests import QUIET, calls, says, scripted
from tests.cli.conftest import Cli


async def fell_silent(desk: Cli, tenant: str, minutes: dict[str, int]) -> None:
    """Let one run die after its tool, one answer without hooks and one end; then move them back in time."""
    async with SessionStore.open(str(desk.url)) as store:
        died, answered, ended = (store.session(name, tenant=tenant) for name in minutes)
        with pytest.raises(UnexpectedModelCall):  # the model has nothing more to say
            await Runner.run(scripted(calls("weather", "c1", city="Rome")), "q", session=died, run_config=QUIET)
        await Runner.run(scripted(says("done")), "q", session=answered, run_config=QUIET)
        await Runner.run(scripted(says("done")), "q", session=ended, run_config=QUIET, hooks=ended.hooks())
        on_sqlite = store.engine.dialect.name == "sqlite"
        async with store.engine.connect() as connection:
            for name, ago in minutes.items():
                back = f"strftime('%Y-%m-%d %H:%M:%f', 'now', '-{ago} minutes')"
                at = back.replace(":", "\\:") if on_sqlite else f"now() - interval '{ago} minutes'"
                runs = "runs" if on_sqlite else "agents.runs"
                moved = (
                    f"UPDATE {runs} SET started_at = {at}, last_seen_at = {at} WHERE tenant_id = :t AND session_id = :s"
                )
                await connection.execute(text(moved), {"t": tenant, "s": name})


@pytest.fixture
def night(desk: Cli, tenant: str) -> str:
    """A tenant with one run that died an hour ago, one that answered half an hour ago, and one that ended."""
    asyncio.run(fell_silent(desk, tenant, {"died": 60, "answered": 30, "ended": 90}))
    return tenant


def test_silent_runs_with_their_last_item(desk: Cli, night: str) -> None:
    """Runs that never said how they ended, the newest first, with what they stored last; ended ones are not there."""
    told = desk("runs", "silent", "--tenant", night, "--json").json["runs"]

    assert [(each["session_id"], each["last_item"]) for each in told] == [
        ("answered", "assistant message"),
        ("died", "function_call_output"),
    ]
    assert told[1]["silent_for"] > 3500


def test_how_long_and_since_when(desk: Cli, night: str) -> None:
    """Only those that are silent for so long, of the time that is asked about; a date is no length of time."""
    longer = desk("runs", "silent", "--tenant", night, "--silent-for", "45m", "--json").json["runs"]
    wrong = desk("runs", "silent", "--silent-for", "2026-11-01")

    assert [each["session_id"] for each in longer] == ["died"]
    assert desk("runs", "silent", "--tenant", night, "--since", "10m", "--json").json["runs"] == []
    assert (wrong.code, "10m or 2h" in wrong.err) == (2, True)


def test_it_reads_well_in_any_width(desk: Cli, night: str) -> None:
    """A table side by side where there is room, and ids below each other where there is none."""
    wide, narrow = (desk("runs", "silent", "--tenant", night, width=width).out for width in (140, 60))

    assert "function_call_output" in wide
    assert max(map(len, narrow.splitlines())) <= 60
    assert "run " in narrow


def test_nothing_is_silent(desk: Cli, tenant: str) -> None:
    """Where every run has ended, that is said on standard error, and the answer is empty."""
    answer = desk("runs", "silent", "--tenant", tenant)

    assert (answer.code, answer.out) == (0, "")
    assert "no silent runs" in answer.err
