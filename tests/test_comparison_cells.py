"""Which cells a comparison has, and under which names they are kept."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from comparison_cases import ALTERNATING, HOPELESS, OURS, PlainSystem, example, setup

from cascadia_fast.comparison import cells as module
from cascadia_fast.comparison.cells import Cell, cells_of, digest_of, fewer_gpus, key_of
from cascadia_fast.comparison.setup import CaseSetup, Setup
from cascadia_fast.errors import InputError
from cascadia_fast.example import EXAMPLE_DIR, EXAMPLE_FILES
from cascadia_fast.problem import Problem


def test_main_cells_are_all_combinations_and_come_seed_by_seed() -> None:
    compared = setup(OURS, ALTERNATING, seeds=3, floors=(50.0, 60.0), rates_per_s=(20.0, 30.0, 40.0))
    found = cells_of(compared)
    main = [cell for cell, purpose in found.items() if purpose == "main"]
    assert len(main) == 2 * 3 * 2 * 3
    assert [cell.seed for cell in main] == sorted(cell.seed for cell in main)
    assert {cell.gpus for cell in main} == {32}


def test_the_ramp_is_of_the_first_seed_and_leaves_out_ablations_and_what_is_tried_anyway() -> None:
    compared = setup(OURS, HOPELESS, ALTERNATING, rates_per_s=(15.0, 30.0, 45.0))
    ramp = [cell for cell, purpose in cells_of(compared).items() if purpose == "ramp"]
    assert {cell.system for cell in ramp} == {"ours", "hopeless"}
    assert {cell.seed for cell in ramp} == {0}
    # Half, once and one and a half of the middle rate are main cells.
    assert {cell.rate_per_s for cell in ramp} == {7.5, 22.5, 37.5, 60.0, 75.0}


def test_cost_cells_are_of_every_system_but_ablations_on_fewer_gpus() -> None:
    compared = setup(OURS, HOPELESS, ALTERNATING, seeds=5)
    cost = [cell for cell, purpose in cells_of(compared).items() if purpose == "cost"]
    assert {cell.seed for cell in cost} == {0, 1}
    for system in ("ours", "hopeless"):
        assert {cell.gpus for cell in cost if cell.system == system} == {28, 24, 20, 16, 12, 8}
    assert "alternating" not in {cell.system for cell in cost}
    assert not [cell for cell, purpose in cells_of(setup(OURS)).items() if purpose == "cost"]


def test_of_several_pools_no_costs_are_looked_for() -> None:
    problem = example()
    fields = problem.fields.model_dump(exclude_unset=True, mode="json")
    fields["cluster"] = [{"gpu": "h100-sxm-80gb", "gpus": 16}, {"gpu": "a100-sxm-80gb", "gpus": 16}]
    two = type(problem).from_dict(fields, base_dir=problem.input_paths()[0].parent)
    compared = Setup(cases=(CaseSetup.of("two", two, rates_per_s=(30.0,)),), systems=(OURS, HOPELESS))  # type: ignore[arg-type]
    assert Counter(cells_of(compared).values())["cost"] == 0


@pytest.mark.parametrize("gpus", [1, 2, 3, 8, 32, 100, 10_000])
def test_fewer_gpus_are_fewer_and_at_least_one(gpus: int) -> None:
    found = fewer_gpus(gpus)
    assert all(1 <= count < gpus for count in found)
    assert found == sorted(set(found), reverse=True)
    assert len(found) <= 6
    assert found or gpus == 1


def test_a_key_tells_cells_apart_by_what_changes_the_work() -> None:
    cell = Cell("case", "ours", 80.0, 1.5, 32, 0)
    others = [
        Cell("case", "single", 80.0, 1.5, 32, 0),
        Cell("case", "ours", 79.0, 1.5, 32, 0),
        Cell("case", "ours", 80.0, 1.6, 32, 0),
        Cell("case", "ours", 80.0, 1.5, 31, 0),
        Cell("case", "ours", 80.0, 1.5, 32, 1),
    ]
    keys = {key_of(one, "digest", 100) for one in [cell, *others]}
    assert len(keys) == 6
    assert key_of(cell, "digest", 100) == key_of(Cell("renamed", "ours", 80.0, 1.5, 32, 0), "digest", 100)
    assert key_of(cell, "digest", 100) != key_of(cell, "digest", 101)
    assert key_of(cell, "digest", 100) != key_of(cell, "another", 100)


def test_a_key_tells_versions_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("case", "ours", 80.0, 1.5, 32, 0)
    before = key_of(cell, "digest", 100)
    monkeypatch.setattr(module, "code_digest", lambda: "another version")
    assert key_of(cell, "digest", 100) != before


def test_the_digest_of_a_problem_is_of_its_fields_and_its_files() -> None:
    problem = example()
    assert digest_of(problem) == digest_of(type(problem).example())
    changed = [
        problem.replace(judge_latency_s=1.0),
        problem.replace(max_utilization=0.8),
        problem.replace(workload=problem.workload.with_rate(10.0)),
    ]
    assert len({digest_of(one) for one in [problem, *changed]}) == 4


def test_the_digest_of_a_problem_knows_nothing_of_its_files_name_or_comments(tmp_path: Path) -> None:
    text = (EXAMPLE_DIR / "problem.yaml").read_text(encoding="utf-8")
    for name in EXAMPLE_FILES[1:]:
        shutil.copy(EXAMPLE_DIR / name, tmp_path / name)
    digests = set()
    for name, content in (("a.yaml", text), ("b.yaml", text), ("c.yaml", f"# why not\n{text}")):
        (tmp_path / name).write_text(content, encoding="utf-8")
        digests.add(digest_of(Problem.read(tmp_path / name)))
    assert len(digests) == 1
    with (tmp_path / "NOTICE.md").open("a") as file:
        file.write("more")
    assert digest_of(Problem.read(tmp_path / "a.yaml")) in digests


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"floors": (101.0,)}, "q of case 'example' is 101"),
        ({"floors": ()}, "has no q"),
        ({"floors": (70.0, 70.0)}, "given twice"),
        ({"rates_per_s": (0.0,)}, "rate of case 'example' is 0"),
        ({"rates_per_s": (float("nan"),)}, "rate of case 'example' is nan"),
    ],
)
def test_floors_and_rates_are_checked(fields: dict[str, tuple[float, ...]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        setup(**fields)


def test_setups_are_checked() -> None:
    with pytest.raises(InputError, match="requests is 10"):
        setup(requests=10)
    with pytest.raises(InputError, match="system 'ours' is there twice"):
        setup(OURS, PlainSystem("ours", OURS.plan))
    with pytest.raises(InputError, match="seeds is 0"):
        setup(seeds=0)


def test_the_middle_rate_is_the_lower_median() -> None:
    assert setup(rates_per_s=(3.0, 1.0, 2.0)).cases[0].middle_rate_per_s == 2.0
    assert setup(rates_per_s=(4.0, 1.0, 2.0, 3.0)).cases[0].middle_rate_per_s == 2.0


def test_without_floors_and_rates_a_case_has_the_problems_own() -> None:
    case = CaseSetup.of("example", example())
    assert case.floors == (example().goal.q_min,)
    assert case.rates_per_s == (30.0, 60.0, 90.0)
