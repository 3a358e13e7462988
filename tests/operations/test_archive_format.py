"""The archive as a file: raw JSON survives in it, and what is not as it was exported is refused by line."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from agents_pg_session import SessionError, SessionStore
from agents_pg_session.operations import archive
from agents_pg_session.operations.archive import BadArchive
from agents_pg_session.operations.archive_lines import LineReader, LineWriter, prefix_of
from agents_pg_session.operations.exporting import Selection, export_sessions
from agents_pg_session.operations.files import written_whole
from agents_pg_session.operations.importing import import_sessions
from agents_pg_session.operations.pages import _page_sql
from agents_pg_session.operations.shapes import shapes
from agents_pg_session.statements import Key
from tests.items import call, output, user
from tests.operations.archives import exported, imported, lines_of, sealed

Stores = dict[str, SessionStore]

RAW = [
    '{"n":1e2,"z":-0.0,"n":1E+2,"big":123456789012345678901234567890,"s":"\\ud800\\u0000"}',
    '{ "spaced" :\t[1 , 2] }',
    '{"lines":\n [1,\r\n 2]}',
    ' {"outside":1} ',
    '{"item":{"item":1},"x":"\\",\\"item\\":{"}',
    f"{'[' * 2000}{']' * 2000}",
    "9" * 5000,
    "null",
]


@pytest.mark.parametrize(("source", "target"), [("asyncpg", "sqlite"), ("psycopg", "sqlite"), ("sqlite", "asyncpg")])
async def test_rows_that_were_edited_by_hand_keep_every_byte(
    stores: Stores, tenant: str, source: str, target: str
) -> None:
    """Numbers in any notation, keys that come twice, line breaks between tokens: the text of an item is the item."""
    session = stores[source].session("a", tenant=tenant)
    await session.add_items([user("x") for _ in RAW])
    await write_items(stores[source], tenant, RAW)
    first = await exported(stores[source], tenant)

    await imported(stores[target], first)

    assert await read_items(stores[target], tenant) == RAW
    assert await exported(stores[target], tenant) == first


async def write_items(store: SessionStore, tenant: str, texts: list[str]) -> None:
    table, kind = ("items", "text") if store.engine.dialect.name == "sqlite" else ("agents.items", "json")
    sql = text(
        f"UPDATE {table} SET item = CAST(CAST(:item AS text) AS {kind})"
        " WHERE tenant_id = :tenant AND session_id = 'a' AND position = :position"
    )
    async with store.engine.connect() as connection:
        for position, item in enumerate(texts, 1):
            await connection.execute(sql, {"item": item, "tenant": tenant, "position": position})


async def read_items(store: SessionStore, tenant: str) -> list[str]:
    table = "items" if store.engine.dialect.name == "sqlite" else "agents.items"
    sql = text(f"SELECT CAST(item AS text) FROM {table} WHERE tenant_id = :tenant ORDER BY position")
    async with store.engine.connect() as connection:
        return list((await connection.execute(sql, {"tenant": tenant})).scalars())


async def test_what_is_no_json_survives_between_sqlite_files(stores: Stores, tenant: str) -> None:
    """SQLite takes any text for JSON: it is told as a string, and PostgreSQL refuses that session and no other."""
    session = stores["sqlite"].session("a", tenant=tenant)
    await session.add_items([user("x")])
    await write_items(stores["sqlite"], tenant, ['{"no json'])
    await stores["sqlite"].session("b", tenant=tenant).add_items([user("fine")])
    archive = await exported(stores["sqlite"], tenant)
    await session.delete()

    await imported(stores["sqlite"], archive)

    assert await exported(stores["sqlite"], tenant) == archive
    with pytest.raises(SessionError, match=r"import on session 'a' .*Nothing was imported"):
        await imported(stores["asyncpg"], archive)


async def test_a_row_that_cannot_be_told_is_named(stores: Stores, tenant: str) -> None:
    """A number that SQLite holds as text ends the export with the place to mend."""
    await stores["sqlite"].session("a", tenant=tenant).add_items([user("x")])
    async with stores["sqlite"].engine.connect() as connection:
        await connection.execute(text("UPDATE items SET turn = 'many'"))

    with pytest.raises(SessionError, match=r"session 'a' .*: the column turn of its row in items \(position 1"):
        await exported(stores["sqlite"], tenant)


KEY = Key("t\0", 's"\\')
TEXTS = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"])))
OBJECTS = st.builds(json.dumps, st.dictionaries(st.text(), st.text()))
JSONS = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(RAW), OBJECTS)


@settings(max_examples=60)
@given(kind=st.text(max_size=9), label=TEXTS, metadata=JSONS, content=JSONS.filter(lambda value: value is not None))
@example(kind="x", label="l", metadata='{"content":1}', content='{"metadata":{"content":2},"label":3}')
@example(kind="x", label=',"content":{}}', metadata=None, content='{"metadata":2}')
@example(kind="x", label=None, metadata='{"a":[]}\n', content='[","]')
def test_a_line_gives_back_what_it_was_made_of(
    kind: str, label: str | None, metadata: str | None, content: str
) -> None:
    """Whatever texts a row holds, JSON or not, one line tells them and gives exactly these back."""
    shape = shapes()["snapshots"]
    row = {"kind": kind, "version": 1, "label": label, "created_at": "2026-01-01 00:00:00.123456"}
    values = [(row | {"metadata": metadata, "content": content}).get(field.name) for field in shape.fields]

    line = LineWriter(shape)(prefix_of("snapshots", KEY), values)

    assert "\n" not in line
    read = LineReader(shape)(line, KEY)
    assert [each for field, each in zip(shape.fields, read, strict=True) if field.name != "created_at"] == [
        each for field, each in zip(shape.fields, values, strict=True) if field.name != "created_at"
    ]


def test_pages_are_in_the_order_of_bytes_whatever_the_locale() -> None:
    """The ids of runs are sorted as SQLite sorts them, in a database of any language."""
    assert 'ORDER BY t.run_id COLLATE "C"' in " ".join(_page_sql("agents", shapes()["runs"], True).split())
    assert '(t.run_id COLLATE "C") > (CAST(:after_0 AS TEXT))' in _page_sql("agents", shapes()["runs"], True)


@pytest.fixture
async def three(stores: Stores, tenant: str) -> bytes:
    """An archive of three sessions: 1 line, then 5, 4 and 3, then 1."""
    a, b, c = (stores["psycopg"].session(name, tenant=tenant) for name in "abc")
    await a.add_items([user("one"), user("two")])
    await a.events.record("mine")
    await b.add_items([call("c1"), output("c1")])
    await b.pop_item()
    await c.add_items([user("last")])
    return await exported(stores["psycopg"], tenant)


def replaced(number: int, old: bytes, new: bytes) -> Callable[[list[bytes]], list[bytes]]:
    def change(lines: list[bytes]) -> list[bytes]:
        assert old in lines[number - 1]
        return [*lines[: number - 1], lines[number - 1].replace(old, new), *lines[number:]]

    return change


def starts(lines: list[bytes]) -> list[int]:
    return [place for place, line in enumerate(lines) if line.startswith(b'{"table":"sessions"')]


def second(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[list[bytes]], list[bytes]]:
    """Change the lines of the second session."""

    def whole(lines: list[bytes]) -> list[bytes]:
        _, begin, end = starts(lines)
        return [*lines[:begin], *change(lines[begin:end]), *lines[end:]]

    return whole


#: What is done to the lines, what the error says, and how many sessions came before.
BROKEN: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str, int]] = {
    "empty": (lambda lines: [], "line 1: this is no archive of agents-pg-session: the file is empty", 0),
    "other": (lambda lines: [b'{"format":"csv"}\n'], "line 1: this is no archive", 0),
    "binary": (lambda lines: [b"\x00\xff\xfe"], "line 1: this is no archive", 0),
    "version": (replaced(1, b'"version":1', b'"version":2'), "line 1: its format has version 2", 0),
    "columns": (replaced(1, b'"turn_count"', b'"mood"'), "line 1: it was written at revision .* column 'mood'", 0),
    "no columns": (replaced(1, b'"columns"', b'"colours"'), "line 1: its first line does not name the columns", 0),
    "no json": (second(replaced(2, b'"item":{', b'"item":{{')), "line 8: it is no JSON; session 'b' was changed", 1),
    "changed": (second(replaced(2, b"c1", b"c2")), r"line 11: session 'b' \(from line 7 on\) is not what was", 1),
    "row gone": (second(lambda lines: [lines[0], *lines[2:]]), "session 'b' .* is not what was exported", 1),
    "cut in session": (lambda lines: lines[:8], "line 9: the file ends in the middle of session 'b'", 1),
    "cut in line": (lambda lines: [*lines[:7], lines[7][:20]], "line 8: it has no end: the file was cut off", 1),
    "no last line": (lambda lines: lines[:-1], "the last line is missing, so the file was cut off", 3),
    "twice": (second(lambda lines: [*lines, *lines]), "session 'b' is there a second time", 2),
    "order": (
        lambda lines: [lines[0], *lines[starts(lines)[2] : -1], *lines[1 : starts(lines)[2]], lines[-1]],
        "session 'a' comes after 'c'",
        1,
    ),
    "session gone": (second(lambda lines: []), "the archive's checksum or totals differ", 2),
    "alien line": (second(lambda lines: [lines[0], b"{}\n", *lines[1:]]), "line 8: it is no line of session 'b'", 1),
    "other's line": (
        second(replaced(2, b'"session_id":"b"', b'"session_id":"x"')),
        "line 8: it is no line of session 'b', which is not closed yet",
        1,
    ),
    "no row": (second(lambda lines: lines[1:]), "line 7: a session begins with the line of its row", 1),
    "first line": (replaced(1, b'"asked":{', b'"asked":{"x":1,'), "the archive's checksum or totals differ", 3),
    "more": (lambda lines: [*lines, b"\n"], "something follows the last line", 3),
    "no object": (second(lambda lines: [b"[]\n", *lines]), "line 7: it is no JSON object", 1),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_a_file_that_is_not_as_it_was_exported_is_refused(stores: Stores, three: bytes, how: str) -> None:
    """The error names the line and what is wrong with it; the sessions before it are there, whole, and none after."""
    change, says, before = BROKEN[how]
    broken = b"".join(change(three.splitlines(keepends=True)))

    with pytest.raises(BadArchive, match=says) as told:
        await imported(stores["sqlite"], broken)

    there = await stores["sqlite"].sessions(all_tenants=True)
    assert len(there) == before
    assert not before or f"{before} of its sessions are there by now, whole" in str(told.value)
    assert (await imported(stores["sqlite"], three)).skipped == before


#: Lines whose checksums were made right again.
FORGED = {
    "number": (replaced(2, b'"position":1', b'"position":1.5'), "line 8: its position cannot be 1.5"),
    "large": (replaced(2, b'"position":1', b'"position":9223372036854775808'), "line 8: its position cannot be 9223"),
    "time": (replaced(2, b'"created_at":"20', b'"created_at":"19'), None),
    "no time": (replaced(2, b'"created_at":"20', b'"created_at":"x0'), "line 8: its created_at cannot be 'x0"),
    "column": (replaced(2, b'"turn":', b'"mood":'), "line 8: items has no column 'mood' in this archive"),
    "required": (replaced(2, b',"turn":0', b""), "line 8: it has no turn"),
    "raw": (replaced(2, b'"item":{', b'"item":{},"x":{'), "line 8: it is no JSON"),
    "id": (replaced(2, b'"append_id":"', b'"append_id":"x'), "line 8: its append_id cannot be 'x"),
    "counter": (replaced(1, b'"item_count":1', b'"item_count":-1'), "import on session 'b' .*: the database refused"),
    "tail": (replaced(2, b"}\n", b"}]\n"), "line 8: it is no JSON"),
}


@pytest.mark.parametrize("target", ["asyncpg", "sqlite"])
@pytest.mark.parametrize("how", FORGED)
async def test_rows_that_cannot_be_are_refused_with_their_session(
    stores: Stores, tenant: str, three: bytes, how: str, target: str
) -> None:
    """Right checksums do not help: nothing of that session is written, and those before it are."""
    change, says = FORGED[how]
    moved = {"tenant": f"{tenant}-2"}
    forged = sealed(second(change)(three.splitlines(keepends=True)))

    if says is None:
        assert (await imported(stores[target], forged, **moved)).sessions == 3
        return
    with pytest.raises(SessionError, match=says):
        await imported(stores[target], forged, **moved)

    assert [each.session_id for each in await stores[target].sessions(tenant=f"{tenant}-2")] == ["a"]


@pytest.mark.parametrize("target", ["asyncpg", "sqlite"])
async def test_columns_an_older_revision_did_not_have_take_their_defaults(
    stores: Stores, tenant: str, three: bytes, target: str
) -> None:
    """An archive tells which columns it knows; what came since is as in a database that was upgraded."""

    def without(line: bytes) -> bytes:
        told = json.loads(line)
        for name in names:
            told.pop(name, None)
        if "columns" in told:
            told["columns"]["sessions"] = [name for name in told["columns"]["sessions"] if name not in names]
        return json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()

    names = ("turn_count", "cleared_through", "metadata")
    first, *lines = three.splitlines()
    lines = [without(first), *(without(line) if line.startswith(b'{"table":"sessions"') else line for line in lines)]
    old = sealed(lines)

    done = await imported(stores[target], old, tenant=f"{tenant}-2")
    again = await imported(stores[target], old, tenant=f"{tenant}-2")

    info = await stores[target].session("a", tenant=f"{tenant}-2").info()
    assert (done.sessions, again.skipped) == (3, 3)
    assert (info.item_count, info.turn_count, info.metadata) == (2, 0, {})


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: data[:200] + b"\0\0\0\0" + data[204:]])
async def test_damaged_compression_is_told(stores: Stores, three: bytes, damage: Callable[[bytes], bytes]) -> None:
    """A compressed file that was cut off or hurt says so, by line."""
    with pytest.raises(BadArchive, match=r"line \d+: "):
        await imported(stores["sqlite"], damage(gzip.compress(three)))


async def test_compressed_files_are_the_same_each_time(
    stores: Stores, tenant: str, three: bytes, tmp_path: Path
) -> None:
    """A name that ends in .gz is compressed without a time or a name in it, and read back without being told."""
    for name in ("one.gz", "two.gz"):
        with written_whole(tmp_path / name) as file:
            await export_sessions(stores["asyncpg"], file, Selection(tenant))
    one, two = ((tmp_path / name).read_bytes() for name in ("one.gz", "two.gz"))

    assert one == two
    assert gzip.decompress(one) == three
    with (tmp_path / "one.gz").open("rb") as file:
        assert (await import_sessions(stores["sqlite"], file)).sessions == 3


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """What fails leaves the old file and no other; a name that is taken needs force."""
    path = tmp_path / "a.jsonl"
    path.write_text("old")
    with pytest.raises(ValueError, match=re.escape(f"{path} is there already; --force")), written_whole(path):
        pass
    with pytest.raises(ZeroDivisionError), written_whole(path, force=True) as file:
        file.write(b"half" * (1 // 0))

    assert [each.name for each in tmp_path.iterdir()] == ["a.jsonl"]
    assert path.read_text() == "old"
    with written_whole(path, force=True) as file:
        file.write(b"new")
    assert path.read_text() == "new"
    with pytest.raises(ValueError, match="cannot be written"), written_whole(tmp_path / "no" / "b"):
        pass


async def test_a_line_of_twenty_megabytes_goes_through(stores: Stores, tenant: str) -> None:
    """One item of 20 MB is a line like any other, through a temporary file and COPY."""
    large = user("ab\\\n\t" * 100 + "x" * 20_000_000)
    await stores["sqlite"].session("a", tenant=tenant).add_items([user("small"), large, user("small")])
    first = await exported(stores["sqlite"], tenant)
    assert max(map(len, first.splitlines())) > 20_000_000

    await imported(stores["psycopg"], first)

    assert (await stores["psycopg"].session("a", tenant=tenant).get_items())[1] == large


async def test_a_long_session_waits_on_disk(stores: Stores, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that does not fit into memory goes through a temporary file, with the same result."""
    await stores["sqlite"].session("a", tenant=tenant).add_items([user(str(number)) for number in range(50)])
    whole = await exported(stores["sqlite"], tenant)
    monkeypatch.setattr(archive, "IN_MEMORY", 100)

    assert await exported(stores["sqlite"], tenant) == whole
    assert (await imported(stores["asyncpg"], whole)).items == 50
    assert await exported(stores["asyncpg"], tenant) == whole


async def test_progress_is_told_as_it_goes(stores: Stores, tenant: str, three: bytes) -> None:
    """Who asks hears after each session of an export how many of how many are told, and their checksum at the end."""
    heard: list[Any] = []
    file = io.BytesIO()

    done = await export_sessions(stores["asyncpg"], file, Selection(tenant), progress=heard.append)

    assert [(each.sessions, each.of, each.sha256) for each in heard] == [(1, 3, None), (2, 3, None), (3, 3, None)]
    assert done.bytes == len(three)
    assert done.sha256 == lines_of(three)[-1]["sha256"]
