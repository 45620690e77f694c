"""Finds the problem file that a plan was made from, by the hash that the plan keeps of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from cascadia_fast.errors import InputError
from cascadia_fast.example import EXAMPLE_DIR
from cascadia_fast.input_files import MAX_TEXT_BYTES

if TYPE_CHECKING:
    from cascadia_fast.blueprint import Plan

_SUFFIXES = (".yaml", ".yml")


def find_problem(plan: Plan, path: Path) -> Path:
    """Return the problem file of a plan: the built-in example's, or one beside the plan or in the working directory.

    Parameters
    ----------
    plan
        The plan; its provenance names every input with its SHA-256.
    path
        Where it was read from.

    Raises
    ------
    InputError
        No such file is there, or one of that name has changed since.
    """
    inputs = plan.provenance.inputs
    names = [name for name in inputs if Path(name).suffix in _SUFFIXES]
    if "workload" in inputs or not names:
        raise InputError(
            f"{path} was made from a problem in memory, which no file holds; give one with --problem, or use it in "
            "Python"
        )
    folders = list(dict.fromkeys(folder.resolve() for folder in (path.parent, Path())))
    beside = [file for folder in folders for file in sorted(folder.iterdir()) if file.suffix in _SUFFIXES]
    wanted = {inputs[name] for name in names}
    for file in [EXAMPLE_DIR / "problem.yaml", *beside]:
        if _sha256(file) in wanted:
            return file
    changed = next((file for file in beside if file.name in names), None)
    if changed is not None:
        raise InputError(
            f"{changed} has changed since {path} was made from it (the SHA-256 differs); plan again, put the old file "
            "back, or give another with --problem"
        )
    raise InputError(
        f"{names[0]}, from which {path} was made, lies neither beside it nor in the working directory; give it with "
        "--problem"
    )


def _sha256(file: Path) -> str | None:
    try:
        if not file.is_file() or file.stat().st_size > MAX_TEXT_BYTES:
            return None
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None
