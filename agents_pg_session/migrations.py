"""Alembic's own command line over the revisions this package carries: `python -m agents_pg_session.migrations`.

    AGENTS_PG_URL=postgresql://… python -m agents_pg_session.migrations upgrade head
    python -m agents_pg_session.migrations -x url=postgresql://… -x schema=chat current
    python -m agents_pg_session.migrations upgrade head --sql > upgrade.sql

The same as `alembic …` in a checkout, where nothing but the installed package is at hand.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from alembic.config import CommandLine, Config

from agents_pg_session.schema import script_location

__all__ = ["main"]


def main(arguments: Sequence[str]) -> None:
    """Run one Alembic command; every command and option of `alembic` is there, except `-c`."""
    command_line = CommandLine(prog="python -m agents_pg_session.migrations")
    options = command_line.parser.parse_args(arguments)
    if not hasattr(options, "cmd"):
        command_line.parser.error("too few arguments")
    config = Config(cmd_opts=options)
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    command_line.run_cmd(config, options)


if __name__ == "__main__":
    main(sys.argv[1:])
