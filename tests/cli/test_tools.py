"""`tools failed | slow`."""

from __future__ import annotations

import asyncio

from tests.cli.conftest import Cli
from tests.cli.writing import append
from tests.items import call, output, user

ACME = ("--tenant", "acme")


def test_failed_tools_with_call_and_error(shop: Cli) -> None:
    """The failed tool run with its arguments and its error, for a person and for a program."""
    shown = shop("tools", "failed", *ACME, "--since", "1h", width=140).out
    [run] = shop("tools", "failed", *ACME, "--json").json["tool_runs"]

    assert 'track_parcel(order_id="A-0000")' in shown
    assert "the carrier does not know A-0000" in shown
    assert (run["tool_name"], run["arguments"], run["status"]) == ("track_parcel", {"order_id": "A-0000"}, "failed")
    assert shop("tools", "failed", *ACME, "--tool", "find_invoice", "--json").json["tool_runs"] == []
    assert shop("tools", "failed", "--json").json["tool_runs"] == []
    assert len(shop("tools", "failed", "--all-tenants", "--json").json["tool_runs"]) == 1


def test_failed_tools_go_on_behind_a_page(desk: Cli, tenant: str) -> None:
    """Newest first, and the cursor leads to the older ones."""
    for name in ("a", "b"):
        failed = output("c", "An error occurred while running the tool. Please try again. Error: boom")
        asyncio.run(append(desk, "s", [user("q"), call("c", name), failed], tenant=tenant))
    first = desk("tools", "failed", "--tenant", tenant, "--limit", "1", "--json").json
    second = desk("tools", "failed", "--tenant", tenant, "--json", "--after", first["next"]).json

    assert [run["tool_name"] for run in (*first["tool_runs"], *second["tool_runs"])] == ["b", "a"]
    assert second["next"] is None


def test_slow_tools(shop: Cli) -> None:
    """Each tool with half, 95 in 100 and the longest of its measured runs, and the single runs, the slowest first."""
    told = shop("tools", "slow", *ACME, "--json").json
    by_name = {each["tool_name"]: each for each in told["tools"]}
    times = [each["seconds"] for each in told["slowest"]]

    assert by_name["track_parcel"]["runs"] == 3
    assert by_name["track_parcel"]["measured"] == 2
    assert by_name["track_parcel"]["failed"] == 1
    assert by_name["track_parcel"]["p50"] <= by_name["track_parcel"]["p95"] == by_name["track_parcel"]["longest"]
    assert by_name["refund"]["p95"] is None
    assert times == sorted(times, reverse=True)
    assert len(times) == 3
    shown = shop("tools", "slow", *ACME, width=80).out
    assert max(map(len, shown.splitlines())) <= 80
    assert "track_parcel" in shown


def test_slow_tools_where_nothing_was_measured(desk: Cli, tenant: str) -> None:
    """Without hooks there are no times, and it says what to do about that."""
    asyncio.run(append(desk, "s", [user("q"), call("c"), output("c")], tenant=tenant))

    assert "pass hooks=session.hooks() to the Runner" in desk("tools", "slow", "--tenant", tenant).out
