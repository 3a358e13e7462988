"""All commands, put together, and the page that lists them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from agents_pg_session.cli import db, doctor, purge, runs, sdk_import, sessions, stats, tools, transfer, usage, waiting
from agents_pg_session.cli.desk import version_text

__all__ = ["app"]

#: Which commands stand together in the help, and in which order.
SECTIONS = {
    "Look": ("sessions", "runs", "tools", "usage", "waiting", "stats"),
    "Mend and clear out": ("doctor", "purge"),
    "Move": ("export", "import", "import-sdk"),
    "The database": ("db",),
}


class _InSections(typer.core.TyperGroup):
    """Lists its commands by `SECTIONS`, whoever registered first, with all of what each says of itself."""

    def list_commands(self, ctx: Any) -> list[str]:
        order = [name for names in SECTIONS.values() for name in names]
        return sorted(self.commands, key=lambda name: order.index(name) if name in order else len(order))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        for section, names in SECTIONS.items():
            there = {name: self.commands[name].get_short_help_str(500) for name in names if name in self.commands}
            if there:
                with formatter.section(section):
                    formatter.write_dl([(name.ljust(width), told) for name, told in there.items()])


app = typer.Typer(
    cls=_InSections,
    name="agents-pg-session",
    help="Look at, mend and move the sessions of the OpenAI Agents SDK that agents_pg_session keeps.",
    epilog="""The database comes from --url or AGENTS_PG_URL. Every command takes --json.

    \b
      agents-pg-session sessions show chat-1 --tenant acme
      agents-pg-session tools failed --since 1h --all-tenants
      agents-pg-session purge --older-than 90d --status ended --dry-run
    """,
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(sessions.commands, name="sessions")
app.add_typer(runs.commands, name="runs")
app.add_typer(tools.commands, name="tools")
app.command("usage")(usage.usage)
app.command("waiting")(waiting.waiting)
app.command("stats")(stats.stats)
app.command("purge")(purge.purge)
app.add_typer(db.commands, name="db")
app.command("doctor")(doctor.doctor)
app.command("export")(transfer.export_to_file)
app.command("import")(transfer.import_from_file)
app.command("import-sdk")(sdk_import.import_from_sdk)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(version_text())
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Options of the command line itself."""
