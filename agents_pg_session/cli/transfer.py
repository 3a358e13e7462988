"""`agents-pg-session export` and `import`: move whole sessions between databases, or into a file to keep."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO, TextIO, cast

import typer

from agents_pg_session import SessionConflict
from agents_pg_session.cli.desk import Desk, fail, on_store
from agents_pg_session.cli.options import AllTenants, Since, Tenant, moment
from agents_pg_session.cli.paper import Paper, counted, number
from agents_pg_session.operations.exporting import Exported, Selection, export_sessions
from agents_pg_session.operations.files import opened_archive, written_whole
from agents_pg_session.operations.importing import Imported, import_sessions

__all__ = ["export_to_file", "import_from_file"]

#: Standard input or output, where a file is asked for.
_STANDARD = Path("-")


class Conflict(StrEnum):
    """What becomes of a session that is there already, and different."""

    FAIL = "fail"
    SKIP = "skip"
    REPLACE = "replace"


@on_store(patience=60, left="a file is there whole or not at all")
async def export_to_file(
    desk: Desk,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The file; .gz compresses it, - is standard output.", metavar="FILE"),
    ] = _STANDARD,
    session: Annotated[
        list[str] | None,
        typer.Option(help="Only this session; may be repeated.", metavar="ID", show_default=False),
    ] = None,
    status: Annotated[
        str | None, typer.Option(help="Only those with this status.", metavar="STATUS", show_default=False)
    ] = None,
    since: Since = None,
    tenant: Tenant = "",
    all_tenants: AllTenants = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write whole sessions with their record to a file, as JSON Lines with a checksum.

    Each session is as it was at one moment, also while others write to it. --since means those written to since then.
    The same sessions give the same file, byte for byte.
    """
    paper = desk.paper
    if output == _STANDARD and paper.as_json:
        raise ValueError("--json needs --output FILE: standard output has the sessions")
    if output == _STANDARD and _is_terminal(sys.stdout):
        raise ValueError("this is a terminal: name a file with --output FILE, or pipe the sessions into something")
    selection = Selection(tenant, all_tenants, session or (), status, moment("--since", since))
    target = nullcontext(sys.stdout.buffer) if output == _STANDARD else written_whole(output, force=force)
    with target as file, _sessions_bar(paper) as progress:
        done = await export_sessions(desk.store, cast("BinaryIO", file), selection, progress=progress)
    if paper.as_json:
        return paper.json({"exported": done, "file": str(output)})
    told = f"exported {_what(done)}"
    paper.note(told) if output == _STANDARD else paper.print(f"{told} to {output}")
    return None


@on_store(patience=60, left="each session is there whole or not at all; run it again to go on")
async def import_from_file(
    desk: Desk,
    file: Annotated[
        Path, typer.Argument(help="What export wrote, compressed or not; - is standard input.", show_default=False)
    ],
    tenant: Annotated[
        str | None, typer.Option(help="Move the sessions into this tenant.", metavar="ID", show_default=False)
    ] = None,
    on_conflict: Annotated[
        Conflict, typer.Option(help="What to do about a session that is there already, and different.")
    ] = Conflict.FAIL,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare sessions that are there already byte for byte.")
    ] = False,
) -> None:
    """Write the sessions of a file that export wrote, each as it was, whole or not at all.

    A session that is there already, the same, is skipped: begin an import that was interrupted simply anew. By default
    the first one that is there and different ends the import before anything of it is written.
    """
    paper = desk.paper
    source = nullcontext(sys.stdin.buffer) if file == _STANDARD else opened_archive(file)
    with source as opened, _bytes_bar(paper, cast("BinaryIO", opened), file) as progress:
        try:
            done = await import_sessions(
                desk.store,
                cast("BinaryIO", opened),
                tenant=tenant,
                on_conflict=on_conflict.value,
                verify=verify,
                progress=progress,
            )
        except SessionConflict as error:
            raise fail(str(error)) from None
    if paper.as_json:
        paper.json({"imported": done, "complete": done.complete})
    else:
        _tell(paper, done)
    if not done.complete:
        raise typer.Exit(1)


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty()


def _tell(paper: Paper, done: Imported) -> None:
    paper.print(f"imported {_what(done)}")
    if done.replaced:
        paper.print(f"{number(done.replaced)} of them replaced what was there")
    if done.skipped:
        paper.print(f"{number(done.skipped)} were there already, the same")
    if done.conflicts:
        paper.print(f"{number(len(done.conflicts))} are there already, different, and were left as they are:")
        for key in done.conflicts[:20]:
            paper.print(f"  {key.session_id}{f' of tenant {key.tenant_id}' if key.tenant_id else ''}")
        if len(done.conflicts) > 20:
            paper.print(f"  and {number(len(done.conflicts) - 20)} more")


def _what(done: Exported | Imported) -> str:
    return (
        f"{counted(done.sessions, 'session')} with {counted(done.items, 'item')}, "
        f"{counted(done.tool_runs, 'tool run')}, {counted(done.runs, 'run')}, {counted(done.events, 'event')} and "
        f"{counted(done.snapshots, 'snapshot')}"
    )


@contextmanager
def _sessions_bar(paper: Paper) -> Iterator[Callable[[Exported], None]]:
    with paper.progress() as bar:
        task = bar.add_task("sessions", total=None)
        yield lambda so_far: bar.update(task, total=so_far.of, completed=so_far.sessions)


@contextmanager
def _bytes_bar(paper: Paper, file: BinaryIO, path: Path) -> Iterator[Callable[[Imported], None]]:
    """Draw how much of the file was read; nobody knows how long a pipe is."""
    total = None if path == _STANDARD else path.stat().st_size
    with paper.progress(in_percent=total is not None) as bar:
        task = bar.add_task("bytes", total=total)
        yield lambda so_far: bar.update(
            task,
            completed=so_far.sessions if total is None else file.tell(),
            description=f"{number(so_far.sessions)} sessions",
        )
