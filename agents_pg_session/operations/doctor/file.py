"""A SQLite file: its own checks, the settings that hurt, and what this version creates beside what is there."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from functools import cache, partial

from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from agents_pg_session.operations.doctor.asking import Asking
from agents_pg_session.operations.doctor.findings import Finding, Place
from agents_pg_session.operations.doctor.locked import Change
from agents_pg_session.tables import metadata_for, view_statements

__all__ = ["catalog_findings", "file_findings", "rebuilt"]

# How many complaints SQLite's own check lists before it stops.
_FIRST = 20


async def file_findings(asking: Asking) -> list[Finding]:
    """Examine the file; `integrity_check` reads all of it. Whether it lies on a network share cannot be known."""
    findings = []
    damage = [row[0] for row in await asking.rows(f"PRAGMA integrity_check({_FIRST})")]
    if damage != ["ok"]:
        findings.append(
            Finding(
                "fault",
                "file",
                "the file is damaged",
                "Reads may fail or leave rows out.",
                "restore a backup, or save what there is: sqlite3 damaged.db .recover | sqlite3 new.db",
                len(damage),
                tuple(Place(str(each)) for each in damage[:5]),
            )
        )
    strays = await asking.rows("PRAGMA foreign_key_check")
    if strays:
        tables = sorted({str(row[0]) for row in strays})
        findings.append(
            Finding(
                "fault",
                "file",
                f"{len(strays)} rows belong to a session that is not there",
                "Somebody deleted sessions with foreign keys switched off; the next session of that name gets their"
                " rows.",
                "; ".join(
                    f"DELETE FROM {table} WHERE (tenant_id, session_id) NOT IN (SELECT tenant_id, session_id FROM"
                    " sessions)"
                    for table in tables
                ),
                len(strays),
                tuple(Place(f"table {table}") for table in tables),
            )
        )
    mode = (await asking.rows("PRAGMA journal_mode"))[0][0]
    synchronous = (await asking.rows("PRAGMA synchronous"))[0][0]
    if str(mode) not in ("wal", "memory"):
        why = "Readers and the writer wait for each other: this package switches each file to wal when it opens it."
        findings.append(
            Finding("warning", "file", f"journal_mode is {mode}, not wal", why, "PRAGMA journal_mode = WAL")
        )
    if str(synchronous) == "0":
        why = "After a crash of the machine the file may be damaged beyond repair."
        findings.append(
            Finding("fault", "file", "synchronous is OFF", why, "open it with PRAGMA synchronous = NORMAL or FULL")
        )
    return findings


async def catalog_findings(asking: Asking) -> list[Finding]:
    """Compare tables, columns, indexes and views with those this version creates, in a file of its own in memory."""
    rows = await asking.rows("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    there = {(row[0], row[1]): _words(row[2]) for row in rows}
    wanted = _wanted()
    places = [
        Place(f"{kind} {name} {'is missing' if (kind, name) not in there else 'differs'}")
        for (kind, name), words in wanted.items()
        if there.get((kind, name)) != words
    ]
    if not places:
        return []
    indexes = all(place.said.startswith("index ") for place in places)
    return [
        Finding(
            "fault",
            "schema",
            f"{len(places)} object{'' if len(places) == 1 else 's'} of the schema not as this version creates them",
            "Somebody changed them by hand: lists read whole tables without their index, a constraint that is gone lets"
            " wrong rows in.",
            "agents-pg-session doctor --repair"
            if indexes
            else "restore a backup, or export and import into a new file",
            len(places),
            tuple(places[:10]),
            "indexes" if indexes else None,
        )
    ]


async def rebuilt(asking: Asking, dry_run: bool) -> AsyncIterator[Change]:
    """Create the indexes that are missing."""
    rows = await asking.rows("SELECT name FROM sqlite_master WHERE type = 'index'")
    there = {row[0] for row in rows}
    for table in metadata_for(None).sorted_tables:
        for index in table.indexes:
            if index.name in there:
                continue
            if not dry_run:
                await asking.database.transaction("doctor", partial(index.create, checkfirst=True))
            yield Change("indexes", str(index.name), "is missing", "built")


@cache
def _wanted() -> dict[tuple[str, str], tuple[str, ...]]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for table in metadata_for(None).sorted_tables:
            connection.execute(_ddl(CreateTable(table)))
            for index in table.indexes:
                connection.execute(_ddl(CreateIndex(index)))
        for statement in view_statements("", "sqlite").values():
            connection.execute(statement)
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {(kind, name): _words(sql) for kind, name, sql in rows}


def _ddl(element: CreateTable | CreateIndex) -> str:
    return str(element.compile(dialect=sqlite.dialect()))


def _words(sql: str) -> tuple[str, ...]:
    """The words of a definition; those of a table in any order, for an added column stands behind the constraints."""
    words = re.findall(r"'(?:[^']|'')*'|\w+|[^\s\w]", sql.replace('"', ""))
    return tuple(sorted(words) if sql.lstrip().upper().startswith("CREATE TABLE") else words)
