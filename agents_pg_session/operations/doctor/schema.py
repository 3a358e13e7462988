"""The schema as it is beside what this version creates: tables, columns, constraints, indexes, views, storage.

What is expected is derived from `tables.py`. Definitions are compared word by word: the server writes them with casts
and brackets of its own, but with the same names and values in the same order. What somebody has added is theirs.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, PrimaryKeyConstraint, Table, UniqueConstraint
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import AddConstraint, Constraint, CreateIndex

from agents_pg_session.errors import SchemaOutdated
from agents_pg_session.operations.doctor.asking import Asking
from agents_pg_session.operations.doctor.findings import Finding, Place
from agents_pg_session.schema import newest_revision
from agents_pg_session.statements import quoted_prefix
from agents_pg_session.tables import metadata_for, storage_statements, view_statements

__all__ = ["BrokenIndex", "Catalog", "broken_indexes", "difference", "expected", "found", "schema_findings"]

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Catalog:
    """What a schema holds, by "table.column" or by name; each with what there is to compare."""

    columns: dict[str, str] = field(default_factory=dict)
    constraints: dict[str, str] = field(default_factory=dict)
    indexes: dict[str, str] = field(default_factory=dict)
    views: dict[str, str] = field(default_factory=dict)
    storage: dict[str, str] = field(default_factory=dict)
    invalid: frozenset[str] = frozenset()  #: indexes an interrupted build left behind
    unvalidated: frozenset[str] = frozenset()  #: constraints that old rows were never checked against
    created: Mapping[str, str] = field(default_factory=dict)  #: how to create each index


@dataclass(frozen=True)
class BrokenIndex:
    """An index of ours that is missing, invalid or another one than it should be, and how to create it."""

    name: str
    said: str
    create: str
    is_another: bool = False  #: somebody made it so: not ours to drop


# What there is, as (kind, name, definition, fine): one statement, so that it is one moment.
_FOUND = """
-- Every column, constraint, index and view of the schema.
SELECT 'column' AS kind, c.relname || '.' || a.attname AS name,
       format_type(a.atttypid, a.atttypmod) || CASE WHEN co.collname = 'C' THEN ' collate c' ELSE '' END
       || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
       || CASE WHEN d.adbin IS NOT NULL THEN ' default' ELSE '' END AS definition, true AS fine
  FROM pg_attribute a
  JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p')
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
  LEFT JOIN pg_collation co ON co.oid = a.attcollation
 WHERE n.nspname = :schema_name AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'constraint', c.relname || '.' || o.conname,
       replace(pg_get_constraintdef(o.oid), format('%I.', n.nspname), ''), o.convalidated
  FROM pg_constraint o
  JOIN pg_class c ON c.oid = o.conrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema_name AND o.contype IN ('p', 'f', 'c', 'u')
UNION ALL
SELECT 'index', c.relname, replace(pg_get_indexdef(i.indexrelid), format('%I.', n.nspname), ''),
       i.indisvalid AND i.indisready
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema_name
UNION ALL
SELECT 'view', c.relname, string_agg(a.attname, ' ' ORDER BY a.attnum), true
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
 WHERE n.nspname = :schema_name AND c.relkind = 'v'
 GROUP BY c.relname
UNION ALL
SELECT 'storage', c.relname, array_to_string(c.reloptions, ' '), true
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema_name AND c.relkind IN ('r', 'p') AND c.reloptions IS NOT NULL
"""


def expected(schema: str) -> Catalog:
    """Return what this version creates."""
    catalog, prefix, created = Catalog(), quoted_prefix(schema), dict[str, str]()
    for table in metadata_for(schema).sorted_tables:
        for column in table.columns:
            catalog.columns[f"{table.name}.{column.name}"] = _column(table, column.name)
        for constraint in table.constraints:
            if (definition := _constraint(constraint, table, prefix)) is not None:
                catalog.constraints[f"{table.name}.{constraint.name}"] = definition
        for index in table.indexes:
            created[str(index.name)] = _create_index(index)
    for statement in storage_statements(prefix):
        if made := re.match(r"CREATE INDEX (\S+)", statement):
            created[made[1]] = statement.replace("\\:", ":")
        elif set_ := re.match(r"ALTER TABLE (\S+) SET \((.*)\)", statement):
            options = (each.replace(" ", "") for each in set_[2].split(","))
            catalog.storage[set_[1].removeprefix(prefix)] = " ".join(options)
    catalog.indexes.update({name: _words(sql, prefix) for name, sql in created.items()})
    catalog.views.update(view_statements(prefix, "postgresql"))
    return Catalog(**{**vars(catalog), "created": created})


async def found(asking: Asking) -> Catalog:
    """Return what there is on PostgreSQL."""
    catalog, invalid, unvalidated = Catalog(), set[str](), set[str]()
    homes = {
        "column": catalog.columns,
        "constraint": catalog.constraints,
        "index": catalog.indexes,
        "view": catalog.views,
        "storage": catalog.storage,
    }
    for row in await asking.rows(_FOUND, schema_name=asking.schema):
        said = row.definition if row.kind in ("view", "storage", "column") else _words(row.definition, "")
        homes[row.kind][row.name] = said.removesuffix(" not valid")  # told on its own
        if not row.fine:
            (invalid if row.kind == "index" else unvalidated).add(row.name)
    return Catalog(**{**vars(catalog), "invalid": frozenset(invalid), "unvalidated": frozenset(unvalidated)})


def difference(want: Catalog, have: Catalog) -> Iterator[Place]:
    """Yield what is missing or another than expected, but for indexes."""
    for kind in ("column", "constraint"):
        expectations, there = getattr(want, f"{kind}s"), getattr(have, f"{kind}s")
        for name, definition in expectations.items():
            if name not in there:
                yield Place(f"{kind} {name} is missing")
            elif there[name] != definition:
                yield Place(f"{kind} {name} is {there[name]!r}, not {definition!r}")
    for name in sorted(have.unvalidated & want.constraints.keys()):
        yield Place(f"constraint {name} is NOT VALID: rows from before it were never checked")
    for name in want.views:
        if name not in have.views:
            yield Place(f"view {name} is missing")
    for table, options in want.storage.items():
        missing = [each for each in options.split() if each not in have.storage.get(table, "").split()]
        if missing:
            yield Place(f"table {table} has not set {', '.join(missing)}")


def broken_indexes(want: Catalog, have: Catalog) -> list[BrokenIndex]:
    """Return our indexes that are missing, invalid or others than they should be."""
    broken = []
    for name, definition in want.indexes.items():
        if name not in have.indexes:
            said = "is missing"
        elif name in have.invalid:
            said = "is INVALID: its build was interrupted, so no query uses it, but each write keeps it"
        elif have.indexes[name] != definition:
            said = "is another index than it should be"
        else:
            continue
        is_another = name in have.indexes and name not in have.invalid
        broken.append(BrokenIndex(name, said, want.created[name], is_another))
    return broken


async def schema_findings(asking: Asking) -> list[Finding]:
    """Examine revision and catalog. A fault in them means that rows may not be readable at all."""
    if (revision := await _revision(asking)) is not None:
        return [revision]
    if asking.schema is None:
        return []
    findings: list[Finding] = []
    want, have = expected(asking.schema), await found(asking)
    if places := [*difference(want, have), *[each async for each in _views(asking, want, have)]]:
        findings.append(_differs(places))
    if broken := broken_indexes(want, have):
        places = [Place(f"index {each.name} {each.said}") for each in broken]
        findings.append(
            Finding(
                "fault",
                "schema",
                f"{len(broken)} index{'' if len(broken) == 1 else 'es'} missing, invalid or different",
                "Lists and lookups read whole tables instead; an invalid index costs every write and serves no read.",
                "agents-pg-session doctor --repair (builds them CONCURRENTLY: nobody waits)",
                len(broken),
                tuple(places[:10]),
                "indexes",
            )
        )
    ours = {f"{name}_ccnew" for name in want.indexes} | {f"{name}_ccold" for name in want.indexes}
    if left := sorted(have.invalid & ours):
        findings.append(_left_behind(left, quoted_prefix(asking.schema).replace("\\:", ":")))
    return findings


async def _revision(asking: Asking) -> Finding | None:
    """Say what is wrong with the revision; None where this version's own catalog can be expected."""
    try:
        revision = await asking.database.require_current()
    except SchemaOutdated as error:
        what, _, do = str(error).rpartition("; ")
        return Finding(
            "fault",
            "schema",
            "the schema is not one that this version works on",
            "Verbs fail where they meet a table or column that is not there, so no rows were examined.",
            do,
            places=(Place(what),),
        )
    if revision != newest_revision():
        return Finding(
            "note",
            "schema",
            f"the schema is at revision {revision}, newer than this version of the package",
            "It still serves this version, but what it has to look like only the newer one knows.",
            "run the doctor of the newer version",
        )
    return None


def _differs(places: list[Place]) -> Finding:
    return Finding(
        "fault",
        "schema",
        f"{len(places)} object{'' if len(places) == 1 else 's'} of the schema not as this version creates them",
        "Somebody changed them by hand: a constraint that is gone lets wrong rows in, a column that differs breaks"
        " verbs.",
        "take the statements that are lacking from `agents-pg-session db sql`, or restore a backup",
        len(places),
        tuple(places[:10]),
    )


def _left_behind(names: list[str], prefix: str) -> Finding:
    return Finding(
        "warning",
        "schema",
        f"{len(names)} invalid index{'' if len(names) == 1 else 'es'} left behind by an interrupted REINDEX",
        "It costs every write and serves no read.",
        "; ".join(f'DROP INDEX CONCURRENTLY {prefix}"{name}"' for name in names),
        len(names),
        tuple(Place(f"index {name}") for name in names[:10]),
    )


async def _views(asking: Asking, want: Catalog, have: Catalog) -> AsyncIterator[Place]:
    """Yield views that show other columns than their text does."""
    for name, statement in want.views.items():
        body = statement.partition(" AS")[2]
        if name not in have.views:
            continue
        # An empty answer has no columns to see: one row of NULLs has.
        none = f"SELECT * FROM ({body}) AS b LIMIT 0"
        [row] = await asking.rows(f"SELECT v.* FROM (SELECT 1) AS one LEFT JOIN ({none}) AS v ON true")
        columns = " ".join(row._asdict())
        if have.views[name] != columns:
            yield Place(f"view {name} shows {have.views[name]!r}, not {columns!r}")


def _column(table: Table, name: str) -> str:
    column = table.columns[name]
    kind = column.type.compile(dialect=_DIALECT).lower().replace('collate "c"', "collate c")
    default = " default" if column.server_default is not None else ""
    return f"{kind}{'' if column.nullable else ' not null'}{default}"


def _constraint(constraint: Constraint, table: Table, prefix: str) -> str | None:
    if isinstance(constraint, UniqueConstraint | PrimaryKeyConstraint | ForeignKeyConstraint | CheckConstraint):
        # Left where it is: by default SQLAlchemy would not create its table with it any more, for the whole process.
        added = str(AddConstraint(constraint, isolate_from_table=False).compile(dialect=_DIALECT))
        return _words(added.partition(f"CONSTRAINT {constraint.name} ")[2], prefix)
    return None


def _create_index(index: Index) -> str:
    return str(CreateIndex(index).compile(dialect=_DIALECT))


#: What the server says in another way, or leaves out.
_SILENT = frozenset({"using", "btree", "any", "array", "in", "=", "concurrently"})


def _words(sql: str, prefix: str) -> str:
    """Return the names and values of a definition in their order, however it is written."""
    quoted = prefix.replace("\\:", ":")
    for each in (quoted, quoted.replace('"', "")) if prefix else ():
        sql = sql.replace(each, "")
    sql = re.sub(r"::[\w ]+(\[\])?(?=[,)\]\s]|$)", "", sql)
    words = re.findall(r"'(?:[^']|'')*'|[\w.]+|[<>=!@]+", sql.replace('"', ""))
    return " ".join(word.lower() for word in words if word.lower() not in _SILENT)
