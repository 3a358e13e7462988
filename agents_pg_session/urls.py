"""Database URLs as people have them, turned into what SQLAlchemy and the drivers take.

`postgres://` and `postgresql://` mean asyncpg, `sqlite://` means aiosqlite. A URL written for libpq (`sslmode=…`,
`connect_timeout=…`, several hosts, `target_session_attrs=…`) works with asyncpg, which takes most of that only in a
connection string of its own. No message here ever holds the URL: it may hold a password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlencode

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

__all__ = ["DRIVERS", "WITHOUT_PREPARED_STATEMENTS", "WRITE_A_URL", "engine_url", "place_of"]

_Number = TypeVar("_Number", int, float)

#: What may stand before `://`, and what it means here.
DRIVERS = {
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
    "postgresql+psycopg": "postgresql+psycopg",
    "postgresql+psycopg_async": "postgresql+psycopg",
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
}

#: What a pooler in transaction mode wants of each driver; `?pgbouncer=true` in a URL asks for it too. asyncpg: both
#: SQLAlchemy's cache and the one inside the driver.
WITHOUT_PREPARED_STATEMENTS: Mapping[str, Mapping[str, Any]] = {
    "postgresql+asyncpg": {"statement_cache_size": 0, "prepared_statement_cache_size": 0},
    "postgresql+psycopg": {"prepare_threshold": None},
}

WRITE_A_URL = "write postgresql+asyncpg://, postgresql+psycopg:// or sqlite+aiosqlite://"

# scheme :// user:password@, the way SQLAlchemy reads it. `?+` never gives back what it took: a comma or a slash inside
# the password does not make a piece of it look like a host, which error messages name.
_BEFORE_HOSTS = r"^(?P<before>[^/]+://(?:[^:/]*(?::[^@]*)?@)?+)"

# Only several hosts need care: SQLAlchemy reads a single one.
_SEVERAL_HOSTS = re.compile(_BEFORE_HOSTS + r"(?P<hosts>[^/?#@]*,[^/?#@]*)(?P<after>(?:[/?].*)?)$", re.DOTALL)
_STRAY_AT = re.compile(_BEFORE_HOSTS + r"[^?]*@", re.DOTALL)

# Understood by asyncpg inside its own connection string only.
_ONLY_IN_DSN = frozenset(
    {
        "sslmode",
        "sslcert",
        "sslkey",
        "sslrootcert",
        "sslcrl",
        "sslpassword",
        "sslnegotiation",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
        "krbsrvname",
        "gsslib",
        "service",
        "servicefile",
        "passfile",
    }
)
# Numbers that asyncpg.connect and SQLAlchemy's asyncpg dialect take, by the type they want.
_KEYWORDS: Mapping[str, type[int] | type[float]] = {
    "timeout": float,
    "command_timeout": float,
    "statement_cache_size": int,
    "max_cached_statement_lifetime": int,
    "max_cacheable_statement_size": int,
    "prepared_statement_cache_size": int,
}
_SSL_WORDS = {"true": "require", "1": "require", "false": "disable", "0": "disable"}
# Settings of libpq's sockets that asyncpg has no counterpart for and that change nothing a caller could see.
_WITHOUT_COUNTERPART = frozenset(
    {
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
        "gssencmode",
        "sslcompression",
        "sslsni",
        "load_balance_hosts",
        "client_encoding",
        "fallback_application_name",
    }
)


def engine_url(url: str | URL) -> tuple[URL, dict[str, Any]]:
    """Return the URL for `create_async_engine`, and connect arguments that the URL itself cannot carry.

    Raises `ValueError` for a sync driver or another database, naming what to write, and for a URL nobody can read.
    """
    parsed = _parsed(url)
    driver = DRIVERS.get(parsed.drivername)
    if driver is None:
        raise ValueError(f"{parsed.drivername}:// is not an asynchronous driver this package can use; {WRITE_A_URL}")
    parsed = parsed.set(drivername=driver)
    if driver == "postgresql+asyncpg":
        return _for_asyncpg(parsed)
    if driver == "postgresql+psycopg":
        return _for_psycopg(parsed)
    return parsed, {}


def place_of(url: URL) -> str:
    """Return where a database is, for people to read: without user or password."""
    hosts = url.query.get("host") or (f"{url.host}:{url.port or 5432}" if url.host else "")
    place = hosts if isinstance(hosts, str) else ", ".join(hosts)
    return f"{url.get_backend_name()} {place}{'/' if place else ''}{url.database or ''}".strip()


def _parsed(url: str | URL) -> URL:
    if isinstance(url, URL):
        return url
    if not isinstance(url, str) or "://" not in url:
        raise ValueError(f"the database URL has no scheme; {WRITE_A_URL}")
    if any("\ud800" <= character <= "\udfff" for character in url):
        raise ValueError("the database URL holds a lone surrogate, which has no UTF-8: write such bytes as %XX")
    if not url.startswith("sqlite") and _STRAY_AT.match(url):
        raise ValueError("the database URL has one @ too many: write %40 for one inside a user name or password")
    if several := _SEVERAL_HOSTS.match(url):
        before, hosts, after = several.group("before", "hosts", "after")
        path, mark, query = after.partition("?")
        extra = "&".join(f"host={quote(host, safe=':[]%')}" for host in hosts.split(","))
        url = f"{before}{path}?{extra}{'&' + query if mark else ''}"
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(
            f"the database URL cannot be read (is a character of the password unescaped?); {WRITE_A_URL}"
        ) from None


def _with_hosts(url: URL) -> URL:
    """Write several hosts the way both dialects of SQLAlchemy read them: `host=a:1&host=b:2`, each with its port.

    libpq knows two more ways: `host=a,b&port=1,2`, and one port for all.
    """
    query = dict(url.query)
    hosts = [host for value in _values(query.pop("host", ())) for host in value.split(",")]
    if not hosts and (url.host or "").lower().startswith("%2f"):
        hosts = [unquote(str(url.host))]
    if not hosts:
        return url
    given = [port for value in _values(query.pop("port", ())) for port in value.split(",")]
    if len(given) not in (0, 1, len(hosts)):
        raise ValueError(
            f"the database URL names {len(hosts)} hosts and {len(given)} ports; name one port each, or one"
        )
    if len(given) <= 1:
        given *= len(hosts)
    names, own = zip(*map(_host_and_port, hosts), strict=True)
    default = str(url.port or 5432)
    ports = [_number("port", mine or its or default, int) for mine, its in zip(own, given or own, strict=True)]
    if len(names) == 1 and names[0].startswith("/"):  # a folder with a Unix socket
        return url.set(query={**query, "host": names[0]}, port=ports[0])
    if any(":" in name for name in names):  # IPv6, which SQLAlchemy reads in this form only
        return url.set(query={**query, "host": ",".join(names), "port": ",".join(map(str, ports))})
    pairs = tuple(f"{name}:{port}" for name, port in zip(names, ports, strict=True))
    return url.set(query={**query, "host": pairs})


def _host_and_port(host: str) -> tuple[str, str]:
    """Take apart `name`, `name:1`, `[::1]:1` and `::1`."""
    if host.startswith("["):
        name, _, port = host[1:].partition("]")
        return name, port.removeprefix(":")
    if host.count(":") > 1:
        return host, ""
    name, _, port = host.partition(":")
    return name, port


def _values(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _for_psycopg(url: URL) -> tuple[URL, dict[str, Any]]:
    """Everything stays in the URL, but for secrets, and for what would lose against our own connect arguments."""
    url = _with_hosts(url)
    arguments: dict[str, Any] = {}
    if password := url.query.get("password"):
        url = url.set(password=_values(password)[-1]).difference_update_query(["password"])
    for name in {"application_name", "connect_timeout", "sslpassword"} & url.query.keys():
        arguments[name] = _values(url.query[name])[-1]
    if "connect_timeout" in arguments:
        _number("connect_timeout", arguments["connect_timeout"], float)
    if _is_true(_values(url.query.get("pgbouncer", "false"))[-1]):
        arguments |= WITHOUT_PREPARED_STATEMENTS[url.drivername]
    return url.difference_update_query(["pgbouncer", *arguments]), arguments


def _for_asyncpg(url: URL) -> tuple[URL, dict[str, Any]]:
    url = _with_hosts(url)
    query: dict[str, str | tuple[str, ...]] = {}
    arguments: dict[str, Any] = {}
    dsn: dict[str, str] = {}
    settings: dict[str, str] = {}
    for name, value in url.query.items():
        last = _values(value)[-1]
        if name == "host" or (name == "port" and "host" in url.query):
            query[name] = value
        elif name == "user":
            url = url.set(username=last)
        elif name == "password":
            url = url.set(password=last)
        elif name in ("dbname", "database"):
            url = url.set(database=last)
        elif name == "port":
            url = url.set(port=_number(name, last, int))
        elif name == "connect_timeout":
            # libpq: zero, negative or missing means to wait without end.
            arguments["timeout"] = seconds if (seconds := _number(name, last, float)) > 0 else None
        elif name == "pgbouncer":
            arguments |= WITHOUT_PREPARED_STATEMENTS[url.drivername] if _is_true(last) else {}
        elif name == "channel_binding":
            _refuse_channel_binding(last)
        elif name in _ONLY_IN_DSN:
            dsn[name] = last
        elif name in _KEYWORDS:
            arguments[name] = _number(name, last, _KEYWORDS[name])
        elif name == "ssl":
            arguments[name] = _SSL_WORDS.get(last.lower(), last)
        elif name == "target_session_attrs":
            arguments[name] = last
        elif name not in _WITHOUT_COUNTERPART:
            settings[name] = last  # application_name, options, search_path …: sent to the server as they are
    if dsn:
        arguments["dsn"] = f"postgresql://?{urlencode(dsn)}"
    if settings:
        arguments["server_settings"] = settings
    return url.set(query=query), arguments


def _number(name: str, value: str, kind: type[_Number]) -> _Number:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} in the database URL must be a number") from None


def _is_true(value: str) -> bool:
    return value.lower() in ("true", "1", "yes", "on")


def _refuse_channel_binding(value: str) -> None:
    if value == "require":
        raise ValueError(
            "channel_binding=require: asyncpg has no channel binding; "
            "take it out of the URL, or use postgresql+psycopg:// (pip install agents-pg-session[psycopg])"
        )
