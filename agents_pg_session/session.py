"""`PGSession`: the Agents SDK's session protocol over one conversation in the database, and its record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from agents import Agent, RunContextWrapper, RunHooks, RunState
from agents.memory import SessionSettings

from agents_pg_session.database import COMMAND_TIMEOUT, RETRY_FOR, Database
from agents_pg_session.labels import checked_labels, checked_settings, checked_text, checked_window
from agents_pg_session.leases import Exclusive
from agents_pg_session.ledgers.control import Control
from agents_pg_session.ledgers.events import Events
from agents_pg_session.ledgers.history import CompactionSnapshot, History
from agents_pg_session.ledgers.items import Items
from agents_pg_session.ledgers.runs import Runs
from agents_pg_session.ledgers.scope import Scope
from agents_pg_session.ledgers.snapshots import Snapshots
from agents_pg_session.ledgers.tool_runs import ToolRuns
from agents_pg_session.paging import checked_limit
from agents_pg_session.pauses import Claim, pause, resume
from agents_pg_session.pools import BorrowedEngine
from agents_pg_session.projection import Item
from agents_pg_session.recorder import Recorder, Recording
from agents_pg_session.records import SessionInfo, SessionUsage, StoredItem, Turn
from agents_pg_session.sharing import shared_engines
from agents_pg_session.statements import Key
from agents_pg_session.summaries import summarize
from agents_pg_session.tenants import Tenant, Whose
from agents_pg_session.texts import shown
from agents_pg_session.tracking import RunBook, TrackedRun
from agents_pg_session.windows import Window

if TYPE_CHECKING:
    from agents.result import RunResultBase
    from sqlalchemy.engine import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["PGSession"]


class PGSession:
    """One conversation, stored in PostgreSQL (or SQLite for local work): pass it as `session=` to `Runner.run`.

    The SDK's four methods are one statement each and, on PostgreSQL, one network round trip. A handle is cheap: make
    one per request. Two handles with the same tenant and session id are the same conversation, in any process.

    *engine* is yours: it is used and never disposed. To have pools made and closed for you, use `SessionStore`, or
    `PGSession.from_url` for a single session.

    *session_id*, *tenant*, *agent* and *user_id* are text of at most 512 bytes without NUL; whatever else they
    contain is safe. *tenant* may be a function of the run's context; without an answer the call raises. *agent*,
    *user_id* and *metadata* (a JSON object, at most what jsonb takes: no NUL) are written to the session's row with
    the next append. With *expires_after* each append moves the session's end to that long after it: from then on it is
    to every verb as if it had been deleted, and `SessionStore.purge` removes it. *window* decides what of a long
    conversation `get_items` gives the model. With
    *expect*="unchanged" an append raises `SessionConflict` if another writer came first since this handle last read.
    *schema* is the PostgreSQL schema of the tables. *retry_for* is how many seconds a call may take while the
    database is away, before it raises `StorageUnavailable`.

    Raises `ValueError` for ids that cannot be stored.
    """

    session_id: str
    runs: Runs  #: its runs: `list`, `get`, `latest`, `usage`
    tool_runs: ToolRuns  #: its tool runs: `list`, `get`, `latest`
    events: Events  #: what happened beside the items: `record`, `list`, `get`, `latest`
    snapshots: Snapshots  #: versions of remembered state: `save`, `latest`, `get`, `list`, `diff`

    def __init__(
        self,
        session_id: str,
        *,
        engine: AsyncEngine | Database,
        tenant: Tenant = "",
        create_tables: bool = False,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        schema: str = "agents",
        agent: str | None = None,
        user_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expires_after: timedelta | None = None,
        window: Window | None = None,
        expect: Literal["unchanged"] | None = None,
        retry_for: float = RETRY_FOR,
        command_timeout: float = COMMAND_TIMEOUT,
    ) -> None:
        self.session_id = checked_text("session_id", session_id)
        if isinstance(engine, Database):  # from a store or a URL
            self._database = engine
        else:
            self._database = Database(
                BorrowedEngine(engine),
                schema=schema,
                create_tables=create_tables,
                retry_for=retry_for,
                command_timeout=command_timeout,
            )
        self._owns_database = False
        self._whose = Whose(tenant, session_id)
        self._window = checked_window(window)
        self._claim: Claim | None = None
        self._book = RunBook()
        labels = checked_labels(agent, user_id, metadata, expires_after)
        scope = self._scope = Scope(self._database, self._whose.key, labels)
        self._items = Items(scope, expect=expect)
        self._history = History(scope, self._items)
        self._control = Control(scope)
        self.runs = Runs(scope)
        self.tool_runs = ToolRuns(scope)
        self.events = Events(scope)
        self.snapshots = Snapshots(scope)
        self.session_settings = session_settings if session_settings is not None else SessionSettings()

    @classmethod
    def from_url(
        cls,
        session_id: str,
        *,
        url: str | URL,
        engine_kwargs: Mapping[str, Any] | None = None,
        tenant: Tenant = "",
        create_tables: bool = False,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        schema: str = "agents",
        agent: str | None = None,
        user_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expires_after: timedelta | None = None,
        window: Window | None = None,
        expect: Literal["unchanged"] | None = None,
        retry_for: float = RETRY_FOR,
        command_timeout: float = COMMAND_TIMEOUT,
        pgbouncer: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Open a session from a database URL; handles with the same URL and settings share one pool.

        Call it as often as you like, from any event loop. `close()` (or `async with`) gives the share back; the pool
        closes with its last share, or with its event loop. *engine_kwargs* go to `create_async_engine`. *pgbouncer*
        switches prepared statements off, for a pooler in transaction mode. Anything else goes to the constructor of
        your subclass. Raises `ValueError` for a URL that cannot work, naming what to write.
        """
        engines = shared_engines(url, engine_kwargs=engine_kwargs, pgbouncer=pgbouncer)
        database = Database(
            engines, schema=schema, create_tables=create_tables, retry_for=retry_for, command_timeout=command_timeout
        )
        session = cls(
            session_id,
            engine=database,
            tenant=tenant,
            session_settings=session_settings,
            agent=agent,
            user_id=user_id,
            metadata=metadata,
            expires_after=expires_after,
            window=window,
            expect=expect,
            **kwargs,
        )
        session._owns_database = True
        return session

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._whose!r})"

    @property
    def tenant(self) -> str:
        """The tenant this handle is confined to. Raises `SessionError` where only a run can tell it."""
        return self._whose.key().tenant_id

    @property
    def session_settings(self) -> SessionSettings | None:
        """The SDK's settings.

        `limit` is how many items `get_items` returns when not told otherwise. Takes a dict too.
        """
        return self._session_settings

    @session_settings.setter
    def session_settings(self, value: SessionSettings | dict[str, Any] | None) -> None:
        self._session_settings = checked_settings(value)

    @property
    def engine(self) -> AsyncEngine:
        """The engine this handle uses: yours, or the one of the running event loop."""
        return self._database.engine

    # -- the SDK's protocol

    async def get_items(self, limit: int | None = None, *, wrapper: RunContextWrapper[Any] | None = None) -> list[Item]:
        """Return the newest *limit* items, oldest first; without it what window or `session_settings` say, else all.

        An empty list always means an empty session: when the database stays away, this raises `StorageUnavailable`.
        Raises `ValueError` for a negative limit.
        """
        key, run = self._within(wrapper)
        if limit is None and self._window is not None:
            items = await self._items.within(key, self._window)
        else:
            if limit is None and self.session_settings is not None:
                limit = self.session_settings.limit
            if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
                raise ValueError(f"limit must be a whole number, zero or more, not {shown(limit)}")
            items = await self._items.latest(key, limit)
        if run is not None:
            run.saw(items)
        return items

    async def add_items(self, items: list[Item], *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Append *items*, in order, together or not at all, exactly once: a lost connection is retried safely.

        What the run did since its last append (tool runs, tokens, events) is written with them. Nothing to append is no
        call to the database. Raises `InvalidItem` naming the place of what JSON cannot hold, `SessionConflict` if this
        handle expects to be the only writer and was not, and `StorageUnavailable` when the database stays away.
        """
        key, run = self._within(wrapper)
        await self._items.append(key, items, run)

    async def pop_item(self, *, wrapper: RunContextWrapper[Any] | None = None) -> Item | None:
        """Take out the newest item and return it.

        None when the session is empty. Two callers never get the same one.
        """
        key, _ = self._within(wrapper)
        return await self._items.pop(key)

    async def clear_session(self, *, wrapper: RunContextWrapper[Any] | None = None) -> None:
        """Take out all items at one moment. The session's row stays: positions are never handed out twice."""
        key, _ = self._within(wrapper)
        await self._items.clear(key)

    # -- the record

    def hooks(self, wrap: RunHooks[Any] | None = None) -> Recorder:
        """Return hooks for `Runner.run(…, hooks=…)` that measure what items do not tell; yours are called unchanged.

        Times and errors of tools, model latency, hand-offs and the completion of the run are kept in memory and written
        by the run's next append: no call to the database of their own.
        """
        return Recorder(self._book, wrap=wrap)

    def recording(self, hooks: RunHooks[Any] | None = None) -> Recording:
        """Record the runs of an `async with` block, and at its end how each of them ended.

        Pass `run.hooks` to the Runner. The exit writes in one round trip what is left: completed, failed with the
        exception, interrupted (waits for an approval) or cancelled.
        """
        return Recording(self._book, flush=self._flush, hooks=hooks)

    async def info(self) -> SessionInfo:
        """Return what the session is now. Raises `SessionNotFound` before the first append."""
        return await self._control.info()

    async def turns(self, limit: int | None = None, *, before_position: int | None = None) -> list[Turn]:
        """Return the conversation by turns, oldest first: the newest *limit*, of those before a position.

        For the ones before a page of turns pass `before_position=turns[0].position`.
        """
        return await self._items.turns(limit, before_position)

    async def usage(self) -> SessionUsage:
        """Return what the session cost in tokens, in all and per turn."""
        return await self.runs.usage()

    async def find(self, text: str, *, limit: int = 50) -> list[StoredItem]:
        """Return the newest items in which somebody or something says *text*, whatever the case, newest first."""
        if not isinstance(text, str) or not text:
            raise ValueError("text must be a string that is not empty")
        return await self._items.find(text, checked_limit(limit))

    async def end(self, status: str = "ended") -> None:
        """Mark the session as over, with a word of yours if you like. An append makes it active again.

        Raises `SessionNotFound` before the first append.
        """
        await self._control.end(checked_text("status", status))

    async def expire(self, end: timedelta | datetime | None) -> datetime | None:
        """Set or move the session's end, or lift it (None), and return when that is by the database's clock.

        From that moment on the session is to every verb as if it had been deleted, and an append begins it anew. A
        handle with `expires_after` moves the end again with its next append. Raises `SessionNotFound` before the first
        append, and after the end.
        """
        return await self._control.expire(end)

    async def fork(self, session_id: str, *, before_turn: int | None = None) -> PGSession:
        """Copy the session, up to *before_turn* if given, into a new one and return its handle: edit and regenerate.

        The copy knows where it came from, and ends when its source does unless this handle has an `expires_after`; what
        its source has spent stays with the source. Raises `SessionConflict` if
        that id is taken, `SessionNotFound` if there is nothing to copy.
        """
        key = Key(self._whose.key().tenant_id, checked_text("session_id", session_id))
        await self._control.fork(key, before_turn)
        span = self._scope.labels.expires_after
        return PGSession(
            session_id, engine=self._database, tenant=key.tenant_id, session_settings=self.session_settings,
            window=self._window, expires_after=None if span is None else timedelta(seconds=span),
        )  # fmt: skip

    async def delete(self) -> bool:
        """Erase the session and everything about it; False if it was not there."""
        self._items.forget(self._whose.key())
        return await self._control.delete()

    # -- memory

    async def summarize(
        self, write: Callable[[list[Item]], Awaitable[str]], *, keep_turns: int = 0, kind: str = "summary"
    ) -> int | None:
        """Let *write* summarise what is not summarised yet, and save the next version; None if there is nothing new.

        *write* is given the previous summary as a system message, if there is one, and the items since. The newest
        *keep_turns* turns are left alone, and a call is never split from its output. Returns the version.
        Nothing is deleted: `window=Window(summary="summary")` gives the model the summary and what came after it.
        """
        window = self._window if self._window is not None and self._window.summary == kind else Window(summary=kind)
        return await summarize(self._scope, self._items, self.snapshots, write, keep_turns=keep_turns, window=window)

    async def restore(self, version: int) -> None:
        """Bring back what a compaction replaced: `history` snapshot *version* returns to where it stood.

        What stood for it is kept as the next version. Raises `SnapshotNotFound`, and `SessionConflict` if that is not
        there whole any more.
        """
        await self._history.restore(version)

    # -- paused runs, one at a time

    async def pause(self, result: RunResultBase | RunState[Any, Any], **options: Any) -> int:
        """Store a run that waits for approvals and mark the session waiting; return the snapshot's version.

        *options* go to the SDK's `RunState.to_json` (`context_serializer`, `strict_context` …). Raises `ValueError` for
        a run that waits for nothing.
        """
        return await pause(self.snapshots, self._book, result, options)

    async def resume(self, agent: Agent[Any], *, claim_for: float = 300.0, **options: Any) -> RunState[Any, Any]:
        """Claim the paused run and return its state: approve or reject, then run it on this same handle.

        Of all workers that try, one gets it; the others raise `SessionConflict`. If that worker appends nothing within
        *claim_for* seconds, the next one may have it. *options* go to the SDK's `RunState.from_json`
        (`context_override`, `context_deserializer` …). Raises `SnapshotNotFound` if no run was paused.
        """
        state, self._claim = await resume(self._scope, self._items, self._book, agent, claim_for, options)
        return state

    async def release(self) -> None:
        """Give back a paused run that this handle resumed, so that another worker may have it at once.

        Only before it goes on: a tool it has run and not told yet would run again.
        """
        if self._claim is not None:
            await self._claim.release()
            self._items.forget(self._whose.key())
            self._claim = None

    def exclusive(self, *, wait: float = 30.0, lease_for: float = 30.0) -> Exclusive[Self]:
        """Run the session alone for an `async with` block, waiting up to *wait* seconds for whoever does so now.

        A heartbeat keeps the lease; when its holder dies it ends after *lease_for* seconds. Appends of a holder that
        lost it raise `SessionConflict`, and so does waiting in vain.
        """
        return Exclusive(self, self._scope, self._items, wait=wait, lease_for=lease_for)

    # -- what the SDK's compaction looks for

    async def _get_compaction_snapshot(
        self, limit: int, *, prune_prefix: Callable[[Item], bool] | None = None
    ) -> CompactionSnapshot | None:
        """Return the newest items and how to replace a tail. Expired ones (*prune_prefix*) are retention's business."""
        ours = PGSession.add_items, PGSession.get_items
        if (type(self).add_items, type(self).get_items) != ours:
            return None  # a subclass may store items in a form of its own
        return await self._history.compaction_snapshot(limit)

    async def _atomic_replace_items(self, items: list[Item]) -> bool:
        """Replace the whole history; False if there is no session."""
        return await self._history.replace(items)

    # -- inside

    def _within(self, wrapper: RunContextWrapper[Any] | None) -> tuple[Key, TrackedRun | None]:
        """Return whose session it is in this run, and what is known of the run."""
        self._database.require_open()
        if not isinstance(wrapper, RunContextWrapper):
            # Some wrappers (the SDK's compaction) do not pass the run on; hooks may tell which one is at work.
            return (key := self._whose.key()), self._book.alone(key)
        key = self._whose.key_in(wrapper)
        return key, self._book.run_of(wrapper, key)

    async def _flush(self, run: TrackedRun) -> None:
        """Write a run's last words. Only the newest run of this handle says what the session waits for."""
        newest = self._book.runs[-1:] == [run]
        await self._items.flush(run, waiting=newest and run.is_waiting)

    # -- closing

    async def close(self) -> None:
        """Give back what this handle owns. A handle on your engine or from a store owns nothing and stays usable."""
        if self._owns_database:
            await self._database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
