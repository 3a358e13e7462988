"""What a failure means: may it pass, could the statement have taken effect, and what do we tell the caller.

Pure: an exception of the driver, of SQLAlchemy or of asyncio in, a verdict out. The rules follow the SQLSTATE classes
of PostgreSQL (https://www.postgresql.org/docs/current/errcodes-appendix.html) and the result codes of SQLite
(https://www.sqlite.org/rescode.html).
"""

from __future__ import annotations

import re
import sqlite3
import ssl
from enum import Enum, auto

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

__all__ = ["STALE_PLAN", "Verdict", "advice", "cause_to_show", "describe", "driver_error", "judge", "sqlstate_of"]


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


#: Somebody changed the type of a column under a prepared statement (or, from others, a feature that is not there).
STALE_PLAN = "0A000"

_BY_SQLSTATE = {
    STALE_PLAN: Verdict.REFUSED,
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
#: What to do about it, where the server's own words do not say.
_ADVICE = {
    "25006": "this server is a standby, or read only: give the URL of the primary",
    "42501": "this role may not do that: `agents-pg-session db grants` prints what each role needs",
    "57014": "somebody cancelled it, or it took longer than the statement_timeout of this role or database: raise that "
    "with ALTER ROLE … SET statement_timeout, or see in pg_stat_activity what it waits for",
}
_SQLITE_BUSY, _SQLITE_LOCKED = 5, 6
_UNDECODABLE = "Could not decode to UTF-8"

#: What Python raises where a driver is told to connect in a way it cannot: an unknown argument, a port no machine has.
_UNUSABLE = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError)

#: How a login is refused for good where no SQLSTATE says so: PgBouncer says 08P01 of everything it refuses, and libpq
#: passes no code of a failed login on.
_LOGIN_REFUSED = re.compile(
    r'unsupported startup parameter|(?:password|SASL) authentication failed|(?:database|role) ".*" does not exist'
)

#: Another client's statement stands under the name of ours, and takes another number of values.
_ANOTHERS_STATEMENT = "bind message supplies"


def judge(error: BaseException, *, sent: bool) -> Verdict:
    """Return what *error* means; *sent* tells whether a statement was under way or only a connection being made."""
    verdict = _judge(error)
    if not sent and verdict is Verdict.FOREIGN and isinstance(error, _UNUSABLE):
        return Verdict.CONFIGURATION
    if not sent and verdict is Verdict.DOUBT:
        return Verdict.CONFIGURATION if _LOGIN_REFUSED.search(str(driver_error(error))) else Verdict.RETRY
    return verdict


def _judge(error: BaseException) -> Verdict:
    if isinstance(error, RuntimeError) and "loop" in str(error):
        return Verdict.WRONG_LOOP
    if isinstance(error, NotImplementedError) and "DateStyle" in str(error):
        return Verdict.REFUSED  # psycopg reads times in the ISO style only
    cause = driver_error(error)
    if (code := sqlstate_of(error)) is not None:
        if code == STALE_PLAN and "cached" in str(cause):  # "cached plan …"; asyncpg: "cached statement plan …"
            return Verdict.RETRY
        if code == "08P01" and str(cause).startswith(_ANOTHERS_STATEMENT):
            return Verdict.UNPREPARED
        return _BY_SQLSTATE.get(code) or _BY_CLASS.get(code[:2], Verdict.REFUSED)
    if (sqlite_code := getattr(cause, "sqlite_errorcode", None)) is not None:
        if sqlite_code & 0xFF in (_SQLITE_BUSY, _SQLITE_LOCKED):
            return Verdict.RETRY
        return Verdict.OUTDATED if "no such" in str(cause) else Verdict.REFUSED
    if isinstance(cause, sqlite3.Error) and _UNDECODABLE in str(cause):
        return Verdict.REFUSED  # a row that was edited by hand holds bytes where text belongs
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


def advice(error: BaseException) -> str:
    """Say what to do about it, as the end of a sentence; nothing where there is nothing to add."""
    found = _ADVICE.get(sqlstate_of(error) or "")
    return f"; {found}" if found else ""


def describe(error: BaseException) -> str:
    """Say in one line what the driver said: never a DETAIL line, which may quote a row."""
    cause = driver_error(error)
    lines = str(cause).strip().splitlines()
    if isinstance(cause, TimeoutError) and not lines:
        return "no answer in time"
    said = lines[0].strip() if lines else ""
    said = said.partition(" with text")[0] if _UNDECODABLE in said else said  # that text is the row's
    code = sqlstate_of(error)
    return f"{type(cause).__name__}{f' {code}' if code else ''}{f': {said}' if said else ''}"
