"""What callers name things by: checked before it reaches the database, with an error that says what will not do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from agents.memory import SessionSettings

from agents_pg_session.entries import Labels
from agents_pg_session.errors import InvalidItem
from agents_pg_session.projection import encode
from agents_pg_session.texts import shown
from agents_pg_session.windows import Window

__all__ = [
    "LONGEST",
    "MAX_ID_BYTES",
    "checked_end",
    "checked_filters",
    "checked_flag",
    "checked_id",
    "checked_labels",
    "checked_number",
    "checked_seconds",
    "checked_settings",
    "checked_span",
    "checked_text",
    "checked_window",
    "metadata_text",
]

#: Bytes of UTF-8 a tenant, a session id, an agent or a user id may have: four of them fit into one index entry.
MAX_ID_BYTES = 512

#: Seconds a lease or a claim may last: a year.
LONGEST = 366 * 86400

#: How long a session may be told to last: a hundred years.
_LONGEST_LIFE = timedelta(days=36525)


def checked_id(name: str, value: object) -> str:
    """Return *value* if a key column and the indexes over it can hold it, else raise `ValueError`."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, not {type(value).__name__}")
    if "\0" in value:
        raise ValueError(f"{name} must not contain NUL: PostgreSQL cannot store it")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{name} must not contain a lone surrogate: it has no UTF-8") from None
    if size > MAX_ID_BYTES:
        raise ValueError(f"{name} must be at most {MAX_ID_BYTES} bytes of UTF-8, not {size}")
    return value


def checked_text(name: str, value: object) -> str:
    """Return *value* if it is a name: text as an id, and not empty; else raise `ValueError`."""
    text = checked_id(name, value)
    if not text:
        raise ValueError(f"{name} must not be empty")
    return text


def checked_filters(**filters: str | None) -> dict[str, str | None]:
    """Return what a list is filtered by, or raise `ValueError` for what no column can hold."""
    return {name: None if value is None else checked_id(name, value) for name, value in filters.items()}


def checked_number(name: str, value: object, *, least: int = 0) -> int:
    """Return *value* if it is a whole number from *least* to what a bigint holds, else raise `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise ValueError(f"{name} must be a whole number from {least} to 2^63 - 1, not {shown(value)}")
    return value


def checked_seconds(name: str, value: object) -> float:
    """Return *value* if it is a number of seconds a lease or a claim can last, else raise `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LONGEST:
        raise ValueError(f"{name} must be a positive number of seconds, a year at most, not {shown(value)}")
    return float(value)


def checked_flag(name: str, value: object) -> bool:
    """Return *value* if it is True or False, else raise `ValueError`: nothing else may widen what is asked for."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {shown(value)}")
    return value


def checked_window(value: object) -> Window | None:
    """Return *value* if it is a window of this package, or none, else raise `ValueError`."""
    if value is not None and not isinstance(value, Window):
        raise ValueError(f"window must be a Window, not {type(value).__name__}: Window(turns=10)")
    if value is not None and value.summary is not None:
        checked_text("the kind of the window's summary", value.summary)
    return value


def checked_labels(
    agent: str | None, user_id: str | None, metadata: Mapping[str, Any] | None, expires_after: timedelta | None = None
) -> Labels:
    """Return what a handle says of its session, or raise `ValueError`."""
    return Labels(
        agent=None if agent is None else checked_id("agent", agent),
        user_id=None if user_id is None else checked_id("user_id", user_id),
        metadata=None if metadata is None else metadata_text(metadata),
        expires_after=None if expires_after is None else checked_span("expires_after", expires_after).total_seconds(),
    )


def checked_span(name: str, value: object) -> timedelta:
    """Return *value* if it is a positive duration that a session's life can have, else raise `ValueError`."""
    if not isinstance(value, timedelta):
        raise ValueError(f"{name} must be a timedelta, not {shown(value)}: timedelta(days=30)")
    if not timedelta(0) < value <= _LONGEST_LIFE:
        raise ValueError(f"{name} must be positive, and at most {_LONGEST_LIFE.days} days, not {value}")
    return value


def checked_end(value: object) -> timedelta | datetime | None:
    """Return *value* if a session can end then: after a duration, at a moment, or (None) never; else `ValueError`."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        return checked_span("the end", value)
    if value.utcoffset() is None:
        raise ValueError("the end must be an aware datetime, with a time zone: datetime.now(timezone.utc)")
    if not 1 < value.year < 9999:
        raise ValueError(f"the end must be a date people live at, not {value}")
    return value


def checked_settings(value: SessionSettings | dict[str, Any] | None) -> SessionSettings | None:
    """Return the SDK's settings, from a dict too, or raise `ValueError`."""
    if isinstance(value, dict):
        try:
            value = SessionSettings(**value)
        except (TypeError, ValueError) as error:
            why = str(error).partition("\n")[0][:200]
            raise ValueError(f"session_settings is not what SessionSettings takes: {why}") from None
    if value is not None and not hasattr(value, "limit"):
        raise ValueError(f"session_settings must be SessionSettings or a dict, not {type(value).__name__}")
    return value


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """Return the metadata as JSON text that jsonb takes, or raise `InvalidItem` naming what it does not take."""
    if not isinstance(metadata, Mapping):
        raise InvalidItem(f"metadata must be a dict, not {type(metadata).__name__}")
    text = encode(dict(metadata), place="metadata")
    if not all(map(_fits_jsonb, _texts(json.loads(text)))):
        raise InvalidItem("metadata contains NUL or a lone surrogate, which jsonb cannot hold")
    return text


def _texts(value: object) -> Iterator[str]:
    """Yield every text in a JSON value, keys too; without recursion, for it may be as deep as the decoder allows."""
    waiting = [value]
    while waiting:
        match each := waiting.pop():
            case str():
                yield each
            case dict():
                waiting += [*each, *each.values()]
            case list():
                waiting += each


def _fits_jsonb(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
