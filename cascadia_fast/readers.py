"""Tables from CSV, JSON Lines and Parquet files: named columns as NumPy arrays, bad cells named by row.

A number column becomes float64 with NaN where the cell is missing; a text column becomes codes into the list of its
distinct texts. Which missing cells matter is for the caller to say. Files ending in ``.gz`` are decompressed.
"""

from __future__ import annotations

import csv
import gzip
import io
import stat
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import pyarrow as pa

MAX_TABLE_BYTES = 2 * 1024**3
# Names become fixed-width arrays, as wide as the longest of them.
MAX_NAME_CHARACTERS = 1000
# Importing pyarrow takes about as long as the csv module needs for this many bytes.
ARROW_CSV_BYTES = 8 * 1024**2
# What reading a damaged compressed file raises.
UNREADABLE = (OSError, EOFError, zlib.error)
FORMATS = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")

FloatArray = NDArray[np.float64]
# The header of a file, and cells by column: a list, a float64 array, or encoded texts.
_Columns = tuple[list[str], dict[str, Any]]


@dataclass(frozen=True)
class Texts:
    """A text column: ``values[codes[row]]`` is the text of a row; `values` are in order of first appearance."""

    codes: NDArray[np.int64]
    values: list[str]


@dataclass(frozen=True)
class Table:
    """The columns that were asked for and exist, by the names they have in the file.

    Parameters
    ----------
    path
        The file, for messages.
    header
        Names of all columns in the file.
    size
        Number of rows.
    numbers
        Columns of shape (size,), NaN where a cell is missing.
    texts
        Text columns.
    """

    path: Path
    header: list[str]
    size: int
    numbers: dict[str, FloatArray]
    texts: dict[str, Texts]


def read_table(
    path: Path, numbers: Iterable[str] = (), texts: Iterable[str] = (), optional: Iterable[str] = ()
) -> Table:
    """Read named columns of a table.

    Parameters
    ----------
    path
        A file whose name ends in one of ``.csv``, ``.csv.gz``, ``.jsonl``, ``.jsonl.gz``, ``.parquet``; at most 2 GiB,
        counted after decompression.
    numbers, texts
        Names of the number and text columns; other columns are not read.
    optional
        Those of them that may be absent from the file.

    Raises
    ------
    InputError
        When the file is missing, empty, too large, malformed, or lacks a column, or a number is not one.
    """
    kinds: dict[str, type] = dict.fromkeys(numbers, float)
    for name in texts:
        if kinds.setdefault(name, str) is float:
            raise InputError(f"column {name!r} of {path} is mapped both to numbers and to names; map it to one of them")
    needed = set(kinds) - set(optional)
    suffix = next((known for known in FORMATS if path.name.lower().endswith(known)), None)
    if suffix is None:
        raise InputError(f"{path} is not a table this version reads; its name must end in {', '.join(FORMATS)}")
    _require_file(path)
    if suffix == ".parquet":
        header, columns = _read_parquet(path, kinds, needed)
    elif suffix.startswith(".jsonl"):
        header, columns = _read_jsonl(path, kinds, needed)
    else:
        header, columns = _read_csv(path, kinds, needed)
    size = next((len(cells) for cells in columns.values()), 0)
    if size == 0:
        raise InputError(f"{path} has no rows; it needs at least one below the column names")
    return Table(
        path=path,
        header=header,
        size=size,
        numbers={name: _as_numbers(path, name, cells) for name, cells in columns.items() if kinds[name] is float},
        texts={name: _as_texts(path, name, cells) for name, cells in columns.items() if kinds[name] is str},
    )


def require_columns(path: Path, present: Sequence[str], needed: Iterable[str]) -> None:
    """Raise InputError when a needed column is absent, naming those present and the nearest."""
    for name in sorted(needed):
        if present.count(name) > 1:
            raise InputError(f"{path} has {present.count(name)} columns named {name!r}; rename all but one")
        if name not in present:
            shown = ", ".join(map(repr, present[:20])) + (" …" if len(present) > 20 else "")
            raise InputError(
                f"{path} has no column {name!r} (it has {shown}); map it under workload.columns"
                f"{did_you_mean(name, present)}"
            )


def open_limited(path: Path) -> IO[bytes]:
    """Open a plain or gzip file for reading at most `MAX_TABLE_BYTES` bytes of content."""
    raw = gzip.GzipFile(path) if path.name.lower().endswith(".gz") else path.open("rb")  # closed by its reader
    return io.BufferedReader(_LimitedReader(raw, path), buffer_size=1 << 20)


class _LimitedReader(io.RawIOBase):
    """Counts what is read, so that a small compressed file cannot fill the memory."""

    def __init__(self, raw: gzip.GzipFile | io.BufferedReader, path: Path) -> None:
        self._raw, self._path, self._read_bytes = raw, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._raw.read(len(buffer))
        self._read_bytes += len(chunk)
        if self._read_bytes > MAX_TABLE_BYTES:
            raise InputError(f"{self._path} holds more than {MAX_TABLE_BYTES / 1024**3:g} GiB; give a sample of it")
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _require_file(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; paths are relative to the problem file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', error)}; give another path") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path} is a directory; name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file; copy what it delivers to one")
    size = status.st_size
    if size == 0:
        raise InputError(f"{path} is empty; it needs column names and at least one row")
    if size > MAX_TABLE_BYTES:
        raise InputError(f"{path} has {size:,} bytes; at most {MAX_TABLE_BYTES:,} are read, so give a sample of it")


def _read_csv(path: Path, kinds: Mapping[str, type], needed: set[str]) -> _Columns:
    if path.stat().st_size * (8 if path.name.endswith(".gz") else 1) >= ARROW_CSV_BYTES:
        read = _read_csv_with_arrow(path, kinds, needed)
        if read is not None:
            return read
    try:
        with io.TextIOWrapper(open_limited(path), encoding="utf-8-sig", newline="") as file:
            return _parse_csv(path, file, kinds, needed)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except (csv.Error, *UNREADABLE) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}; write it again") from None


def _parse_csv(path: Path, file: Iterable[str], kinds: Mapping[str, type], needed: set[str]) -> _Columns:
    rows = csv.reader(file, strict=True)
    header = next(rows, [])
    require_columns(path, header, needed)
    wanted = [(header.index(name), name) for name in kinds if name in header]
    columns: dict[str, list[str]] = {name: [] for _, name in wanted}
    targets = [(index, columns[name].append) for index, name in wanted]
    width = len(header)
    count = 0
    for row in rows:
        if len(row) != width:
            if not row:
                continue
            raise InputError(
                f"row {count + 1} of {path} has {len(row)} cells, but its header has {width}; mend the row"
            )
        count += 1
        for index, append in targets:
            append(row[index])
    return header, columns


def _read_csv_with_arrow(path: Path, kinds: Mapping[str, type], needed: set[str]) -> _Columns | None:
    """Read a large CSV file with pyarrow; None when it is not installed or refuses the file.

    The csv module then reads it again: it either agrees with the file or says in which row it does not.
    """
    try:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv
    except ImportError:
        return None
    try:
        with io.TextIOWrapper(open_limited(path), encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file, strict=True), [])
    except (csv.Error, UnicodeDecodeError, *UNREADABLE):
        return None
    require_columns(path, header, needed)
    wanted = [name for name in kinds if name in header]
    try:
        with open_limited(path) as stream:
            table = arrow_csv.read_csv(
                stream,
                parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(
                    include_columns=wanted,
                    column_types=dict.fromkeys(wanted, pa.string()),
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=True,
                ),
            )
        return header, {name: _arrow_column(table.column(name), kinds[name]) for name in wanted}
    except (pa.ArrowException, *UNREADABLE):
        return None


def _read_parquet(path: Path, kinds: Mapping[str, type], needed: set[str]) -> _Columns:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            f"{path} is a Parquet file, which needs pyarrow; install cascadia-fast[parquet] or give a CSV file"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            present = list(file.schema_arrow.names)
            require_columns(path, present, needed)
            groups = range(file.metadata.num_row_groups)
            total = sum(file.metadata.row_group(group).total_byte_size for group in groups)
            if total > MAX_TABLE_BYTES:
                raise InputError(
                    f"{path} holds {total:,} bytes; at most {MAX_TABLE_BYTES:,} are read, so give a sample"
                )
            table = file.read(columns=[name for name in kinds if name in present])
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read as Parquet: {reason}; write it again") from None
    columns = {}
    for name in table.column_names:
        try:
            columns[name] = _arrow_column(table.column(name), kinds[name])
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"column {name!r} of {path} does not hold {_noun(kinds[name])}: {reason}; convert it"
            ) from None
    return present, columns


def _arrow_column(column: pa.ChunkedArray, kind: type) -> Any:
    import pyarrow as pa

    if kind is float:
        return column.cast(pa.float64()).to_numpy()
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return _Encoded(codes, encoded.dictionary.to_pylist())


@dataclass(frozen=True)
class _Encoded:
    codes: NDArray[np.int64]
    values: list[str | None]

    def __len__(self) -> int:
        return self.codes.size


def _read_jsonl(path: Path, kinds: Mapping[str, type], needed: set[str]) -> _Columns:
    import orjson

    columns: dict[str, list[Any]] = {name: [] for name in kinds}
    seen: dict[str, None] = {}
    count = 0
    try:
        with open_limited(path) as lines:
            for line in lines:
                if not line.strip():
                    continue
                row = orjson.loads(line)
                if not isinstance(row, dict):
                    raise InputError(f"row {count + 1} of {path} is not an object; write one {{…}} per line")
                seen.update(dict.fromkeys(row))
                count += 1
                for name, cells in columns.items():
                    cells.append(row.get(name))
    except orjson.JSONDecodeError as error:
        raise InputError(f"row {count + 1} of {path} is not JSON ({error}); mend the line") from None
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read: {error}; write it again") from None
    if count:
        require_columns(path, list(seen), needed)
    return list(seen), {name: cells for name, cells in columns.items() if name in seen or name in needed}


def _as_numbers(path: Path, name: str, cells: Any) -> FloatArray:
    if isinstance(cells, np.ndarray):
        return cells
    try:
        return np.array([float(cell) if cell != "" and cell is not None else np.nan for cell in cells])
    except (TypeError, ValueError):
        row, cell = next((row, cell) for row, cell in enumerate(cells) if not _is_number(cell))
        raise InputError(f"{name} in row {row + 1} of {path} is {_shown(cell)}; it must be a number") from None


def _as_texts(path: Path, name: str, cells: Any) -> Texts:
    if isinstance(cells, _Encoded):
        codes, values = cells.codes, cells.values
    else:
        index: dict[Any, int] = {}
        codes = np.array([index.setdefault(cell, len(index)) for cell in map(_text, cells)], dtype=np.int64)
        values = list(index)
    for code, value in enumerate(values):
        if value is None or value == "":
            row = int(np.argmax(codes == code))
            raise InputError(f"{name} in row {row + 1} of {path} is missing; give every row one")
        if len(value) > MAX_NAME_CHARACTERS:
            row = int(np.argmax(codes == code))
            raise InputError(
                f"{name} in row {row + 1} of {path} has {len(value):,} characters; at most {MAX_NAME_CHARACTERS} fit"
            )
    return Texts(codes, [str(value) for value in values])


def _text(cell: Any) -> str | None:
    return cell if isinstance(cell, str) or cell is None else str(cell)


def _is_number(cell: Any) -> bool:
    try:
        return cell == "" or cell is None or float(cell) is not None
    except (TypeError, ValueError):
        return False


def _noun(kind: type) -> str:
    return "numbers" if kind is float else "texts"


def _shown(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 40 else text[:37] + "…"
