"""`purge`."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from tests.cli.conftest import Cli
from tests.cli.writing import append
from tests.items import user


def test_purge_by_status_and_expiry(desk: Cli, tenant: str) -> None:
    """A dry run counts and removes nothing; a purge removes exactly that, and the next one finds nothing."""
    whose = ("--tenant", tenant)
    for name in ("kept", "over"):
        asyncio.run(append(desk, name, [user("hi")], tenant=tenant))
    asyncio.run(append(desk, "expired", [user("hi")], tenant=tenant, expires_after=timedelta(microseconds=1)))
    desk("sessions", "end", "over", *whose)
    counted = desk("purge", "--status", "ended", *whose, "--dry-run")
    told = desk("purge", "--status", "ended", *whose, "--yes", "--json").json["purged"]

    assert counted.out.startswith("would remove 2 sessions (1 expired, 1 old) with 2 items")
    assert (told["sessions"], told["expired"], told["old"], told["items"]) == (2, 1, 1, 2)
    assert desk("purge", "--status", "ended", *whose, "--yes").out.startswith("removed 0 sessions")
    assert desk("sessions", "show", "kept", *whose).code == 0


def test_purge_by_age(desk: Cli, tenant: str) -> None:
    """What was written to just now is not older than a day, and is older than nothing at all."""
    asyncio.run(append(desk, "s", [user("hi")], tenant=tenant))

    assert desk("purge", "--older-than", "1d", "--tenant", tenant, "--dry-run").out.startswith("would remove 0 ")
    assert desk("purge", "--older-than", "2026-11-01", "--tenant", tenant, "--dry-run").code == 2
    assert desk("purge", "--no-expired", "--tenant", tenant, "--dry-run").code == 2


def test_purge_asks_first(file: Cli) -> None:
    """Where nobody can be asked it refuses, unless it is a dry run; nothing is removed."""
    asyncio.run(append(file, "s", [user("hi")], expires_after=timedelta(microseconds=1)))
    answer = file("purge")

    assert answer.code == 2
    assert "--yes" in answer.err
    assert file("purge", "--dry-run", "--json").json["purged"]["sessions"] == 1
