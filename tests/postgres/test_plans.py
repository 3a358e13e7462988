"""Every list and view on 100,000 sessions: an index each, a page of rows each. Plans are asserted, never time.

A statement is looked at twice: planned for its values, as on its first use, and as PostgreSQL plans it for a connection
that has used it often (it may then plan once for all values).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.dialects.postgresql.asyncpg import dialect

from agents_pg_session import Page, PGSession, SessionStore
from agents_pg_session.entries import compose
from agents_pg_session.labels import checked_labels
from agents_pg_session.migrations import main as migrate
from agents_pg_session.reports import Note
from agents_pg_session.statements import Key, Snapshotted, Write
from agents_pg_session.statements.postgres import PostgresStatements
from tests.items import assistant, call, output, user
from tests.overheard import overheard

T = TypeVar("T")
Statement = tuple[str, Sequence[object]]

#: Three tenants with 60,000, 20,000 and 20,000 sessions, and `big`: one session with 100,000 items.
CROWD = """
SET LOCAL session_replication_role = replica;  -- the foreign keys hold by construction
CREATE TEMPORARY TABLE crowd ON COMMIT DROP AS
SELECT n, (ARRAY['acme', 'acme', 'acme', 'globex', 'initech'])[1 + n % 5] AS tenant_id, 's' || n AS session_id,
       now() - n * interval '1 second' AS at
  FROM generate_series(1, 100000) n;

INSERT INTO agents.sessions (tenant_id, session_id, agent, user_id, status, metadata, last_position, last_event_id,
                             item_count, tool_run_count, created_at, updated_at, active_at)
SELECT tenant_id, session_id, 'agent-' || n % 7, 'user-' || n % 2003,
       CASE WHEN n % 97 = 0 THEN 'waiting' WHEN n % 11 = 0 THEN 'ended' ELSE 'active' END,
       jsonb_build_object('plan', CASE WHEN n % 2 = 0 THEN 'pro' ELSE 'free' END, 'ticket', n),
       4, 2, 4, 2, at, at, at
  FROM crowd;
INSERT INTO agents.tool_runs (tenant_id, session_id, call_position, output_position, call_id, tool_name, tool_type,
                              status, created_at)
SELECT tenant_id, session_id, k * 2, k * 2 + 1, 'c' || k, 'tool-' || (n + k) % 23, 'function',
       CASE WHEN (n + k) % 101 = 0 THEN 'failed' WHEN n % 97 = 0 AND k = 2 THEN 'running' ELSE 'succeeded' END,
       at + k * interval '1 millisecond'
  FROM crowd, generate_series(1, 2) k;
INSERT INTO agents.runs (tenant_id, session_id, run_id, status, agent, input_tokens, started_at, last_seen_at, turn)
SELECT tenant_id, session_id, 'run-' || n, 'completed', 'agent-' || n % 7, 10, at, at, 1 FROM crowd;
INSERT INTO agents.events (tenant_id, session_id, event_id, kind)
SELECT tenant_id, session_id, 1, 'run_started' FROM crowd WHERE n <= 30000;
INSERT INTO agents.snapshots (tenant_id, session_id, kind, version, through_position, content, metadata)
SELECT tenant_id, session_id, 'run_state', version, 4, '{}', '{"approvals": []}'
  FROM crowd, generate_series(1, 2) version WHERE n % 97 = 0;
INSERT INTO agents.snapshots (tenant_id, session_id, kind, version, through_position, content)
SELECT tenant_id, session_id, 'summary', 1, 2, '"text"' FROM crowd WHERE n <= 20000;

INSERT INTO agents.sessions (tenant_id, session_id, agent, last_position, last_event_id, item_count, message_count,
                             turn_count, tool_run_count)
VALUES ('acme', 'big', 'agent-1', 100000, 10000, 100000, 80000, 10001, 10000);
INSERT INTO agents.items (tenant_id, session_id, position, turn, append_id, type, role, call_id, item)
SELECT 'acme', 'big', n, 1 + n / 10, gen_random_uuid(),
       CASE n % 10 WHEN 3 THEN 'function_call' WHEN 4 THEN 'function_call_output' ELSE 'message' END,
       CASE n % 10 WHEN 0 THEN 'user' WHEN 3 THEN NULL WHEN 4 THEN NULL ELSE 'assistant' END,
       CASE n % 10 WHEN 3 THEN 'c' || n WHEN 4 THEN 'c' || n - 1 END,
       json_build_object('role', 'assistant', 'content', 'item ' || n)
  FROM generate_series(1, 100000) n;
INSERT INTO agents.tool_runs (tenant_id, session_id, call_position, output_position, call_id, tool_name, tool_type,
                              status, run_id, created_at)
SELECT 'acme', 'big', n * 10 + 3, CASE WHEN n <= 9997 THEN n * 10 + 4 END, 'c' || n * 10 + 3, 'tool-' || n % 23,
       'function', CASE WHEN n % 1009 = 0 THEN 'failed' WHEN n > 9997 THEN 'running' ELSE 'succeeded' END,
       'run-' || n, now() - (10000 - n) * interval '1 second'
  FROM generate_series(0, 9999) n;
INSERT INTO agents.runs (tenant_id, session_id, run_id, status, agent, started_at, turn)
SELECT 'acme', 'big', 'run-' || n, CASE WHEN n % 100 = 0 THEN 'failed' ELSE 'completed' END, 'agent-1',
       now() - (10000 - n) * interval '1 second', n
  FROM generate_series(1, 10000) n;
INSERT INTO agents.events (tenant_id, session_id, event_id, kind, run_id)
SELECT 'acme', 'big', n, CASE n % 100 WHEN 7 THEN 'handoff' ELSE 'note' END, 'run-' || n
  FROM generate_series(1, 10000) n;
INSERT INTO agents.snapshots (tenant_id, session_id, kind, version, through_position, content)
SELECT 'acme', 'big', kind, version, version * 999, '"text"'
  FROM generate_series(1, 100) version, unnest(ARRAY['summary', 'note']) kind;
"""

TABLES = {"sessions", "items", "tool_runs", "runs", "events", "snapshots"}
BIG = Key("acme", "big")
LIMIT = 50
PAGE = LIMIT + 1  #: one more, to know whether there is more
VERBS = PostgresStatements("agents")


@dataclass(frozen=True)
class Plan:
    """What PostgreSQL did for a statement."""

    tree: dict[str, Any]

    @property
    def nodes(self) -> list[dict[str, Any]]:
        def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
            yield node
            for child in node.get("Plans", ()):
                yield from walk(child)

        return list(walk(self.tree))

    @property
    def scanned_whole(self) -> set[str]:
        """Tables that were read from end to end."""
        return {node["Relation Name"] for node in self.nodes if node["Node Type"] == "Seq Scan"} & TABLES

    @property
    def rows(self) -> int:
        """The most rows that any part read, those it threw away among them."""
        return max(map(_rows, self.nodes))

    @property
    def sorted_rows(self) -> int:
        """The most rows that had to be sorted."""
        sorts = [node for node in self.nodes if node["Node Type"] in ("Sort", "Incremental Sort")]
        return max((_rows(child) for node in sorts for child in node["Plans"]), default=0)

    @property
    def indexes(self) -> set[str]:
        return {node["Index Name"] for node in self.nodes if "Index Name" in node}

    @property
    def buffers(self) -> int:
        """Pages touched."""
        return int(self.tree["Shared Hit Blocks"] + self.tree["Shared Read Blocks"])


def _rows(node: dict[str, Any]) -> int:
    thrown = sum(value for name, value in node.items() if name.startswith("Rows Removed by"))
    rows: float = (node["Actual Rows"] + thrown) * node["Actual Loops"]
    return round(rows)


@pytest.fixture(scope="module")
def crowd_url(new_database: Callable[[], str]) -> str:
    """A database with 100,000 sessions, analysed."""
    url = new_database()
    migrate(["-x", f"url={url}", "upgrade", "head"])

    async def fill() -> None:
        connection = await asyncpg.connect(url)
        async with connection.transaction():
            await connection.execute(CROWD)
        await connection.execute("VACUUM ANALYZE")
        await connection.close()

    asyncio.run(fill())
    return url


@pytest.fixture
async def crowd(crowd_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(crowd_url)
    yield connection
    await connection.close()


@pytest.fixture
async def store(crowd_url: str) -> AsyncIterator[SessionStore]:
    async with SessionStore.open(crowd_url) as store:
        yield store


@pytest.fixture
def big(store: SessionStore) -> PGSession:
    """A session of 100,000 items, 10,000 runs, tool runs and events."""
    return store.session("big", tenant="acme")


async def asked(store: SessionStore, answer: Awaitable[T]) -> tuple[Statement, T]:
    """Let the library ask the database, and return the one statement that took, and its answer."""
    with overheard(store) as statements:
        answered = await answer
    [statement] = statements
    return (statement.sql, statement.values), answered


def statement_of(write: Write) -> Statement:
    """A mutation's statement."""
    [step] = write.attempt("00000000-0000-0000-0000-000000000001").steps
    assert isinstance(step.values, dict)
    compiled = step.clause.compile(dialect=dialect())  # type: ignore[no-untyped-call]
    return str(compiled), [step.values[name] for name in compiled.positiontup or ()]


async def plan_of(connection: asyncpg.Connection, statement: Statement, *, used: int = 0) -> Plan:
    """Return the plan of a statement that this connection has run *used* times before."""
    sql, values = statement
    execute = f"EXECUTE looked_at ({', '.join(map(_literal, values))})" if values else "EXECUTE looked_at"
    await connection.execute(f"PREPARE looked_at AS {sql}")
    for _ in range(used):
        await connection.execute(execute)
    plan = await plan_of_query(connection, execute)
    await connection.execute("DEALLOCATE looked_at")
    return plan


async def plan_of_query(connection: asyncpg.Connection, sql: str) -> Plan:
    return Plan(json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}"))[0]["Plan"])


def _literal(value: object) -> str:
    match value:
        case None:
            return "NULL"
        case int() | float():
            return str(value)
        case list():
            return _literal("{{{}}}".format(",".join("NULL" if each is None else json.dumps(each) for each in value)))
        case _:
            return "'{}'".format(str(value).replace("'", "''"))


SESSIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "of a user": {"user_id": "user-7"},
    "of nobody": {"user_id": "nobody"},
    "of an agent": {"agent": "agent-3"},
    "active": {"status": "active"},
    "ended": {"status": "ended"},
    "waiting": {"status": "waiting"},
    "of no status": {"status": "never"},
    "of a user, active": {"user_id": "user-7", "status": "active"},
    "of a user and an agent": {"user_id": "user-7", "agent": "agent-3"},
    "of a user and an agent, waiting": {"user_id": "user-7", "agent": "agent-3", "status": "waiting"},
    "with common metadata": {"metadata": {"plan": "pro"}},
    "with rare metadata": {"metadata": {"ticket": 78}},
    "with common and rare metadata": {"metadata": {"plan": "pro", "ticket": 78}},
    "with unknown metadata": {"metadata": {"plan": "none"}},
    "with rare metadata, active": {"metadata": {"ticket": 78}, "status": "active"},
    "with common metadata, of a user": {"metadata": {"plan": "pro"}, "user_id": "user-7"},
}
HOUR = timedelta(hours=1)
TOOL_RUNS: dict[str, dict[str, Any]] = {
    "all": {},
    "since an hour": {"since": HOUR},
    "since a day": {"since": datetime.now(UTC) - timedelta(days=1)},
    "failed": {"status": "failed"},
    "failed since an hour": {"status": "failed", "since": HOUR},
    "running": {"status": "running"},
    "rejected": {"status": "rejected"},
    "succeeded": {"status": "succeeded"},
    "succeeded since an hour": {"status": "succeeded", "since": HOUR},
    "of a tool": {"tool_name": "tool-3"},
    "of a tool since an hour": {"tool_name": "tool-3", "since": HOUR},
    "of no tool": {"tool_name": "nothing"},
    "of a tool, succeeded": {"tool_name": "tool-3", "status": "succeeded"},
    "of a tool, failed since an hour": {"tool_name": "tool-3", "status": "failed", "since": HOUR},
}
ACROSS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"sessions {name}": ("sessions", filters) for name, filters in SESSIONS.items()},
    **{f"tool runs {name}": ("tool_runs", filters) for name, filters in TOOL_RUNS.items()},
    "waiting": ("waiting", {}),
}

#: A session's own lists, each a page of the primary key or of an index of its own.
OF_A_SESSION: dict[str, Callable[[PGSession], Awaitable[object]]] = {
    "newest items": lambda big: big.get_items(limit=LIMIT),
    "newest turns": lambda big: big.turns(3),
    "turns before": lambda big: big.turns(3, before_position=50_000),
    "runs": lambda big: big.runs.list(limit=LIMIT),
    "runs of an agent": lambda big: big.runs.list(agent="agent-1", limit=LIMIT),
    "latest run": lambda big: big.runs.latest(),
    "tool runs": lambda big: big.tool_runs.list(limit=LIMIT),
    "running tool runs": lambda big: big.tool_runs.list(status="running", limit=LIMIT),
    "succeeded tool runs": lambda big: big.tool_runs.list(status="succeeded", limit=LIMIT),
    "latest tool run": lambda big: big.tool_runs.latest(),
    "events": lambda big: big.events.list(limit=LIMIT),
    "latest event": lambda big: big.events.latest(),
    "snapshots": lambda big: big.snapshots.list(limit=LIMIT),
    "latest snapshot": lambda big: big.snapshots.latest("summary"),
}

#: Those that can be asked for the page after one.
PAGED: dict[str, Callable[[PGSession, str | None], Awaitable[Page[Any]]]] = {
    "runs": lambda big, after: big.runs.list(limit=LIMIT, after=after),
    "tool runs": lambda big, after: big.tool_runs.list(limit=LIMIT, after=after),
    "events": lambda big, after: big.events.list(limit=LIMIT, after=after),
    "snapshots": lambda big, after: big.snapshots.list(limit=LIMIT, after=after),
}

#: Filters without an index of their own: they pass over the session's other rows, and over no other session's.
WITHIN_A_SESSION: dict[str, Callable[[PGSession], Awaitable[object]]] = {
    "runs by status": lambda big: big.runs.list(status="failed", limit=LIMIT),
    "failed tool runs": lambda big: big.tool_runs.list(status="failed", limit=LIMIT),
    "tool runs of a run": lambda big: big.tool_runs.list(run_id="run-5", limit=LIMIT),
    "tool runs of a tool": lambda big: big.tool_runs.list(tool_name="tool-3", limit=LIMIT),
    "events of a kind": lambda big: big.events.list(kind="handoff", limit=LIMIT),
    "events of a run": lambda big: big.events.list(run_id="run-5", limit=LIMIT),
    "latest event of a kind": lambda big: big.events.latest(kind="none"),
    "snapshots of a kind": lambda big: big.snapshots.list("summary", limit=LIMIT),
    "usage": lambda big: big.usage(),
}

#: One row each.
POINTS: dict[str, Callable[[PGSession], Awaitable[object]]] = {
    "info": lambda big: big.info(),
    "run": lambda big: big.runs.get("run-5000"),
    "tool run": lambda big: big.tool_runs.get(50_003),
    "event": lambda big: big.events.get(5000),
    "snapshot": lambda big: big.snapshots.get("summary", 50),
}

#: Filters that one index cannot both answer, and how many rows the narrower one has in that tenant.
COMBINED: dict[str, tuple[Callable[[SessionStore], Awaitable[object]], int]] = {
    "sessions of an agent that wait": (
        lambda store: store.sessions(tenant="acme", agent="agent-3", status="waiting", limit=LIMIT),
        619,
    ),
    "failed runs of a tool": (
        lambda store: store.tool_runs(tenant="acme", tool_name="tool-3", status="failed", limit=LIMIT),
        1210,
    ),
}


async def test_what_metadata_asks_for_is_planned_for_its_values_for_ever(
    store: SessionStore, crowd: asyncpg.Connection
) -> None:
    """However often a connection has asked by metadata, PostgreSQL looks at the values before it chooses between the
    index of the metadata and a walk through the list: a plan for any values looks too costly, whatever the table.
    """
    for ticket in range(30):
        page = store.sessions(metadata={"plan": "pro", "ticket": ticket}, tenant="acme", limit=50)
        (sql, values), _ = await asked(store, page)
    async with store.engine.connect() as connection:
        of_ours = text("SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement = :sql")
        uses = (await connection.execute(of_ours, {"sql": sql})).all()
    async with crowd.transaction():
        await crowd.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        await crowd.execute(f"PREPARE for_any_values AS {sql}")
        explained = f"EXPLAIN (FORMAT JSON) EXECUTE for_any_values ({', '.join(map(_literal, values))})"
        [plan] = json.loads(await crowd.fetchval(explained))
        # Nor does anything become slow where somebody insists, in parallel too, which looks at sub-selects beforehand.
        for setting in ("parallel_setup_cost", "parallel_tuple_cost", "min_parallel_table_scan_size"):
            await crowd.execute(f"SET LOCAL {setting} = 0")
        async with asyncio.timeout(30):
            await crowd.execute(explained.replace("FORMAT JSON", "ANALYZE"))
        await crowd.execute("DEALLOCATE for_any_values")

    assert [tuple(use) for use in uses] == [(0, 30)]
    assert plan["Plan"]["Total Cost"] > 1_000_000


USED = pytest.mark.parametrize("used", [0, 6], ids=["first use", "often used"])


@USED
@pytest.mark.parametrize("tenant", ["acme", None], ids=["of a tenant", "of all tenants"])
@pytest.mark.parametrize("name", ACROSS)
async def test_a_list_across_sessions_is_one_page_of_an_index(
    store: SessionStore, crowd: asyncpg.Connection, name: str, tenant: str | None, used: int
) -> None:
    """Whatever is filtered by, a page is read in order from one index; over all tenants, a page of each."""
    verb, filters = ACROSS[name]
    whose: dict[str, Any] = {"tenant": tenant} if tenant else {"all_tenants": True}
    far = await getattr(store, verb)(**whose, **filters, limit=1000)
    first, _ = await asked(store, getattr(store, verb)(**whose, **filters, limit=LIMIT))
    later, _ = await asked(store, getattr(store, verb)(**whose, **filters, limit=LIMIT, after=far.cursor))

    for statement in (first, later):
        plan = await plan_of(crowd, statement, used=used)
        most = PAGE if tenant else 3 * PAGE
        assert plan.scanned_whole == set()
        assert plan.rows <= 3 * most
        assert plan.sorted_rows <= most
        # Of a tool run, the session is looked up too, for it may have expired.
        assert plan.buffers <= {"waiting": 14, "tool_runs": 9}.get(verb, 4) * most


@USED
@pytest.mark.parametrize("name", OF_A_SESSION)
async def test_a_session_s_own_list_is_one_page_of_an_index(
    store: SessionStore, big: PGSession, crowd: asyncpg.Connection, name: str, used: int
) -> None:
    """On the longest session a page costs what it costs on a short one."""
    statement, _ = await asked(store, OF_A_SESSION[name](big))
    plan = await plan_of(crowd, statement, used=used)

    assert plan.scanned_whole == set()
    assert plan.rows <= 3 * PAGE
    assert plan.sorted_rows <= 2 * PAGE
    assert plan.buffers <= 40


@USED
@pytest.mark.parametrize("limit", [1, LIMIT])
async def test_a_read_asks_once_whether_the_session_has_expired(
    store: SessionStore, big: PGSession, crowd: asyncpg.Connection, limit: int, used: int
) -> None:
    """The hot read is one walk of the items' primary key, and one probe of the sessions'."""
    statement, _ = await asked(store, big.get_items(limit=limit))
    plan = await plan_of(crowd, statement, used=used)

    [probe] = [node for node in plan.nodes if node.get("Relation Name") == "sessions"]
    assert (probe["Index Name"], probe["Actual Loops"]) == ("pk_sessions", 1)
    assert probe["Shared Hit Blocks"] + probe["Shared Read Blocks"] <= 4
    assert plan.indexes == {"pk_items", "pk_sessions"}


@USED
@pytest.mark.parametrize("name", PAGED)
async def test_a_cursor_leads_straight_to_its_place(
    store: SessionStore, big: PGSession, crowd: asyncpg.Connection, name: str, used: int
) -> None:
    """A later page costs what the first one costs."""
    before = await PAGED[name](big, None)
    statement, _ = await asked(store, PAGED[name](big, before.cursor))
    plan = await plan_of(crowd, statement, used=used)

    assert plan.scanned_whole == set()
    assert plan.rows <= 3 * PAGE
    assert plan.buffers <= 40


@pytest.mark.parametrize("name", POINTS)
async def test_one_record_is_a_point_lookup(
    store: SessionStore, big: PGSession, crowd: asyncpg.Connection, name: str
) -> None:
    """`info`, and every `get`, reads one row through the primary key, and whether its session has expired likewise."""
    statement, _ = await asked(store, POINTS[name](big))
    plan = await plan_of(crowd, statement)

    assert plan.rows == 1
    assert {index.partition("_")[0] for index in plan.indexes} == {"pk"}
    assert plan.buffers <= 10


@USED
@pytest.mark.parametrize("name", WITHIN_A_SESSION)
async def test_other_filters_stay_within_the_session(
    store: SessionStore, big: PGSession, crowd: asyncpg.Connection, name: str, used: int
) -> None:
    """A filter without an index costs at most the session's own rows of that table, never another session's."""
    statement, _ = await asked(store, WITHIN_A_SESSION[name](big))
    plan = await plan_of(crowd, statement, used=used)

    assert plan.scanned_whole == set()
    assert plan.rows <= 10_000
    assert plan.buffers <= 400


@pytest.mark.parametrize("name", COMBINED)
async def test_combined_filters_walk_the_narrower_one(
    store: SessionStore, crowd: asyncpg.Connection, name: str
) -> None:
    """Where no index answers both filters, the rows of the narrower one are the most that are read."""
    ask, narrower = COMBINED[name]
    statement, _ = await asked(store, ask(store))
    plan = await plan_of(crowd, statement)

    assert plan.scanned_whole == set()
    assert plan.rows <= narrower


@pytest.mark.parametrize("whose", [{"tenant": "acme"}, {"all_tenants": True}], ids=["of a tenant", "of all tenants"])
@pytest.mark.parametrize("by", ["agent", "user", "tenant", "day"])
async def test_usage_reads_the_runs_of_its_time(
    store: SessionStore, crowd: asyncpg.Connection, by: Any, whose: dict[str, Any]
) -> None:
    """What runs cost since a time is added up from those runs: no other run is read."""
    statement, _ = await asked(store, store.usage(by=by, since=timedelta(minutes=10), **whose))
    plan = await plan_of(crowd, statement)

    runs = [node for node in plan.nodes if node.get("Relation Name") == "runs"]
    assert plan.scanned_whole == set()
    assert all(_rows(node) <= 1300 for node in runs)


async def test_finding_reads_no_more_than_it_needs(
    store: SessionStore, big: PGSession, crowd: asyncpg.Connection
) -> None:
    """What everybody says is found in the newest items; the rest of the session is not fetched."""
    statement, found = await asked(store, big.find("item", limit=LIMIT))
    plan = await plan_of(crowd, statement)

    assert len(found) == LIMIT
    assert plan.rows <= 100 * LIMIT


@pytest.mark.parametrize("view", ["agent_current_state", "session_summary", "agent_task_progress"])
async def test_a_view_of_a_long_session_reads_a_handful_of_pages(crowd: asyncpg.Connection, view: str) -> None:
    """The counters and the ends of the primary keys answer it, however long the session."""
    sql = f"SELECT * FROM agents.{view} WHERE tenant_id = 'acme' AND session_id = 'big'"
    plan = await plan_of_query(crowd, sql)

    assert plan.scanned_whole == set()
    assert plan.rows <= 5
    assert plan.buffers <= 40


@pytest.mark.parametrize("which", ["AND call_position = 50003", "ORDER BY call_position DESC LIMIT 3"])
async def test_the_details_of_a_tool_run_are_three_lookups(crowd: asyncpg.Connection, which: str) -> None:
    """A tool run, the item of its call and the item of its output: on any session, a handful of pages."""
    sql = f"SELECT * FROM agents.tool_run_details WHERE tenant_id = 'acme' AND session_id = 'big' {which}"
    plan = await plan_of_query(crowd, sql)

    assert plan.indexes == {"pk_tool_runs", "pk_items"}
    assert plan.rows <= 3
    assert plan.buffers <= 40


@USED
@pytest.mark.parametrize("newest", [99_979, 99_974, 99_973], ids=["message", "output", "call"])
async def test_a_pop_reads_the_end_of_the_session(crowd: asyncpg.Connection, newest: int, used: int) -> None:
    """Taking out the newest item reads no other; an output's call may be looked for among the session's tool runs."""
    change = crowd.transaction()
    await change.start()
    for table, position in (("items", "position"), ("tool_runs", "call_position")):
        sql = f"DELETE FROM agents.{table} WHERE session_id = 'big' AND {position} > $1"
        await crowd.execute(sql, newest + used)
    plan = await plan_of(crowd, statement_of(VERBS.pop(BIG)), used=used)
    await change.rollback()

    items = [node for node in plan.nodes if node.get("Index Name") == "pk_items"]
    assert plan.scanned_whole == set()
    assert all(_rows(node) <= 2 for node in items)
    assert plan.rows <= 10_000
    assert plan.buffers <= 1000


NAMELESS = checked_labels(None, None, None)
WRITES: dict[str, Callable[[], Write]] = {
    "append": lambda: VERBS.append(BIG, compose([user("hi"), call("c"), output("c")], NAMELESS)),
    "append of a late output": lambda: VERBS.append(BIG, compose([output("c99993"), user("thanks")], NAMELESS)),
    "record": lambda: VERBS.record(BIG, Note("escalated", None, None, None), NAMELESS),
    "save": lambda: VERBS.save(BIG, Snapshotted("other", "1"), NAMELESS),
    "end": lambda: VERBS.end(BIG, "ended"),
    "claim": lambda: VERBS.claim(BIG, "paused", "00000000-0000-0000-0000-000000000002", 60.0),
    "lease": lambda: VERBS.lease(BIG, "00000000-0000-0000-0000-000000000003", 60.0, NAMELESS),
}


@USED
@pytest.mark.parametrize("name", WRITES)
async def test_a_change_of_a_long_session_touches_what_it_changes(
    crowd: asyncpg.Connection, name: str, used: int
) -> None:
    """On 100,000 items and 10,000 tool runs a change reads a few rows, at its first use and at its hundredth."""
    if used and "late output" in name and crowd.get_server_version().major < 18:
        pytest.skip("an older planner reads the session's tool runs for a plan of all values")
    change = crowd.transaction()
    await change.start()
    plan = await plan_of(crowd, statement_of(WRITES[name]()), used=used)
    await change.rollback()

    assert plan.scanned_whole == set()
    assert plan.rows <= 20
    assert plan.buffers <= 200


async def test_an_append_within_a_turn_is_a_hot_update(crowd_url: str, crowd: asyncpg.Connection) -> None:
    """No index of `sessions` is written, however many there are, unless a turn begins."""
    before = await _updates(crowd)
    async with SessionStore.open(crowd_url) as store:
        session = store.session("s50000", tenant="acme", metadata={"plan": "pro", "ticket": 50_000})
        for number in range(20):
            await session.add_items([call(f"c{number}"), output(f"c{number}"), assistant("hm")])
    within = await _until_counted(crowd, before[0] + 20)
    async with SessionStore.open(crowd_url) as store:
        await store.session("s50000", tenant="acme").add_items([user("and now")])
    turned = await _until_counted(crowd, before[0] + 21)

    assert (within[0] - before[0], within[1] - before[1]) == (20, 20)
    assert (turned[0] - within[0], turned[1] - within[1]) == (1, 0)


async def _updates(connection: asyncpg.Connection) -> tuple[int, int]:
    """How often `sessions` was updated, and how often without touching an index."""
    sql = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'sessions'"
    row = await connection.fetchrow(sql)
    assert row is not None
    return row[0], row[1]


async def _until_counted(connection: asyncpg.Connection, updates: int) -> tuple[int, int]:
    """Statistics arrive a moment after a backend has ended."""
    while (counted := await _updates(connection))[0] < updates:
        await asyncio.sleep(0.02)
    return counted
