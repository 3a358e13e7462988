"""The kinds of session the SDK has, and how each lays out its tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from agents_pg_session.operations.sdk_tables import Layout

__all__ = ["layouts_of"]


@dataclass(frozen=True)
class _Dialect:
    """What the two databases write differently."""

    data: str  #: the item's text; on SQLite as bytes, for a column there may hold anything
    size: str
    time: str  #: of our clock's kind; PostgreSQL's come without a zone, in that of the server
    among: str  #: a session is one of those asked for
    nothing: str


_POSTGRES = _Dialect(
    data="CAST(m.message_data AS text)",
    size="octet_length(CAST(m.message_data AS text))",
    time="CAST({} AS timestamp with time zone)",
    among="m.session_id = ANY (ARRAY(SELECT json_array_elements_text(CAST(CAST(:among AS text) AS json) -> 0)))",
    nothing="CAST(NULL AS text)",
)
_SQLITE = _Dialect(
    data="CAST(m.message_data AS BLOB)",
    size="length(CAST(m.message_data AS BLOB))",
    time="{}",
    among="m.session_id IN (SELECT value FROM json_each(:among, '$[0]'))",
    nothing="NULL",
)


def layouts_of(postgres: bool, names: Mapping[str, str], *, timed: bool, structured: bool) -> list[Layout]:
    """Return how to read tables whose quoted *names* are `sessions` and `messages`.

    *timed*: they are `SQLAlchemySession`'s, which sorts by time. *structured*: an `AdvancedSQLiteSession` keeps its
    structure beside them; sessions that it has not touched are read as those of a `SQLiteSession`.
    """
    plain = _sqlalchemy(postgres, names) if timed else _plain(names)
    if not structured:
        return [plain]
    untouched = "NOT EXISTS (SELECT 1 FROM message_structure o WHERE o.session_id = m.session_id)"
    return [_advanced(names), replace(plain, rest=untouched)]


def _names(dialect: _Dialect, names: Mapping[str, str], **more: str) -> dict[str, str]:
    return {
        "created_at": dialect.time.format("m.created_at"),
        "session_created_at": dialect.time.format("c.created_at"),
        "session_updated_at": dialect.time.format("c.updated_at"),
        "session_id": "m.session_id",
        "branch": dialect.nothing,
        "group": "m.session_id",
        "id": "m.id",
        "data": dialect.data,
        "size": dialect.size,
        "user_turn": "NULL",
        "usages": "0",
        "tokens": "0",
        "unlisted": "0",
        **more,
        "rows": more.get("rows", "{messages} m"),
        **names,
    }


def _sqlalchemy(postgres: bool, names: Mapping[str, str]) -> Layout:
    dialect = _POSTGRES if postgres else _SQLITE
    return Layout(
        kind="SQLAlchemySession",
        order_words="created_at, id",
        postgres=postgres,
        names=_names(dialect, names, key="m.created_at", tie="m.id", order="m.created_at, m.id"),
        after_session="m.session_id > :after_session",
        after_row="(m.created_at, m.id) > (:k1, :k2)",
        until_row="(m.created_at, m.id) <= (:k1, :k2)",
        one="m.session_id = :session_id",
        among=dialect.among,
    )


def _plain(names: Mapping[str, str]) -> Layout:
    return Layout(
        kind="SQLiteSession",
        order_words="id",
        postgres=False,
        names=_names(_SQLITE, names, key="m.id", tie="0", order="m.id"),
        after_session="m.session_id > :after_session",
        after_row="m.id > :k1",
        until_row="m.id <= :k1",
        one="m.session_id = :session_id",
        among=_SQLITE.among,
    )


def _advanced(names: Mapping[str, str]) -> Layout:
    usage = "(SELECT {} FROM turn_usage u WHERE u.session_id = t.session_id AND u.branch_id = t.branch)"
    return Layout(
        kind="AdvancedSQLiteSession",
        order_words="branch_id, sequence_number",
        postgres=False,
        names=_names(
            _SQLITE,
            names,
            rows="message_structure s JOIN {messages} m ON m.id = s.message_id AND m.session_id = s.session_id",
            session_id="s.session_id",
            branch="s.branch_id",
            group="s.session_id, s.branch_id",
            id="s.id",
            key="s.sequence_number",
            tie="s.id",
            order="s.sequence_number, s.id",
            user_turn="s.user_turn_number",
            usages=usage.format("count(*)"),
            tokens=usage.format("coalesce(sum(coalesce(u.total_tokens, 0)), 0)"),
            unlisted="(SELECT count(*) FROM {messages} m"
            " WHERE EXISTS (SELECT 1 FROM message_structure o WHERE o.session_id = m.session_id)"
            " AND m.id NOT IN (SELECT message_id FROM message_structure))",
        ),
        after_session="(s.session_id, s.branch_id) > (:after_session, :after_branch)",
        after_row="(s.sequence_number, s.id) > (:k1, :k2)",
        until_row="(s.sequence_number, s.id) <= (:k1, :k2)",
        one="s.session_id = :session_id AND s.branch_id = :branch",
        # The pairs travel as two lists of one length.
        among="(s.session_id, s.branch_id) IN (SELECT i.value, b.value FROM json_each(:among, '$[0]') i"
        " JOIN json_each(:among, '$[1]') b ON b.key = i.key)",
        branched=True,
    )
