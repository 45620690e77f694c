from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from cascadia_fast import readers
from cascadia_fast.errors import InputError
from cascadia_fast.readers import Table, read_table

CELLS = {"name": ["a", "ü 漢", "a", 'say "x"\nand, more'], "score": [1.5, None, -2.0, 1e-300]}
ROWS = [dict(zip(CELLS, cells, strict=True)) for cells in zip(*CELLS.values(), strict=True)]


def write_csv(path: Path) -> None:
    path.write_text('name,score,other\na,1.5,x\nü 漢,,x\na,-2,x\n"say ""x""\nand, more",1e-300,x\n', encoding="utf-8")


def write_jsonl(path: Path) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path.write_text("\n".join([lines[0], "", *lines[1:]]), encoding="utf-8")


def write_parquet(path: Path) -> None:
    parquet.write_table(pa.table(CELLS), path)


def compressed(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def write_gz(path: Path) -> None:
        write(path)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return write_gz


def assert_is_the_table(table: Table) -> None:
    assert table.size == 4
    assert table.numbers["score"].dtype == np.float64
    assert np.array_equal(table.numbers["score"], [1.5, np.nan, -2, 1e-300], equal_nan=True)
    assert table.texts["name"].values == list(dict.fromkeys(CELLS["name"]))
    assert table.texts["name"].codes.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.csv", write_csv),
        ("t.csv.gz", compressed(write_csv)),
        ("T.JSONL", write_jsonl),
        ("t.jsonl.gz", compressed(write_jsonl)),
        ("t.parquet", write_parquet),
        ("tä 漢.csv", write_csv),
    ],
)
def test_formats_agree(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    assert_is_the_table(read_table(tmp_path / name, ["score"], ["name"]))


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_csv_through_pyarrow_is_the_same(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (compressed(write_csv) if name.endswith(".gz") else write_csv)(tmp_path / name)
    monkeypatch.setattr(readers, "ARROW_CSV_BYTES", 0)
    monkeypatch.setattr(readers, "_parse_csv", None)
    assert_is_the_table(read_table(tmp_path / name, ["score"], ["name"]))


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
NUMBER = st.one_of(
    st.floats(allow_nan=False).map(repr), st.sampled_from(["", " 1", "1_0", "+2", "1e400", "nan", "0x1", "x", "1,5"])
)


@given(st.lists(st.tuples(CELL, NUMBER), min_size=1, max_size=5))
def test_pyarrow_and_csv_module_agree_on_any_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "t.csv"
    quoted = ("".join(f'"{cell.replace(chr(34), chr(34) * 2)}",' for cell in row)[:-1] for row in rows)
    path.write_text("name,score\n" + "\n".join(quoted), encoding="utf-8", newline="")
    answers = []
    for limit in (0, 1 << 60):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(readers, "ARROW_CSV_BYTES", limit)
            try:
                table = read_table(path, ["score"], ["name"])
                texts = table.texts["name"]
                answers.append((table.numbers["score"].tobytes(), texts.codes.tolist(), texts.values))
            except InputError as error:
                answers.append(str(error))
    assert answers[0] == answers[1]


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "t.csv")
    write_parquet(tmp_path / "t.parquet")
    monkeypatch.setattr(readers, "ARROW_CSV_BYTES", 0)
    for module in ("pyarrow", "pyarrow.csv", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    assert_is_the_table(read_table(tmp_path / "t.csv", ["score"], ["name"]))
    with pytest.raises(InputError, match="needs pyarrow; install"):
        read_table(tmp_path / "t.parquet", ["score"], ["name"])


def test_numbers_as_names_and_truth_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": 7, "ok": true}\n{"id": 8, "ok": false}\n')
    parquet.write_table(pa.table({"id": [7, 8], "ok": [True, False]}), tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        table = read_table(tmp_path / name, ["ok"], ["id"])
        assert table.texts["id"].values == ["7", "8"]
        assert table.numbers["ok"].tolist() == [1, 0]


def test_optional_columns(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv")
    table = read_table(tmp_path / "t.csv", ["score", "weight"], optional=["weight"])
    assert set(table.numbers) == {"score"}
    assert table.header == ["name", "score", "other"]


def test_byte_order_mark_is_not_part_of_the_first_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.csv").write_text("score\n1\n", encoding="utf-8-sig")
    assert read_table(tmp_path / "t.csv", ["score"]).numbers["score"].tolist() == [1]
    monkeypatch.setattr(readers, "ARROW_CSV_BYTES", 0)
    assert read_table(tmp_path / "t.csv", ["score"]).numbers["score"].tolist() == [1]


BAD_FILES = [
    ("t.csv", b"", "is empty"),
    ("t.csv", b"name,score\n", "has no rows"),
    ("t.csv", b"name,scores\na,1\n", r"no column 'score' \(it has 'name', 'scores'\).*did you mean 'scores'"),
    ("t.csv", b"name,score,score\na,1,2\n", "2 columns named 'score'"),
    ("t.csv", b"name,score\na,1\nb\n", "row 2 of .* has 1 cells, but its header has 2"),
    ("t.csv", b"name,score\na,1\nb,2,3\n", "row 2 of .* has 3 cells"),
    ("t.csv", b"name,score\na,1\nb,high\n", "score in row 2 of .* is 'high'; it must be a number"),
    ("t.csv", b"name,score\na,1\n,2\n", "name in row 2 of .* is missing"),
    ("t.csv", b"name,score\n" + b"a" * 2000 + b",1\n", "name in row 1 of .* has 2,000 characters"),
    ("t.csv", b"name,score\n\xff,1\n", "is not UTF-8"),
    ("t.csv", b'name,score\n"a,1\n', "cannot be read as CSV"),
    ("t.csv.gz", b"name,score\na,1\n", "cannot be read as CSV: Not a gzipped file"),
    ("t.csv.gz", gzip.compress(b"name,score\na,1\n" * 99)[:-9], "cannot be read as CSV"),
    ("t.csv.gz", gzip.compress(b"name,score\na,1\n" * 99)[:20] + b"garbage", "cannot be read as CSV"),
    ("t.jsonl", b'{"name": "a", "score": 1}\n{"name"', "row 2 of .* is not JSON"),
    ("t.jsonl", b"[1]\n", "row 1 of .* is not an object"),
    ("t.jsonl", b'{"name": "a"}\n', "no column 'score'"),
    ("t.jsonl", b'{"name": "a", "score": [1]}\n', r"score in row 1 of .* is \[1\]"),
    ("t.jsonl", b'{"name": "a", "score": 1}\n{"score": 2}\n', "name in row 2 of .* is missing"),
    ("t.jsonl", b"\n", "has no rows"),
    ("t.parquet", b"PAR1 not really", "cannot be read as Parquet"),
    ("t.xlsx", b"x", r"is not a table .*; its name must end in \.csv"),
]


@pytest.mark.parametrize(("name", "content", "says"), BAD_FILES)
@pytest.mark.parametrize("arrow_from_bytes", [0, 1 << 60])
def test_bad_files_get_a_sentence(
    tmp_path: Path, name: str, content: bytes, says: str, arrow_from_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "ARROW_CSV_BYTES", arrow_from_bytes)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_table(tmp_path / name, ["score"], ["name"])
    assert "\n" not in str(caught.value)


def test_parquet_column_of_the_wrong_kind(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"name": ["a"], "score": ["high"]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"column 'score' of .* does not hold numbers"):
        read_table(tmp_path / "t.parquet", ["score"], ["name"])
    with pytest.raises(InputError, match=r"no column 'scores'.*did you mean 'score'"):
        read_table(tmp_path / "t.parquet", ["scores"], ["name"])


def test_missing_file_directory_and_conflict(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_table(tmp_path / "t.csv", ["score"])
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(InputError, match="is a directory"):
        read_table(tmp_path / "d.csv", ["score"])
    write_csv(tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"'score' of .* is mapped both to numbers and to names"):
        read_table(tmp_path / "t.csv", ["score"], ["score"])


@pytest.mark.parametrize("name", ["t.csv.gz", "t.jsonl.gz"])
def test_small_file_that_unpacks_too_large(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (compressed(write_csv if "csv" in name else write_jsonl))(tmp_path / name)
    (tmp_path / name).write_bytes(gzip.compress(gzip.decompress((tmp_path / name).read_bytes()) * 500))
    assert (tmp_path / name).stat().st_size < 4096
    monkeypatch.setattr(readers, "MAX_TABLE_BYTES", 4096)
    with pytest.raises(InputError, match="holds more than"):
        read_table(tmp_path / name, ["score"], ["name"])


def test_large_file_is_refused_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_csv(tmp_path / "t.csv")
    write_parquet(tmp_path / "t.parquet")
    monkeypatch.setattr(readers, "MAX_TABLE_BYTES", 50)
    for name in ("t.csv", "t.parquet"):
        with pytest.raises(InputError, match="at most 50 are read"):
            read_table(tmp_path / name, ["score"], ["name"])


def test_what_is_no_regular_file_is_said_to_be_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"t\.csv is not a regular file"):
        read_table(tmp_path / "t.csv", ["score"])
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        read_table(tmp_path / ("x" * 300 + ".csv"), ["score"])
