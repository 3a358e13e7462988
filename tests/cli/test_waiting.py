"""`waiting`."""

from __future__ import annotations

from tests.cli.conftest import Cli


def test_who_waits_and_for_what(shop: Cli) -> None:
    """The session, its user and the call that needs a yes, with its arguments."""
    shown = shop("waiting", "--tenant", "acme", width=140).out
    [told] = shop("waiting", "--tenant", "acme", "--json").json["waiting"]

    assert shown.splitlines()[2].split()[:4] == ["chat-2", "ada", "Support", 'refund(order_id="A-1042",']
    assert [each["tool_name"] for each in told["approvals"]] == ["refund"]
    assert told["claimed_until"] is None
    assert shop("waiting", "--json").json == {"waiting": [], "next": None}
    assert len(shop("waiting", "--all-tenants", "--json").json["waiting"]) == 1
