"""What was tried already, kept in a folder line by line, so that an interrupted comparison goes on where it stopped."""

from __future__ import annotations

import fcntl
import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from cascadia_fast.comparison.trial import Row
from cascadia_fast.errors import CascadiaWarning, InputError
from cascadia_fast.summary_units import plural

CELLS = "cells.jsonl"
OUTPUTS = ("results.json", "cells.csv", "report.html")


class Store:
    """The rows of a folder by key; nobody else may write to it meanwhile.

    Parameters
    ----------
    folder
        Made if need be; one that is not empty must hold an earlier comparison.
    fresh
        Whether to forget what it holds.

    Raises
    ------
    InputError
        The folder belongs to something else, is in use by another comparison, or cannot be written.
    """

    def __init__(self, folder: Path, fresh: bool = False) -> None:
        self.folder = folder
        self.path = folder / CELLS
        self.rows: dict[str, Row] = {}
        with _said(self.path):
            _make(folder, self.path)
            # Not for appending: a line that a full disk tore is cut off again.
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with _said(self.path):
                self._lock()
                if fresh:
                    os.ftruncate(self._file, 0)
                self._end = self._read()
        except BaseException:
            self.close()
            raise

    def add(self, key: str, row: Row) -> None:
        """Keep a row.

        Raises
        ------
        InputError
            The disk takes no more; the rows before this one are kept.
        """
        line = _line_of({"key": key, **row})
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end + written)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}); the {len(self.rows):,} cells before are kept, so "
                "make room and give the same command again"
            ) from None
        self._end += len(line)
        self.rows[key] = row

    def close(self) -> None:
        """Let others write to the folder."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        """The system lets go of the lock when the process ends, however it ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.folder} is in use by another comparison; wait until it is done, or give another --out"
            ) from None

    def _read(self) -> int:
        """Read what is kept, and return where the next line goes: over one that an interruption tore."""
        with open(self._file, "rb", closefd=False) as file:
            content = file.read()
        lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
        rows = [(_row_of(line), line) for line in lines]
        sound = b"".join(line for row, line in rows if row is not None)
        damaged = sum(row is None for row, _ in rows)
        self.rows = {row.pop("key"): row for row, _ in rows if row is not None}
        if damaged:
            warnings.warn(
                f"{plural(damaged, 'line')} of {self.path} cannot be read; what "
                f"{'it' if damaged == 1 else 'they'} held is tried again",
                CascadiaWarning,
                stacklevel=4,
            )
            os.pwrite(self._file, sound, 0)
        os.ftruncate(self._file, len(sound))
        return len(sound)


def _make(folder: Path, cells: Path) -> None:
    """Make the folder; refuse one with somebody else's files in it."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"{folder} is no folder; give --out the path of one")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(cells) and any(folder.iterdir()):
        raise InputError(
            f"{folder} holds files and no earlier comparison ({CELLS}); give --out a new folder, or an empty one"
        )
    for path in (cells, *(folder / name for name in OUTPUTS)):
        if os.path.lexists(path) and (os.path.islink(path) or not path.is_file()):
            raise InputError(f"{path} is not a regular file; give --out another folder")


def _line_of(row: Mapping[str, Any]) -> bytes:
    """A row as it is kept, with a checksum of everything else in it."""
    content = orjson.dumps(row)
    return orjson.dumps({**row, "sum": _checksum(content)}, option=orjson.OPT_APPEND_NEWLINE)


def _row_of(line: bytes) -> dict[str, Any] | None:
    """A row that was kept; None where a line is not as it was written."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(row, dict):
        return None
    checksum = row.pop("sum", None)
    return row if checksum == _checksum(orjson.dumps(row)) else None


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Turn what the system says of a path into one sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); give --out a folder that can be written"
        ) from None
