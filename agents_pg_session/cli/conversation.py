"""A conversation laid out as a person reads it: turn by turn, who said what, what the tools did, what it cost."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from agents_pg_session import Event, SessionInfo, StoredItem
from agents_pg_session.cli.paper import Paper, clipped, clock, counted, day_and_clock, json_text, number, plain
from agents_pg_session.cli.words import STATUS_STYLES, call_words, event_words, item_words, outcome_words, run_words
from agents_pg_session.operations.conversations import Conversation, ToldTurn

__all__ = ["lay_out"]

#: How much of one text is shown where not all of it is asked for: lines, and characters in all.
_LINES, _CHARACTERS = 8, 640

#: Events that say what the conversation says already.
_UNTOLD = frozenset({"run_started", "run_updated", "tool_failed"})


def lay_out(conversation: Conversation, paper: Paper, *, full: bool) -> Iterator[RenderableType]:
    """Yield a conversation piece by piece, ready to be printed; *full* cuts no text and leaves out no event."""
    yield from _head(conversation.info)
    if conversation.earlier:
        are = "turn is" if conversation.earlier == 1 else "turns are"
        yield plain(f"\n{number(conversation.earlier)} earlier {are} not shown: --turns 0 shows all", "dim")
    for turn in conversation.turns:
        yield Text()
        yield _title(turn, paper)
        yield _Turn(conversation, turn, paper, full).grid()
    if conversation.aside:
        yield Text()
        yield from (plain(f"{clock(each.created_at)}  {event_words(each)}", "dim") for each in conversation.aside)


def _head(info: SessionInfo) -> Iterator[Text]:
    title = plain(info.session_id, "bold")
    title.append(f"  {plain(info.status).plain}", STATUS_STYLES.get(info.status, ""))
    yield title
    named = (("tenant", info.tenant), ("user", info.user_id), ("agent", info.agent))
    said = [f"{name} {value}" for name, value in named if value]
    if info.metadata:
        said.append(json_text(dict(info.metadata)))
    if said:
        yield plain(", ".join(said))
    times = [f"began {day_and_clock(info.created_at)}", f"last turn {day_and_clock(info.active_at)}"]
    later = (("ended", info.ended_at), ("expires", info.expires_at))
    times += [f"{name} {day_and_clock(at)}" for name, at in later if at is not None]
    yield plain(f"{', '.join(times)} (UTC)")
    failed = f" ({number(info.tool_error_count)} failed)" if info.tool_error_count else ""
    yield plain(
        f"{counted(info.turn_count, 'turn')}, {counted(info.item_count, 'item')}, "
        f"{counted(info.tool_run_count, 'tool run')}{failed}, {counted(info.event_count, 'event')}; "
        f"{number(info.input_tokens)} tokens in, {number(info.output_tokens)} out"
    )
    if info.forked_from is not None:
        yield plain(f"began as a copy of {info.forked_from}, up to item {info.forked_through}")


def _title(turn: ToldTurn, paper: Paper) -> Rule:
    name = f"turn {turn.turn.number}" if turn.turn.number else "before the first turn"
    said = [name, day_and_clock(turn.turn.started_at)]
    if turn.runs:
        into, out = sum(run.input_tokens for run in turn.runs), sum(run.output_tokens for run in turn.runs)
        said.append(f"{number(into)} tokens in, {number(out)} out")
    line = "-" if paper.ascii_only else "─"
    title = Text(f" {line} ".join(said), style="bold")
    return Rule(title, align="left", characters=line, style="dim")


class _Turn:
    """One turn as lines: when, who, what."""

    def __init__(self, conversation: Conversation, turn: ToldTurn, paper: Paper, full: bool) -> None:
        self._calls = conversation.tool_runs
        self._turn = turn
        self._paper = paper
        self._full = full
        self._outputs = {run.output_position: run for run in self._calls.values() if run.output_position is not None}
        self._items = {each.position: each for each in turn.turn.items}
        self._last = ""
        self._agents = {run.run_id: run.agent for run in turn.runs}
        for each in reversed([each for each in turn.told if isinstance(each, Event)]):
            if each.kind == "handoff" and isinstance(each.payload, dict) and each.run_id is not None:
                self._agents[each.run_id] = each.payload.get("from")  # a run's agent is who had it last

    def grid(self) -> Table:
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        grid.add_column(no_wrap=True, width=8)
        grid.add_column(no_wrap=True, max_width=14, overflow="crop")
        grid.add_column(ratio=1, overflow="fold")
        for each in self._turn.told:
            line = self._event(each) if isinstance(each, Event) else self._item(each)
            if line is not None:
                who, text = line
                grid.add_row(self._clock(each), who, text)
        for run in self._turn.runs:
            words = plain(self._cut(f"run {run.run_id[:8]} {run_words(run)}"), "dim")
            if run.status in ("failed", "cancelled"):
                words.stylize(STATUS_STYLES[run.status])
            grid.add_row("", "", words)
        return grid

    def _clock(self, told: StoredItem | Event) -> Text:
        """When, where that is another second than the line before."""
        at, before = clock(told.created_at), self._last
        self._last = at
        return Text("" if at == before else at, style="dim")

    def _item(self, stored: StoredItem) -> tuple[Text, Text] | None:
        agent = self._agents.get(stored.run_id or "")
        if (run := self._calls.get(stored.position)) is not None:
            text = plain(self._cut(call_words(run)), "bold")
            arrow = "\n-> " if self._paper.ascii_only else "\n→ "
            text.append(arrow, "dim")
            text.append_text(plain(self._cut(outcome_words(run)), STATUS_STYLES.get(run.status, "")))
            output = self._items.get(run.output_position or 0)
            if output is not None and output is not stored and (said := item_words(output).text):
                text.append("\n")
                text.append_text(plain(self._cut(said), "dim"))
            return _who(run.agent or agent or "model", "cyan"), text
        answered = self._outputs.get(stored.position)
        if answered is not None and answered.position in self._items:
            return None  # told with its call
        said_by = item_words(stored, agent)
        style = "green" if said_by.who == "user" else "cyan"
        return _who(said_by.who, style), plain(self._cut(said_by.text), "dim" if said_by.quiet else "")

    def _event(self, event: Event) -> tuple[Text, Text] | None:
        told = event.payload if isinstance(event.payload, dict) else {}
        if event.kind == "handoff" and event.run_id is not None:
            self._agents[event.run_id] = told.get("to")
        untold = event.kind in _UNTOLD or (event.kind == "run_ended" and not told.get("error"))
        if untold and not self._full:
            return None
        return _who(event.agent or "", "dim"), plain(self._cut(event_words(event)), "magenta")

    def _cut(self, text: str) -> str:
        """Return a text, or its beginning and how much more there is."""
        kept = text if self._full else "\n".join(text[:_CHARACTERS].splitlines()[:_LINES])
        if self._full or len(text) - len(kept) < 40:
            return text
        return f"{kept}... ({number(len(text) - len(kept))} more characters, --full shows them)"


def _who(name: str, style: str) -> Text:
    return plain(clipped(name, 14), style)
