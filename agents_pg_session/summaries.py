"""Summaries: what a conversation said so far, in few words, as versions of a snapshot."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from agents_pg_session.labels import checked_number, checked_window
from agents_pg_session.ledgers.items import Items
from agents_pg_session.ledgers.scope import Scope
from agents_pg_session.ledgers.snapshots import Snapshots
from agents_pg_session.projection import Item
from agents_pg_session.texts import shown
from agents_pg_session.windows import Window, summary_boundary

__all__ = ["summarize"]


async def summarize(
    scope: Scope,
    items: Items,
    snapshots: Snapshots,
    write: Callable[[list[Item]], Awaitable[str]],
    *,
    keep_turns: int,
    window: Window,
) -> int | None:
    """Have *write* summarise the previous summary and what came since, and save that; None if nothing did."""
    assert window.summary is not None, "a summary's window"
    checked_window(window)
    keep_turns = checked_number("keep_turns", keep_turns)
    text, placed = await items.unsummarised(scope.key, window.summary)
    unread = placed[: summary_boundary(placed, keep_turns)]
    if not unread:
        return None
    previous = [] if text is None else [window.render(text)]
    summary = await write([*previous, *(each.item for each in unread)])
    if not isinstance(summary, str) or not summary.strip():
        raise ValueError(f"the function that writes the summary must return text, not {shown(summary)}")
    return await snapshots.save(window.summary, summary, through=unread[-1].position)
