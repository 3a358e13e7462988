"""The models and the migrations arrive at the same catalog, and the catalog is the design."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agents_pg_session.migrations import main as migrate
from agents_pg_session.schema import newest_revision
from agents_pg_session.tables import TABLES, VERSION_TABLE, VIEWS, metadata_for
from tests.migrations.actions import create_tables, execute, execute_sqlite
from tests.migrations.catalog import Catalog, difference, names_of, of_postgres, of_sqlite

VIEW_COLUMNS = {
    "agent_current_state": (
        "tenant_id session_id agent status turn_count last_event last_event_at last_item last_item_at active_at "
        "updated_at"
    ),
    "session_summary": (
        "tenant_id session_id agent user_id status event_count item_count message_count turn_count tool_run_count "
        "tool_error_count duration_seconds input_tokens output_tokens total_tokens created_at updated_at ended_at"
    ),
    "agent_task_progress": (
        "tenant_id session_id agent status turn_count tool_run_count tool_error_count tool_running_count running_tool "
        "active_at updated_at ended_at"
    ),
    "tool_run_details": (
        "tenant_id session_id call_position output_position call_id tool_name tool_type agent run_id status error "
        "created_at started_at finished_at duration_seconds arguments call_item output_item"
    ),
    "agents_pg_session_support": "oldest_revision",
}


def test_models_and_migrations_make_the_same_postgres_catalog(empty: str, postgres_url: str) -> None:
    """`create_tables` arrives where `upgrade head` arrives, object by object."""
    asyncio.run(create_tables(empty))
    by_models, by_migrations = asyncio.run(of_postgres(empty)), asyncio.run(of_postgres(postgres_url))

    assert difference(by_models, by_migrations) == {}
    assert by_models["revision"] == (newest_revision(),)


def test_two_schemas_of_one_database_hold_the_same_catalog(migrated: str) -> None:
    """A second schema gets everything the first has, and points at its own tables only."""
    asyncio.run(create_tables(migrated, "second"))

    assert difference(asyncio.run(of_postgres(migrated)), asyncio.run(of_postgres(migrated, "second"))) == {}


def test_models_and_migrations_make_the_same_sqlite_catalog(sqlite_file: Path, tmp_path: Path) -> None:
    """On SQLite too, `create_tables` arrives where `upgrade head` arrives."""
    created = tmp_path / "created.db"
    asyncio.run(create_tables(f"sqlite:///{created}"))

    assert difference(of_sqlite(created), of_sqlite(sqlite_file)) == {}
    assert of_sqlite(created)["revision"] == ((newest_revision(),),)


def test_up_down_up_on_postgres(migrated: str) -> None:
    """Going back to nothing leaves the schema and the version table alone, and the way up leads to the same place."""
    first = asyncio.run(of_postgres(migrated))
    migrate(["-x", f"url={migrated}", "downgrade", "base"])
    nothing = asyncio.run(of_postgres(migrated))
    migrate(["-x", f"url={migrated}", "upgrade", "head"])

    assert names_of(nothing, "relation") == {VERSION_TABLE}
    assert nothing["revision"] == ()
    assert not any(names_of(nothing, kind) for kind in ("view", "sequence", "function", "trigger", "type"))
    assert difference(first, asyncio.run(of_postgres(migrated))) == {}


def test_up_down_up_on_sqlite(sqlite_file: Path) -> None:
    """The same journey on SQLite."""
    first = of_sqlite(sqlite_file)
    migrate(["-x", f"url=sqlite:///{sqlite_file}", "downgrade", "base"])
    nothing = of_sqlite(sqlite_file)
    migrate(["-x", f"url=sqlite:///{sqlite_file}", "upgrade", "head"])

    assert names_of(nothing, "table") == {VERSION_TABLE}
    assert not names_of(nothing, "view")
    assert nothing["revision"] == ()
    assert difference(first, of_sqlite(sqlite_file)) == {}


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ("ALTER TABLE agents.items DROP CONSTRAINT ck_items_position", {"constraint items.ck_items_position"}),
        (
            "DROP INDEX agents.ix_tool_runs_running; CREATE INDEX ix_tool_runs_running"
            " ON agents.tool_runs (tenant_id, session_id, call_position)",
            {"index ix_tool_runs_running"},
        ),
        ("ALTER TABLE agents.sessions RESET (fillfactor)", {"relation sessions"}),
        ("ALTER TABLE agents.events ALTER COLUMN kind SET DEFAULT ''", {"column events.kind"}),
        ('ALTER TABLE agents.snapshots ALTER COLUMN kind TYPE text COLLATE "default"', {"column snapshots.kind"}),
    ],
)
def test_the_postgres_catalog_notices(migrated: str, change: str, seen: set[str]) -> None:
    """The comparison sees a dropped CHECK, a partial index that became full, and other quiet changes."""
    before = asyncio.run(of_postgres(migrated))
    asyncio.run(execute(migrated, *change.split("; ")))

    assert seen <= difference(before, asyncio.run(of_postgres(migrated))).keys()


def test_the_sqlite_catalog_notices_a_dropped_check(sqlite_file: Path) -> None:
    """A table made again without its CHECK is another table."""
    before = of_sqlite(sqlite_file)
    table: Any = before["table items"][1]
    head, definitions = table
    without = [each for each in definitions if "ck_items_position" not in each]
    without.sort(key=lambda each: each.startswith("CONSTRAINT"))  # columns first
    execute_sqlite(sqlite_file, f"DROP TABLE items; {head} ({', '.join(without)})")

    assert "table items" in difference(before, of_sqlite(sqlite_file))


def test_the_sqlite_catalog_notices_an_index_that_became_full(sqlite_file: Path) -> None:
    """An index made again without its WHERE is another index."""
    before = of_sqlite(sqlite_file)
    columns = "tenant_id, session_id, call_position"
    again = f"DROP INDEX ix_tool_runs_running; CREATE INDEX ix_tool_runs_running ON tool_runs ({columns})"
    execute_sqlite(sqlite_file, again)

    assert {"index ix_tool_runs_running", "index_list tool_runs"} <= difference(before, of_sqlite(sqlite_file)).keys()


@pytest.fixture
async def catalog(postgres_url: str) -> Catalog:
    """The catalog of the migrated database."""
    return await of_postgres(postgres_url)


async def test_every_table_has_the_columns_of_the_models(catalog: Catalog) -> None:
    """What `tables.py` tells is what is there, column by column and in that order; nothing else is."""
    expected = {name: [column.name for column in metadata_for(None).tables[name].columns] for name in TABLES}

    assert {name: columns_of(catalog, name) for name in TABLES} == expected
    assert names_of(catalog, "relation") == {*TABLES, *VIEWS, VERSION_TABLE}


async def test_every_view_has_the_columns_operators_build_on(catalog: Catalog) -> None:
    """The columns of the views are a promise to dashboards: they stay."""
    assert {name: columns_of(catalog, name) for name in VIEWS} == {
        name: columns.split() for name, columns in VIEW_COLUMNS.items()
    }


async def test_sqlite_has_the_same_tables_and_views(sqlite_template: Path) -> None:
    """A dashboard query moves between the databases: the same names, the same columns."""
    found = of_sqlite(sqlite_template)
    columns = {name: [row[1] for row in found[f"table_xinfo {name}"]] for name in (*TABLES, *VIEWS)}  # type: ignore[index]
    tables = {name: [column.name for column in metadata_for(None).tables[name].columns] for name in TABLES}

    assert columns == tables | {name: listed.split() for name, listed in VIEW_COLUMNS.items()}


async def test_every_constraint_and_index_follows_the_naming_convention(catalog: Catalog) -> None:
    """An error of the server names a constraint one can look up: its kind, its table, what it is about."""
    prefixes = {b"p": "pk_", b"u": "uq_", b"c": "ck_", b"f": "fk_"}
    named = {name: prefixes.get(catalog[f"constraint {name}"][0]) for name in names_of(catalog, "constraint")}  # type: ignore[call-overload]
    ours = {name: prefix for name, prefix in named.items() if prefix and not name.startswith(VERSION_TABLE)}
    strangers = {
        name for name, prefix in ours.items() if not name.split(".")[1].startswith(f"{prefix}{name.split('.')[0]}")
    }
    indexes = {name for name in names_of(catalog, "index") if not name.startswith(VERSION_TABLE)}

    assert set(ours.values()) >= {"pk_", "ck_", "fk_"}
    assert strangers == set()
    assert {name for name in indexes if not name.startswith(("pk_", "ix_", "uq_"))} == set()


async def test_every_key_begins_with_tenant_and_session_compared_by_bytes(catalog: Catalog) -> None:
    """One session is one shard: each table's key starts with (tenant_id, session_id), COLLATE "C"."""
    keys = {name: str(catalog[f"constraint {name}.pk_{name}"][1]) for name in TABLES}
    collations = {catalog[f"column {name}.{column}"][2] for name in TABLES for column in ("tenant_id", "session_id")}

    assert all(key.startswith("PRIMARY KEY (tenant_id, session_id") for key in keys.values())
    assert collations == {"C"}


def columns_of(catalog: Catalog, relation: str) -> list[str]:
    found = [
        (facts[0], key.split(".", 1)[1]) for key, facts in catalog.items() if key.startswith(f"column {relation}.")
    ]
    return [name for _, name in sorted(found)]
