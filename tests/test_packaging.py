"""What the wheel and the source distribution hold, and what they leave out."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from scikit_build_core.build import build_sdist, build_wheel

LEFT_OUT = ("benchmarks/", "tests/", ".github/", ".ci/", "build/", ".venv/")


@pytest.fixture(scope="module")
def sdist(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Paths in the source distribution, relative to its top folder."""
    folder = tmp_path_factory.mktemp("sdist")
    with contextlib.chdir(repository):
        name = build_sdist(str(folder))
    with tarfile.open(folder / name) as archive:
        return {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a wheel built without its native modules, which takes a second instead of a minute."""
    folder = tmp_path_factory.mktemp("wheel")
    with contextlib.chdir(repository):
        name = build_wheel(str(folder), {"wheel.cmake": "false", "build-dir": str(folder / "build")})
    with zipfile.ZipFile(folder / name) as archive:
        return {entry: archive.read(entry) for entry in archive.namelist()}


def licenses(wheel: dict[str, bytes]) -> dict[str, str]:
    parts = (path.split(".dist-info/licenses/") for path in wheel)
    found = {pair[1] for pair in parts if len(pair) == 2}
    return {name: next(wheel[path].decode() for path in wheel if path.endswith(f"/licenses/{name}")) for name in found}


def test_development_folders_are_in_neither(sdist: set[str], wheel: dict[str, bytes]) -> None:
    assert {path for path in sdist | wheel.keys() if path.startswith(LEFT_OUT) or "/cases/" in path} == set()
    assert {path.split("/")[0].split("-")[0] for path in wheel} <= {"cascadia_fast"}


def test_source_distribution_has_all_that_a_build_reads(repository: Path, sdist: set[str]) -> None:
    needed = {"CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE", "cascadia_fast/monitor.pyx"}
    needed |= {f"csrc/{path.name}" for path in (repository / "csrc").iterdir()}
    needed |= {path.relative_to(repository).as_posix() for path in (repository / "cascadia_fast").rglob("*.py*")}
    assert {path for path in needed if "__pycache__" not in path} - sdist == set()
    assert len([path for path in sdist if path.startswith("csrc/")]) >= 10


def test_wheel_has_types_and_data_but_no_sources(repository: Path, wheel: dict[str, bytes]) -> None:
    assert {"py.typed", "_core.pyi", "monitor.pyi", "data/gpus.json", "data/models.json"} <= {
        path.removeprefix("cascadia_fast/") for path in wheel
    }
    data = repository / "cascadia_fast" / "data"
    assert {p.relative_to(repository).as_posix() for p in data.rglob("*") if p.is_file()} <= wheel.keys()
    assert {path for path in wheel if path.endswith((".pyx", ".cpp", ".hpp", ".c", ".pyc"))} == set()


def test_installed_distribution_has_the_native_modules() -> None:
    installed = {str(path) for path in importlib.metadata.files("cascadia-fast") or ()}
    native = {path for path in installed if re.fullmatch(r"cascadia_fast/(_core|monitor)\..*(so|pyd)", path)}
    assert len(native) == 2


def test_wheel_metadata_carries_licence_and_attributions(wheel: dict[str, bytes]) -> None:
    texts = licenses(wheel)
    assert "Apache License" in texts["LICENSE"]
    assert "aiconfigurator" in texts["cascadia_fast/data/NOTICE.md"]
    example = texts["cascadia_fast/data/example/NOTICE.md"]
    assert "Azure" in example
    assert re.search(r"CC[- ]BY[- ]4\.0", example)
    assert re.search(r"\bchanged:", example, re.IGNORECASE)


def test_every_package_data_folder_states_its_origin(repository: Path) -> None:
    data = repository / "cascadia_fast" / "data"
    folders = {path.parent for path in data.rglob("*") if path.is_file() and path.suffix != ".md"}
    assert data in folders
    for folder in folders:
        notice = (folder / "NOTICE.md").read_text(encoding="utf-8")
        for path in folder.iterdir():
            assert path.is_dir() or path.name == "NOTICE.md" or path.name in notice, path
