"""What SQLite's statements have to get right by themselves: text for JSON and times, and steps that go together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Row, create_engine, event, text

from agents_pg_session import schema
from agents_pg_session.entries import Labels, compose
from agents_pg_session.projection import Item, project
from agents_pg_session.reports import Note
from agents_pg_session.statements import Command, Key, Snapshotted, Write
from agents_pg_session.statements.sqlite import SQLiteStatements
from tests.items import assistant, call, item, output, user

KEY = Key("", "s")
SQL = SQLiteStatements()


class File:
    """A SQLite file, and commands run on it as `Database` does."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def run(self, asked: Write | Command) -> Sequence[Row[Any]]:
        command = asked if isinstance(asked, Command) else asked.attempt(str(uuid4()))
        rows: Sequence[Row[Any]] = ()
        self.connection.execute(text("BEGIN IMMEDIATE"))
        for step in command.steps:
            result = self.connection.execute(step.clause, step.values)
            rows = result.all() if result.returns_rows else ()
            if step.decisive and not rows:
                break
        self.connection.execute(text("COMMIT"))
        return rows

    def append(self, *items: Item) -> None:
        self.run(SQL.append(KEY, compose(items, Labels())))

    def all(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.connection.execute(text(sql)).all()]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    engine = create_engine(f"sqlite:///{tmp_path}/s.db", isolation_level="AUTOCOMMIT")
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys = ON"))
    with engine.connect() as connection:
        connection.execute(text("BEGIN IMMEDIATE"))
        schema.create(connection, None)
        connection.execute(text("COMMIT"))
        yield File(connection)
    engine.dispose()


EDITED = ("no JSON", '{ "a": 1.0 }', '"text"', "[1, 2]", "5", '{"b":"\\u0000\\ud800\\/","c":[1e2,-0.0,1E+5],"c":2}')


def test_what_is_restored_is_verbatim(file: File) -> None:
    """Also rows that were edited by hand, whatever they hold now, come back to the letter; the content stays JSON."""
    file.append(*(user(str(index)) for index in range(len(EDITED))))
    for position, said in enumerate(EDITED, start=1):
        file.connection.execute(
            text("UPDATE items SET item = :item WHERE position = :position"), {"item": said, "position": position}
        )
    before = file.all("SELECT * FROM items ORDER BY position")

    file.run(SQL.replace(KEY, project([user("new")]), 1, (len(EDITED), len(EDITED))))
    [(content,)] = file.all("SELECT content FROM snapshots")
    [restored] = file.run(SQL.restore(KEY, 1))

    assert len(json.loads(content)) == len(EDITED)
    assert json.loads(restored.payload)["inserted"] == len(EDITED)
    assert file.all("SELECT * FROM items ORDER BY position") == before


def test_popped_rows_that_are_no_json_become_a_string(file: File) -> None:
    """The event's payload is JSON whatever the row holds."""
    file.append(user("hi"))
    file.connection.execute(text("""UPDATE items SET item = 'no "JSON"'"""))

    [popped] = file.run(SQL.pop(KEY))

    assert json.loads(popped.payload)["item"] == 'no "JSON"'


def test_late_outputs_find_the_newest_calls_first(file: File) -> None:
    """Two outputs with one call id answer two calls, the newest first; a call that comes with them is left alone."""
    file.append(user("hi"), call("a"), call("a"))
    file.append(output("a", "one"), output("a", "two"), output("a", "nobody's"), call("a"))

    rows = file.all("SELECT call_position, output_position, status FROM tool_runs ORDER BY call_position")
    assert rows == [(2, 5, "succeeded"), (3, 4, "succeeded"), (7, None, "running")]


def test_popping_undoes_tool_runs(file: File) -> None:
    """An output leaves its tool run running; a call takes it along."""
    file.append(call("a"), output("a"))

    file.run(SQL.pop(KEY))
    assert file.all("SELECT output_position, status, finished_at FROM tool_runs") == [(None, "running", None)]

    file.run(SQL.pop(KEY))
    assert file.all("SELECT count(*), (SELECT tool_run_count FROM sessions) FROM tool_runs") == [(0, 0)]


def test_replace_tells_when_the_tail_is_another_one(file: File) -> None:
    """Nothing changes; the answer is a row without a payload."""
    file.append(user("hi"), assistant("hello"))

    assert [tuple(row) for row in file.run(SQL.replace(KEY, project([user("new")]), 1, (1, 1)))] == [(1, None)]
    assert file.all("SELECT last_position, item_count, last_event_id FROM sessions") == [(2, 2, 0)]


def test_a_claim_is_held_until_it_is_given_back_or_expires(file: File) -> None:
    """And it is not to be had where the session went on."""
    file.run(SQL.save(KEY, Snapshotted("run_state", "{}", status="waiting"), Labels()))

    def claim(claim_id: str, seconds: float = 60.0) -> tuple[bool, bool]:
        [row] = file.run(SQL.claim(KEY, "run_state", claim_id, seconds))
        return bool(row.claimed), bool(row.held)

    assert [claim("one"), claim("two")] == [(True, False), (False, True)]
    file.run(SQL.unclaim(KEY, "run_state", "one"))
    assert [claim("two", 0.0), claim("three", 0.0)] == [(True, False), (True, False)]
    file.append(user("hi"))
    assert claim("four") == (False, False)


def test_a_lease_has_one_holder(file: File) -> None:
    """Until it expires; who holds it may take it again."""
    taken = [len(file.run(SQL.lease(KEY, holder, 60, Labels()))) for holder in ("one", "two", "one")]
    renewed = [len(file.run(SQL.renew(KEY, holder, -1))) for holder in ("one", "two")]

    assert (taken, renewed) == ([1, 0, 1], [1, 0])
    assert len(file.run(SQL.lease(KEY, "two", 60, Labels()))) == 1


def test_times_are_text_that_sorts(file: File) -> None:
    """All have one form, so that comparing them as text is right."""
    file.append(item(type="function_call", call_id="a", name="f", arguments="{}"), output("a"))
    file.run(SQL.record(KEY, Note("seen"), Labels()))
    file.run(SQL.end(KEY, "ended"))
    times = file.all(
        "SELECT created_at FROM events UNION SELECT finished_at FROM tool_runs UNION SELECT ended_at FROM sessions"
    )

    assert {len(moment) for (moment,) in times} == {len("2026-01-01 00:00:00.000")}


def test_deleting_is_for_the_session_that_was_there(file: File) -> None:
    """Another one under its name stays, and foreign keys need not be on."""
    file.append(user("hi"))
    [(created_at,)] = file.all("SELECT created_at FROM sessions")
    file.connection.execute(text("PRAGMA foreign_keys = OFF"))

    assert file.run(SQL.delete(KEY, "2026-01-01 00:00:00.000")) == []
    assert len(file.run(SQL.delete(KEY, created_at))) == 1
    assert file.all("SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM items)") == [(0, 0)]
