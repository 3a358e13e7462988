"""What a failure means: the rules, one by one."""

from __future__ import annotations

import sqlite3
import ssl

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from agents_pg_session.failures import Verdict, cause_to_show, describe, judge


class ServerError(Exception):
    """Stands for a driver's exception with a code from the server."""

    def __init__(self, sqlstate: str, message: str = "no") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


def wrapped(cause: Exception) -> DBAPIError:
    return DBAPIError("INSERT hunter2", {"item": "hunter2"}, cause)


@pytest.mark.parametrize(
    ("sqlstate", "verdict"),
    [
        ("40001", Verdict.RETRY),
        ("40P01", Verdict.RETRY),
        ("40003", Verdict.DOUBT),
        ("53300", Verdict.RETRY),
        ("53100", Verdict.RETRY),
        ("55P03", Verdict.RETRY),
        ("57014", Verdict.RETRY),
        ("57P01", Verdict.DOUBT),
        ("57P03", Verdict.RETRY),
        ("08006", Verdict.DOUBT),
        ("25006", Verdict.RETRY),
        ("25P03", Verdict.DOUBT),
        ("42P01", Verdict.OUTDATED),
        ("42703", Verdict.OUTDATED),
        ("3F000", Verdict.OUTDATED),
        ("42501", Verdict.REFUSED),
        ("23514", Verdict.REFUSED),
        ("22021", Verdict.REFUSED),
        ("28P01", Verdict.CONFIGURATION),
        ("3D000", Verdict.CONFIGURATION),
        ("26000", Verdict.UNPREPARED),
        ("42P05", Verdict.UNPREPARED),
    ],
)
def test_the_server_said_why(sqlstate: str, verdict: Verdict) -> None:
    """SQLSTATE decides, wrapped by SQLAlchemy or not."""
    assert judge(ServerError(sqlstate), sent=True) is verdict
    assert judge(wrapped(ServerError(sqlstate)), sent=True) is verdict


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        TimeoutError(),
        EOFError(),
        OSError(113, "No route to host"),
        asyncpg.ConnectionDoesNotExistError("gone"),
        asyncpg.InterfaceError("connection is closed"),
        wrapped(asyncpg.InterfaceError("cannot perform operation")),
        wrapped(Exception("the connection is closed")),
    ],
)
def test_a_lost_connection_is_in_doubt_once_a_statement_was_sent(error: Exception) -> None:
    """Before that, nothing can have happened."""
    assert judge(error, sent=True) is Verdict.DOUBT
    assert judge(error, sent=False) is Verdict.RETRY


def test_a_pool_without_a_free_connection_may_have_one_soon() -> None:
    """Waiting for a connection had no effect."""
    assert judge(PoolTimeout("QueuePool limit"), sent=False) is Verdict.RETRY


def test_a_certificate_nobody_trusts_is_configuration() -> None:
    """Trying again would not make it better."""
    assert judge(ssl.SSLCertVerificationError("self-signed"), sent=False) is Verdict.CONFIGURATION


def test_a_foreign_loop_is_recognised() -> None:
    """The driver only says something about futures."""
    error = RuntimeError("Task <…> got Future <…> attached to a different loop")

    assert judge(error, sent=True) is Verdict.WRONG_LOOP


def test_sqlite_codes() -> None:
    """A busy file passes; a missing table does not."""
    with sqlite3.connect(":memory:") as connection, pytest.raises(sqlite3.OperationalError) as missing:
        connection.execute("SELECT * FROM items")
    connection.close()
    busy = sqlite3.OperationalError("database is locked")
    busy.sqlite_errorcode = sqlite3.SQLITE_BUSY

    assert judge(wrapped(missing.value), sent=True) is Verdict.OUTDATED
    assert judge(wrapped(busy), sent=True) is Verdict.RETRY


def test_a_mistake_in_our_own_code_is_not_retried() -> None:
    """An exception that is not the database's goes on as it is."""
    assert judge(KeyError("x"), sent=True) is Verdict.FOREIGN


def test_descriptions_hold_one_line_and_no_values() -> None:
    """Neither the statement, nor its values, nor a DETAIL line that quotes the row."""
    error = wrapped(ServerError("23514", 'violates check constraint "c"\nDETAIL:  Failing row contains (hunter2).'))

    assert describe(error) == 'ServerError 23514: violates check constraint "c"'
    assert cause_to_show(error) is None
    assert cause_to_show(asyncpg.RaiseError.new({"C": "P0001", "M": "no", "D": "hunter2"})) is None
    assert cause_to_show(wrapped(ServerError("40001"))) is not None
