"""Texts of others, errors above all, as our columns can hold them."""

from __future__ import annotations

from agents import UserError

__all__ = ["MAX_TEXT", "cause_in_tool", "described", "shown", "stored_name", "stored_text"]

#: Characters of an error's text that are kept.
MAX_TEXT = 2000

#: Characters of a value that an error shows.
MAX_SHOWN = 80

#: Bytes of a name that are kept: an agent's, as much as a label may have.
MAX_NAME_BYTES = 512


def described(error: BaseException) -> str:
    """Return an error as "ValueError: no station in Paris", as text a column can hold."""
    try:
        message = str(error)
    except Exception:
        message = ""
    kind = type(error).__name__
    return stored_text(f"{kind}: {message}" if message else kind)


def shown(value: object) -> str:
    """Return a value as an error tells of it, whatever it is: not endlessly long, and without failing itself."""
    try:
        text = repr(value)
    except Exception:  # some objects have no words, and an integer may have more digits than Python prints
        return f"something of type {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def stored_text(text: str) -> str:
    """Return *text* without what PostgreSQL cannot store, and not endlessly long."""
    text = text[:MAX_TEXT].replace("\0", "\ufffd")
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def stored_name(text: str) -> str:
    """Return a name as a column with an index over it can hold it."""
    text = stored_text(text)
    if 4 * len(text) <= MAX_NAME_BYTES:  # no character has more bytes
        return text
    return text.encode()[:MAX_NAME_BYTES].decode("utf-8", "ignore")


def cause_in_tool(tool: str, error: BaseException) -> BaseException:
    """Return what the tool raised where the Runner wrapped it into an error of its own."""
    name = tool.rpartition(".")[2]  # without its namespace
    wrapped = isinstance(error, UserError) and str(error).startswith(f"Error running tool {name}:")
    return error.__cause__ if wrapped and error.__cause__ is not None else error
