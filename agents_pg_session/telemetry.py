"""Spans and metrics of what is asked of the database, through OpenTelemetry's API where that is installed.

Names follow OpenTelemetry's conventions for database clients (https://opentelemetry.io/docs/specs/semconv/db/); what
they have no name for is called `agents_pg_session.…`. Nothing here ever tells an item, a value of a statement, or a
password. Ids of sessions and tenants are on spans only: on a metric each would be a time series of its own.

Who is listening is the API's business: without an SDK its tracer and instruments do nothing, and they begin to work
when one is configured, also later than the first call.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sqlalchemy.engine import URL, Engine

from agents_pg_session.errors import SessionError
from agents_pg_session.failures import driver_error, sqlstate_of
from agents_pg_session.lines import pools_in_use, together
from agents_pg_session.records import PoolUse
from agents_pg_session.statements import Subject

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation
    from opentelemetry.trace import Tracer

__all__ = ["Instruments", "Telemetry", "Told", "telemetry_of"]

#: The version of the conventions, for backends that translate between them.
SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"

#: Seconds; the conventions' own boundaries.
BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)

_Attributes = dict[str, str | int]


class Instruments:
    """OpenTelemetry's tracer and instruments of this package: one set per process."""

    def __init__(self, tracer: Tracer, meter: Meter) -> None:
        from opentelemetry import context, metrics, trace  # here: it may not be installed

        self.tracer = tracer
        self.trace, self.context, self._observation = trace, context, metrics.Observation
        self.duration = _seconds(meter, "db.client.operation.duration", "Duration of database client operations.")
        self.wait_time = _seconds(
            meter, "db.client.connection.wait_time", "The time it took to obtain an open connection from the pool."
        )
        self.timeouts = meter.create_counter(
            "db.client.connection.timeouts", "{timeout}", "Calls that got no connection from the pool in time."
        )
        self.retries = meter.create_counter("agents_pg_session.retries", "{retry}", "Tries that were made once more.")
        self.conflicts = meter.create_counter(
            "agents_pg_session.conflicts", "{conflict}", "Calls that another writer was faster than (SessionConflict)."
        )
        observable = meter.create_observable_up_down_counter
        observable("db.client.connection.count", [self._connections], "{connection}", "Connections by their state.")
        observable("db.client.connection.max", [self._limits], "{connection}", "The most connections there may be.")
        observable(
            "db.client.connection.pending_requests", [self._waiting], "{request}", "Callers waiting for a connection."
        )

    def _connections(self, _options: CallbackOptions) -> Iterable[Observation]:
        for pool, use in _pools():
            for state, count in (("idle", use.idle), ("used", use.in_use)):
                yield self._observation(count, {**pool, "db.client.connection.state": state})

    def _limits(self, _options: CallbackOptions) -> Iterable[Observation]:
        for pool, use in _pools():
            if use.limit is not None:
                yield self._observation(use.limit, pool)

    def _waiting(self, _options: CallbackOptions) -> Iterable[Observation]:
        for pool, use in _pools():
            yield self._observation(use.waiting, pool)


def _seconds(meter: Meter, name: str, description: str) -> Histogram:
    try:
        return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=BUCKETS)
    except TypeError:  # an API before 1.30 takes no advice
        return meter.create_histogram(name, "s", description)


def _pools() -> Iterator[tuple[_Attributes, PoolUse]]:
    """The pools of this process by name: those of several loops or stores on one database add up."""
    named: dict[str, list[PoolUse]] = {}
    for engine, use in pools_in_use():
        named.setdefault(_pool_name(engine.url), []).append(use)
    for name, uses in named.items():
        yield {"db.client.connection.pool.name": name}, together(uses)


_made: list[Instruments | None] = []
_making = threading.Lock()


def instruments() -> Instruments | None:
    """Return the instruments, made with the first store or session; None without OpenTelemetry."""
    with _making:
        if not _made:
            _made.append(_make())
    return _made[0]


def _make() -> Instruments | None:
    try:
        from opentelemetry import metrics, trace
    except ImportError:
        return None
    try:
        ours: str | None = version("agents-pg-session")
    except PackageNotFoundError:  # a folder on the path
        ours = None
    name = "agents_pg_session"
    return Instruments(
        trace.get_tracer(name, ours, schema_url=SCHEMA_URL), metrics.get_meter(name, ours or "", schema_url=SCHEMA_URL)
    )


_known: WeakKeyDictionary[Engine, dict[str | None, Telemetry]] = WeakKeyDictionary()


def telemetry_of(engine: Engine, schema: str | None) -> Telemetry | None:
    """Return what tells of the verbs on *schema* in the engine's database; None without OpenTelemetry."""
    if (found := instruments()) is None:
        return None
    known = _known.setdefault(engine, {})
    if (telemetry := known.get(schema)) is None:
        telemetry = known[schema] = Telemetry(found, engine.url, schema)
    return telemetry


class Telemetry:
    """Tells of the verbs on one database."""

    def __init__(self, found: Instruments, url: URL, schema: str | None) -> None:
        self.instruments = found
        self._place = _place(url, schema)
        self._pool: _Attributes = {"db.client.connection.pool.name": _pool_name(url)}
        self._verbs: dict[str, tuple[str, _Attributes]] = {}

    def told(self, subject: Subject, items: int | None = None) -> Told:
        """Return what tells of one verb, for a `with` around it; *items* is how many it brings."""
        return Told(self.instruments, *self._verb(subject.verb), subject, items)

    def waited(self, seconds: float) -> None:
        """A caller got its connection after so many seconds."""
        self.instruments.wait_time.record(seconds, self._pool)

    def waited_in_vain(self) -> None:
        """A caller got no connection in time."""
        self.instruments.timeouts.add(1, self._pool)

    def overtaken(self, verb: str) -> None:
        """Another writer came first, and the verb is asked once more, behind it."""
        self.instruments.retries.add(1, {**self._verb(verb)[1], "error.type": "overtaken"})

    def conflict(self, verb: str) -> None:
        """Another writer won, which the verb's caller is told: on the span around it, too."""
        self.instruments.conflicts.add(1, self._verb(verb)[1])
        self.instruments.trace.get_current_span().add_event("agents_pg_session.conflict", {"db.operation.name": verb})

    def _verb(self, verb: str) -> tuple[str, _Attributes]:
        """The name of a verb's span, and what its span and its metrics say of it; the same objects each time."""
        if (known := self._verbs.get(verb)) is None:
            name = f"{verb} {self._place['db.namespace']}"
            known = self._verbs[verb] = name, {**self._place, "db.operation.name": verb}
        return known


class Told:
    """One verb under way, with all its tries: its span is the current one for as long."""

    __slots__ = (
        "_attributes",
        "_began",
        "_instruments",
        "_items",
        "_name",
        "_recording",
        "_span",
        "_subject",
        "_token",
    )

    def __init__(
        self, found: Instruments, name: str, attributes: _Attributes, subject: Subject, items: int | None
    ) -> None:
        self._instruments = found
        self._name = name
        self._attributes = attributes
        self._subject = subject
        self._items = items

    def __enter__(self) -> Told:
        found = self._instruments
        self._began = perf_counter()
        about = _about(self._attributes, self._subject, self._items)
        # All at once: to a span that has begun, an SDK adds attributes at twice the cost, and no sampler sees them.
        self._span = span = found.tracer.start_span(self._name, kind=found.trace.SpanKind.CLIENT, attributes=about)
        self._recording = span.is_recording()
        # Not without an SDK, nor without a trace that came from elsewhere: then there is nothing to be a child of.
        valid = span.get_span_context().is_valid
        self._token = found.context.attach(found.trace.set_span_in_context(span)) if valid else None
        return self

    def answered(self, rows: object) -> None:
        """The database has answered; what was read is counted."""
        if self._recording and isinstance(rows, list) and not self._subject.writes:
            self._span.set_attribute("db.response.returned_rows", len(rows))

    def retried(self, error: BaseException, *, in_doubt: bool) -> None:
        """A try failed of what may pass, and another one is made."""
        cause = _cause(error)
        self._instruments.retries.add(1, {**self._attributes, "error.type": cause})
        if self._recording:
            self._span.add_event(
                "agents_pg_session.retry", {"error.type": cause, "agents_pg_session.in_doubt": in_doubt}
            )

    def doubtful(self) -> None:
        """Nobody could find out what became of it."""
        self._span.set_attribute("agents_pg_session.in_doubt", True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        found, span, attributes = self._instruments, self._span, self._attributes
        if error is not None:
            failure = _failure(error)
            attributes = {**attributes, **failure}
            if self._recording:
                span.set_attributes(failure)
                if isinstance(error, Exception):
                    said = str(error) if isinstance(error, SessionError) else None
                    span.set_status(found.trace.StatusCode.ERROR, said)
        found.duration.record(perf_counter() - self._began, attributes)
        span.end()
        # A coroutine that nobody waits for any more is closed wherever the garbage collector happens to run.
        if self._token is not None and kind is not GeneratorExit:
            found.context.detach(self._token)


def _about(attributes: _Attributes, subject: Subject, items: int | None) -> _Attributes:
    about = attributes.copy()
    if subject.key is not None:
        about["agents_pg_session.session_id"] = subject.key.session_id
        if subject.key.tenant_id:
            about["agents_pg_session.tenant"] = subject.key.tenant_id
    if items is not None:
        about["agents_pg_session.items"] = items
    return about


def _failure(error: BaseException) -> _Attributes:
    """What an error is, by its class, and what the database said, by its code."""
    failure: _Attributes = {"error.type": type(error).__qualname__}
    code = (error.sqlstate if isinstance(error, SessionError) else None) or _code(error.__cause__ or error)
    return {**failure, "db.response.status_code": code} if code else failure


def _cause(error: BaseException) -> str:
    """What a try failed of: the database's code if there is one, else the class of the error."""
    if (code := _code(error)) is not None:
        return code
    cause = driver_error(error)
    return "timeout" if isinstance(cause, TimeoutError) else type(cause).__qualname__


def _code(error: BaseException) -> str | None:
    return sqlstate_of(error) or getattr(driver_error(error), "sqlite_errorname", None)


def _place(url: URL, schema: str | None) -> _Attributes:
    """What says which database it is, as the conventions have it: without user or password."""
    if url.get_backend_name() == "sqlite":
        return {"db.system.name": "sqlite", "db.namespace": _file(url)}
    place: _Attributes = {
        "db.system.name": "postgresql",
        "db.namespace": "|".join(name for name in (url.database, schema) if name),
    }
    address, port = _server(url)
    if address:
        place["server.address"] = address
    if port:
        place["server.port"] = port
    return place


def _server(url: URL) -> tuple[str | None, int | None]:
    """The host and its port; several hosts as `a:5432,b:5432`; the folder of a Unix socket."""
    hosts = url.query.get("host")
    if hosts is None:
        return url.host, (url.port or 5432) if url.host else None
    if isinstance(hosts, str):
        return hosts, None
    return ",".join(hosts), None


def _pool_name(url: URL) -> str:
    """`server.address:server.port/database`, as the conventions propose."""
    if url.get_backend_name() == "sqlite":
        return _file(url)
    address, port = _server(url)
    server = f"{address}:{port}" if port else address or ""
    return f"{server}/{url.database or ''}"


def _file(url: URL) -> str:
    """A SQLite file by its name, without the folders; all databases in memory are one name."""
    if url.database in (None, "", ":memory:") or url.query.get("vfs") == "memdb":
        return "memory"
    return PurePath(url.database or "").name
