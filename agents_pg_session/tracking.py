"""What one handle knows of the runs that use it: gathered in memory, told with the next append.

A run is known by its `usage` object: the Runner hands the same one to the session, to every hook and to tools, while
the wrappers around it differ.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from uuid import uuid4
from weakref import WeakKeyDictionary

from agents import RunContextWrapper, Trace, Usage, get_current_span, get_current_trace

from agents_pg_session.metering import Meter
from agents_pg_session.projection import Item, encode_value
from agents_pg_session.reports import Note, RunReport, ToolTiming, UsageDelta
from agents_pg_session.statements import Key
from agents_pg_session.texts import cause_in_tool, described, stored_name, stored_text

__all__ = ["RunBook", "TrackedRun"]

#: The newest items that are searched for names of tools.
MAX_ITEMS = 64

#: Tools whose calls carry no name: the type of the call says it.
_NAMELESS_CALLS = {
    "shell_call": "shell",
    "local_shell_call": "local_shell",
    "apply_patch_call": "apply_patch",
    "computer_call": "computer_use_preview",  # what hooks and approvals call it
}


class RunBook:
    """What one handle knows of the runs that use it; an entry goes when its run's `usage` object goes."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Usage], TrackedRun]] = {}
        self._resumed: dict[str, str] = {}
        self._watches: list[dict[str, tuple[TrackedRun, Usage]]] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def runs(self) -> list[TrackedRun]:
        """The runs the session has seen and whose `usage` is still alive, in order of first sight."""
        return [run for _, run in self._entries.values() if run.key is not None]

    def run_of(self, wrapper: RunContextWrapper[Any], key: Key) -> TrackedRun:
        """Return the run that *wrapper* belongs to; its usage counts from the first sight on."""
        run = self._seen(wrapper.usage)
        if run.is_resumed_by(wrapper):
            run = self._enter(wrapper.usage, run.successor(wrapper.usage))
        run.seen_by_session(wrapper, key)
        return run

    def resumes(self, names: dict[str, str]) -> None:
        """Note which tools a run that is about to go on waits for, by call id: it may append before it reads."""
        self._resumed = names

    def alone(self, key: Key) -> TrackedRun | None:
        """Return the run whose trace this is, if hooks see exactly one: a call that tells no run is that one's."""
        trace = get_current_trace()
        at_work = [run for _, run in self._entries.values() if run.trace is trace and not run.is_settled]
        if trace is None or len(at_work) != 1:
            return None
        at_work[0].seen_by_session(None, key)
        return at_work[0]

    def find(self, context: RunContextWrapper[Any]) -> TrackedRun | None:
        """Return the run a hook's *context* belongs to; None for something without usage.

        A resumed run starts its approved tools before it turns to the session, so a run may first be seen here. It
        is nothing but memory until the session has seen it too.
        """
        usage = getattr(context, "usage", None)
        return None if usage is None else self._seen(usage)

    @contextmanager
    def watch(self) -> Iterator[dict[str, tuple[TrackedRun, Usage]]]:
        """Keep every run that is seen meanwhile, by run id, together with what its usage is counted from."""
        watch: dict[str, tuple[TrackedRun, Usage]] = {}
        self._watches.append(watch)
        try:
            yield watch
        finally:
            self._watches = [other for other in self._watches if other is not watch]

    def _seen(self, usage: Usage) -> TrackedRun:
        reference, run = self._entries.get(id(usage), (None, None))
        if run is None or reference is None or reference() is not usage:  # an id may come again once its object is gone
            return self._enter(usage, TrackedRun(usage))
        for watch in self._watches:
            watch.setdefault(run.run_id, (run, usage))
        return run

    def _enter(self, usage: Usage, run: TrackedRun) -> TrackedRun:
        number, entries = id(usage), self._entries
        run.names |= self._resumed
        run.is_resumed = bool(self._resumed)
        self._resumed = {}

        def forget(gone: weakref.ref[Usage]) -> None:
            if number in entries and entries[number][0] is gone:
                del entries[number]

        entries[number] = (weakref.ref(usage, forget), run)
        for watch in self._watches:
            watch[run.run_id] = (run, usage)
        return run


class TrackedRun:
    """One run: what it has to tell with the next append, and what it told already."""

    def __init__(self, usage: Usage, *, written: UsageDelta | None = None) -> None:
        self.run_id = str(uuid4())
        self.key: Key | None = None  #: None until the session has seen the run
        self.names: dict[str, str] = {}  #: tools by call id, of calls whose output was not seen yet
        self.agent: str | None = None
        self.trace_id: str | None = None
        self.status = "running"
        self.recorder: object | None = None  #: who records it by hooks
        self.has_asked = False  #: the approvals it waits for were told
        self.is_resumed = False  #: it goes on where another run was paused
        #: The session after this run's last append: last position, item count.
        self.extent: tuple[int, int] | None = None
        self.trace: Trace | None = None  #: as hooks see it
        self._locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
        self.tool_errors: dict[str, str] = {}  #: by call id, of tools that failed and have not ended yet
        self._meter = Meter(usage, written)
        self._wrapper: weakref.ref[RunContextWrapper[Any]] | None = None
        self._started = time.monotonic()
        self._finished: float | None = None
        self._error: str | None = None
        self._status_written: str | None = None
        self._open_tools: dict[str, ToolTiming] = {}
        self._timings: dict[str, ToolTiming] = {}
        self._nameless: list[ToolTiming] = []
        self._notes: list[Note] = []

    @property
    def telling(self) -> asyncio.Lock:
        """The lock that is held from `report` to `written`, in this event loop: what is told is told once."""
        return self._locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    # -- what the session tells

    def is_resumed_by(self, wrapper: RunContextWrapper[Any]) -> bool:
        """Say whether *wrapper* is another run's: SDK 0.21 resumes a state in memory with the usage of the pause.

        A run inside a tool shares the usage of the run around it, and belongs to that.
        """
        if self._wrapper is None or self._wrapper() is wrapper or type(wrapper) is not RunContextWrapper:
            return False  # what hooks and tools are given is of the same run
        return not self._open_tools

    def successor(self, usage: Usage) -> TrackedRun:
        """End this run as paused, and return the one that goes on: with all that was not written yet."""
        run = TrackedRun(usage, written=self._meter.written)
        run.names, run.recorder = self.names, self.recorder
        run._timings, self._timings = self._timings, {}
        run._nameless, self._nameless = self._nameless, []
        run._notes, self._notes = [note._replace(run_id=run.run_id) for note in self._notes], []
        self._meter.stop()
        if self.status == "running":
            self.end("interrupted", None)
        return run

    def seen_by_session(self, wrapper: RunContextWrapper[Any] | None, key: Key) -> None:
        """Note that the session got a call of this run, with *wrapper* if that reached it."""
        self.key = self.key or key
        if self._wrapper is None and type(wrapper) is RunContextWrapper:
            self._wrapper = weakref.ref(wrapper)

    def saw(self, items: Sequence[Item]) -> None:
        """Learn from the newest *items*, read or appended, which call ids wait for their output, and of which tools.

        What an append completes is in `names` until that append's items were seen.
        """
        newest: list[dict[str, Any]] = []  # newest first
        for item in reversed(cast("Sequence[object]", items[-MAX_ITEMS:])):
            if not isinstance(item, dict):
                continue
            newest.append(item)
            if item.get("role") == "user":
                self.names.clear()  # what a new question talks over is not waited for any more
                break
        for fields in reversed(newest):
            kind, call_id = fields.get("type"), fields.get("call_id")
            if not isinstance(kind, str) or not isinstance(call_id, str):
                continue
            if kind.endswith("_output"):
                self.names.pop(call_id, None)
            elif (name := _NAMELESS_CALLS.get(kind) or fields.get("name")) and isinstance(name, str):
                namespace = fields.get("namespace")
                self.names[call_id] = f"{namespace}.{name}" if namespace and namespace != name else name

    # -- what hooks tell

    def is_outside(self, agent: str) -> bool:
        """Say whether *agent* runs inside one of this run's tools: it shares the usage, and is not this run."""
        return bool(self._open_tools) and self.agent is not None and self.agent != agent

    def go_on(self) -> None:
        """Note that the run is at work."""
        if self.status != "running":
            self.status, self._finished, self._error = "running", None, None

    def agent_started(self, agent: str) -> None:
        """Note who is at work; a change that no hand-off announced is an event."""
        self.go_on()
        if self.agent is not None and self.agent != agent:
            self._note("agent_changed", agent, {"from": self.agent, "to": agent})
        self.agent = agent

    def handed_off(self, giver: str, taker: str) -> None:
        """Note a hand-off."""
        self._note("handoff", giver, {"from": giver, "to": taker})
        self.agent = taker

    def model_started(self) -> None:
        """Note that the model is at work."""
        self.go_on()
        self._meter.model_started()

    def model_finished(self) -> None:
        """Note that the model has answered."""
        self._meter.model_finished()

    def tool_started(self, call_id: str | None, kind: str, name: str, agent: str) -> None:
        """Note that a tool is at work; without a call id for tools whose hooks tell none."""
        self.go_on()
        self.agent = self.agent or agent
        timing = ToolTiming(kind, agent, started=time.monotonic(), tool_name=name)
        if call_id is None:
            self._nameless.append(timing)
        else:
            self._open_tools[call_id] = self._timings[call_id] = timing

    def tool_finished(self, call_id: str | None, kind: str, name: str, agent: str, error: str | None) -> None:
        """Note that a tool came to its end; nameless ones of a kind end in the order they started."""
        now = time.monotonic()
        if call_id is not None:
            timing = self._open_tools.pop(call_id, None)
            if timing is None:  # the tool of an agent that paused inside it started in the run before
                timing = ToolTiming(kind, agent, tool_name=name)
            self._timings[call_id] = timing._replace(finished=now, error=error)
            return
        for index, timing in enumerate(self._nameless):
            if timing.finished is None and timing.tool_type == kind:
                self._nameless[index] = timing._replace(finished=now, error=error)
                return

    # -- what is told

    @property
    def is_waiting(self) -> bool:
        """Whether it stopped, or will, at a call of its own, or one it was resumed for, that waits for its output."""
        waits = bool(self.names) and (self.extent is not None or self.is_resumed)
        return waits and self.status in ("running", "interrupted")

    @property
    def awaits_model(self) -> bool:
        """Whether hooks saw a model call begin that has not ended."""
        return self._meter.is_running

    @property
    def is_busy(self) -> bool:
        """Whether hooks saw something start that has not ended: a model call or a tool."""
        nameless = any(timing.finished is None for timing in self._nameless)
        return self._meter.is_running or bool(self._open_tools) or nameless

    @property
    def is_settled(self) -> bool:
        """Whether the run's end is known and written."""
        return self.status != "running" and self.status == self._status_written

    @property
    def has_unwritten(self) -> bool:
        """Whether the next append would have something to tell."""
        buffers = self._timings or self._notes or self._meter.seconds or self._finished_nameless()
        return self.status != self._status_written or bool(buffers) or self._meter.unwritten() != UsageDelta()

    def end(self, status: str, error: BaseException | None) -> None:
        """Note how the run ended; tools that were at work when it failed or was cancelled failed with it."""
        self.status, self._finished = status, time.monotonic()
        self._error = None if error is None else described(error)
        if error is not None:
            for call_id, timing in self._open_tools.items():
                text = described(cause_in_tool(timing.tool_name or "", error))
                self._timings[call_id] = timing._replace(finished=self._finished, error=text)
            self._nameless = [
                timing if timing.finished else timing._replace(finished=self._finished, error=self._error)
                for timing in self._nameless
            ]
        self._meter.abandon()
        self._open_tools.clear()

    def paused(self) -> None:
        """Note that the run was stored where it waits, and that this was written."""
        if self.status == "running":
            self.end("interrupted", None)
        self._status_written, self.has_asked = self.status, True
        self._timings.clear()  # a tool at work inside it starts anew with the run that goes on

    def note_last_words(self) -> None:
        """Note which calls of a run that nobody pauses wait for a person, and in any case that something was told.

        (An event is how a retry finds out that these words were written.)
        """
        if self.status == "interrupted" and not self.has_asked:
            self.has_asked = True
            for call_id, name in self.names.items():
                self._note("approval_asked", self.agent, {"tool_name": name, "call_id": call_id})
        if not any(self._unwritten_notes()):
            self._note("run_updated", self.agent, {"status": self.status})

    def report(self) -> RunReport:
        """Return everything that waits to be written, without forgetting it: `written` does that."""
        self._look_around()
        wrapper = self._wrapper() if self._wrapper is not None else None
        return RunReport(
            run_id=self.run_id,
            started=self._started,
            status=self.status,
            agent=self.agent,
            trace_id=self.trace_id,
            usage=self._meter.unwritten(),
            usage_details=self._meter.details(),
            model_seconds=self._meter.seconds,
            finished=self._finished,
            error=self._error,
            timings=dict(self._timings),
            nameless=tuple(self._finished_nameless()),
            notes=tuple(self._unwritten_notes()),
            approved=getattr(wrapper, "is_tool_approved", None),
        )

    def written(
        self, report: RunReport, timings: Sequence[ToolTiming] | None = None, extent: tuple[int, int] | None = None
    ) -> None:
        """Forget what *report* told, now that it took effect; of its timings only *timings*, if given.

        What came to the buffers since stays; so does the timing of a tool whose call another append brings.
        """
        self._status_written = report.status
        self.extent = extent or self.extent
        self._meter.forget(report)
        timings = (*report.timings.values(), *report.nameless) if timings is None else timings
        told = {id(each) for each in (*timings, *report.notes)}
        self._timings = {call_id: timing for call_id, timing in self._timings.items() if id(timing) not in told}
        self._nameless = [timing for timing in self._nameless if id(timing) not in told]
        self._notes = [note for note in self._notes if id(note) not in told]

    def _note(self, kind: str, agent: str | None, payload: dict[str, str | None]) -> None:
        self._notes.append(Note(kind, _payload(payload), agent, self.run_id))

    def _unwritten_notes(self) -> Iterator[Note]:
        """The buffered events, between the run's start and its end where those are still to be told."""
        if self._status_written is None:
            known = {"agent": self.agent, "trace_id": self.trace_id}
            yield Note("run_started", _payload(known) if any(known.values()) else None, self.agent, self.run_id)
        yield from self._notes
        if self.status not in ("running", self._status_written):
            ended = _payload({"status": self.status, "error": self._error})
            yield Note("run_ended", ended, self.agent, self.run_id)

    def _finished_nameless(self) -> list[ToolTiming]:
        return [timing for timing in self._nameless if timing.finished is not None]

    def _look_around(self) -> None:
        """Learn the trace and, where no hook tells it, the agent from where the run stands in its tracing."""
        if self.trace_id is None and (trace := get_current_trace()) is not None and trace.trace_id != "no-op":
            self.trace_id = stored_text(trace.trace_id)
        if self.recorder is None and (span := get_current_span()) is not None:
            # Spans are there with tracing disabled too. A turn's span is what a streamed run saves its input in.
            attribute = {"agent": "name", "turn": "agent_name"}.get(span.span_data.type)
            name = getattr(span.span_data, attribute, None) if attribute else None
            self.agent = stored_name(name) if isinstance(name, str) else self.agent


def _payload(said: dict[str, str | None]) -> str:
    return encode_value(said, place="payload")
