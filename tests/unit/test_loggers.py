"""Log lines have a place: a logger of a name that can be filtered, and a level that means something."""

from __future__ import annotations

import ast
import logging
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

import agents_pg_session
from agents_pg_session import SessionStore
from tests import programs
from tests.items import user

ROOT = Path(__file__).parents[2]
PACKAGE = Path(agents_pg_session.__file__).parent
LOGGERS = {
    f"agents_pg_session.{name}"
    for name in ("cancellations", "connections", "items", "leases", "migrations", "pauses", "recorder", "retries")
}


def loggers() -> set[str]:
    """Return the names of the loggers the package writes to, read from its sources."""
    calls = [
        node
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger" and node.args
    ]
    names = {node.args[0].value for node in calls if isinstance(node.args[0], ast.Constant)}
    return {name for name in names if isinstance(name, str) and name.startswith("agents_pg_session")}


@pytest.fixture
def file(sqlite_template: Path, tmp_path: Path) -> Path:
    """A SQLite file at the newest revision."""
    return Path(shutil.copy(sqlite_template, tmp_path / "sessions.db"))


def test_these_are_the_loggers() -> None:
    """Nothing is logged under another name, and docs/observability.md names each of these."""
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")

    assert loggers() == LOGGERS
    assert (
        set(re.findall(r"^\| `(agents_pg_session\.\w+)` \|", page.partition("\n## Logs\n")[2], re.MULTILINE)) == LOGGERS
    )


def test_conflicts_are_told_at_one_door() -> None:
    """Whoever raises a SessionConflict has it counted: `Database.conflict` makes them all."""
    made = [file.name for file in PACKAGE.rglob("*.py") if re.search(r"\bSessionConflict\(\S", file.read_text())]

    assert sorted(made) == ["database.py", "errors.py"]


def test_importing_adds_no_handler_and_sets_no_level(python: programs.Python, tmp_path: Path) -> None:
    """What becomes of log lines is the application's business."""
    code = (
        "import logging, agents_pg_session;"
        "ours = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith('agents_pg')];"
        "print(len(ours) > 5, [each for each in ours if getattr(each, 'handlers', None) or each.level])"
    )
    result = python("-c", code, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})

    assert (result.stdout.strip(), result.stderr) == ("True []", "")


async def test_a_row_without_an_item_is_a_warning(
    file: Path, new_id: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    """A row somebody broke is told of with its place, and without what is in it."""
    async with SessionStore.open(f"sqlite:///{file}") as store:
        session = store.session(new_id())
        await session.add_items([user("1"), user("2")])
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("UPDATE items SET item = '{broken' WHERE position = 2")
        await session.get_items()

    [record] = caplog.records
    assert (record.name, record.levelname) == ("agents_pg_session.items", "WARNING")
    assert session.session_id in record.getMessage()
    assert "position 2" in record.getMessage()
    assert "broken" not in record.getMessage()


async def test_retries_are_told_by_what_they_mean(
    file: Path, new_id: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    """Each try that failed is for debugging; that a call keeps failing is one warning, and that it did not in the end,
    one line of information."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{file}", connect_args={"timeout": 0})
    session = SessionStore(engine=engine).session(new_id())
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")

        class Relents(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                lines.append((record.levelname, record.getMessage()))
                if len(lines) == 3:
                    connection.execute("ROLLBACK")

        lines: list[tuple[str, str]] = []
        logging.getLogger("agents_pg_session.retries").addHandler(relents := Relents())
        with caplog.at_level(logging.DEBUG, "agents_pg_session.retries"):
            await session.add_items([user("secret")])
        logging.getLogger("agents_pg_session.retries").removeHandler(relents)
    await engine.dispose()

    assert [level for level, _ in lines] == ["DEBUG", "WARNING", "DEBUG", "INFO"]
    assert "database is locked; trying again in" in lines[1][1]
    assert "done at try 4" in lines[-1][1]
    assert all("append on session" in line and "secret" not in line for _, line in lines)


NOTHING_INSTALLED = """
import asyncio, sys, agents
for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
    del sys.modules[name]
sys.modules["opentelemetry"] = None  # what an import of something that is not there runs into
from agents_pg_session import SessionConflict, SessionStore
async def main():
    async with SessionStore.open("sqlite://") as store:
        await store.create_tables()
        session = store.session("s")
        await session.add_items([{"role": "user", "content": "hi"}])
        print(len(await session.get_items()), store.pool().idle, store._database._telemetry)
        try:
            await session.fork("s")
        except SessionConflict:
            print("conflict")
asyncio.run(main())
"""

CONFIGURED_LATER = """
import asyncio
from agents_pg_session import SessionStore
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
async def main():
    async with SessionStore.open("sqlite://") as store:
        await store.create_tables()
        session = store.session("s")
        await session.get_items()
        spans, reader, tracers = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(spans))
        trace.set_tracer_provider(tracers)
        metrics.set_meter_provider(MeterProvider([reader]))
        await session.add_items([{"role": "user", "content": "hi"}])
        [span] = spans.get_finished_spans()
        [resource] = reader.get_metrics_data().resource_metrics
        print(span.name, span.instrumentation_scope.name)
        print(sorted(metric.name for scope in resource.scope_metrics for metric in scope.metrics))
asyncio.run(main())
"""


def test_without_opentelemetry_nothing_is_told(python: programs.Python, tmp_path: Path) -> None:
    """Where OpenTelemetry cannot be imported everything works, and nobody is told."""
    result = python("-c", NOTHING_INSTALLED, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})

    assert (result.stdout.split("\n"), result.stderr) == (["1 1 None", "conflict", ""], "")


def test_an_sdk_that_is_configured_later_hears_of_what_follows(python: programs.Python, tmp_path: Path) -> None:
    """An application sets its providers when it likes: also after our import, our store and our first call."""
    result = python("-c", CONFIGURED_LATER, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})

    span, metrics, _ = result.stdout.split("\n")
    pools = [f"db.client.connection.{name}" for name in ("count", "max", "pending_requests", "wait_time")]
    assert result.stderr == ""
    assert span == "append memory agents_pg_session"
    assert metrics == str([*pools, "db.client.operation.duration"])
