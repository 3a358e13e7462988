"""`python -m agents_pg_session.testing package.module:open_session`: which promises do its sessions keep?"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agents_pg_session.testing.promises import PROMISES, Promise, Subject
from agents_pg_session.testing.promises.crowd import named
from agents_pg_session.testing.server import Server, find_binaries
from agents_pg_session.testing.survey import Answer, survey


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a promise is broken."""
    parser = _parser()
    given = parser.parse_args(arguments)
    sys.path.insert(0, str(Path.cwd()))
    try:
        open_session, create_tables, close = (path and named(path) for path in (given.open, given.create, given.close))
    except (ImportError, AttributeError, ValueError) as error:
        parser.error(f"{error}; write package.module:function")
    with _database(parser, given.url) as url:
        subject = Subject(open_session, url, create_tables or None, close or None, name=given.open)
        asked = _chosen(parser, given.only)

        def tell(answer: Answer) -> None:
            print(f"{answer.outcome:14} {answer.promise} ({answer.seconds:.1f} s)", file=sys.stderr, flush=True)

        report = asyncio.run(survey(subject, asked, rounds=given.rounds, tell=tell))
    print(report.markdown() if given.markdown else report)
    return 1 if report.broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agents_pg_session.testing", description=__doc__)
    parser.add_argument("open", help="package.module:function that takes a session id and a URL and opens a session")
    parser.add_argument("--url", help="a database for tests: the kit writes to it; without it, it starts a PostgreSQL")
    parser.add_argument("--create", default="", help="package.module:function that creates the tables, given a URL")
    parser.add_argument("--close", default="", help="package.module:function that ends what was opened")
    parser.add_argument("--only", action="append", default=[], help="a promise or a group of them; may be repeated")
    parser.add_argument("--rounds", type=int, default=3, help="how often to ask what may be kept by luck (3)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser


def _chosen(parser: argparse.ArgumentParser, names: list[str]) -> list[Promise]:
    known = {promise.name for promise in PROMISES} | {promise.group for promise in PROMISES}
    if unknown := set(names) - known:
        parser.error(
            f"no promise or group is called {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}"
        )
    return [promise for promise in PROMISES if not names or {promise.name, promise.group} & set(names)]


@contextmanager
def _database(parser: argparse.ArgumentParser, url: str | None) -> Iterator[str]:
    """The database that was named, or one of a server that lives as long as the survey."""
    if url is not None:
        yield url
        return
    if (binaries := find_binaries()) is None:
        parser.error("no PostgreSQL was found; install agents-pg-session[testing], or name a database with --url")
    server = Server(binaries)
    try:
        server.start()
        yield server.url
    finally:
        server.stop()


if __name__ == "__main__":
    sys.exit(main())
