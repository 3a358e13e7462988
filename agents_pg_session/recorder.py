"""`RunHooks` that note what a run does, for the next append to write, around the user's own hooks."""

from __future__ import annotations

import asyncio
import copy
import logging
import weakref
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from agents import (
    Agent,
    ApplyPatchTool,
    ComputerTool,
    CustomTool,
    LocalShellTool,
    RunContextWrapper,
    RunHooks,
    ShellTool,
    Usage,
    get_current_span,
    get_current_trace,
)
from agents.lifecycle import RunHooksBase
from agents.tool import default_tool_timeout_error_message
from agents.tool_context import ToolContext

from agents_pg_session.texts import described, stored_name, stored_text
from agents_pg_session.tracking import RunBook, TrackedRun

__all__ = ["Recorder", "Recording"]

logger = logging.getLogger("agents_pg_session.recorder")

#: What is noted before the user's hook of that name gets its turn. Everything else is noted after it: so the time
#: the user's hooks take is neither the model's nor a tool's.
_NOTED_FIRST = frozenset({"on_llm_end", "on_agent_end", "on_handoff", "on_tool_end"})

#: The SDK's words for a tool that failed; up to 0.21 the error's own follow.
_FAILED = ("An error occurred while running the tool.", "An error occurred while parsing tool arguments.")


class Recorder(RunHooksBase[Any, Agent[Any]]):
    """Note what the runs of *book* do, and pass every hook on to *wrap* with the same arguments.

    What *wrap* raises aborts the run, as it does without a recorder. What goes wrong in here is logged and never does.
    """

    def __init__(self, book: RunBook, wrap: RunHooks[Any] | None = None) -> None:
        self._book = book
        self._wrap = wrap
        self.token = object()  #: marks the runs this recorder saw

    def _note(self, noted: Callable[..., None], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            run = self._book.find(args[0] if args else kwargs["context"])
            if run is not None:
                run.recorder, run.trace = self.token, get_current_trace()
                noted(self, run, *args, **kwargs)
        except Exception:
            logger.warning(
                "could not record %s of a run; the run goes on", noted.__name__.removeprefix("_noted_"), exc_info=True
            )

    # The parameters are named as in `RunHooks`: the Runner passes those of on_handoff by name.

    def _noted_on_agent_start(self, run: TrackedRun, context: RunContextWrapper[Any], agent: Agent[Any]) -> None:
        if not run.is_outside(name := stored_name(agent.name)):
            run.agent_started(name)

    def _noted_on_agent_end(
        self, run: TrackedRun, context: RunContextWrapper[Any], agent: Agent[Any], output: Any
    ) -> None:
        # It comes before the run's last append, which so can tell that the run completed.
        if not run.is_busy:
            run.end("completed", None)

    def _noted_on_handoff(
        self, run: TrackedRun, context: RunContextWrapper[Any], from_agent: Agent[Any], to_agent: Agent[Any]
    ) -> None:
        if not run.is_outside(giver := stored_name(from_agent.name)):
            run.handed_off(giver, stored_name(to_agent.name))

    def _noted_on_llm_start(self, run: TrackedRun, context: Any, agent: Agent[Any], *_: Any, **__: Any) -> None:
        if not run.is_outside(stored_name(agent.name)):
            run.model_started()

    def _noted_on_llm_end(self, run: TrackedRun, context: Any, agent: Agent[Any], *_: Any, **__: Any) -> None:
        if not run.is_outside(stored_name(agent.name)):
            run.model_finished()

    def _noted_on_tool_start(self, run: TrackedRun, context: Any, agent: Agent[Any], tool: Any) -> None:
        if run.is_outside(name := stored_name(agent.name)):
            return
        call_id = _call_id(context)
        run.tool_started(call_id, _kind(tool), _name(context, tool), name)
        # An agent's tool hands its run config down to the run inside it, which must not notice us.
        if call_id is not None and not getattr(tool, "_is_agent_tool", False):
            _overhear_errors(context, call_id, run)

    def _noted_on_tool_end(self, run: TrackedRun, context: Any, agent: Agent[Any], tool: Any, result: object) -> None:
        if run.is_outside(name := stored_name(agent.name)):
            return
        call_id = _call_id(context)
        error = run.tool_errors.pop(call_id, None) if call_id is not None else None
        run.tool_finished(call_id, _kind(tool), _name(context, tool), name, error or _error_of(tool, result))


def _relaying(hook: str) -> Callable[..., Awaitable[Any]]:
    noted: Callable[..., None] | None = getattr(Recorder, f"_noted_{hook}", None)  # None: a hook of a newer SDK

    async def relay(self: Recorder, *args: Any, **kwargs: Any) -> Any:
        theirs = None if self._wrap is None else getattr(self._wrap, hook, None)
        if noted is not None and (theirs is None or hook in _NOTED_FIRST):
            self._note(noted, args, kwargs)
        if theirs is None:
            return None
        result = await theirs(*args, **kwargs)
        if noted is not None and hook not in _NOTED_FIRST:
            self._note(noted, args, kwargs)
        return result

    relay.__name__ = hook
    return relay


# Every hook this SDK has, those we know nothing of too.
for _hook in [name for name in vars(RunHooksBase) if name.startswith("on_")]:
    setattr(Recorder, _hook, _relaying(_hook))


class Recording:
    """Record the runs of the block: `hooks` goes to `Runner.run`, and the exit notes how each run ended.

    *flush* writes what a run has not written yet. When it fails its error is raised, unless the block raised one.
    """

    def __init__(
        self, book: RunBook, *, flush: Callable[[TrackedRun], Awaitable[None]], hooks: RunHooks[Any] | None = None
    ) -> None:
        self.hooks = Recorder(book, wrap=hooks)
        self._book = book
        self._flush = flush
        self._stack = ExitStack()
        self._watched: dict[str, tuple[TrackedRun, Usage]] = {}
        self._last_run_id: str | None = None

    @property
    def run_id(self) -> str | None:
        """The id of the latest run in the block; None before the first."""
        runs = self._runs()
        return runs[-1].run_id if runs else self._last_run_id

    async def __aenter__(self) -> Self:
        self._watched = self._stack.enter_context(self._book.watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        self._last_run_id, runs, watched = self.run_id, self._runs(), self._watched
        for run in runs:
            if not run.is_settled:
                # Runs of a block follow each other: one that is at rest while a later one failed had been paused.
                _end(run, error if run is runs[-1] or run.is_busy else None)
        failures = [failure for run in runs if run.has_unwritten and (failure := await self._flushed(run))]
        watched.clear()  # until here it kept what usage is counted from
        if error is None and failures:
            raise failures[0]

    async def _flushed(self, run: TrackedRun) -> Exception | None:
        try:
            await self._flush(run)
        except Exception as failure:
            logger.warning("could not write how run %s ended: %s", run.run_id, failure)
            return failure
        return None

    def _runs(self) -> list[TrackedRun]:
        """The runs the session saw since the block began, but for those another recorder has hooks in."""
        mine = (None, self.hooks.token)
        return [run for run, _ in self._watched.values() if run.key is not None and run.recorder in mine]


def _end(run: TrackedRun, error: BaseException | None) -> None:
    """Note how the run ended, for all that is known when the block around it ends."""
    if error is not None:
        run.end("cancelled" if isinstance(error, asyncio.CancelledError | GeneratorExit) else "failed", error)
    elif run.status == "running":
        run.end(*_unsaid_end(run))


def _unsaid_end(run: TrackedRun) -> tuple[str, BaseException | None]:
    """Return how a run ended of which neither a hook nor an exception tells."""
    if run.awaits_model:  # left in the middle: its stream was cancelled, or not read to its end
        return "cancelled", None
    if run.is_waiting and not run.is_busy:
        return "interrupted", None
    if run.recorder is None:
        return "completed", None
    return "failed", RuntimeError("it ended without an answer")


def _call_id(context: object) -> str | None:
    return context.tool_call_id if isinstance(context, ToolContext) else None


def _name(context: object, tool: Any) -> str:
    """The tool's name with its namespace, as the session's items have it."""
    return stored_text(context.qualified_tool_name if isinstance(context, ToolContext) else tool.name)


def _kind(tool: object) -> str:
    match tool:
        case ShellTool():
            return "shell"
        case LocalShellTool():
            return "local_shell"
        case ComputerTool():
            return "computer"
        case ApplyPatchTool():
            return "apply_patch"
        case CustomTool():
            return "custom"
        case _:
            return "function"


def _overhear_errors(context: ToolContext[Any], call_id: str, run: TrackedRun) -> None:
    """Note what this one call raises before the SDK turns it into a text for the model that says nothing of it.

    The formatter of tool errors is told the exception. The context belongs to this call alone: it gets a run config
    of its own, whose formatter answers what the user's would.
    """
    config = context.run_config
    if config is None or not hasattr(config, "tool_error_formatter"):
        return
    theirs = config.tool_error_formatter
    this_call = weakref.ref(context)

    def formatter(args: Any) -> Any:
        error = getattr(args, "error", None)
        if isinstance(error, BaseException) and args.run_context is this_call():
            run.tool_errors[call_id] = described(error)
        return None if theirs is None else theirs(args)

    context.run_config = copy.copy(config)
    context.run_config.tool_error_formatter = formatter


def _error_of(tool: Any, result: object) -> str | None:
    """Return the error of a tool that ended, from what is left of it: its span's error, or the SDK's own words."""
    timeout = getattr(tool, "timeout_seconds", None)
    if timeout and result == default_tool_timeout_error_message(tool_name=tool.name, timeout_seconds=timeout):
        return stored_text(f"ToolTimeoutError: {result}")
    span = get_current_span()
    if span is not None and span.span_data.type == "function" and span.error:  # None when tracing is disabled
        data = span.error.get("data") or {}
        return stored_text(str(data.get("error") or span.error.get("message")))
    if isinstance(result, str) and result.startswith(_FAILED):
        return stored_text(result.partition("Error: ")[2] or result)
    return None
