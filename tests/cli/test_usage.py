"""`usage`."""

from __future__ import annotations

from tests.cli.conftest import Cli

ACME = ("--tenant", "acme")


def test_tokens_by_agent(shop: Cli) -> None:
    """One line per agent, the most expensive first, and the sum below."""
    lines = [line.split() for line in shop("usage", *ACME).out.splitlines()]

    assert lines[0] == ["agent", "runs", "requests", "input", "cached", "output", "reasoning", "tokens"]
    assert lines[2] == ["Support", "4", "6", "2,400", "0", "150", "0", "2,550"]
    assert lines[3] == ["Billing", "1", "3", "1,200", "0", "75", "0", "1,275"]
    assert lines[4] == ["all", "5", "9", "3,600", "0", "225", "0", "3,825"]


def test_tokens_by_user_tenant_and_day(shop: Cli) -> None:
    """The same tokens, shared out by what was asked; all tenants only when named."""
    users = shop("usage", "--by", "user", *ACME, "--json").json

    assert {each["of"]: each["requests"] for each in users["usage"]} == {"ada": 5, "bob": 4}
    assert users["total"]["total_tokens"] == 3825
    assert [each["of"] for each in shop("usage", "--by", "tenant", "--all-tenants", "--json").json["usage"]] == ["acme"]
    assert sum(each["runs"] for each in shop("usage", "--by", "day", *ACME, "--json").json["usage"]) == 5
    assert shop("usage", "--json").json["usage"] == []


def test_usage_of_a_time(shop: Cli) -> None:
    """--since and --until bound when runs began; a span is no end."""
    assert shop("usage", *ACME, "--since", "2001-01-01", "--until", "2001-02-01", "--json").json["usage"] == []
    assert shop("usage", *ACME, "--until", "1h").code == 2
    assert shop("usage", *ACME, "--since", "soon").code == 2
    assert shop("usage", *ACME, "--by", "moon").code == 2
