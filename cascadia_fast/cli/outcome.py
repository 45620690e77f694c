"""What every command does alike: progress, warnings on stderr, errors as one line, an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import typer

BAD_INPUT_OR_NO_PLAN = 2
INTERRUPTED = 130
BROKEN_PIPE = 141  # what a program that SIGPIPE stops returns in a shell


@contextmanager
def outcome() -> Iterator[list[str]]:
    """Run a command's body; yields the list that collects the sentences of `CascadiaWarning`.

    What is left in the list at the end goes to stderr, one ``warning: ...`` line each, so a command that shows warnings
    itself takes them out.

    Raises
    ------
    typer.Exit
        With code 2 after a `CascadiaError`, 130 after Ctrl-C, 141 when the reader of stdout has gone.
    """
    from cascadia_fast.errors import CascadiaError

    sentences: list[str] = []
    code = 0
    try:
        with _collected(sentences):
            yield sentences
    except CascadiaError as error:
        _print_warnings(sentences)
        say(f"error: {_one_line(error)}")
        code = BAD_INPUT_OR_NO_PLAN
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        discard_stdout()
        code = BROKEN_PIPE
    else:
        _print_warnings(sentences)
    if code:
        raise typer.Exit(code)


@contextmanager
def printing() -> Iterator[None]:
    """Print to stdout, and make sure of it.

    Raises
    ------
    InputError
        Stdout takes no more, for instance because its disk is full.
    """
    from cascadia_fast.errors import InputError

    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise InputError(f"stdout cannot be written ({error.strerror}); print to a place with room") from None


def discard_stdout() -> None:
    """Give the interpreter, which flushes stdout once more at exit, somewhere to write."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(sentence: str) -> None:
    """Print a line to stderr, where there is one."""
    with suppress(OSError):
        typer.echo(sentence, err=True)


@contextmanager
def _collected(sentences: list[str]) -> Iterator[None]:
    from cascadia_fast.errors import CascadiaWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", CascadiaWarning)
        show_other = warnings.showwarning

        def keep(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: object) -> None:
            if issubclass(category, CascadiaWarning):
                sentence = _one_line(message)
                if sentence not in sentences:
                    sentences.append(sentence)
            else:
                show_other(message, category, filename, lineno)

        warnings.showwarning = keep  # type: ignore[assignment]
        yield


def _print_warnings(sentences: list[str]) -> None:
    for sentence in sentences:
        say(f"warning: {sentence}")


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A line on the terminal that says what is being done; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("reading") as status:
        yield status.update
