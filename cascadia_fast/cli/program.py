"""The program: its commands, its usage errors as one line each, and what it does without a place to print to."""

from __future__ import annotations

import os
import sys

import typer

from cascadia_fast.cli import calibrate, compare, explain, plan, simulate
from cascadia_fast.cli.outcome import BAD_INPUT_OR_NO_PLAN, BROKEN_PIPE, INTERRUPTED, discard_stdout, say

NAME = "cascadia-fast"

# Typer exports only this leaf of its family of usage errors, and older releases take the family from click.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name=NAME,
    help="Plans how a GPU fleet serves a cascade of large language models.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("plan", epilog=plan.EPILOG)(plan.plan)
app.command("explain", epilog=explain.EPILOG)(explain.explain)
app.command("simulate", epilog=simulate.EPILOG)(simulate.simulate)
app.command("compare", epilog=compare.EPILOG)(compare.compare)
app.command("calibrate", epilog=calibrate.EPILOG)(calibrate.calibrate)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"{NAME} {version(NAME)}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
    ),
) -> None:
    """Plans how a GPU fleet serves a cascade of large language models."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(BAD_INPUT_OR_NO_PLAN)


def run() -> int:
    """Run the command that the arguments name and return the exit code."""
    closed = _occupy_standard_streams()
    try:
        code = app(prog_name=NAME, standalone_mode=False)
    except _UsageError as error:
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        context = getattr(error, "ctx", None)
        say(f"error: {' '.join(text.split()).rstrip('.')}; see {context.command_path if context else NAME} --help")
        code = BAD_INPUT_OR_NO_PLAN
    except typer.Abort:
        code = INTERRUPTED
    except SystemExit:
        # Typer's own end when the reader of what it prints has gone.
        discard_stdout()
        code = BROKEN_PIPE
    except OSError as error:
        if error.filename is not None:
            raise
        say(f"error: stdout cannot be written ({error.strerror}); print to a place with room")
        discard_stdout()
        code = BAD_INPUT_OR_NO_PLAN
    code = code if isinstance(code, int) else 0
    return BROKEN_PIPE if closed and code == 0 else code


def _occupy_standard_streams() -> bool:
    """Open the standard streams that the caller closed, lest the next file opened takes their place.

    Returns
    -------
    bool
        Whether stdout was closed, so that what is printed reaches nobody.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    closed = sys.stdout is None
    if closed:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (open until the program ends)
    return closed
