"""Building indexes of ours that are missing or that an interrupted build left invalid, while others go on."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from agents_pg_session.operations.doctor.asking import Asking
from agents_pg_session.operations.doctor.locked import Change
from agents_pg_session.operations.doctor.schema import broken_indexes, expected, found
from agents_pg_session.statements import quoted_prefix

__all__ = ["rebuilt"]

# Indexes that somebody is building right now: invalid until then, and none of our business.
_BUILDING = """
-- Indexes that are being built.
SELECT c.relname FROM pg_stat_progress_create_index p
  JOIN pg_class c ON c.oid = p.index_relid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema_name
"""


async def rebuilt(asking: Asking, dry_run: bool) -> AsyncIterator[Change]:
    """Build each, CONCURRENTLY and so outside of a transaction; one that somebody has made otherwise is left alone."""
    assert asking.schema is not None, "SQLite builds indexes in a transaction"
    broken = broken_indexes(expected(asking.schema), await found(asking))
    building = {row.relname for row in await asking.rows(_BUILDING, schema_name=asking.schema)} if broken else set()
    prefix = quoted_prefix(asking.schema).replace("\\:", ":")
    for index in broken:
        if index.is_another or index.name in building:
            continue
        if not dry_run:
            # No limit in time: as long as it takes, nobody has to wait for it.
            await _say(asking, f"DROP INDEX CONCURRENTLY IF EXISTS {prefix}{index.name}")
            await _say(asking, re.sub("^CREATE INDEX ", "CREATE INDEX CONCURRENTLY ", index.create))
        yield Change("indexes", index.name, index.said.partition(":")[0], "built")


async def _say(asking: Asking, sql: str) -> None:
    async with asking.store.engine.connect() as plain:
        connection = await plain.execution_options(isolation_level="AUTOCOMMIT")
        await connection.exec_driver_sql(sql.replace("%", "%%"))
