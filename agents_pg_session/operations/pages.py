"""Reading a session whole: its row, then page by page all rows of the other tables, from one snapshot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from functools import lru_cache

from agents_pg_session.drivers import Row
from agents_pg_session.errors import SessionError
from agents_pg_session.operations.archive_lines import LineWriter, Unfit, named, prefix_of
from agents_pg_session.operations.shapes import PARTS, SESSIONS, Field, Kind, Shape
from agents_pg_session.passages import Passage
from agents_pg_session.statements import Key, Step, clause, quoted_prefix

__all__ = ["SNAPSHOT", "pages", "row_line"]

#: How a transaction begins that sees one moment, whatever others write meanwhile. By dialect, as all words here.
SNAPSHOT = {"postgresql": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "sqlite": "BEGIN"}

#: Rows of a page, and bytes as the database stores them after which it ends early.
ROWS = 1000
BYTES = 2 << 20

_ROW = """
-- The row of one session, by primary key.
SELECT {columns}
  FROM {schema}sessions t
 WHERE t.tenant_id = :tenant_id AND t.session_id = :session_id
"""

_PAGE = """
-- The next rows of one session in {table}, in the order of their key: so many, or fewer where they are large.
SELECT {columns}, t.found
  FROM (SELECT page.*, count(*) OVER () AS found, sum(page.size) OVER (ORDER BY {page_key}) - page.size AS before
          FROM (SELECT t.*, {size} AS size
                  FROM {schema}{table} t
                 WHERE t.tenant_id = :tenant_id AND t.session_id = :session_id{after}
                 ORDER BY {key}
                 LIMIT :rows) AS page) AS t
 WHERE t.before < :bytes
 ORDER BY {key}
"""

_WORDS: Mapping[str, Mapping[str, str]] = {
    "postgresql": {"size": "coalesce(pg_column_size(t.{name}), 0)", "order": '{name} COLLATE "C"'},
    "sqlite": {"size": "coalesce(length(CAST(t.{name} AS blob)), 0)", "order": "{name}"},
}


async def row_line(passage: Passage, schema: str | None, shape: Shape, key: Key, told_as: Key) -> str | None:
    """Return the line of a session's row, as one of *told_as*; None where there is no such session."""
    sql = _ROW.replace("{columns}", _columns(shape)).replace("{schema}", quoted_prefix(schema))
    rows = await passage.run(Step(clause(sql), key._asdict()))
    return _line(LineWriter(shape), prefix_of(SESSIONS, told_as), key, shape, rows[0]) if rows else None


async def pages(
    passage: Passage, schema: str | None, shapes: Mapping[str, Shape], key: Key, told_as: Key
) -> AsyncIterator[tuple[str, int, bytes]]:
    """Yield (table, rows, their lines) of everything a session has beside its row, a page at a time."""
    for table in PARTS:
        shape = shapes[table]
        writer, prefix = LineWriter(shape), prefix_of(table, told_as)
        after: Sequence[object] | None = None
        places = [shape.fields.index(each) for each in shape.key]
        while True:
            rows = await passage.run(_page(schema, shape, key, after))
            if rows:
                lines = [_line(writer, prefix, key, shape, row) for row in rows]
                yield table, len(rows), ("\n".join(lines) + "\n").encode()
                after = [rows[-1][place] for place in places]
            if not rows or len(rows) == rows[0].found < ROWS:
                break


def _page(schema: str | None, shape: Shape, key: Key, after: Sequence[object] | None) -> Step:
    values = {**key._asdict(), "rows": ROWS, "bytes": BYTES}
    values |= {f"after_{place}": value for place, value in enumerate(after or ())}
    return Step(clause(_page_sql(schema, shape, after is not None)), values)


@lru_cache(maxsize=64)
def _page_sql(schema: str | None, shape: Shape, goes_on: bool) -> str:
    words = _WORDS["sqlite" if schema is None else "postgresql"]

    def order(alias: str) -> str:
        return ", ".join(
            words["order"].replace("{name}", f"{alias}.{each.name}")
            if each.kind is Kind.TEXT
            else f"{alias}.{each.name}"
            for each in shape.key
        )

    bound = ", ".join(f"CAST(:after_{place} AS {each.type})" for place, each in enumerate(shape.key))
    sizes = [words["size"].replace("{name}", each.name) for each in shape.fields if each.is_json]
    filled = {
        "columns": _columns(shape),
        "size": " + ".join(sizes) or "0",
        "after": f"\n                   AND ({order('t')}) > ({bound})" if goes_on else "",
        "page_key": order("page"),
        "key": order("t"),
        "table": shape.table,
        "schema": quoted_prefix(schema),
    }
    sql = _PAGE
    for name, meaning in filled.items():
        sql = sql.replace("{" + name + "}", meaning)
    return sql


def _columns(shape: Shape) -> str:
    return ", ".join(map(_column, shape.fields))


def _column(field: Field) -> str:
    """JSON and ids as text: the drivers have ways of their own with both."""
    as_text = field.is_json or field.kind is Kind.UUID
    return f"CAST(t.{field.name} AS text) AS {field.name}" if as_text else f"t.{field.name}"


def _line(writer: LineWriter, prefix: str, key: Key, shape: Shape, row: Row) -> str:
    try:
        return writer(prefix, row)  # type: ignore[arg-type]
    except Unfit as unfit:
        names = [field.name for field in shape.fields]
        place = ", ".join(f"{each.name} {row[names.index(each.name)]!r}" for each in shape.key)
        raise SessionError(
            f"{named(key)}: the column {unfit} of its row in {shape.table}{f' ({place})' if place else ''} holds what "
            "this package never writes there, so somebody edited it by hand; mend that row with SQL"
        ) from None
