"""Rows that somebody broke in one way: exactly that is found, and what can be mended is mended once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

import pytest

from agents_pg_session import SessionStore
from tests.items import assistant, call, output, user
from tests.operations.ailing import by_hand, found, healthy_session, mended, new_tenant

pytestmark = pytest.mark.parametrize("backend", ["sqlite", "asyncpg"], indirect=True)

OLD = "'2020-01-01 00:00:00.000'"
LEASED = f"lease_id = '00000000-0000-4000-8000-000000000000', lease_until = {OLD}"


class Case(NamedTuple):
    """What a hand did, and what is to be said of it."""

    statements: tuple[str, ...]
    examination: str
    severity: str = "fault"
    position: int | None = None
    mends: bool = True


def updated(setting: str, *, table: str = "sessions", where: str = "") -> tuple[str, ...]:
    return (f"UPDATE {{}}{table} SET {setting}" + (f" WHERE {where}" if where else ""),)


COUNTERS = (
    "item_count", "message_count", "turn_count", "tool_run_count", "tool_error_count", "input_tokens", "output_tokens",
)  # fmt: skip
CALL = "call_position = 2"
DEEP = '{"a":' + "[" * 3000 + "]" * 3000 + "}"
CASES: dict[str, Case] = {
    "counters too low": Case(updated(", ".join(f"{each} = {each} - 1" for each in COUNTERS)), "counters"),
    "counters too high": Case(updated(", ".join(f"{each} = {each} + 1" for each in COUNTERS)), "counters"),
    "last_position": Case(updated("last_position = 8"), "counters"),
    "last_event_id": Case(updated("last_event_id = 1"), "counters"),
    "events gone": Case(updated("last_event_id = last_event_id + 5"), "counters", "note", mends=False),
    "answered, but running": Case(
        updated("status = 'running', output_position = NULL", table="tool_runs", where=CALL), "tool_runs", position=2
    ),
    "running with an output": Case(
        updated("status = 'running'", table="tool_runs", where=CALL), "tool_runs", position=2
    ),
    "over without an output": Case(
        updated("output_position = NULL", table="tool_runs", where=CALL), "tool_runs", position=2
    ),
    "output nowhere": Case(updated("output_position = 99", table="tool_runs", where=CALL), "tool_runs", position=2),
    "call nowhere": Case(
        ("UPDATE {}tool_runs SET call_position = 5, output_position = 8 WHERE call_position = 2",),
        "tool_runs", "warning", 5, mends=False,
    ),
    "no item": Case(updated("item = '[1]'", table="items", where="position = 4"), "items", position=4, mends=False),
    "too deep an item": Case(
        updated(f"item = '{DEEP}'", table="items", where="position = 4"), "items", position=4,
        mends=False,
    ),
    "lease": Case(updated(LEASED), "leases", "note"),
    "silent run": Case(updated(f"last_seen_at = {OLD}", table="runs"), "runs", "note", mends=False),
    "expired": Case(updated(f"expires_at = {OLD}"), "expired", "note", mends=False),
    "waiting": Case(updated(f"status = 'waiting', updated_at = {OLD}"), "waiting", "note", mends=False),
}  # fmt: skip


async def test_what_is_broken_is_found_and_nothing_else(store: SessionStore) -> None:
    """A session broken in one way gives one finding, at its place; repair mends it or leaves it, and only once."""
    for name, case in CASES.items():
        tenant = new_tenant()
        await healthy_session(store, tenant)
        await healthy_session(store, tenant, "healthy")
        before = await found(store, tenant)

        await by_hand(store, tenant, *case.statements)
        [finding] = (await found(store, tenant)).findings
        first = await mended(store, tenant)
        after = await found(store, tenant)

        assert (before.findings, before.sessions) == ((), 2), name
        assert (finding.examination, finding.severity, finding.count) == (case.examination, case.severity, 1), name
        places = [(each.tenant, each.session_id, each.position) for each in finding.places]
        assert places == [(tenant, "s", case.position)], name
        said = {counter for counter in COUNTERS if f"{counter} says " in finding.places[0].said}
        assert said == {counter for counter in COUNTERS if f"{counter} = {counter} " in case.statements[0]}, name
        assert [each.session_id for each in first] == (["s"] if case.mends else []), name
        assert after.findings == (() if case.mends else (finding,)), name
        assert await mended(store, tenant) == [], name


async def test_a_repair_puts_back_what_was_there(store: SessionStore) -> None:
    """Mended counters and tool runs are what they were before the hand came, and an event says what it had written."""
    tenant = new_tenant()
    session = await healthy_session(store, tenant)
    info, runs = await session.info(), await session.tool_runs.list()
    await by_hand(
        store, tenant, "UPDATE {}tool_runs SET status = 'running', output_position = NULL, error = NULL",
        "UPDATE {}sessions SET item_count = 1, message_count = 0, tool_error_count = 0, tool_run_count = 7",
    )  # fmt: skip

    await mended(store, tenant)
    after, event = await session.info(), await session.events.latest()
    assert event is not None
    told: Any = event.payload

    assert (after.item_count, after.message_count, after.tool_error_count, after.tool_run_count) == (
        info.item_count, info.message_count, info.tool_error_count, info.tool_run_count,
    )  # fmt: skip
    assert [(each.status, each.output_position, each.error) for each in await session.tool_runs.list()] == [
        (each.status, each.output_position, each.error) for each in runs
    ]
    assert (event.kind, after.updated_at) == ("repaired", info.updated_at)
    changed = {each["what"]: (each["before"], each["after"]) for each in told["changes"]}
    assert changed["item_count"] == (1, 8)
    assert changed["tool run at 2"] == (
        {"status": "running", "output_position": None}, {"status": "succeeded", "output_position": 3}
    )  # fmt: skip


async def test_a_dry_run_says_the_same_and_changes_nothing(store: SessionStore) -> None:
    """With dry_run a repair tells what it would change, and everything stays as it was."""
    tenant = new_tenant()
    session = await healthy_session(store, tenant)
    await by_hand(
        store, tenant, f"UPDATE {{}}sessions SET item_count = 1, {LEASED}",
        f"UPDATE {{}}tool_runs SET status = 'running' WHERE {CALL}",
    )  # fmt: skip
    wrong = await session.info(), await session.tool_runs.list(), await session.events.list()

    told = await mended(store, tenant, dry_run=True)
    assert (await session.info(), await session.tool_runs.list(), await session.events.list()) == wrong
    assert await mended(store, tenant) == told
    assert {change.repair for each in told for change in each.changes} == {"counters", "leases", "tool_runs"}


async def test_only_what_is_named_is_mended(store: SessionStore) -> None:
    """A repair of leases leaves counters alone; names that do not exist are refused with those that do."""
    tenant = new_tenant()
    await healthy_session(store, tenant)
    await by_hand(store, tenant, f"UPDATE {{}}sessions SET item_count = 1, {LEASED}")

    [told] = await mended(store, tenant, "leases")
    left = await found(store, tenant)

    assert [each.repair for each in told.changes] == ["leases"]
    assert [each.examination for each in left.findings] == ["counters"]
    with pytest.raises(ValueError, match="there is no repair 'bloat'; there are: indexes, counters"):
        await mended(store, tenant, "bloat")
    with pytest.raises(ValueError, match="there is no examination 'x'; there are: schema, server"):
        await found(store, tenant, only=["x"])


async def test_a_claim_that_nobody_came_back_from(store: SessionStore) -> None:
    """A paused run whose claim ran out is a note while it still waits, and repair forgets the claim."""
    tenant = new_tenant()
    session = store.session("s", tenant=tenant)
    await session.add_items([user("Refund"), call("c1", "refund")])
    await session.snapshots.save("state", {"state": 1})
    claimed = f"kind = 'run_state', claimed_at = {OLD}, claimed_by = 'w', claimed_until = {OLD}"
    await by_hand(store, tenant, "UPDATE {}sessions SET status = 'waiting'", f"UPDATE {{}}snapshots SET {claimed}")

    [finding] = (await found(store, tenant)).findings
    [told] = await mended(store, tenant)
    snapshot = await session.snapshots.latest("run_state")

    assert (finding.examination, finding.severity) == ("claims", "note")
    assert [each.repair for each in told.changes] == ["claims"]
    assert snapshot is not None
    assert snapshot.claimed_by is None
    assert (await found(store, tenant)).findings == ()


async def test_a_claim_of_a_run_that_went_on_is_nobodys_trouble(store: SessionStore) -> None:
    """The claim that a resumed run leaves behind is no finding: a claim needs no end."""
    tenant = new_tenant()
    session = store.session("s", tenant=tenant)
    await session.add_items([user("Refund"), call("c1", "refund")])
    await session.snapshots.save("state", {"state": 1})
    await by_hand(
        store, tenant, f"UPDATE {{}}snapshots SET kind = 'run_state', claimed_by = 'w', claimed_until = {OLD}"
    )
    await session.add_items([output("c1"), assistant("Done")])

    assert (await found(store, tenant)).findings == ()


async def test_many_are_counted_and_the_first_are_named(store: SessionStore) -> None:
    """A finding counts every place and names five; --session looks at one, and since at the ones written to lately."""
    tenant = new_tenant()
    for number in range(7):
        await store.session(f"s{number}", tenant=tenant).add_items([user("Hello")])
        await by_hand(store, tenant, "UPDATE {}sessions SET item_count = 0", session_id=f"s{number}")
    await by_hand(store, tenant, f"UPDATE {{}}sessions SET updated_at = {OLD}", session_id="s3")

    [every] = (await found(store, tenant)).findings
    [one] = (await found(store, tenant, session_id="s6")).findings
    lately = await found(store, tenant, since=timedelta(hours=1))

    assert (every.count, [each.session_id for each in every.places]) == (7, ["s0", "s1", "s2", "s3", "s4"])
    assert [(each.session_id, each.said) for each in one.places] == [("s6", "item_count says 0, is 1")]
    assert (lately.sessions, lately.findings[0].count) == (6, 6)


async def test_progress_tells_how_many_sessions_were_looked_at(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of any size look at each session once, and progress grows up to all of them."""
    tenant, seen = new_tenant(), list[int]()
    for number in range(7):
        await store.session(f"s{number}", tenant=tenant).add_items([user("Hello"), call("c"), output("c")])
    monkeypatch.setattr("agents_pg_session.operations.doctor.asking.PAGE", 3)
    monkeypatch.setattr("agents_pg_session.operations.doctor.asking.ROWS", 5)
    monkeypatch.setattr("agents_pg_session.operations.doctor.items.PAGE", 2)

    diagnosis = await found(store, tenant, progress=seen.append)

    assert (diagnosis.sessions, seen[-1], diagnosis.findings) == (7, 7, ())
    assert seen == sorted(seen)
