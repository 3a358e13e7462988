"""The command line: `agents-pg-session`, also `python -m agents_pg_session.cli`.

It parses and prints and decides nothing: a command names a verb of the store or an operation, and lays its answer out
for a person, or with `--json` for a program.

Exit codes, the same for every command: 0 done; 1 the answer is no (a schema that is behind, a session that is not
there, faults that `doctor` found); 2 wrong usage; 3 the database cannot be reached; 4 another writer won.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; without its extra, say how to install it."""
    try:
        from agents_pg_session.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("rich", "typer", "click"):
            raise
        sys.exit(f"{error.name} is not installed: pip install 'agents-pg-session[cli]'")
    except KeyboardInterrupt:  # importing takes a second or two
        sys.exit(130)
    app(prog_name="agents-pg-session")
