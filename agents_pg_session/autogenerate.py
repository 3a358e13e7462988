"""For an application with Alembic migrations of its own: what of a database is this package's business.

Its autogenerate compares the whole database with its models, and would propose to drop what it does not know.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.schema import SchemaItem

from agents_pg_session.tables import TABLES, VERSION_TABLE

__all__ = ["not_ours"]

_OURS = frozenset({*TABLES, VERSION_TABLE})

#: What Alembic asks of each thing it finds: the thing, its name, its kind, whether it was found in the database.
IncludeObject = Callable[[SchemaItem, str | None, str, bool, SchemaItem | None], bool]


def not_ours(schema: str | None = "agents") -> IncludeObject:
    """Return what leaves our tables in *schema* alone: `context.configure(…, include_object=not_ours())`.

    Neither dropped nor created nor altered: nothing of them is ever proposed. *schema* is where the sessions are kept,
    as in `SessionStore.open(url, schema=…)`: `"public"` if they lie among the application's own tables, `None` on
    SQLite or if another schema is the connection's default. Tables of the same names elsewhere are the application's.
    """
    # Alembic calls the default schema of the connection None, whatever its name is.
    places = {None, "public"} if schema in (None, "public") else {schema}

    def include_object(
        thing: SchemaItem, name: str | None, kind: str, _reflected: bool, _compare_to: SchemaItem | None
    ) -> bool:
        return kind != "table" or name not in _OURS or getattr(thing, "schema", None) not in places

    return include_object
