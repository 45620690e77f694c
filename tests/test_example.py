from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cascadia_fast.errors import InputError
from cascadia_fast.example import EXAMPLE_DIR, EXAMPLE_FILES, write_example
from cascadia_fast.problem import Problem


def test_written_example_is_the_example(tmp_path: Path) -> None:
    paths = write_example(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == list(EXAMPLE_FILES)
    assert sorted(paths) == sorted((tmp_path / "new" / "folder").iterdir())
    written = Problem.read(paths[0])
    assert written.input_hashes() == Problem.example().input_hashes()
    assert written.workload.content_hash() == Problem.example().workload.content_hash()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "requests.csv.gz").write_text("mine")
    with pytest.raises(InputError, match=r"requests\.csv\.gz exists already and is not overwritten"):
        write_example(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "requests.csv.gz"]
    assert (tmp_path / "requests.csv.gz").read_text() == "mine"


def test_a_failed_copy_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copyfile

    def full_disk(source: Path, target: Path) -> None:
        if target.name == EXAMPLE_FILES[-1]:
            raise OSError(28, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", full_disk)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        write_example(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_example(tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written: File name too long"):
        write_example(tmp_path / ("x" * 300))


def test_example_is_small_and_attributed() -> None:
    assert sorted(path.name for path in EXAMPLE_DIR.iterdir()) == sorted(EXAMPLE_FILES)
    assert sum(path.stat().st_size for path in EXAMPLE_DIR.iterdir()) < 200_000
    notice = (EXAMPLE_DIR / "NOTICE.md").read_text(encoding="utf-8")
    for words in ("Azure Public Dataset", "CC-BY 4.0", "ZeroEval", "Apache License 2.0", "Changed:"):
        assert words in notice
