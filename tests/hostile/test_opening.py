"""Handles and stores opened with arguments of every kind: names, tenants, windows, URLs, settings, schemas, budgets."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import Counter
from typing import Any
from urllib.parse import quote

import pytest
from agents import RunContextWrapper
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy.pool import NullPool, StaticPool

from agents_pg_session import PGSession, SessionError, SessionStore, Window
from tests.hostile import strategies as hostile
from tests.hostile.law import QUIET, Bench, Refused, judged
from tests.items import user
from tests.tally import Tally

pytestmark = pytest.mark.timeout(900)  # with --thorough

SECRET = "s3cret"

NOTHING = st.none()
WINDOWS = st.fixed_dictionaries(
    {}, optional={"items": hostile.NUMBERS, "turns": hostile.NUMBERS, "summary": hostile.KINDS}
)
HANDLES = st.fixed_dictionaries(
    {"session_id": hostile.IDS},
    optional={
        "tenant": hostile.IDS,
        "agent": st.one_of(NOTHING, hostile.IDS),
        "user_id": st.one_of(NOTHING, hostile.IDS),
        "metadata": st.one_of(NOTHING, hostile.METADATA),
        "window": st.one_of(NOTHING, WINDOWS, hostile.NAMES),
        "expect": st.one_of(NOTHING, st.just("unchanged"), hostile.NAMES),
        "session_settings": st.one_of(
            NOTHING, st.builds(lambda limit: {"limit": limit}, hostile.NUMBERS), hostile.ANYTHING, st.just({"x": 1})
        ),
    },
)


def opened(store: SessionStore, given: dict[str, Any]) -> PGSession:
    """Open a handle; a window's measures stand for the window."""
    window = given.get("window")
    if isinstance(window, dict) and set(window) <= {"items", "turns", "summary"}:
        window = Window(**window)
    return store.session(**{"tenant": "", **given, "window": window})


def same(stored: Any, given: Any) -> bool:
    """Compare as jsonb does: numbers by their decimal digits, so that a large float may come back as an integer."""
    if isinstance(given, dict):
        return (
            isinstance(stored, dict) and stored.keys() == given.keys() and all(same(stored[k], given[k]) for k in given)
        )
    if isinstance(given, list):
        return isinstance(stored, list) and len(stored) == len(given) and all(map(same, stored, given))
    if isinstance(given, float) and not isinstance(stored, bool) and isinstance(stored, int):
        return float(stored) == given
    return type(stored) is type(given) and bool(stored == given)


def test_every_handle(bench: Bench) -> None:
    """A handle is refused by name where it is opened, or what it says of its session is what the session's row says."""
    whole, clashes = secrets.token_hex(4), Counter[str]()

    async def check(given: dict[str, Any]) -> None:
        async def use() -> PGSession:
            return opened(bench.store, given)

        session = await bench.judged(use, *given, "kind", "window", "summary", "items", "turns")
        if isinstance(session, Refused):
            return
        # Ids come again in other examples: in a tenant of its own, a session is this example's alone.
        clashes["opened"] += 1
        session = opened(bench.store, {**given, "tenant": f"{whole}-{clashes['opened']}"})
        read = await bench.judged(session.get_items, "limit")
        if isinstance(read, Refused):
            assert given["session_settings"]["limit"] is not None
            return
        await session.add_items([user("hi")])
        info = await session.info()
        assert (info.session_id, info.agent, info.user_id) == (
            given["session_id"],
            given.get("agent"),
            given.get("user_id"),
        )
        metadata = given.get("metadata")
        assert same(dict(info.metadata), hostile.as_stored({} if metadata is None else metadata))
        assert await session.pop_item() == user("hi")

    bench.explore(HANDLES, check, few=80, many=3000)


def raising(_run: object) -> str:
    raise KeyError(SECRET)


async def late(_run: object) -> str:
    return "tenant"


def test_a_tenant_told_by_a_function(bench: Bench) -> None:
    """A function that raises or returns nonsense gives an error of ours, and never another tenant's session."""

    async def check(told: Any) -> None:
        tell = told if callable(told) and not isinstance(told, type) else lambda _run: told
        session = bench.store.session("shared", tenant=tell)
        wrapper = RunContextWrapper[Any](context=None)
        for use in (
            lambda: session.add_items([user(SECRET)], wrapper=wrapper),
            lambda: session.get_items(wrapper=wrapper),
            lambda: session.pop_item(wrapper=wrapper),
            lambda: session.clear_session(wrapper=wrapper),
        ):
            answer = await bench.judged(use, "tenant")
            proper = isinstance(told, str) and 0 < len(told.encode("utf-8", "replace")) <= 512
            assert isinstance(answer, Refused) or proper
        assert isinstance(await bench.judged(session.info), Refused), "outside of a run nobody can tell"
        assert len(await bench.store.session("shared").get_items()) == 0

    bench.explore(st.one_of(hostile.IDS, st.sampled_from([raising, late, str])), check, few=20, many=800)


# -- stores

SCHEMES = ["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg", "sqlite", "sqlite+aiosqlite"]
SCHEMES += ["postgresql+psycopg2", "mysql", "", "http", "sqlite+pysqlite", "POSTGRESQL", "postgresql+"]
PARTS = st.one_of(
    st.text(st.characters(), max_size=6),
    st.sampled_from(["a", "%2F", "%zz", "%00", "%ff", "[::1]", "@", ":", "/", "?", "#"]),
)
HOSTS = st.one_of(
    PARTS,
    st.sampled_from(
        ["h", "h:5432", "h:abc", "h:", "[::1]:5432", "::1", "h:99999999", "%2Ftmp", "h:-1", "a,b", "a:1,b:2"]
    ),
)
QUERY_NAMES = [
    "sslmode",
    "connect_timeout",
    "host",
    "port",
    "user",
    "password",
    "dbname",
    "target_session_attrs",
    "options",
]
QUERY_NAMES += [
    "application_name",
    "pgbouncer",
    "timeout",
    "statement_cache_size",
    "channel_binding",
    "ssl",
    "service",
    "",
]
QUERY_NAMES += ["mode", "uri", "cache", "isolation_level", "check_same_thread", "vfs", "async_fallback", "detect_types"]
QUERY_VALUES = st.one_of(
    PARTS, st.sampled_from(["1", "1e3", "abc", "true", "require", "nan", "inf", "-1", "", "a,b", "1,2,3"])
)
URLS = st.one_of(
    st.builds(
        lambda scheme, who, hosts, path, query: (
            f"{scheme}://{who}{','.join(hosts)}{path}" + ("?" + "&".join(f"{n}={v}" for n, v in query) if query else "")
        ),
        st.sampled_from(SCHEMES),
        st.sampled_from(
            ["", f"u:{SECRET}@", f"u:{SECRET}%40@", f"u:{SECRET}/@@", f"{quote('ü')}:{SECRET}@", "u@", ":@"]
        ),
        st.lists(HOSTS, max_size=3),
        st.one_of(st.sampled_from(["", "/", "/db", "/a/b", "//db", "/:memory:"]), PARTS),
        st.lists(st.tuples(st.sampled_from(QUERY_NAMES), QUERY_VALUES), max_size=3),
    ),
    hostile.NAMES,
)
SETTINGS = st.one_of(
    NOTHING,
    hostile.OBJECTS,
    st.dictionaries(
        st.sampled_from(
            [
                "pool_size",
                "max_overflow",
                "poolclass",
                "connect_args",
                "isolation_level",
                "execution_options",
                "echo",
                "pool_recycle",
                "pool_timeout",
                "nonsense",
                "creator",
                "module",
                "url",
                "hide_parameters",
                "pool",
                "plugins",
            ]
        ),
        st.one_of(
            hostile.NUMBERS,
            hostile.NAMES,
            st.sampled_from([NullPool, StaticPool, int, {"timeout": 1}, {"x": 1}, {1: 2}]),
        ),
        max_size=2,
    ),
)
STORES = st.fixed_dictionaries(
    {"url": URLS},
    optional={
        "engine_kwargs": SETTINGS,
        "schema": hostile.IDS,
        "retry_for": hostile.SECONDS,
        "command_timeout": hostile.SECONDS,
        "pgbouncer": st.booleans(),
    },
)


@pytest.mark.filterwarnings("ignore:Query string argument")  # SQLAlchemy drops what no driver of SQLite knows
def test_every_url_and_setting(thorough: bool, tally: Tally) -> None:
    """A store that cannot work is refused where it is opened: by name, by us, and without its password."""
    counts = Counter[str](refused=0, opened=0)

    @settings(QUIET, max_examples=20_000 if thorough else 400)
    @given(STORES)
    @example({"url": "postgresql://", "engine_kwargs": {"max_overflow": "5"}})
    def check(given: dict[str, Any]) -> None:
        async def use() -> SessionStore:
            return SessionStore.open(**given)

        store = asyncio.run(
            judged(use, *given, "URL", "driver", "channel_binding", "connect_args", "execution_options")
        )
        if isinstance(store, Refused):
            counts["refused"] += 1
            assert SECRET not in str(store.error)
            return
        counts["opened"] += 1
        assert store.engine.dialect.name in ("postgresql", "sqlite")
        asyncio.run(store.close())

    check()
    tally.add("Bad input", cases=counts.total(), refused=counts["refused"], answered=counts["opened"], foreign_errors=0)


HOPELESS = [
    "postgresql://127.0.0.1:1/db",
    "postgresql://127.0.0.1:99999/db",
    "postgresql://127.0.0.1:-1/db",
    f"postgresql://u:{SECRET}@127.0.0.1:1/%00",
    "postgresql://127.0.0.1:1/db?sslmode=nonsense",
    "postgresql://127.0.0.1:1/db?sslrootcert=/nowhere&sslmode=verify-full",
    "postgresql://127.0.0.1:1/db?target_session_attrs=best",
    "postgresql://127.0.0.1:1,127.0.0.1:2/db?connect_timeout=1",
    "postgresql://%2Fnowhere/db",
    f"postgresql://{'a' * 70}.invalid/db",
    "sqlite:////nowhere/at/all.db",
    "sqlite:////proc/version",
]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("url", HOPELESS, ids=lambda url: url[:48])
async def test_a_database_that_is_not_there(url: str, driver: str) -> None:
    """Where nothing can be reached, every call says so in words of ours, within its budget, and shows no password."""
    url, before = url.replace("postgresql:", f"postgresql+{driver}:"), set(threading.enumerate())

    async def use() -> None:
        async with SessionStore.open(url, retry_for=0.1) as store:
            with pytest.raises(SessionError) as raised:
                await store.session("s").get_items()
            assert SECRET not in str(raised.value)
            assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]

    refused = await judged(use, "URL", "port")
    assert refused is None or isinstance(refused, Refused)
    async with asyncio.timeout(20):  # the threads of connections that failed end, and before this loop does
        while any("_connection_worker_thread" in each.name for each in {*threading.enumerate()} - before):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "arguments", [{"nonsense": 1}, {"timeout": "soon"}, {"server_settings": 5}, {"host": 5}], ids=str
)
async def test_connect_arguments_no_driver_takes(bench_url: str, arguments: dict[str, Any]) -> None:
    """What the driver refuses when it connects is an error of ours that says where to look."""

    async def use() -> None:
        async with SessionStore.open(bench_url, engine_kwargs={"connect_args": arguments}, retry_for=0.2) as store:
            await store.session("s").add_items([user("hi")])

    answer = await judged(use, "server_settings", away=True)
    assert isinstance(answer, Refused) or (arguments.keys() == {"server_settings"} and "psycopg" in bench_url)


async def test_budgets_of_every_size(bench_url: str) -> None:
    """However short or long the budgets are, a call answers or says that it ran out of time."""
    for retry_for, command_timeout in [(1e-9, 1e-9), (1e300, 1e300), (10**400, 10**400), (float("inf"), float("inf"))]:
        async with SessionStore.open(bench_url, retry_for=retry_for, command_timeout=command_timeout) as store:
            answer = await judged(lambda store=store: store.session("nobody").get_items(), away=True)  # type: ignore[misc]
            assert answer == [] or (isinstance(answer, Refused) and retry_for < 1)
            assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_schemas_of_every_name(bench_url: str) -> None:
    """A schema's name is a name, whatever it holds: its tables are missing, or it is refused where it is written."""
    names = ["no such", 'a"b', "a.b", ":x", "%s", "{schema}", "é" * 31, "é" * 32, "", "\0", "\ud800", "x;--", 5, None]
    for name in names:

        async def use(name: Any = name) -> None:
            async with SessionStore.open(bench_url, schema=name) as store:
                await store.session("s").add_items([user("hi")])

        assert isinstance(await judged(use, "schema", away=True), Refused)
