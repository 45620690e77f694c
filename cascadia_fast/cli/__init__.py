"""The command line, ``cascadia-fast``: one file per command.

Nothing is imported before `main` runs, so that Ctrl-C during the imports ends like any other, and a command imports
what it needs when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the ``cascadia-fast`` program."""
    try:
        from cascadia_fast.cli.program import run

        code = run()
    except KeyboardInterrupt:
        code = 130  # what a shell returns for a program that Ctrl-C stops
    if code == 130:
        print("interrupted", file=sys.stderr)
    sys.exit(code)
