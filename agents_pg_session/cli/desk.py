"""What every command has at hand: the store it asks, and paper to print on.

`on_store` turns a coroutine function into a command: it adds `--url`, `--schema` and `--json`, opens the store, runs
the function in an event loop, and turns errors into one line and an exit code.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Concatenate, ParamSpec, TypeAlias, overload

import typer
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from agents_pg_session import SessionConflict, SessionError, SessionStore, StorageUnavailable
from agents_pg_session.cli.paper import Paper, plain

__all__ = [
    "AsJson",
    "Desk",
    "Schema",
    "Url",
    "agreed",
    "fail",
    "named_url",
    "on_store",
    "there",
    "version_text",
    "with_paper",
]

P = ParamSpec("P")

_PLACE = "Database"
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="AGENTS_PG_URL",
        help="The database: postgresql://… or sqlite:///file.db.",
        show_default=False,
        metavar="URL",
        rich_help_panel=_PLACE,
    ),
]
Schema = Annotated[
    str,
    typer.Option(
        "--schema",
        envvar="AGENTS_PG_SCHEMA",
        help="The PostgreSQL schema of the tables.",
        metavar="NAME",
        rich_help_panel=_PLACE,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]

#: Loggers whose warnings the error at the end says again; all others reach the person at the terminal.
_SAID_BY_THE_ERROR = ("retries", "connections")
_NOWHERE = logging.NullHandler()

#: How long a person waits for a database that is away, in seconds: shorter than a server's own patience.
PATIENCE = 5.0


@dataclass(frozen=True)
class Desk:
    """What a command works with."""

    store: SessionStore
    paper: Paper
    url: str
    schema: str


_Work: TypeAlias = Callable[Concatenate[Desk, P], Awaitable[None]]


@overload
def on_store(work: _Work[P]) -> Callable[..., None]: ...


@overload
def on_store(*, patience: float = ..., left: str = ...) -> Callable[[_Work[P]], Callable[..., None]]: ...


def on_store(work: Any = None, *, patience: float = PATIENCE, left: str = "") -> Any:
    """Return *work* as a command of its own parameters and `--url`, `--schema`, `--json`.

    *patience* is how many seconds one of its statements may take: `@on_store(patience=120)` for one that reads much. A
    database that does not answer at all is given up after a few seconds all the same. *left* is how it left things when
    a person presses Ctrl-C.
    """
    if work is None:
        return functools.partial(on_store, patience=patience, left=left)

    @functools.wraps(work)
    def command(*args: Any, url: str | None, schema: str, as_json: bool, **options: Any) -> None:
        async def in_store() -> None:
            paper, place = Paper(as_json), there(named_url(url))
            if patience > PATIENCE:
                async with SessionStore.open(place, schema=schema, retry_for=PATIENCE) as store:
                    await store.check()
            opened = SessionStore.open(place, schema=schema, retry_for=patience, command_timeout=patience)
            async with opened as store:
                await work(Desk(store, paper, place, schema), *args, **options)

        with _told(left):
            asyncio.run(in_store())

    _take(command, work, url=Url, schema=Schema, as_json=AsJson)
    return command


def with_paper(work: Callable[Concatenate[Paper, P], None]) -> Callable[..., None]:
    """Return *work*, which opens no store, as a command of its own parameters and `--json`.

    There is no event loop around it: what it calls may run one of its own, and Ctrl-C ends that.
    """

    @functools.wraps(work)
    def command(*args: Any, as_json: bool, **options: Any) -> None:
        with _told():
            work(Paper(as_json), *args, **options)

    _take(command, work, as_json=AsJson)
    return command


def named_url(url: str | None) -> str:
    """Return the URL that was given; raise `ValueError` saying both ways to give one."""
    if not url:
        raise ValueError(
            "no database was named: pass --url postgresql://user@host/database (or sqlite:///file.db), "
            "or set AGENTS_PG_URL"
        )
    return url


def there(url: str) -> str:
    """Return the URL, unless it names a SQLite file that is not there: only `db upgrade` makes one."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return url  # said in better words by whoever opens it
    path = parsed.database or ":memory:"
    is_file = parsed.get_backend_name() == "sqlite" and path != ":memory:" and not path.startswith("file:")
    if is_file and not os.path.exists(path):
        raise fail(f"there is no SQLite file {path!r}; run `agents-pg-session db upgrade` to make one")
    return url


def agreed(question: str, yes: bool) -> None:
    """Ask a person before something that cannot be undone; raise what ends the command where the answer is no.

    Where nobody can be asked, only `--yes` says yes.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise fail(f"{question} Nobody can be asked here: say --yes", 2)
    with _interruptible():
        sys.stderr.write(f"{plain(question).plain} [y/N] ")
        sys.stderr.flush()
        answer = sys.stdin.readline()
    if answer.strip().lower() not in ("y", "yes"):
        raise fail("nothing was done")


def fail(message: str, code: int = 1) -> typer.Exit:
    """Print *message* to standard error and return what ends the command with *code*: `raise fail("…")`."""
    typer.echo(f"agents-pg-session: {plain(message).plain}", err=True)
    return typer.Exit(code)


def version_text() -> str:
    """Return name and version."""
    try:
        return f"agents-pg-session {version('agents-pg-session')}"
    except PackageNotFoundError:
        return "agents-pg-session (not installed)"


@contextmanager
def _told(left: str = "") -> Iterator[None]:
    """Turn what a command raises into one line and an exit code."""
    for name in _SAID_BY_THE_ERROR:
        logging.getLogger(f"agents_pg_session.{name}").addHandler(_NOWHERE)
    logging.getLogger("asyncio").addHandler(_NOWHERE)  # Ctrl-C while connecting makes it tell of a future of its own
    try:
        yield
        sys.stdout.flush()  # here a closed pipe can still be told from a failure
    except StorageUnavailable as error:
        raise fail(str(error), 3) from None
    except SessionConflict as error:
        raise fail(str(error), 4) from None
    except SessionError as error:
        raise fail(str(error)) from None
    except ValueError as error:
        raise fail(str(error), 2) from None
    except BrokenPipeError:  # `… | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
        raise typer.Exit from None
    except KeyboardInterrupt:
        raise fail(f"interrupted{f'; {left}' if left else ''}", 130) from None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end a question: the event loop would otherwise only note it, and wait for the answer."""
    noting = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, noting)


_DEFAULTS = {"url": None, "schema": "agents", "as_json": False}


def _take(command: Callable[..., None], work: Callable[..., object], **more: object) -> None:
    """Have *command* show the parameters of *work* but the first, and *more*."""
    own = list(inspect.signature(work, eval_str=True).parameters.values())[1:]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[name], annotation=kind)
        for name, kind in more.items()
    ]
    own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    signature = inspect.Signature([*own, *added], return_annotation=None)
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in signature.parameters.values()}
    del command.__wrapped__  # type: ignore[attr-defined]
