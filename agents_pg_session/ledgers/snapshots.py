"""Versions of remembered state: summaries, paused runs, replaced history, and whatever else is worth remembering."""

from __future__ import annotations

import difflib
import json
from functools import partial

from agents_pg_session.errors import SnapshotNotFound
from agents_pg_session.labels import checked_filters, checked_number, checked_text
from agents_pg_session.ledgers.mapping import readable, snapshot
from agents_pg_session.ledgers.scope import Scope
from agents_pg_session.paging import checked_limit, page, read_cursor
from agents_pg_session.projection import encode_value
from agents_pg_session.records import JSON, Page, Snapshot
from agents_pg_session.statements import Snapshotted

__all__ = ["RUN_STATE", "Snapshots"]

#: The kind of snapshot a paused run is.
RUN_STATE = "run_state"

#: Kinds that are written by what they belong to: `pause`, and whatever replaces history.
RESERVED = frozenset({RUN_STATE, "history"})


class Snapshots:
    """Snapshots by kind, each kind with versions 1, 2, 3 …; nothing is ever overwritten."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._database = scope.database

    async def save(
        self, kind: str, content: JSON, *, through: int | None = None, label: str | None = None, metadata: JSON = None
    ) -> int:
        """Save *content* as the next version of *kind* and return its number.

        *through* is the position of the last item this state has seen; the session's last one unless told otherwise.
        Raises `InvalidItem` for what JSON cannot hold.
        """
        if checked_text("kind", kind) in RESERVED:
            raise ValueError(f"snapshots of kind {kind!r} are the library's own; choose another kind")
        saved = Snapshotted(
            kind=kind,
            content=encode_value(content, place="content"),
            through=None if through is None else checked_number("through", through),
            label=None if label is None else checked_text("label", label),
            metadata=None if metadata is None else encode_value(metadata, place="metadata"),
        )
        return await self.write(saved)

    async def latest(self, kind: str) -> Snapshot | None:
        """Return the newest version; None before the first."""
        newest = await self.list(kind, limit=1)
        return newest[0] if newest else None

    async def get(self, kind: str, version: int) -> Snapshot:
        """Return one version. Raises `SnapshotNotFound` if there is none."""
        key = self._scope.key
        named = checked_text("kind", kind), checked_number("version", version, least=1)
        rows = await self._database.read(self._database.reads.snapshot(key, *named))
        if not rows:
            raise SnapshotNotFound(f"session {key.session_id!r} has no version {version} of snapshot {kind!r}")
        return snapshot(rows[0])

    async def list(self, kind: str | None = None, *, limit: int = 50, after: str | None = None) -> Page[Snapshot]:
        """Return the versions of *kind*, newest first; without one, all kinds, each newest first."""
        limit, kind = checked_limit(limit), checked_filters(kind=kind)["kind"]
        of, keys = ("snapshots of a kind", (int,)) if kind is not None else ("snapshots", (str, int))
        place = read_cursor(of, after, *keys)
        rows = await self._database.read(self._database.reads.snapshots(self._scope.key, kind, place, limit))
        records = [snapshot(row) for row in rows]
        return page(
            of,
            records,
            limit,
            lambda record: (record.version,) if kind is not None else (record.kind, record.version),
            after,
        )

    async def diff(self, kind: str, a: int, b: int) -> str:
        """Return what changed from version *a* to version *b*, as a unified diff; empty if nothing did."""
        older, newer = await self.get(kind, a), await self.get(kind, b)
        lines = difflib.unified_diff(
            _lines(older.content), _lines(newer.content), f"{kind} {a}", f"{kind} {b}", lineterm=""
        )
        return "\n".join(lines)

    async def write(self, saved: Snapshotted) -> int:
        """Write a snapshot with all that goes with it, and return its version."""
        sql, key = self._database.sql, self._scope.key
        row = await self._scope.change(partial(sql.save, key, saved, self._scope.labels))
        if row is None:
            raise self._database.conflict(
                "save",
                f"session {key.session_id!r}: another writer came first since this run's last append; nothing was "
                "saved",
            )
        place = f"session {key.session_id!r}, snapshots of kind {saved.kind!r}"
        return readable(place, "version", lambda payload: int(json.loads(payload)["version"]), row.payload)


def _lines(content: JSON) -> list[str]:
    text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
    return text.splitlines()
