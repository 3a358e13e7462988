"""URLs as people have them, on a real server: every way to write one connects, or fails in time and in our words."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import make_url, text

from agents_pg_session import SessionStore, StorageUnavailable

DRIVERS = ("asyncpg", "psycopg")
PATIENCE = {"asyncpg": 1, "psycopg": 2}  #: libpq takes less than two seconds for two


@pytest.fixture(params=DRIVERS)
def base(request: pytest.FixtureRequest, postgres_url: str) -> str:
    """A URL up to its query, over either driver."""
    return make_url(postgres_url).set(drivername=f"postgresql+{request.param}").render_as_string(hide_password=False)


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a listener that accepts nobody: its queue is full, so nothing ever answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port: int = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port
        for filler in fillers:
            filler.close()


async def setting(url: str, name: str) -> str:
    """Return what the server says about one of its settings."""
    async with SessionStore.open(url) as store, store.engine.connect() as connection:
        return str((await connection.execute(text("SELECT current_setting(:name)"), {"name": name})).scalar_one())


@pytest.mark.parametrize(
    "query",
    ["sslmode=disable", "sslmode=prefer", "sslmode=allow", "target_session_attrs=read-write", "connect_timeout=0"],
)
async def test_a_libpq_setting_connects(base: str, query: str) -> None:
    """What libpq takes, both drivers take."""
    async with SessionStore.open(f"{base}?{query}") as store:
        assert (await store.check()).schema == "agents"


async def test_the_second_of_two_hosts_answers(base: str) -> None:
    """Where nobody listens at the first host, the second is used, in each way to write them."""
    url = make_url(base)
    hosts = {
        f"{url.drivername}://{url.username}@127.0.0.1:1,127.0.0.1:{url.port}/{url.database}",
        f"{url.drivername}://{url.username}@/{url.database}?host=127.0.0.1:1&host=127.0.0.1:{url.port}",
        f"{url.drivername}://{url.username}@/{url.database}?host=127.0.0.1,127.0.0.1&port=1,{url.port}",
        f"{url.drivername}://{url.username}@[::1]:1,127.0.0.1:{url.port}/{url.database}?target_session_attrs=read-write",
    }
    for written in hosts:
        async with SessionStore.open(written) as store:
            assert (await store.check()).schema == "agents"


async def test_the_server_gets_its_settings(base: str) -> None:
    """`application_name` and `options` of the URL reach the server; without the first, it reads our name."""
    query = "application_name=web&options=-c%20statement_timeout%3D5s"

    assert await setting(f"{base}?{query}", "application_name") == "web"
    assert await setting(f"{base}?{query}", "statement_timeout") == "5s"
    assert await setting(base, "application_name") == "agents_pg_session"


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_silent_host_is_given_up_in_time(driver: str, silent: int) -> None:
    """`connect_timeout` ends the wait for a host that answers nothing, and the budget ends the retrying."""
    url = f"postgresql+{driver}://u:5ecret@127.0.0.1:{silent}/db?connect_timeout={PATIENCE[driver]}"
    before = time.monotonic()
    async with SessionStore.open(url, retry_for=PATIENCE[driver] - 0.1) as store:
        with pytest.raises(StorageUnavailable, match=r"was unavailable for \d\.9 s") as failure:
            await store.check()

    assert PATIENCE[driver] - 0.5 < time.monotonic() - before < 4
    assert "5ecret" not in str(failure.value)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_silent_host_does_not_hide_the_next_one(driver: str, silent: int, postgres_url: str) -> None:
    """The time is per host: after it, the second host is asked, well within our own default of five seconds."""
    url = make_url(postgres_url)
    where = f"{url.username}@127.0.0.1:{silent},127.0.0.1:{url.port}/{url.database}?connect_timeout={PATIENCE[driver]}"
    before = time.monotonic()
    async with SessionStore.open(f"postgresql+{driver}://{where}", retry_for=4.0) as store:
        assert (await store.check()).schema == "agents"

    assert time.monotonic() - before < 4.5


async def test_a_server_without_tls_is_refused_when_tls_is_required(base: str) -> None:
    """`sslmode=require` never falls back to plain text: it fails in our words."""
    async with SessionStore.open(f"{base}?sslmode=require", retry_for=0.5) as store:
        with pytest.raises(StorageUnavailable, match=r"(?i)SSL"):
            await store.check()
