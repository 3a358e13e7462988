"""`stats`: the drawing, and the numbers behind it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from agents_pg_session import SessionStore
from agents_pg_session.cli.app import app
from agents_pg_session.cli.charts import upright
from agents_pg_session.operations import silence
from agents_pg_session.operations import statistics as module
from agents_pg_session.operations.statistics import slow_tools, statistics
from tests.cli.conftest import Cli
from tests.cli.writing import append
from tests.items import call, output, user
from tests.migrations.actions import execute

ACME = ("--tenant", "acme")


def test_the_numbers(shop: Cli) -> None:
    """Every hour of the time is there, also the empty ones, and they sum up to what happened."""
    told = shop("stats", *ACME, "--since", "24h", "--json").json
    hours = told["over_time"]

    assert told["period"]["by"] == "hour"
    assert len(hours) == 25
    assert sum(each["runs"] for each in hours) == 5
    assert 4 <= sum(each["sessions"] for each in hours) <= 5  # the day may have lasted over the hour
    assert sum(each["tool_runs"] for each in hours) == 6
    assert sum(each["failed_tool_runs"] for each in hours) == 1
    assert [(each["of"], each["total_tokens"]) for each in told["agents"]] == [("Support", 2550), ("Billing", 1275)]
    assert {each["tool_name"] for each in told["tools"]} >= {"track_parcel", "find_invoice"}


@pytest.mark.parametrize(("since", "by"), [("2d", "hour"), ("7d", "day"), ("62d", "day"), ("400d", "month")])
def test_hours_days_or_months(shop: Cli, since: str, by: str) -> None:
    """What fits beside each other: hours up to two days, days up to two months, then months; each once."""
    told = shop("stats", "--all-tenants", "--since", since, "--json").json
    times = [datetime.fromisoformat(each["at"]) for each in told["over_time"]]

    assert told["period"]["by"] == by
    assert times == sorted(set(times))
    assert datetime.fromisoformat(told["period"]["until"]) - times[-1] < timedelta(days=31)
    assert sum(each["runs"] for each in told["over_time"]) == 5


@pytest.mark.parametrize("width", [80, 140])
def test_the_drawing_fits(shop: Cli, width: int) -> None:
    """At 80 columns the charts stand below each other, at 140 beside; nothing is wider than the terminal."""
    answer = shop("stats", *ACME, "--since", "2d", width=width)
    lines = answer.out.splitlines()
    titles = [line for line in lines if "Sessions by the hour" in line]

    assert max(map(len, lines)) <= width
    assert ("Failed tools by the hour" in titles[0]) == (width == 140)
    assert "█" in answer.out
    assert re.search(r"1 of 6 tool runs, 16\.7 %", answer.out)


def test_the_drawing_in_ascii(shop: Cli) -> None:
    """Where the encoding is no UTF, the bars are made of # and the frame of ASCII."""
    result = CliRunner(charset="ascii").invoke(app, ["stats", *ACME], env={"AGENTS_PG_URL": shop.url, "COLUMNS": "80"})

    assert result.exit_code == 0
    assert result.stdout.isascii()
    assert "#####" in result.stdout


def test_an_empty_store_draws_nothing(file: Cli) -> None:
    """Where nothing happened it says so in each place, and every number is zero."""
    answer = file("stats")

    assert answer.code == 0
    assert answer.out.count("nothing\n") == 2
    assert not any(each["runs"] for each in file("stats", "--json").json["over_time"])


def test_a_session_counts_once_in_each_hour(desk: Cli, tenant: str) -> None:
    """Three runs of one session are one session that was at work."""
    for _ in range(3):
        asyncio.run(append(desk, "s", [user("q")], tenant=tenant))
    told = desk("stats", "--tenant", tenant, "--since", "60d", "--json").json

    assert sum(each["runs"] for each in told["over_time"]) == 3
    assert sum(each["sessions"] for each in told["over_time"]) <= 2  # two if midnight came in between


async def test_percentiles_are_the_nearest_rank(
    postgres_url: str, store: SessionStore, new_id: Callable[[], str]
) -> None:
    """Of a hundred runs that took 1 to 100 s, half are done within 50 s and 95 in 100 within 95 s; a run that nobody
    measured is counted and changes nothing."""
    tenant = new_id()
    session = store.session("s", tenant=tenant)
    calls = [each for number in range(101) for each in (call(f"c{number}", "t"), output(f"c{number}"))]
    await session.add_items([user("q"), *calls])
    name = "agents.tool_runs" if store.engine.dialect.name == "postgresql" else "tool_runs"
    ends = {
        "postgresql": "created_at + make_interval(secs => call_position / 2)",
        "sqlite": "strftime('%Y-%m-%d %H\\:%M\\:%f', created_at, (call_position / 2) || ' seconds')",
    }[store.engine.dialect.name]
    async with store.engine.begin() as connection:
        sql = f"UPDATE {name} SET started_at = created_at, finished_at = {ends}"
        await connection.execute(text(f"{sql} WHERE tenant_id = '{tenant}' AND call_position < 202"))
        nobody = f"UPDATE {name} SET started_at = NULL WHERE tenant_id = '{tenant}' AND call_position >= 202"
        await connection.execute(text(nobody))
    [tool] = await slow_tools(store, since=timedelta(days=1), tenant=tenant)

    assert (tool.runs, tool.measured) == (101, 100)
    assert (tool.p50, tool.p95, tool.longest) == pytest.approx((50, 95, 100), abs=0.01)


def test_the_time_is_found_through_an_index(migrated_database: Callable[[], str]) -> None:
    """Of a year of runs, the questions read those of a week through the index that ends with the time; never a table
    as a whole, of one tenant and of all."""
    url = migrated_database()
    asyncio.run(execute(url, *A_YEAR))
    for all_tenants in (False, True):
        for sql in asyncio.run(questions(url, all_tenants)):
            plan = "\n".join(line for (line,) in asyncio.run(execute(url, f"EXPLAIN {sql}")))

            assert "Seq Scan" not in plan.replace("Seq Scan on sessions", ""), plan
            assert re.search(r"ix_(tool_)?runs_recent", plan), plan


A_YEAR = (
    "INSERT INTO agents.sessions (tenant_id, session_id) VALUES ('acme', 's')",
    "INSERT INTO agents.runs (tenant_id, session_id, run_id, started_at)"
    " SELECT 'acme', 's', n, now() - n * interval '1 hour' FROM generate_series(1, 8760) AS n",
    "INSERT INTO agents.tool_runs (tenant_id, session_id, call_position, tool_type, created_at)"
    " SELECT 'acme', 's', n, 'function', now() - n * interval '1 hour' FROM generate_series(1, 8760) AS n",
    "INSERT INTO agents.sessions (tenant_id, session_id) SELECT 'acme', n FROM generate_series(1, 400) AS n",
    "INSERT INTO agents.items (tenant_id, session_id, position, append_id, item)"
    " SELECT 'acme', 1 + n % 400, n, gen_random_uuid(), '{}' FROM generate_series(1, 8760) AS n",
    "ANALYZE",
)


async def questions(url: str, all_tenants: bool) -> list[str]:
    """Return what is asked of PostgreSQL, with values in place of their names."""
    asked: list[str] = []

    async def note(verb: str, sql: str, values: dict[str, object]) -> list[object]:
        sql = sql.replace("{schema}", "agents.").replace("\\:", ":")
        for name, value in values.items():
            sql = sql.replace(f":{name}", str(value) if not isinstance(value, str) else f"'{value}'")
        asked.append(sql)
        return []

    async with SessionStore.open(url) as store:
        scope = module.Scope(store, timedelta(days=7), "" if all_tenants else "acme", all_tenants)
        scope._run = note  # type: ignore[method-assign, assignment]
        day = scope.words["day"]
        buckets = {f"bucket_of_{one}": day.replace("{time}", f"{row}.{at}") for one, row, at in module._TIMES}
        for sql in (module._RUNS, module._TOOL_RUNS):
            await scope.ask("stats", sql, buckets)
        for sql in (module._SLOW, module._SLOWEST):
            await scope.ask("stats", sql, {}, limit=5)
        words = {"last": silence._LAST, "silence": silence._SILENCE["postgresql"]}
        await scope.ask("silent runs", silence._SILENT, words, silent_for=600, limit=5)
    return asked


async def test_what_cannot_be_asked(store: SessionStore) -> None:
    """A tenant and all tenants exclude each other; a limit is a whole number."""
    with pytest.raises(ValueError, match="exclude each other"):
        await statistics(store, since=timedelta(days=1), tenant="a", all_tenants=True)
    with pytest.raises(ValueError, match="limit must be a whole number"):
        await slow_tools(store, since=timedelta(days=1), limit=-1)


def test_no_label_below_a_chart_is_cut() -> None:
    """A label that has no room left at the right is left out, not cut to another time."""
    labels = [f"{hour % 24:02}:00" for hour in range(20, 45)]
    *_, floor, below = upright([1] * 25, labels, 78, ascii_only=True)

    assert below.plain.split()[0] == "20:00"
    assert set(below.plain.split()) <= set(labels)
    assert len(below.plain) <= len(floor.plain)
