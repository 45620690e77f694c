"""The direction of imports: what the architecture forbids is absent."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# `Plan` is the waist. These together are the planner; they import one another, and the public face imports them.
# Whatever else there is, now or later, takes a plan or the inputs. The last two are the package's names for it.
PLANNER = {"planner", "planning", "Planner", "plan"}
PUBLIC_FACE = {"__init__", "__main__", "cli"}
# Other systems plan, and comparing systems means planning with all of them.
COMPARING = {"baselines", "comparison"}
# Inputs and the plan itself know nothing of how a plan is found.
SOLVING = PLANNER | {"fleet", "length_cells", "routing", "routing_kernels", "_core"}
INPUTS = {
    "errors",
    "architecture",
    "catalog",
    "dispersion",
    "problem",
    "schema",
    "workload",
    "traffic",
    "samples",
    "readers",
}
NO_SOLVING = INPUTS | {
    "judge",
    "blueprint",
    "blueprint_routing",
    "plan_json",
    "provenance",
    "signals",
    "simulation.traffic",
    "simulation.statistics",
}
HEAVY = ("numba", "highspy", "pyarrow", "scipy", "pandas", "matplotlib")


def imports(path: Path, package: str) -> Iterator[str]:
    """The names of the package's own modules that a file imports, anywhere in it, relative to the package."""
    parent = ["cascadia_fast", *package.split(".")][:-1] if package else ["cascadia_fast"]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = parent[: len(parent) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name.removeprefix("cascadia_fast.") for name in names if name.startswith("cascadia_fast."))


def modules(repository: Path) -> dict[str, set[str]]:
    root = repository / "cascadia_fast"
    files = {".".join(path.relative_to(root).with_suffix("").parts): path for path in root.rglob("*.py")}
    return {name: set(imports(path, name)) for name, path in files.items()}


def test_import_reader_sees_every_form_of_import(tmp_path: Path) -> None:
    source = "import cascadia_fast.a\nfrom . import b\nfrom .c import x\ndef f():\n    from ..d.e import y\n"
    path = tmp_path / "module.py"
    path.write_text(source)
    assert {"a", "b", "c", "c.x"} <= set(imports(path, "module"))
    assert {"a", "cli.b", "cli.c", "d.e"} <= set(imports(path, "cli.module"))


def packages(names: set[str]) -> set[str]:
    """The modules and packages at the package's root that names lie in."""
    return {name.split(".")[0] for name in names}


def test_only_the_public_face_and_other_systems_import_the_planner(repository: Path) -> None:
    found = modules(repository)
    assert {"planner", "planning.solving"} <= found.keys()
    offenders = {
        name: sorted(packages(imported) & PLANNER)
        for name, imported in found.items()
        if name.split(".")[0] not in PLANNER | PUBLIC_FACE | COMPARING and packages(imported) & PLANNER
    }
    assert offenders == {}


def test_only_the_public_face_imports_the_comparison_and_only_that_the_systems(repository: Path) -> None:
    found = modules(repository)
    assert {"baselines.systems", "baselines.case"} <= found.keys()
    offenders = {
        name: sorted(packages(imported) & COMPARING)
        for name, imported in found.items()
        if name.split(".")[0] not in PUBLIC_FACE | COMPARING and packages(imported) & COMPARING
    }
    assert offenders == {}
    upwards = {
        name for name, imported in found.items() if name.startswith("baselines") and "comparison" in packages(imported)
    }
    assert upwards == set()


def test_inputs_and_plan_do_not_import_the_solvers(repository: Path) -> None:
    found = modules(repository)
    assert {"errors", "catalog", "problem", "workload", "readers", "blueprint", "plan_json"} <= found.keys()
    offenders = {
        name: sorted(packages(found[name]) & SOLVING)
        for name in NO_SOLVING & found.keys()
        if packages(found[name]) & SOLVING
    }
    assert offenders == {}


@pytest.mark.parametrize("module", ["cascadia_fast", "cascadia_fast.cli", "cascadia_fast.simulation"])
def test_heavy_libraries_are_imported_only_when_used(module: str) -> None:
    code = f"import {module}, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_native_core_knows_python_only_in_its_bindings(repository: Path) -> None:
    sources = sorted((repository / "csrc").rglob("*.[ch]pp"))
    knows_python = {
        path.name
        for path in sources
        if re.search(r"#\s*include\s*[<\"](Python\.h|pybind11/|numpy/)|\bPyObject\b", path.read_text(encoding="utf-8"))
    }
    assert "bindings.cpp" in knows_python
    assert {name for name in knows_python if not name.startswith("bindings")} == set()
