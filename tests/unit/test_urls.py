"""URLs as people have them become what the drivers take; what cannot work is refused without telling the password."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, make_url
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool

from agents_pg_session.engine import create_engine
from agents_pg_session.urls import DRIVERS, WITHOUT_PREPARED_STATEMENTS, engine_url

SECRET = "5ecret"

PLACES = {
    "postgres://u:p@h/db": ("h", None),
    "postgresql://u:p@h:6543/db": ("h", 6543),
    "postgresql://u:p@[::1]:5433/db": ("::1", 5433),
    "postgresql://u:p@a,b/db": (["a", "b"], [5432, 5432]),
    "postgresql://u:p@a:1,b:2/db": (["a", "b"], [1, 2]),
    "postgresql://u:p@a:1,b/db?sslmode=prefer": (["a", "b"], [1, 5432]),
    "postgresql://u:p@[::1]:1,[fe80::2],c:3/db": (["::1", "fe80::2", "c"], [1, 5432, 3]),
    "postgresql://u:p@/db?host=a,b&port=1,2": (["a", "b"], [1, 2]),
    "postgresql://u:p@/db?host=a,b&port=7": (["a", "b"], [7, 7]),
    "postgresql://u:p@/db?host=a,b": (["a", "b"], [5432, 5432]),
    "postgresql://u:p@/db?host=a:1&host=b:2": (["a", "b"], [1, 2]),
    "postgresql://u:p@/db?host=::1": ("::1", 5432),
    "postgresql://u:p@/db?host=a&port=9": ("a", 9),
    "postgresql://u:p@/db?host=/var/run/postgresql": ("/var/run/postgresql", 5432),
    "postgresql://u:p@/db?host=/var/run/postgresql&port=6000": ("/var/run/postgresql", 6000),
    "postgresql://u:p@%2Fvar%2Frun%2Fpostgresql/db": ("/var/run/postgresql", 5432),
}


def connect_arguments(url: str) -> dict[str, Any]:
    """Return what the driver would be called with."""
    engine = create_engine(url)
    return {**engine.dialect.create_connect_args(engine.url)[1], **engine_url(url)[1]}


@pytest.mark.parametrize(("written", "driver"), DRIVERS.items())
def test_a_scheme_names_its_driver(written: str, driver: str) -> None:
    """`postgres://` and `postgresql://` mean asyncpg, `sqlite://` means aiosqlite; both drivers can be named."""
    assert engine_url(f"{written}:///x")[0].drivername == driver


@pytest.mark.parametrize(("url", "place"), PLACES.items())
def test_asyncpg_finds_the_hosts(url: str, place: tuple[object, object]) -> None:
    """One host or several, with and without ports, IPv6, a folder with a socket: asyncpg gets each with its port."""
    arguments = connect_arguments(url)

    assert (arguments["host"], arguments.get("port")) == place
    assert (arguments["user"], arguments["password"], arguments["database"]) == ("u", "p", "db")


@pytest.mark.parametrize(("url", "place"), PLACES.items())
def test_psycopg_finds_the_same_hosts(url: str, place: tuple[object, object]) -> None:
    """libpq gets the same hosts and ports, written with commas."""
    arguments = connect_arguments(f"postgresql+psycopg://{url.partition('://')[2]}")
    host, port = (",".join(map(str, each)) if isinstance(each, list) else each for each in place)

    assert (arguments["host"], str(arguments.get("port"))) == (host, str(port))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("sslmode=require", {"dsn": "postgresql://?sslmode=require"}),
        (
            "sslmode=verify-full&sslrootcert=/a%20b/ca.pem",
            {"dsn": "postgresql://?sslmode=verify-full&sslrootcert=%2Fa+b%2Fca.pem"},
        ),
        ("ssl=true", {"ssl": "require"}),
        ("ssl=0", {"ssl": "disable"}),
        ("connect_timeout=7", {"timeout": 7.0}),
        ("connect_timeout=0", {"timeout": None}),
        ("connect_timeout=-1", {"timeout": None}),
        ("command_timeout=2.5&statement_cache_size=0", {"command_timeout": 2.5, "statement_cache_size": 0}),
        ("target_session_attrs=read-write", {"target_session_attrs": "read-write"}),
        ("channel_binding=prefer", {}),
        ("channel_binding=disable", {}),
        ("keepalives_idle=30&gssencmode=disable&load_balance_hosts=random", {}),
        (
            "application_name=web&options=-c%20geqo%3Doff",
            {"server_settings": {"application_name": "web", "options": "-c geqo=off"}},
        ),
    ],
)
def test_what_libpq_knows_reaches_asyncpg(query: str, expected: dict[str, Any]) -> None:
    """A setting written for libpq means the same over asyncpg, or means nothing there and is left out."""
    url, arguments = engine_url(f"postgresql://u:p@h/db?{query}")

    assert arguments == expected
    assert dict(url.query) == {}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@ep-cool-name-123-pooler.eu-central-1.aws.neon.tech/db?sslmode=require&channel_binding=prefer",
        "postgresql://u:p@ep-cool-name-123.eu-central-1.aws.neon.tech/db?sslmode=require&options=endpoint%3Dep-cool",
        "postgres://postgres.abcdef:p@aws-0-eu-central-1.pooler.supabase.com:6543/postgres",
        "postgresql://u:p@name.abc123.eu-central-1.rds.amazonaws.com:5432/db?sslmode=verify-full&sslrootcert=/rds.pem",
        "postgres://u:p@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d1a2b3",
        "postgresql://u%40server:p@server.postgres.database.azure.com/db?sslmode=require",
        "postgresql://u@server:p@server.postgres.database.azure.com/db?sslmode=require",
        "postgresql:///db?host=/cloudsql/project:region:instance&user=u&password=p",
    ],
)
def test_urls_of_providers_are_taken_as_they_are(url: str) -> None:
    """What a provider's console shows can be pasted, for both drivers."""
    for scheme in ("postgresql", "postgresql+psycopg"):
        arguments = connect_arguments(f"{scheme}://{url.partition('://')[2]}")
        assert arguments["password"] == "p"
        assert arguments["user"].startswith(("u", "postgres."))


@pytest.mark.parametrize(
    "written", ["p%23ss", "p#ss", "p/ss", "p?ss", "p:ss", "p,ss", "p,s/s", "p ss", "p%ss", "p[ss", "pé🎉"]
)
@pytest.mark.parametrize("rest", ["h:1/db", "a:1,b:2/db", "h/db?sslmode=prefer"])
def test_a_password_may_hold_anything_but_an_at(written: str, rest: str) -> None:
    """A password arrives whole, escaped or raw; no piece of it is taken for a host."""
    url, _ = engine_url(f"postgresql://u:{written}@{rest}")

    assert url.password == written.replace("%23", "#")
    assert url.username == "u"
    assert written not in url.render_as_string(hide_password=True)


def test_a_password_in_the_query_is_a_password() -> None:
    """`user=`, `password=` and `dbname=` of the query count, and are not sent as settings."""
    url, arguments = engine_url("postgresql://h?user=u&password=p%23ss&dbname=db")

    assert (url.username, url.password, url.database) == ("u", "p#ss", "db")
    assert arguments == {}


def test_a_url_object_is_taken_too() -> None:
    """SQLAlchemy's own URL is as good as text, password and all."""
    url, arguments = engine_url(make_url("postgres://u:p%40ss@h/db?connect_timeout=3"))

    assert (url.drivername, url.password, arguments) == ("postgresql+asyncpg", "p@ss", {"timeout": 3.0})


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"mysql://u:{SECRET}@h/db", "mysql:// is not .* write postgresql"),
        (f"postgresql+psycopg2://u:{SECRET}@h/db", r"postgresql\+psycopg2:// is not .* write postgresql"),
        (f"postgresql+pg8000://u:{SECRET}@h/db", r"postgresql\+pg8000:// is not .* write postgresql"),
        ("sqlite+pysqlite:///x.db", r"sqlite\+pysqlite:// is not .* write .*sqlite\+aiosqlite://"),
        (f"u:{SECRET}@h/db", "has no scheme; write postgresql"),
        ("", "has no scheme; write postgresql"),
        (f"://u:{SECRET}@h", "cannot be read .* write postgresql"),
        (f"postgresql://u:{SECRET}@h:port/db", "cannot be read"),
        (f"postgresql://u:{SECRET}@a:x,b/db", "port in the database URL must be a number"),
        (f"postgresql://u:{SECRET}@/db?host=a,b&port=x,y", "port in the database URL must be a number"),
        (f"postgresql://u:{SECRET}@/db?host=a,b&port=1,2,3", "2 hosts and 3 ports"),
        (f"postgresql://u:{SECRET}@h/db?connect_timeout=soon", "connect_timeout in the database URL must be a number"),
        (f"postgresql+psycopg://u:{SECRET}@h/db?connect_timeout=soon", "connect_timeout .* must be a number"),
        (f"postgresql://u:{SECRET}@h/db?statement_cache_size=x", "statement_cache_size .* must be a number"),
        (
            f"postgresql://u:{SECRET}@h/db?channel_binding=require",
            r"asyncpg has no channel binding.*postgresql\+psycopg",
        ),
        (f"postgresql://u:x@{SECRET}@h/db", "write %40"),
        (f"postgresql://u:x@{SECRET}@a,b/db", "write %40"),
        (f"postgresql://u:x@{SECRET}/y@h/db", "write %40"),
    ],
)
def test_what_cannot_work_is_refused(url: str, says: str) -> None:
    """A URL that cannot work raises `ValueError`, says what to write, and never holds the password."""
    with pytest.raises(ValueError, match=says) as failure:
        create_engine(url)

    assert SECRET not in str(failure.value)


@given(
    st.sampled_from([*DRIVERS, "mysql", "postgresql+psycopg2"]),
    st.text() | st.text(alphabet=":/?#[]@,%=&ab1. "),
    st.text(alphabet=":/?#[],%=&ab1. ") | st.just(""),
)
def test_no_text_raises_anything_else(scheme: str, rest: str, before: str) -> None:
    """Whatever stands behind the scheme, it is taken or refused with `ValueError`; the password is never in it."""
    for url in (f"{scheme}://{rest}", f"{scheme}://u:{before}{SECRET}@{rest}"):
        try:
            said = engine_url(url)[0].render_as_string(hide_password=True)
        except ValueError as error:
            said = str(error)

        assert SECRET not in said or scheme.startswith("sqlite")  # there it is the name of the file


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_the_pool_is_tuned_for_short_statements(scheme: str) -> None:
    """The warmest connection first, no ping, recycled, none beyond the pool, and no values in errors."""
    engine = create_engine(f"{scheme}://u:p@h/db")
    pool: Any = engine.pool

    assert isinstance(pool, AsyncAdaptedQueuePool)
    assert (pool.size(), pool._max_overflow, pool._pool.use_lifo) == (15, 0, True)
    assert (pool._pre_ping, pool._recycle) == (False, 1800)
    assert engine.sync_engine.hide_parameters


def test_settings_are_overridden_one_by_one() -> None:
    """What the caller sets wins; what the caller does not set stays."""
    engine = create_engine("postgresql://u:p@h/db", engine_kwargs={"pool_size": 3, "pool_pre_ping": True})
    pool: Any = engine.pool

    assert (pool.size(), pool._pre_ping, pool._recycle, pool._pool.use_lifo) == (3, True, 1800, True)


def test_another_pool_class_gets_none_of_our_pool_settings() -> None:
    """`NullPool` takes no size: ours are left out instead of failing."""
    assert isinstance(create_engine("postgresql://h/db", engine_kwargs={"poolclass": NullPool}).pool, NullPool)


def test_connect_arguments_are_merged() -> None:
    """Ours, then the URL's, then the caller's; the server settings inside them too."""
    settings = {"server_settings": {"jit": "off"}, "timeout": 1}
    url = "postgresql://h/db?application_name=web&command_timeout=4"
    engine = create_engine(url, engine_kwargs={"connect_args": settings})
    seen: dict[str, Any] = {}

    @event.listens_for(engine.sync_engine, "do_connect")
    def note(_dialect: object, _record: object, _positional: object, arguments: dict[str, Any]) -> None:
        seen.update(arguments)
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        engine.sync_engine.raw_connection()

    assert seen["server_settings"] == {"application_name": "web", "jit": "off"}
    assert (seen["timeout"], seen["command_timeout"]) == (1, 4.0)


@pytest.mark.parametrize("word", ["true", "1", "True"])
def test_a_pooler_named_in_the_url(word: str) -> None:
    """`?pgbouncer=true`, as hosting companies print it, is the same switch as `pgbouncer=True`."""
    for driver, expected in WITHOUT_PREPARED_STATEMENTS.items():
        url, arguments = engine_url(f"{driver}://u:p@h/db?pgbouncer={word}")

        assert {**arguments, **expected} == arguments
        assert "pgbouncer" not in url.query
        assert not {*expected} & {*engine_url(f"{driver}://u:p@h/db?pgbouncer=false")[1]}


def test_secrets_of_psycopg_leave_the_query() -> None:
    """SQLAlchemy hides the password of a URL, but not what stands in its query."""
    engine = create_engine("postgresql+psycopg://u@h/db?password=hunter2&sslpassword=hunter3")

    assert engine.url.password == "hunter2"
    assert "hunter" not in repr(engine.sync_engine) + str(engine.url)
