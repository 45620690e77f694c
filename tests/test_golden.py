"""Plans of before: whoever changes what is planned changes these files knowingly.

``CASCADIA_WRITE_GOLDEN=1 pytest tests/test_golden.py`` writes them anew; read the difference before committing it.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from cascadia_fast.blueprint import Plan
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem

GOLDEN = Path(__file__).parent / "golden"
CASES = Path(__file__).parents[1] / "benchmarks" / "cases"
# Timings and the version move by themselves, and the id hashes every digit: the last may differ between processors.
EXEMPT = {"seconds", "version", "plan_id"}


def problem(name: str) -> Problem:
    if name == "example":
        return Problem.example()
    path = CASES / f"{name}.yaml"
    if not path.exists():
        pytest.skip(f"{path.name} ships with the repository only")
    return Problem.read(path)


def alike(old: Any, new: Any, place: str = "plan") -> None:
    """Equal but for what is exempt, and rounding."""
    assert type(old) is type(new), place
    if isinstance(old, dict):
        assert old.keys() == new.keys(), place
        for key in old.keys() - EXEMPT:
            alike(old[key], new[key], f"{place}.{key}")
    elif isinstance(old, list):
        assert len(old) == len(new), place
        for index, pair in enumerate(zip(old, new, strict=True)):
            alike(*pair, f"{place}[{index}]")
    elif isinstance(old, float):
        assert math.isclose(old, new, rel_tol=1e-7), f"{place}: {old} is now {new}"
    else:
        assert old == new, place


@pytest.mark.parametrize("name", ["example", "deepseek"])
def test_plan_is_the_one_of_before(name: str) -> None:
    plan = Planner(problem(name)).plan()
    path = GOLDEN / f"{name}.plan.json"
    if os.environ.get("CASCADIA_WRITE_GOLDEN"):
        plan.write(path)
    alike(json.loads(path.read_bytes()), json.loads(plan.to_json()))


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.plan.json")), ids=lambda path: path.name)
def test_old_plans_still_load_byte_for_byte(path: Path) -> None:
    assert Plan.read(path).to_json() == path.read_bytes()
