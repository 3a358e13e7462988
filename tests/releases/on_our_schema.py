"""A plugin for the test run of an earlier release (`pytest -p on_our_schema`): its databases are made by us.

Whatever its suite asks of its own migrations is done by ours, in another process, and where it finds our newest
revision, it is told that this is the one it knows. AGENTS_PG_NEWEST holds `folder of our package:newest revision`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from sqlalchemy import Connection

from agents_pg_session import migrations, schema

ours, _, newest = os.environ["AGENTS_PG_NEWEST"].rpartition(":")


def main(arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "agents_pg_session.migrations", *arguments]
    subprocess.run(command, check=True, cwd=ours, env={**os.environ, "PYTHONPATH": ours}, capture_output=True)


def current_revision(connection: Connection, schema: str | None) -> str | None:
    found = revision_found(connection, schema)
    return their_newest() if found == newest else found


revision_found, their_newest = schema.current_revision, schema.newest_revision
migrations.main = main
schema.current_revision = current_revision
