"""What a failure means: may it pass, could the statement have taken effect, and what do we tell the caller.

Pure: an exception of the driver, of SQLAlchemy or of asyncio in, a verdict out. The rules follow the SQLSTATE classes
of PostgreSQL (https://www.postgresql.org/docs/current/errcodes-appendix.html) and the result codes of SQLite
(https://www.sqlite.org/rescode.html).
"""

from __future__ import annotations

import ssl
from enum import Enum, auto

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

__all__ = ["Verdict", "cause_to_show", "describe", "driver_error", "judge", "sqlstate_of"]


class Verdict(Enum):
    """What a failed attempt means for the verb that made it."""

    RETRY = auto()  #: it had no effect, and may work in a moment
    DOUBT = auto()  #: the answer was lost: it may have taken effect
    REFUSED = auto()  #: the database said no, and will say no again
    OUTDATED = auto()  #: tables or columns are missing
    CONFIGURATION = auto()  #: no connection can ever be made this way: a wrong password, an unknown database
    UNPREPARED = auto()  #: a pooler mixed up the prepared statements of several clients
    WRONG_LOOP = auto()  #: the pool belongs to another event loop
    FOREIGN = auto()  #: not the database's doing: it goes on as it is


_BY_SQLSTATE = {
    "0A000": Verdict.REFUSED,
    "25006": Verdict.RETRY,  # read only: a standby, or a primary that has just been demoted
    "25P02": Verdict.DOUBT,
    "25P03": Verdict.DOUBT,  # a transaction was idle for too long, and its connection is gone
    "25P04": Verdict.DOUBT,
    "26000": Verdict.UNPREPARED,
    "3D000": Verdict.CONFIGURATION,
    "3F000": Verdict.OUTDATED,
    "40001": Verdict.RETRY,
    "40P01": Verdict.RETRY,
    "42703": Verdict.OUTDATED,
    "42P01": Verdict.OUTDATED,
    "42P05": Verdict.UNPREPARED,
    "55P03": Verdict.RETRY,
    "57014": Verdict.RETRY,
    "57P03": Verdict.RETRY,
}
_BY_CLASS = {
    "08": Verdict.DOUBT,
    "28": Verdict.CONFIGURATION,
    "40": Verdict.DOUBT,
    "53": Verdict.RETRY,
    # The server was told to go away. With synchronous replication it may say so after a commit.
    "57": Verdict.DOUBT,
}
_SQLITE_BUSY, _SQLITE_LOCKED = 5, 6


def judge(error: BaseException, *, sent: bool) -> Verdict:
    """Return what *error* means; *sent* tells whether a statement was under way or only a connection being made."""
    verdict = _judge(error)
    return Verdict.RETRY if verdict is Verdict.DOUBT and not sent else verdict


def _judge(error: BaseException) -> Verdict:
    if isinstance(error, RuntimeError) and "loop" in str(error):
        return Verdict.WRONG_LOOP
    cause = driver_error(error)
    if (code := sqlstate_of(error)) is not None:
        if code == "0A000" and "cached plan" in str(cause):
            return Verdict.RETRY  # somebody migrated: SQLAlchemy has dropped its caches by now
        return _BY_SQLSTATE.get(code) or _BY_CLASS.get(code[:2], Verdict.REFUSED)
    if (sqlite_code := getattr(cause, "sqlite_errorcode", None)) is not None:
        if sqlite_code & 0xFF in (_SQLITE_BUSY, _SQLITE_LOCKED):
            return Verdict.RETRY
        return Verdict.OUTDATED if "no such" in str(cause) else Verdict.REFUSED
    if isinstance(error, PoolTimeout):
        return Verdict.RETRY
    if _is_configuration(cause):
        return Verdict.CONFIGURATION
    if _is_of_driver(cause) and _is_argument_error(cause):
        return Verdict.REFUSED
    if isinstance(error, DBAPIError | OSError | TimeoutError | EOFError) or _is_of_driver(cause):
        return Verdict.DOUBT
    return Verdict.REFUSED if isinstance(error, SQLAlchemyError) else Verdict.FOREIGN


def _is_configuration(cause: BaseException) -> bool:
    names = {each.__name__ for each in type(cause).__mro__}
    return isinstance(cause, ssl.SSLCertVerificationError) or "ClientConfigurationError" in names


def _is_argument_error(cause: BaseException) -> bool:
    """A value the driver itself cannot send: nothing left this machine."""
    return any(each.__name__ in ("DataError", "ProgrammingError", "NotSupportedError") for each in type(cause).__mro__)


def _is_of_driver(cause: BaseException) -> bool:
    """SQLAlchemy does not wrap what a driver raises while a new connection is set up."""
    return type(cause).__module__.partition(".")[0] in ("asyncpg", "psycopg")


def driver_error(error: BaseException) -> BaseException:
    """Return the driver's own exception behind SQLAlchemy's wrapping: it holds no statement and no values."""
    if not isinstance(error, DBAPIError) or error.orig is None:
        return error
    return error.orig.__cause__ or error.orig


def cause_to_show(error: BaseException) -> BaseException | None:
    """Return what an error of ours may name as its cause: nothing that may quote a row.

    SQLSTATE classes 22 and 23 are about the data itself, and a DETAIL of any error may hold it.
    """
    cause = driver_error(error)
    detail = getattr(cause, "detail", None) or getattr(getattr(cause, "diag", None), "message_detail", None)
    return None if detail or (sqlstate_of(error) or "")[:2] in ("22", "23") else cause


def sqlstate_of(error: BaseException) -> str | None:
    """Return the server's five-character code, if the server said something."""
    for each in (driver_error(error), getattr(error, "orig", None)):
        code = getattr(each, "sqlstate", None)
        if isinstance(code, str):
            return code
    return None


def describe(error: BaseException) -> str:
    """Say in one line what the driver said: never a DETAIL line, which may quote a row."""
    cause = driver_error(error)
    lines = str(cause).strip().splitlines()
    if isinstance(cause, TimeoutError) and not lines:
        return "no answer in time"
    said = lines[0].strip() if lines else ""
    code = sqlstate_of(error)
    return f"{type(cause).__name__}{f' {code}' if code else ''}{f': {said}' if said else ''}"
