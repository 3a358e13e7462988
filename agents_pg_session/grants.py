"""Who may do what: the rights of the roles, as SQL that a DBA reads and pastes into psql.

Three roles are enough. The *migrator* owns the schema and is used by the deploy pipeline only. The *runtime* role is
the application's: it selects, inserts, updates and deletes. The *read-only* role is for a person with psql.
"""

from __future__ import annotations

from agents_pg_session.schema import checked_schema
from agents_pg_session.tables import TABLES, VERSION_TABLE, VIEWS

__all__ = ["grants"]

_ROWS = "SELECT, INSERT, UPDATE, DELETE"
_ONLY_READ = (*VIEWS, VERSION_TABLE)
_ALL = (*TABLES, *_ONLY_READ)


def grants(schema: str, runtime: str, migrator: str | None = None, read_only: str | None = None) -> str:
    """Return SQL that gives each role its rights on our tables in *schema*, and takes every other right on them away.

    For PostgreSQL, once the tables are there; the roles must exist. One transaction, so nobody is without rights for a
    moment; running it again changes nothing. It also covers what later revisions create: what *migrator* creates, or,
    without one, whoever runs it. Names are quoted whatever they contain. Raises `ValueError` for a name no role can
    have, and where two of the roles are one.
    """
    where = _quoted("schema", schema)
    roles = {"runtime": runtime, "migrator": migrator, "read_only": read_only}
    quoted = {what: _quoted(what, name) for what, name in roles.items() if name is not None}
    if len(set(quoted.values())) < len(quoted):
        raise ValueError("runtime, migrator and read_only must be different roles: each has rights of its own")
    parts = ["BEGIN;"]
    if "migrator" in quoted:
        parts += _ownership(where, quoted["migrator"])
    maker = f"FOR ROLE {quoted['migrator']} " if "migrator" in quoted else ""
    parts += _runtime(where, quoted["runtime"], maker)
    if "read_only" in quoted:
        parts += _read_only(where, quoted["read_only"], maker)
    return "\n\n".join([_HEADER, *parts, "COMMIT;"]) + "\n"


_HEADER = """\
-- Rights on the tables of agents-pg-session. For the role that owns them, or a superuser, after each upgrade.
-- It runs whole or not at all, and changes nothing where all is as it says."""

#: Words of PL/pgSQL, because what is owned already stays untouched: even that would wait for every reader.
_TAKE_OVER = """\
-- Only an owner can alter: what another role has made of ours becomes the migrator's.
DO {dollar}
DECLARE
    made regclass;
BEGIN
    FOR made IN
        SELECT oid FROM pg_class
         WHERE relnamespace = {schema}::regnamespace AND relowner <> {migrator}::regrole
           AND relname IN ({names})
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO %s', made, {migrator}::regrole);
    END LOOP;
END {dollar};"""


def _ownership(schema: str, migrator: str) -> list[str]:
    """Everything is the migrator's; a schema that others use too stays theirs."""
    if schema == '"public"':
        words = "creates in a schema that is not its own", f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {migrator};"
    else:
        words = "owns the schema, so it needs no right on the database", f"ALTER SCHEMA {schema} OWNER TO {migrator};"
    dollar = "$$"
    while dollar in schema + migrator:
        dollar = f"$o{dollar[1:]}"
    values = {"schema": _literal(schema), "migrator": _literal(migrator), "dollar": dollar}
    names = ",\n                           ".join(map(_literal, _ALL))
    return ["-- The migrator {}.\n{}".format(*words), _TAKE_OVER.format(**values, names=names)]


def _runtime(schema: str, role: str, maker: str) -> list[str]:
    return [
        *_entrance("The application", schema, role),
        f"-- It reads and writes rows. Nothing else: no TRUNCATE, no REFERENCES, no TRIGGER.\n"
        f"GRANT {_ROWS} ON\n{_listed(schema, TABLES)}\nTO {role};",
        f"-- It reads the views, and the revision, to tell whether the schema fits.\n"
        f"GRANT SELECT ON\n{_listed(schema, _ONLY_READ)}\nTO {role};",
        _later(schema, role, maker, _ROWS),
    ]


def _read_only(schema: str, role: str, maker: str) -> list[str]:
    return [
        *_entrance("Somebody with psql", schema, role),
        f"-- Reads everything, and changes nothing.\nGRANT SELECT ON\n{_listed(schema, _ALL)}\nTO {role};",
        _later(schema, role, maker, "SELECT"),
    ]


def _entrance(who: str, schema: str, role: str) -> list[str]:
    """Into the schema, with nothing in hand."""
    return [
        f"-- {who} may look into the schema, and create nothing in it.\n"
        f"REVOKE ALL ON SCHEMA {schema} FROM {role};\nGRANT USAGE ON SCHEMA {schema} TO {role};",
        f"-- What it was given before is taken back first.\nREVOKE ALL ON\n{_listed(schema, _ALL)}\nFROM {role};",
    ]


def _later(schema: str, role: str, maker: str, rights: str) -> str:
    start = f"ALTER DEFAULT PRIVILEGES {maker}IN SCHEMA {schema}"
    return (
        f"-- The same on tables and views that later revisions create.\n"
        f"{start} REVOKE ALL ON TABLES FROM {role};\n{start} GRANT {rights} ON TABLES TO {role};"
    )


def _literal(text: str) -> str:
    return "'{}'".format(text.replace("'", "''"))


def _listed(schema: str, names: tuple[str, ...]) -> str:
    return ",\n".join(f"    {schema}.{name}" for name in names)


def _quoted(what: str, name: str) -> str:
    """Return a name as SQL has it, whatever it contains; the comments here never hold one."""
    try:
        checked_schema(name)
    except ValueError:
        raise ValueError(f"{what} must be a name of 1 to 63 bytes without NUL, as PostgreSQL has them") from None
    if what != "schema" and name in ("public", "none"):
        raise ValueError(f'{what} cannot be "{name}": to PostgreSQL that is no role, and "public" would be everybody')
    return '"{}"'.format(name.replace('"', '""'))
