"""The command line, ``cascadia-fast``: one file per command.

Only typer is imported here; a command imports what it needs when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import typer

from cascadia_fast.cli import plan

app = typer.Typer(
    name="cascadia-fast",
    help="Plans how a GPU fleet serves a cascade of large language models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("plan")(plan.plan)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"cascadia-fast {version('cascadia-fast')}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
    ),
) -> None:
    """Plans how a GPU fleet serves a cascade of large language models."""


def main() -> None:
    """Entry point of the ``cascadia-fast`` program."""
    app()
