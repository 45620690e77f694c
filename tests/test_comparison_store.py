"""The folder that keeps trials: what it survives, and whom it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from cascadia_fast.comparison.store import CELLS, OUTPUTS, Store
from cascadia_fast.errors import CascadiaWarning, InputError

ROW: dict[str, Any] = {"status": "served", "why": None, "plan": {"gpus": 2}, "measured": {"p95_s": 1.5}, "seconds": 0.1}


def filled(folder: Path, *keys: str) -> Path:
    with Store(folder) as store:
        for key in keys:
            store.add(key, ROW)
    return folder / CELLS


def test_rows_are_there_the_next_time(tmp_path: Path) -> None:
    filled(tmp_path / "a" / "b", "first", "second")
    with Store(tmp_path / "a" / "b") as store:
        assert store.rows == {"first": ROW, "second": ROW}


def test_a_torn_last_line_is_dropped_and_written_over(tmp_path: Path) -> None:
    path = filled(tmp_path, "first", "second")
    content = path.read_bytes()
    for cut in (1, 20, len(content.splitlines(keepends=True)[1]) - 1):
        path.write_bytes(content[:-cut])
        with Store(tmp_path) as store:
            assert store.rows == {"first": ROW}
            store.add("third", ROW)
        with Store(tmp_path) as store:
            assert store.rows == {"first": ROW, "third": ROW}


@pytest.mark.parametrize(
    "line", [b"{]", b"[]", b"null", b'{"key": 3}', b'{"key": "x", "status": "served"}', b"\xff\xfe", b""]
)
def test_a_damaged_line_is_tried_again_and_told(tmp_path: Path, line: bytes) -> None:
    path = filled(tmp_path, "first", "second")
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + b"\n" + second)
    with pytest.warns(CascadiaWarning, match="1 line .* cannot be read; what it held is tried again"):
        store = Store(tmp_path)
    assert store.rows == {"first": ROW, "second": ROW}
    store.close()
    assert path.read_bytes() == first + second  # told once


@pytest.mark.parametrize(
    ("old", "new"), [(b"served", b"foo"), (b"1.5", b"2.5"), (b'{"p95_s":1.5}', b"null"), (b"first", b"fifth")]
)
def test_a_line_that_was_changed_is_tried_again(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = filled(tmp_path, "first")
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.warns(CascadiaWarning, match="cannot be read"):
        store = Store(tmp_path)
    assert store.rows == {}
    store.close()


def test_fresh_forgets(tmp_path: Path) -> None:
    filled(tmp_path, "first")
    with Store(tmp_path, fresh=True) as store:
        assert store.rows == {}
    with Store(tmp_path) as store:
        assert store.rows == {}


def test_a_key_that_comes_twice_has_its_last_row(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add("first", ROW)
        store.add("first", {**ROW, "status": "unstable"})
    with Store(tmp_path) as store:
        assert store.rows["first"]["status"] == "unstable"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds files and no earlier comparison"):
        Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    Store(tmp_path).close()
    assert (tmp_path / CELLS).read_bytes() == b""


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="is no folder; give --out the path of one"):
        Store(tmp_path / "out")
    with pytest.raises(InputError, match="cannot be written"):
        Store(tmp_path / "out" / "below")


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("/dev/full")])
@pytest.mark.parametrize("name", [CELLS, *OUTPUTS])
def test_what_is_no_plain_file_is_refused_before_anything_is_tried(tmp_path: Path, name: str, make: Any) -> None:
    filled(tmp_path, "first")
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is not a regular file; give --out another folder"):
        Store(tmp_path)


def test_a_link_to_nowhere_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is no folder"):
        Store(tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        Store(tmp_path / "out")


def test_two_at_once_is_refused_and_later_is_not(tmp_path: Path) -> None:
    with Store(tmp_path), pytest.raises(InputError, match="is in use by another comparison; wait"):
        Store(tmp_path)
    Store(tmp_path).close()


def test_fresh_in_a_folder_in_use_forgets_nothing(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add("first", ROW)
        with pytest.raises(InputError, match="in use"):
            Store(tmp_path, fresh=True)
    with Store(tmp_path) as store:
        assert set(store.rows) == {"first"}


def test_a_killed_process_lets_go_of_the_folder(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from cascadia_fast.comparison.store import Store\n"
        f"store = Store(Path(sys.argv[1])); store.add('first', {ROW!r}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert result.returncode == -9
    with Store(tmp_path) as store:
        assert store.rows == {"first": ROW}


def test_a_full_disk_keeps_whole_rows_and_is_told(tmp_path: Path) -> None:
    """A limit on file sizes stands for the disk: the last row fits in part only."""
    line = len((filled(tmp_path / "measure", "0")).read_bytes())
    code = (
        "import resource, sys; from pathlib import Path; from cascadia_fast.comparison.store import Store\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({3 * line + line // 2}, resource.RLIM_INFINITY))\n"
        f"store = Store(Path(sys.argv[1]))\nfor k in range(9): store.add(str(k), {ROW!r})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], check=False, capture_output=True, text=True
    )
    last = result.stderr.splitlines()[-1]
    assert "InputError" in last
    assert "cells.jsonl cannot be written (File too large); the 3 cells before are kept, so make room" in last
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Store(tmp_path / "out") as store:
            assert set(store.rows) == {"0", "1", "2"}
            assert (tmp_path / "out" / CELLS).stat().st_size == 3 * line
