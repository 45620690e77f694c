"""The README's blocks that commands print: each stands between markers, with the command that made it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Missing(Exception):
    """What was asked for is not there."""


@dataclass(frozen=True)
class Block:
    """A part of the README: its name in the markers, and what makes its content."""

    name: str
    content: Callable[[], str]

    @property
    def begin(self) -> str:
        """The line before it."""
        return f"<!-- {self.name}:begin -->"

    @property
    def end(self) -> str:
        """The line after it."""
        return f"<!-- {self.name}:end -->"

    def put_into(self, text: str) -> str:
        """Return the README's text with this block made anew."""
        before, _, after = self.split(text)
        return f"{before}{self.begin}\n{self.content().rstrip()}\n{self.end}{after}"

    def split(self, text: str) -> tuple[str, str, str]:
        """Return what comes before the block, its content, and what comes after."""
        once = text.count(self.begin) == text.count(self.end) == 1
        if not once or text.index(self.begin) > text.index(self.end):
            raise Missing(f"the README needs one line {self.begin} and one line {self.end} after it")
        before, rest = text.split(self.begin)
        content, after = rest.split(self.end)
        return before, content, after


def blocks(load_rows: Path | None = None, paper_trials: Path | None = None) -> Iterator[Block]:
    """Yield all blocks but the table of results; those that take long only where their data are given.

    Parameters
    ----------
    load_rows
        What ``benchmarks/load_accuracy.py --json`` wrote, for p95 under load.
    paper_trials
        Folder that keeps the trials of ``python -m benchmarks.paper``.
    """
    yield Block("example", lambda: _console("plan"))
    yield Block("floors", lambda: _made("floors"))
    yield Block("simulation", lambda: _console("simulate"))
    yield Block("trial", lambda: _made("plan_accuracy", "--markdown"))
    yield Block("worth", lambda: _made("worth", "--markdown"))
    yield Block("scheduling", lambda: _made("scheduling"))
    yield Block("peers", lambda: _made("peers"))
    yield Block("drift", lambda: _made("drift"))
    yield Block("judge", lambda: _made("judge_economics"))
    yield Block("accuracy", _accuracy)
    if paper_trials is not None:
        yield Block("paper", lambda: _printed_by("paper", "--out", str(paper_trials)))
    if load_rows is not None:
        yield Block("load", lambda: _load(load_rows))


def _printed_by(module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout.rstrip()


def _made(module: str, *arguments: str) -> str:
    return f"{_printed_by(module, *arguments)}\n\nMade by `python -m benchmarks.{module}`."


def _console(command: str) -> str:
    """What a command of the program prints on its second run; the first compiles."""
    arguments = [str(Path(sys.executable).with_name("cascadia-fast")), command]
    environment = os.environ | {"PYTHONUTF8": "1"}
    subprocess.run(arguments, env=environment, check=True, capture_output=True)
    run = subprocess.run(arguments, env=environment, check=True, capture_output=True, encoding="utf-8")
    return f"```text\n$ cascadia-fast {command}\n{run.stdout.rstrip()}\n```"


def _accuracy() -> str:
    with tempfile.TemporaryDirectory() as folder:
        printed = _printed_by("accuracy", "--markdown", "-o", f"{folder}/accuracy.html")
    return f"{printed}\n\nMade by `python -m benchmarks.accuracy`."


def _load(rows: Path) -> str:
    from benchmarks.accuracy_load import brief_load_table, lines, read_answers
    from benchmarks.accuracy_page import markdown

    made = "Made by `python benchmarks/load_accuracy.py --json ROWS` and `python benchmarks/tables.py --load ROWS`."
    return f"{markdown(brief_load_table(lines(read_answers(rows))))}\n\n{made}"
