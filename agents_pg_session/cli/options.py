"""Options that several commands have, in the same words, and how times and metadata are written in a shell."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from agents_pg_session import Page
from agents_pg_session.cli.paper import Paper

__all__ = [
    "After",
    "AllTenants",
    "Limit",
    "SessionId",
    "Since",
    "Tenant",
    "Yes",
    "go_on",
    "moment",
    "nothing",
    "pairs",
]

SessionId = Annotated[str, typer.Argument(help="The session.", metavar="SESSION", show_default=False)]
Tenant = Annotated[
    str,
    typer.Option("--tenant", help="Whose sessions; without it those of no tenant.", metavar="ID", show_default=False),
]
AllTenants = Annotated[bool, typer.Option("--all-tenants", help="Those of all tenants.")]
Limit = Annotated[int, typer.Option("--limit", help="How many.", min=1, max=1000, metavar="N")]
After = Annotated[
    str | None, typer.Option("--after", help="Go on behind a page before.", metavar="CURSOR", show_default=False)
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since", help="From when on: 7d, 12h, 30m, 2026-11-01 or 2026-11-01T10:00Z (UTC).", metavar="WHEN",
    ),
]  # fmt: skip
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(option: str, text: str | None) -> timedelta | datetime | None:
    """Return a time as `--since` has it: "7d" reaches back from the present, a date or a time is one, in UTC.

    Raises `ValueError` naming the option and how times are written.
    """
    if text is None:
        return None
    if match := re.fullmatch(r"(\d{1,6})([smhdw])", text.strip()):
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f"{option} must be a time like 7d, 12h, 30m, 2026-11-01 or 2026-11-01T10:00Z, not {text!r}"
        ) from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at


def pairs(option: str, texts: Iterable[str]) -> dict[str, Any] | None:
    """Return metadata as a shell has it: `plan=pro` is text, `seats=5` and `trial=true` are JSON, and so is a whole
    object. Raises `ValueError` for anything else; None for nothing.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if text.lstrip().startswith("{"):
            found |= _object(option, text)
        elif equals and key:
            found[key] = _value(value)
        else:
            raise ValueError(f"{option} must be key=value or a JSON object, not {text!r}")
    return found or None


def go_on(paper: Paper, page: Page[Any]) -> None:
    """Say how the list goes on, where it does."""
    if page.more:
        paper.note(f"there are more: --after {page.cursor}")


def nothing(paper: Paper, what: str, tenant: str, all_tenants: bool) -> None:
    """Say that a list is empty, and of whom: without `--tenant` it is about sessions of no tenant, which few have."""
    whose = "" if all_tenants else f" of tenant {tenant}" if tenant else " of no tenant"
    paper.note(f"{what}{whose}{'' if tenant or all_tenants else ': --tenant or --all-tenants looks further'}")


def _object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{option} must be key=value or a JSON object, not {text!r}")
    return value


def _value(text: str) -> Any:
    """A number, true, false, null, a list or an object as JSON has them; anything else is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
