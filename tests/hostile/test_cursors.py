"""Cursors: whatever is passed as one, a list refuses it or goes on in the rows it lists anyway."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import strategies as st

from agents_pg_session import Page, SessionStore
from tests.hostile import strategies as hostile
from tests.hostile.law import Bench, Refused
from tests.items import call, output, user

pytestmark = pytest.mark.timeout(900)  # with --thorough

NAMES = ["sessions", "tool_runs", "waiting", "runs", "session tool runs", "events", "snapshots", "snapshots of a kind"]
NAMES += ["sessions of all tenants", "tool_runs of all tenants", "waiting of all tenants", ""]


def lists_of(store: SessionStore, tenant: str) -> dict[str, Callable[[str | None], Awaitable[Page[Any]]]]:
    """Every list there is, as a function of a cursor; all of one tenant."""
    session = store.session("s", tenant=tenant)
    return {
        "sessions": lambda after: store.sessions(tenant=tenant, after=after, limit=1),
        "tool_runs": lambda after: store.tool_runs(tenant=tenant, after=after, limit=1),
        "waiting": lambda after: store.waiting(tenant=tenant, after=after, limit=1),
        "runs": lambda after: session.runs.list(after=after, limit=1),
        "session tool runs": lambda after: session.tool_runs.list(after=after, limit=1),
        "events": lambda after: session.events.list(after=after, limit=1),
        "snapshots": lambda after: session.snapshots.list(after=after, limit=1),
        "snapshots of a kind": lambda after: session.snapshots.list("summary", after=after, limit=1),
    }


async def furnished(store: SessionStore, tenant: str) -> None:
    for name in ("s", "s2"):
        session = store.session(name, tenant=tenant, user_id=tenant, metadata={"of": tenant})
        await session.add_items([user(tenant), call("c1", tenant), output("c1", tenant), call("c2", tenant)])
        await session.snapshots.save("summary", tenant)
        await session.snapshots.save("summary", tenant)
        await session.end("waiting")


def flipped(cursor: str, place: int, bit: int) -> str:
    raw = bytearray(base64.urlsafe_b64decode(cursor))
    raw[place % len(raw)] ^= 1 << bit
    return base64.urlsafe_b64encode(bytes(raw)).decode()


def written(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


MOMENTS = st.one_of(
    st.datetimes().map(lambda moment: moment.isoformat() + "+00:00"),
    st.sampled_from(
        ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "2026-01-01", "2999-01-01T00:00:00+00:00"]
    ),
    st.sampled_from(["infinity", "now", "2026-01-01T00:00:00Z", "8000-01-01T00:00:00+00:00"]),
)
FIELDS = st.one_of(
    MOMENTS, MOMENTS, hostile.SCALARS, st.sampled_from(["s", "s2", "zzz", "summary", 2**63, 2**63 - 1, -1, 1.5, [], {}])
)
FORGED = st.one_of(
    st.text(st.characters(), max_size=30),
    hostile.NAMES,
    st.builds(written, hostile.JSON_VALUES),
    st.builds(lambda name, fields: written([name, *fields]), st.sampled_from(NAMES), st.lists(FIELDS, max_size=4)),
)
PLACES = st.one_of(st.sampled_from(["s", "s2", "summary", "", "\0", "\ud800", "zzz", 5, None]), hostile.TEXTS)
COUNTS = st.one_of(st.integers(0, 12), st.sampled_from([2**63 - 1, 2**63, -1, True, 1.5, "1"]))
#: What each list sorts by.
KEYS: dict[str, list[st.SearchStrategy[Any]]] = {
    "sessions": [MOMENTS, PLACES],
    "tool_runs": [MOMENTS, PLACES, COUNTS],
    "waiting": [MOMENTS, PLACES],
    "runs": [MOMENTS, PLACES],
    "session tool runs": [COUNTS],
    "events": [COUNTS],
    "snapshots": [PLACES, COUNTS],
    "snapshots of a kind": [COUNTS],
}


def asked_of(name: str, real: dict[str, list[str]]) -> st.SearchStrategy[tuple[str, Any]]:
    """A list's name, and a cursor it never made, or made for another place, list or tenant."""
    every = [cursor for cursors in real.values() for cursor in cursors]
    forged = st.tuples(*KEYS[name]).map(lambda fields: written([name, *fields]))
    own = st.sampled_from(real[name] or every)
    turned = st.builds(flipped, own, st.integers(0, 200), st.integers(0, 7))
    return st.tuples(st.just(name), st.one_of(forged, forged, turned, own, st.sampled_from(every), FORGED))


def test_a_forged_cursor(bench: Bench) -> None:
    """Random text, another list's cursor, a real one with a bit turned, every field forged: refused by name, or rows
    of that very list and tenant."""
    tenant, other = f"c-{secrets.token_hex(6)}", f"v-{secrets.token_hex(6)}"
    lists = lists_of(bench.store, tenant)
    real: dict[str, list[str]] = {name: [] for name in lists}

    async def furnish() -> None:
        for whose in (tenant, other):
            await furnished(bench.store, whose)
            for name, ask in lists_of(bench.store, whose).items():
                cursor = (await ask(None)).cursor
                real[name] += [cursor] if cursor is not None else []

    bench.runner.run(furnish())

    async def check(asked: list[tuple[str, Any]]) -> None:
        for name, cursor in asked:
            page = await bench.judged(lambda name=name, cursor=cursor: lists[name](cursor), "after")  # type: ignore[misc]
            if isinstance(page, Refused):
                continue
            assert other not in repr(page.records), "rows of another tenant"
            assert {each.session_id for each in page} <= {"s", "s2"}
            assert len(page) <= 1

    asked = st.lists(
        st.sampled_from(sorted(lists)).flatmap(lambda name: asked_of(name, real)), min_size=10, max_size=10
    )
    bench.explore(asked, check, few=50, many=2000 if bench.backend == "sqlite" else 800)


def test_a_cursor_holds_nothing_but_a_place(bench: Bench) -> None:
    """A cursor of one tenant, taken to another, is a place in that one's own list: it opens nothing."""
    tenant, other = f"c-{secrets.token_hex(6)}", f"v-{secrets.token_hex(6)}"

    async def check() -> None:
        for whose in (tenant, other):
            await furnished(bench.store, whose)
        for name, ask in lists_of(bench.store, other).items():
            cursor = (await ask(None)).cursor
            page = await lists_of(bench.store, tenant)[name](cursor)
            assert other not in repr(page.records)

    bench.runner.run(check())


def test_a_cursor_of_another_list(bench: Bench) -> None:
    """A cursor opens the list that made it and no other, also where both sort by the same."""
    tenant = f"c-{secrets.token_hex(6)}"

    async def check() -> None:
        await furnished(bench.store, tenant)
        lists = lists_of(bench.store, tenant)
        for name, ask in lists.items():
            cursor = (await ask(None)).cursor
            for other, elsewhere in lists.items():
                if cursor is not None and other != name:
                    answer = await bench.judged(lambda: elsewhere(cursor), "after")  # noqa: B023 -- called at once
                    assert isinstance(answer, Refused), f"{other} took a cursor of {name}"

    bench.runner.run(check())
