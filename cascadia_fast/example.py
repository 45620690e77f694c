"""The built-in example: where it lies, and how to start a problem of one's own from it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from cascadia_fast.errors import InputError

EXAMPLE_DIR = Path(__file__).resolve().parent / "data" / "example"
EXAMPLE_FILES = ("problem.yaml", "arrivals.csv.gz", "requests.csv.gz", "NOTICE.md")


def write_example(directory: str | os.PathLike[str]) -> list[Path]:
    """Copy the built-in example into a directory, which is made if need be.

    The files are first copied beside their places and then renamed, so that none is ever there in part; when a copy
    fails, nothing is left behind.

    Returns
    -------
    list of Path
        The files written, the problem file first.

    Raises
    ------
    InputError
        A file of that name exists already (it is never overwritten), or the directory cannot be written.
    """
    target = Path(directory)
    paths = [target / name for name in EXAMPLE_FILES]
    for path in paths:
        if os.path.lexists(path):
            raise InputError(f"{path} exists already and is not overwritten; choose another directory or move it away")
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".example-", dir=target) as staging:
            for name in EXAMPLE_FILES:
                shutil.copyfile(EXAMPLE_DIR / name, Path(staging) / name)
            for path in paths:
                (Path(staging) / path.name).rename(path)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}; choose another directory") from None
    return paths
