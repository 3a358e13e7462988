"""A whole catalog, object by object, as plain data: two databases are the same if these are equal.

`alembic check` compares less: it does not see a dropped CHECK or a partial index that became full.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import asyncpg

from agents_pg_session.tables import VERSION_TABLE

#: "column items.position" → everything the database says about it.
Catalog = dict[str, tuple[object, ...]]

# What each kind of object is, by its name in the schema; $1 is the schema's oid. Names in it come unqualified,
# because it is the search path while they are read.
_POSTGRES = {
    "relation": """
        SELECT c.relname, c.relkind, c.relpersistence, c.reloptions, c.relrowsecurity, c.relispartition, am.amname,
               obj_description(c.oid, 'pg_class')
        FROM pg_class c LEFT JOIN pg_am am ON am.oid = c.relam
        WHERE c.relnamespace = $1 AND c.relkind NOT IN ('i', 'I')
        """,
    "column": """
        SELECT c.relname || '.' || a.attname, a.attnum, format_type(a.atttypid, a.atttypmod), co.collname,
               a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated, a.attstorage,
               a.attcompression, a.attoptions
        FROM pg_attribute a
        JOIN pg_class c ON c.oid = a.attrelid AND c.relkind NOT IN ('i', 'I')
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        LEFT JOIN pg_collation co ON co.oid = a.attcollation
        WHERE c.relnamespace = $1 AND a.attnum > 0 AND NOT a.attisdropped
        """,
    "constraint": """
        SELECT coalesce(c.relname, '') || '.' || o.conname, o.contype, pg_get_constraintdef(o.oid), o.convalidated,
               o.condeferrable
        FROM pg_constraint o LEFT JOIN pg_class c ON c.oid = o.conrelid
        WHERE o.connamespace = $1
        """,
    "index": """
        SELECT c.relname, replace(pg_get_indexdef(i.indexrelid), format('%I.', n.nspname), ''),
               pg_get_expr(i.indpred, i.indrelid), i.indisunique, i.indisvalid, i.indisready, c.reloptions
        FROM pg_index i
        JOIN pg_class c ON c.oid = i.indexrelid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relnamespace = $1
        """,
    "view": """
        SELECT relname, pg_get_viewdef(oid, true) FROM pg_class
        WHERE relnamespace = $1 AND relkind IN ('v', 'm')
        """,
    "sequence": """
        SELECT c.relname, format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqcache, s.seqcycle
        FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid
        WHERE c.relnamespace = $1
        """,
    "function": """
        SELECT p.oid::regprocedure::text, pg_get_functiondef(p.oid) FROM pg_proc p
        WHERE p.pronamespace = $1 AND p.prokind IN ('f', 'p')
        """,
    "trigger": """
        SELECT c.relname || '.' || t.tgname, pg_get_triggerdef(t.oid), t.tgenabled
        FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
        WHERE c.relnamespace = $1 AND NOT t.tgisinternal
        """,
    "type": """
        SELECT t.typname, t.typtype, format_type(t.typbasetype, t.typtypmod),
               (SELECT array_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid)
        FROM pg_type t
        WHERE t.typnamespace = $1 AND t.typtype IN ('e', 'd', 'r')
        """,
}
_SQLITE_PRAGMAS = ("table_xinfo", "foreign_key_list", "index_list")


async def of_postgres(url: str, schema: str = "agents") -> Catalog:
    """Return everything that lies in *schema*, and the revision; empty where there is no such schema."""
    connection = await asyncpg.connect(url)
    try:
        oid = await connection.fetchval("SELECT oid FROM pg_namespace WHERE nspname = $1", schema)
        if oid is None:
            return {}
        await connection.execute("SELECT set_config('search_path', quote_ident($1), false)", schema)
        found: Catalog = {}
        for kind, sql in _POSTGRES.items():
            found |= {f"{kind} {name}": tuple(facts) for name, *facts in await connection.fetch(sql, oid)}
        if f"relation {VERSION_TABLE}" in found:
            found["revision"] = tuple(
                await connection.fetchval(f"SELECT array(SELECT version_num FROM {VERSION_TABLE})")
            )
        return found
    finally:
        await connection.close()


def of_sqlite(path: Path) -> Catalog:
    """Return everything in a SQLite file, and the revision."""
    with closing(sqlite3.connect(path)) as connection:
        found: Catalog = {}
        for kind, name, table, sql in connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"):
            found[f"{kind} {name}"] = (table, _normalised(sql))
            for pragma in _SQLITE_PRAGMAS if kind in ("table", "view") else ():
                rows = list(connection.execute(f"PRAGMA {pragma}('{name}')"))
                # The first column of an index list counts in the order of creation: no part of the catalog.
                found[f"{pragma} {name}"] = tuple(sorted(row[1:] for row in rows) if pragma == "index_list" else rows)
            if kind == "index":
                found[f"index_xinfo {name}"] = tuple(connection.execute(f"PRAGMA index_xinfo('{name}')"))
        if f"table {VERSION_TABLE}" in found:
            found["revision"] = tuple(connection.execute(f"SELECT version_num FROM {VERSION_TABLE}"))
        return found


def names_of(catalog: Catalog, kind: str) -> set[str]:
    """Return the names of all objects of one kind."""
    return {key.split(" ", 1)[1] for key in catalog if key.startswith(f"{kind} ")}


def difference(one: Catalog, other: Catalog) -> dict[str, tuple[object, object]]:
    """Return what is not the same in both, each with its two sides."""
    keys = sorted(one.keys() | other.keys())
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _normalised(sql: str | None) -> object:
    """The same words: neither line breaks nor, in a table, the order of columns and constraints in the text.

    SQLite writes an added column behind the constraints. The order of the columns themselves is in `table_xinfo`.
    """
    if sql is None:
        return None
    words = re.sub(r"\s+", " ", sql).strip()
    table = re.fullmatch(r"(CREATE TABLE \S+) \((.*)\)", words)
    return (table[1], sorted(_definitions(table[2]))) if table else words


def _definitions(body: str) -> list[str]:
    """Split what stands between the brackets of a CREATE TABLE at its outermost commas."""
    parts, depth = [""], 0
    for character in body:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
