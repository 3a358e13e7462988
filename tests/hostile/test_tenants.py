"""Tenants: through every public call there is, nothing of another tenant can be read, changed or even noticed."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from agents import RunContextWrapper, Runner
from sqlalchemy import text

from agents_pg_session import PGSession, SessionStore, Window
from tests.acceptance.agents_for_tests import QUIET as SILENT
from tests.acceptance.agents_for_tests import calls, says, scripted
from tests.conftest import Backend
from tests.hostile.law import judged
from tests.items import call, output, user
from tests.tally import Tally

TABLES = ("sessions", "items", "tool_runs", "runs", "events", "snapshots")
Case = Callable[["Scene"], Awaitable[Any]]
CASES: dict[str, Case] = {}


class Scene:
    """An intruder, and a victim whose session has the same name and every row a session can have."""

    def __init__(self, store: SessionStore, url: str) -> None:
        self.store, self.url = store, url
        self.name = f"shared-{secrets.token_hex(6)}"
        self.tenant, self.victim_tenant = f"intruder-{secrets.token_hex(6)}", f"victim-{secrets.token_hex(6)}"
        self.marker = f"marker-{secrets.token_hex(8)}"
        self.theirs = self.handle(self.victim_tenant, user_id=self.marker, agent=self.marker)
        self.mine = self.handle(self.tenant)
        self.cursors: list[str] = []
        self.run_id = ""

    def handle(self, tenant: Any, **labels: Any) -> PGSession:
        return self.store.session(self.name, tenant=tenant, **labels)

    async def furnish(self) -> None:
        """Give the victim rows in every table, and the intruder's session the same shape with nothing secret."""
        for session, word in ((self.theirs, self.marker), (self.mine, "plain")):
            labelled = self.handle(session.tenant, user_id=word, agent=word, metadata={"of": word})
            await labelled.add_items([user(word), call("c0", word), output("c0", word)])
            await session._atomic_replace_items([user(word), call("c0", word), output("c0", word)])
            await session.snapshots.save("summary", word, label=word)
            await session.events.record("note", word)
            await Runner.run(scripted(says(word)), word, session=session, run_config=SILENT)
            agent = scripted(calls("refund", "shared-call", amount=1))
            await session.pause(await Runner.run(agent, word, session=session, run_config=SILENT))
        run = await self.theirs.runs.latest()
        assert run is not None
        self.run_id = run.run_id
        tenant = self.victim_tenant
        pages: list[Any] = [await ask(tenant=tenant, limit=1) for ask in (self.store.sessions, self.store.tool_runs)]
        pages += [await self.store.waiting(tenant=tenant, limit=1)]
        ledgers = (self.theirs.runs, self.theirs.tool_runs, self.theirs.events, self.theirs.snapshots)
        pages += [await ledger.list(limit=1) for ledger in ledgers]
        self.cursors = [page.cursor for page in pages if page.cursor is not None]
        assert len(self.cursors) == 7

    async def rows(self) -> list[str]:
        """Everything the victim has, column by column, as the database shows it."""
        prefix = "" if self.store.engine.dialect.name == "sqlite" else "agents."
        found: list[str] = []
        async with self.store.engine.connect() as connection:
            for table in TABLES:
                rows = await connection.execute(
                    text(f"SELECT * FROM {prefix}{table} WHERE tenant_id = :tenant"), {"tenant": self.victim_tenant}
                )
                found += sorted(f"{table}: {tuple(row)!r}" for row in rows)
        return found


def reaches(name: str) -> Callable[[Case], Case]:
    """Register how a public call tries to reach another tenant."""

    def register(case: Case) -> Case:
        assert name not in CASES, name
        CASES[name] = case
        return case

    return register


async def every(*uses: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Make the calls one after the other; an error of ours is an answer too."""
    return [repr(await judged(use, "after", "tenant", "result")) for use in uses]


def listed(ask: Callable[..., Awaitable[Any]], **filters: Any) -> Case:
    """A list, asked with the victim's cursors and for the victim's own names."""

    async def case(scene: Scene) -> Any:
        uses: list[Callable[[], Awaitable[Any]]] = [lambda: ask(scene, limit=1000)]
        uses += [lambda cursor=cursor: ask(scene, after=cursor) for cursor in scene.cursors]  # type: ignore[misc]
        for name, value in filters.items():
            uses.append(lambda name=name, value=value: ask(scene, **{name: value(scene)}))  # type: ignore[misc]
        return await every(*uses)

    return case


def marked(scene: Scene) -> str:
    return scene.marker


def run_of(scene: Scene) -> str:
    return scene.run_id


for _name, _ask, _filters in (
    ("store.sessions", lambda scene, **given: scene.store.sessions(tenant=scene.tenant, **given),
     {"user_id": marked, "agent": marked, "metadata": lambda scene: {"of": scene.marker}}),
    ("store.tool_runs", lambda scene, **given: scene.store.tool_runs(tenant=scene.tenant, **given),
     {"tool_name": marked}),
    ("store.waiting", lambda scene, **given: scene.store.waiting(tenant=scene.tenant, **given), {}),
    ("runs.list", lambda scene, **given: scene.mine.runs.list(**given), {"agent": marked}),
    ("tool_runs.list", lambda scene, **given: scene.mine.tool_runs.list(**given),
     {"tool_name": marked, "run_id": run_of}),
    ("events.list", lambda scene, **given: scene.mine.events.list(**given), {"kind": marked, "run_id": run_of}),
    ("snapshots.list", lambda scene, **given: scene.mine.snapshots.list(**given), {"kind": lambda scene: "summary"}),
):  # fmt: skip
    reaches(_name)(listed(_ask, **_filters))


def simply(name: str, use: Callable[[Scene], Awaitable[Any]]) -> None:
    """Register a call that has one way only to try."""

    async def case(scene: Scene) -> Any:
        return await every(lambda: use(scene))

    reaches(name)(case)


async def _summary(items: list[Any]) -> str:
    return repr(items)


async def _usage(scene: Scene) -> Any:
    return [await scene.store.usage(by=by, tenant=scene.tenant) for by in ("agent", "user", "tenant", "day")]


async def _forks(scene: Scene) -> Any:
    copy = await scene.mine.fork(f"{scene.name}-copy", before_turn=100)
    absent = scene.store.session(f"{scene.name}-absent", tenant=scene.tenant)
    return [await copy.get_items(), await every(lambda: absent.fork(scene.name), lambda: scene.mine.fork(scene.name))]


async def _exclusive(scene: Scene) -> Any:
    async with scene.theirs.exclusive(), scene.mine.exclusive(wait=0) as session:
        await session.add_items([user("plain")])
    return None


async def _recording(scene: Scene) -> Any:
    async with scene.mine.recording() as run:
        return (
            await Runner.run(scripted(says("hi")), "plain", session=scene.mine, hooks=run.hooks, run_config=SILENT)
        ).final_output


async def _hooks(scene: Scene) -> Any:
    """A handle whose tenant a run tells, with a function that tells the victim's to nobody."""
    told = scene.handle(lambda run: run.context)
    run = scripted(says("hi"))
    await Runner.run(run, "plain", session=told, context=scene.tenant, hooks=told.hooks(), run_config=SILENT)
    wrapper = RunContextWrapper[Any](context=None)
    return await every(
        lambda: told.get_items(wrapper=wrapper), told.get_items, told.info, told.delete, told.snapshots.list
    )


async def _session(scene: Scene) -> Any:
    windows = [Window(items=50), Window(turns=50), Window(summary="summary")]
    near = [
        scene.tenant.upper(),
        f"{scene.victim_tenant} ",
        f"{scene.victim_tenant}%",
        "%",
        "_",
        "",
        scene.victim_tenant[:-1],
    ]
    handles = [scene.store.session(scene.name, tenant=scene.tenant, window=window) for window in windows]
    handles += [scene.handle(tenant) for tenant in near]
    return [await handle.get_items() for handle in handles]


async def _from_url(scene: Scene) -> Any:
    async with PGSession.from_url(scene.name, url=scene.url, tenant=scene.tenant) as session:
        return [await session.get_items(), await session.info()]


async def _open(scene: Scene) -> Any:
    async with SessionStore.open(scene.url) as store:
        return list(await store.sessions(tenant=scene.tenant))


async def _pool(scene: Scene) -> Any:
    return scene.store.pool()


async def _shown(scene: Scene) -> Any:
    return [repr(scene.mine), scene.mine.tenant, scene.mine.session_id, scene.mine.session_settings]


simply("store.usage", _usage)
simply("store.session", _session)
simply("store.open", _open)
simply("store.check", lambda scene: scene.store.check())
simply("store.create_tables", lambda scene: scene.store.create_tables())
simply("store.close", lambda scene: SessionStore(engine=scene.store.engine).close())
simply("store.pool", _pool)
simply("store.engine", _shown)
for _member in ("session_settings", "tenant", "engine"):
    simply(_member, _shown)
simply("from_url", _from_url)
simply("get_items", lambda scene: scene.mine.get_items())
simply("add_items", lambda scene: scene.mine.add_items([output("shared-call", "plain"), user("plain")]))
simply("info", lambda scene: scene.mine.info())
simply("turns", lambda scene: scene.mine.turns())
simply("usage", lambda scene: scene.mine.usage())
simply("find", lambda scene: scene.mine.find("marker"))
simply("hooks", _hooks)
simply("recording", _recording)
simply("exclusive", _exclusive)
simply("fork", _forks)
simply("summarize", lambda scene: scene.mine.summarize(_summary))
simply("runs.get", lambda scene: scene.mine.runs.get(scene.run_id))
simply("runs.latest", lambda scene: scene.mine.runs.latest())
simply("runs.usage", lambda scene: scene.mine.runs.usage())
simply("tool_runs.get", lambda scene: every(*(lambda at=at: scene.mine.tool_runs.get(at) for at in range(12))))
simply("tool_runs.latest", lambda scene: scene.mine.tool_runs.latest(tool_name=scene.marker))
simply("events.get", lambda scene: every(*(lambda at=at: scene.mine.events.get(at) for at in range(1, 30))))
simply("events.latest", lambda scene: scene.mine.events.latest(kind="note"))
simply("events.record", lambda scene: scene.mine.events.record("note", run_id=scene.run_id))
simply("snapshots.get", lambda scene: scene.mine.snapshots.get("summary", 1))
simply("snapshots.latest", lambda scene: scene.mine.snapshots.latest("run_state"))
simply("snapshots.diff", lambda scene: scene.mine.snapshots.diff("summary", 1, 1))
simply("snapshots.save", lambda scene: scene.mine.snapshots.save("summary", "plain", through=1))
simply("snapshots.write", lambda scene: scene.mine.snapshots.save("note", "plain"))
simply("pause", lambda scene: scene.mine.pause(None))  # type: ignore[arg-type]
simply("restore", lambda scene: scene.mine.restore(1))
simply("resume", lambda scene: scene.mine.resume(scripted()))
simply("release", lambda scene: scene.mine.release())
simply("pop_item", lambda scene: scene.mine.pop_item())
simply("end", lambda scene: scene.mine.end())
simply("expire", lambda scene: scene.mine.expire(timedelta(days=1)))
simply("store.purge", lambda scene: scene.store.purge(tenant=scene.tenant, older_than=timedelta(microseconds=1)))
simply("clear_session", lambda scene: scene.mine.clear_session())
simply("delete", lambda scene: scene.mine.delete())
simply("close", lambda scene: scene.mine.close())


def public(kind: type) -> set[str]:
    """What callers find on a class, but for what every object has."""
    members = inspect.getmembers_static(kind)
    return {
        name for name, value in members if not name.startswith("_") and (callable(value) or not isinstance(value, str))
    }


def every_public_call() -> set[str]:
    ledgers = {
        name: kind for name, kind in inspect.get_annotations(PGSession, eval_str=True).items() if isinstance(kind, type)
    }
    calls = public(PGSession) | {f"store.{name}" for name in public(SessionStore)}
    for name, kind in ledgers.items():
        calls |= (
            {f"{name}.{each}" for each in public(kind)} if kind.__module__.startswith("agents_pg_session") else set()
        )
    return calls


def test_every_public_call_has_its_case() -> None:
    """A public method that nobody tried to reach another tenant with fails here."""
    assert every_public_call() == set(CASES)


@pytest.fixture
async def scene(store: SessionStore, backend: Backend) -> AsyncIterator[Scene]:
    """The scene, furnished; its two tenants' sessions go at the end, for all databases are shared."""
    scene = Scene(store, backend.url)
    await scene.furnish()
    yield scene
    for session in (scene.theirs, scene.mine):
        await session.delete()


async def test_no_call_reaches_another_tenant(scene: Scene, tally: Tally) -> None:
    """Two tenants, sessions of one name: no answer to any public call holds the other's secret, and not a byte of its
    rows is changed."""
    before = await scene.rows()
    assert {row.partition(":")[0] for row in before} == set(TABLES)
    assert any(scene.marker in row for row in before)

    for name, case in CASES.items():
        answer = await case(scene)
        asked = repr(answer)
        assert scene.marker not in asked, f"{name} tells of another tenant"
        assert scene.run_id not in asked or name == "events.record", f"{name} tells of another tenant's run"
        assert await scene.rows() == before, f"{name} changed another tenant's rows"
    tally.add("Tenants", calls=len(CASES), answers_with_anothers_data=0, rows_changed=0)
