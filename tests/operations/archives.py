"""Archives in memory: exported from a store, imported into one, taken apart and put together anew."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

from agents_pg_session import SessionStore
from agents_pg_session.operations.exporting import Selection, export_sessions
from agents_pg_session.operations.importing import Imported, import_sessions

__all__ = ["erase", "exported", "imported", "lines_of", "sealed"]


async def exported(store: SessionStore, tenant: str = "", **asked: Any) -> bytes:
    """Return the archive of a tenant's sessions."""
    file = io.BytesIO()
    await export_sessions(store, file, Selection(tenant, **asked))
    return file.getvalue()


async def imported(store: SessionStore, archive: bytes, **how: Any) -> Imported:
    """Import an archive."""
    return await import_sessions(store, io.BytesIO(archive), **how)


async def erase(store: SessionStore, tenant: str) -> None:
    """Delete every session of a tenant."""
    while page := await store.sessions(tenant=tenant):
        for each in page:
            await store.session(each.session_id, tenant=tenant).delete()


def lines_of(archive: bytes) -> list[dict[str, Any]]:
    """Return the lines of an archive, each as JSON."""
    return [json.loads(line) for line in archive.splitlines()]


def sealed(lines: list[bytes]) -> bytes:
    """Put lines (without the closing ones' checksums being right) together as an archive whose checksums are."""
    whole, session = hashlib.sha256(), hashlib.sha256()
    told: list[bytes] = []
    for line in lines:
        if line.startswith(b'{"table":"sessions"'):
            session = hashlib.sha256()
        if line.startswith(b'{"end"'):
            digest = session if line.startswith(b'{"end":"session"') else whole
            line = json.dumps(json.loads(line) | {"sha256": digest.hexdigest()}, separators=(",", ":")).encode()
        line = line.rstrip(b"\n") + b"\n"
        session.update(line)
        whole.update(line)
        told.append(line)
    return b"".join(told)
