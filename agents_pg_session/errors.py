"""Everything the package raises, from one root.

SessionError                     catch this to catch all of them
├─ StorageUnavailable            the database cannot be reached, or stayed away longer than the retry budget
├─ SchemaOutdated                tables are missing or behind; the message names the command to run
├─ SessionConflict               another writer won
├─ SessionNotFound, SnapshotNotFound
├─ SessionClosed (RuntimeError)  the handle or the store was closed
└─ InvalidItem (ValueError)      an item cannot be stored; the message names its place

A message says what happened, to which thing, and what to do. It never holds a password or the contents of an item.
Arguments that can never work (a negative limit, an empty session id, an unusable URL) raise plain `ValueError`.
"""

from __future__ import annotations

__all__ = [
    "InvalidItem",
    "SchemaOutdated",
    "SessionClosed",
    "SessionConflict",
    "SessionError",
    "SessionNotFound",
    "SnapshotNotFound",
    "StorageUnavailable",
]


class SessionError(Exception):
    """The root of all errors of this package.

    `sqlstate` is the five-character code of the server where the database itself said no, else None
    (https://www.postgresql.org/docs/current/errcodes-appendix.html).
    """

    def __init__(self, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class StorageUnavailable(SessionError):
    """The database cannot be reached, or stayed away longer than the retry budget (`retry_for`).

    An append that ends this way is there once, whole, or not at all; the message says which of these is known.
    """


class SchemaOutdated(SessionError):
    """Tables are missing, behind or unknown to this version; the message names the command to run."""


class SessionConflict(SessionError):
    """Another writer won: nothing was written."""


class SessionNotFound(SessionError):
    """There is no such session for this tenant."""


class SnapshotNotFound(SessionError):
    """There is no such snapshot in this session."""


class SessionClosed(SessionError, RuntimeError):
    """The handle or the store was closed and cannot be used any more."""


class InvalidItem(SessionError, ValueError):
    """An item cannot be stored as JSON; the message names its place, and nothing was written."""
