"""An application's own tables and its own Alembic history live in the same database, untouched."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import make_url

from agents_pg_session.migrations import main as migrate
from tests.migrations.actions import check, execute, use
from tests.migrations.catalog import difference, names_of, of_postgres

ENV = """
import os
from alembic import context
from sqlalchemy import Column, Integer, MetaData, Table, create_engine

metadata = MetaData()
for name in ("sessions", "items"):
    Table(name, metadata, Column("id", Integer, primary_key=True))
engine = create_engine(context.config.attributes["url"])
with engine.begin() as connection:
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
"""
REVISION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0001", None

def upgrade():
    for name in ("sessions", "items"):
        op.create_table(name, sa.Column("id", sa.Integer(), primary_key=True))

def downgrade():
    for name in ("sessions", "items"):
        op.drop_table(name)
"""


@pytest.fixture
def application(empty: str, tmp_path: Path) -> Config:
    """Another project's Alembic, at its newest revision, which is called like ours, with tables called like ours."""
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(ENV)
    (tmp_path / "versions" / "0001_first.py").write_text(REVISION)
    url = make_url(empty).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    config = Config(attributes={"url": url})
    config.set_main_option("script_location", str(tmp_path))
    command.upgrade(config, "head")
    return config


def test_an_applications_history_is_left_alone(empty: str, application: Config) -> None:
    """Our way up and down changes nothing in `public`, and their tools see nothing of ours."""
    before = asyncio.run(of_postgres(empty, "public"))
    migrate(["-x", f"url={empty}", "upgrade", "head"])
    asyncio.run(use(empty))
    command.check(application)
    after_up = asyncio.run(of_postgres(empty, "public"))
    migrate(["-x", f"url={empty}", "downgrade", "base"])

    assert names_of(before, "relation") >= {"alembic_version", "sessions", "items"}
    assert difference(before, after_up) == {}
    assert difference(before, asyncio.run(of_postgres(empty, "public"))) == {}


def test_an_applications_downgrade_leaves_ours_alone(empty: str, application: Config, postgres_url: str) -> None:
    """Going back over there changes nothing here."""
    migrate(["-x", f"url={empty}", "upgrade", "head"])
    command.downgrade(application, "base")

    assert difference(asyncio.run(of_postgres(empty)), asyncio.run(of_postgres(postgres_url))) == {}
    assert names_of(asyncio.run(of_postgres(empty, "public")), "relation") == {"alembic_version"}


def test_the_public_schema_is_shared_with_an_applications_history(empty: str, application: Config) -> None:
    """In one schema too, each history has a version table of its own."""
    command.downgrade(application, "base")
    migrate(["-x", f"url={empty}", "-x", "schema=public", "upgrade", "head"])

    assert asyncio.run(check(empty, "public")).schema == "public"
    assert asyncio.run(execute(empty, "SELECT count(*) FROM public.alembic_version")) == [(0,)]


def test_an_applications_tables_in_our_schema_stop_the_upgrade(
    empty: str, application: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where their `sessions` is in the way, the upgrade says so and leaves everything as it was."""
    before = asyncio.run(of_postgres(empty, "public"))
    with pytest.raises(SystemExit):
        migrate(["-x", f"url={empty}", "-x", "schema=public", "upgrade", "head"])

    assert 'relation "sessions" already exists' in capsys.readouterr().out
    assert difference(before, asyncio.run(of_postgres(empty, "public"))) == {}


@pytest.mark.parametrize("path", ["evil", "evil, agents", "agents, evil", "nowhere", "''"])
def test_the_search_path_of_a_role_does_not_matter(empty: str, postgres_url: str, path: str) -> None:
    """Names are always qualified: tables called like ours in the search path are neither read nor written."""
    database, user = make_url(empty).database, make_url(empty).username
    decoys = ("sessions", "items", "tool_runs", "runs", "events", "snapshots", "agents_pg_session_version")
    setup = [f"CREATE TABLE evil.{name} (version_num text, tenant_id text)" for name in decoys]
    settings = f"ALTER ROLE {user} IN DATABASE {database} SET search_path = {path}"
    asyncio.run(execute(empty, "CREATE SCHEMA evil", *setup, settings))
    before = asyncio.run(of_postgres(empty, "evil"))
    migrate(["-x", f"url={empty}", "upgrade", "head"])
    asyncio.run(use(empty))

    assert asyncio.run(check(empty)).schema == "agents"
    assert difference(asyncio.run(of_postgres(empty)), asyncio.run(of_postgres(postgres_url))) == {}
    assert difference(asyncio.run(of_postgres(empty, "evil")), before) == {}
