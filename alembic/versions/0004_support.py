"""Which code may work on this schema: a view of one row, for code that is older than the database.

In a rolling deploy, processes of the release before meet a revision they do not know. They read here whether they may
go on. A revision that only adds leaves the view as it is; one that contracts replaces it, naming the oldest revision
whose code it still serves. Everything so far only added: code of revision 0001 works here.
"""

from __future__ import annotations

from agents_pg_session.revising import execute

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute("CREATE VIEW {schema}agents_pg_session_support AS SELECT CAST('0001' AS text) AS oldest_revision")


def downgrade() -> None:
    execute("DROP VIEW {schema}agents_pg_session_support")
