"""`Plan` and its JSON: byte-identical round trips, strict reading, atomic writing, an id that ignores timings."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import alternating_report, deepseek_plan, one_stage_plan
from hypothesis import given
from hypothesis import strategies as st

from cascadia_fast.blueprint import HighsProof, Plan, PlannedWorkload, Predicted, Provenance, Routing
from cascadia_fast.errors import InputError

PLANS = {
    "deepseek": deepseek_plan(),
    "one stage": one_stage_plan(),
    "alternating": deepseek_plan(status="feasible", solver=alternating_report()),
}


@pytest.mark.parametrize("name", PLANS)
def test_write_read_write_is_byte_identical(name: str, tmp_path: Path) -> None:
    plan = PLANS[name]
    plan.write(tmp_path / "first.json")
    again = Plan.read(tmp_path / "first.json")
    again.write(tmp_path / "second.json")
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()
    assert again == plan
    assert again.plan_id == plan.plan_id


@given(
    st.floats(0, 1e9) | st.just(math.inf),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats() | st.none(),
    st.floats(0, 100) | st.just(math.inf),
)
def test_any_number_survives(rate: float, quality: float, latency_s: float | None, threshold: float) -> None:
    plan = deepseek_plan(
        latency_s=latency_s,
        predicted=Predicted(latency_s, None, 1e-300, 0.1, quality, (quality, 5e-324), min(rate, 1e12), None),
        routing=Routing("cascade", (threshold, threshold), ((None, threshold), (0.1, math.inf))),
    )
    text = plan.to_json()
    assert Plan.from_json(text) == plan
    assert Plan.from_json(text).to_json() == text
    assert b"NaN" not in text
    assert b"Infinity" not in text


def test_json_has_the_documented_fields() -> None:
    document = json.loads(PLANS["deepseek"].to_json())
    assert list(document)[:5] == ["schema_version", "plan_id", "status", "objective", "latency_s"]
    assert document["routing"] == {
        "kind": "cascade",
        "thresholds": [87.0, "never"],
        "threshold_intervals": [[86.0, 88.0], [None, "never"]],
    }
    assert document["stages"][2]["replicas"][0]["nodes"] == [[[0, 0, 8], [1, 0, 8], [2, 4, 4]]]
    assert document["solver"]["highs"] == {"status": "optimal", "objective": 135.0, "columns": 3, "seconds": 0.0005}
    assert document["workload"]["scored_requests"] == 51
    assert set(document["predicted"]) == {
        "max_stage_p95_s",
        "end_to_end_p50_s",
        "end_to_end_p95_s",
        "ttft_p95_s",
        "quality",
        "quality_ci95",
        "max_rate_per_s",
        "cost_usd_per_hour",
    }


def test_trace_names_never_and_unknown_latency() -> None:
    trace = json.loads(PLANS["alternating"].to_json())["solver"]["trace"]
    assert trace[0] == {
        "thresholds": [50.0, "never"],
        "gpus": [1, 6, 20],
        "latency_s": None,
        "quality": 82.0,
        "objective": None,
    }


def test_plan_id_ignores_timings_and_nothing_else() -> None:
    plan = deepseek_plan()
    slower = dataclasses.replace(plan.solver, seconds=9.0, highs=HighsProof("optimal", 135.0, 3, 4.0))
    assert deepseek_plan(solver=slower).plan_id == plan.plan_id
    assert len(plan.plan_id) == 16
    assert int(plan.plan_id, 16) >= 0
    assert deepseek_plan(q_min=79.0).plan_id != plan.plan_id
    assert deepseek_plan(solver=dataclasses.replace(plan.solver, evaluated=19)).plan_id != plan.plan_id


def test_numpy_numbers_become_plain_and_unbounded_ones_none() -> None:
    plan = deepseek_plan(
        q_min=80,
        latency_s=np.float64(np.inf),
        workload=PlannedWorkload(np.int64(51), np.float32(51), 1.5, "mean", 0.0, 1.0, {60: np.float64(16)}),  # type: ignore[arg-type, dict-item]
    )
    assert plan.latency_s is None
    assert type(plan.q_min) is float
    assert type(plan.workload.scored_requests) is int
    assert plan.workload.dispersion == {"60": 16.0}
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()


def edited(path: tuple[Any, ...], value: Any) -> bytes:
    """deepseek.json with the value at `path` replaced, or removed when it is Ellipsis."""
    document = json.loads(PLANS["deepseek"].to_json())
    place = document
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema_version",), 2, "schema_version 2"),
        (("schema_version",), True, "schema_version True"),
        (("schema_version",), ..., "no schema_version"),
        (("objectve",), "x", "unknown field 'objectve'; did you mean 'objective'"),
        (("stages", 1, "gpu"), 3, "plan.stages[1] has an unknown field 'gpu'; did you mean 'gpus'"),
        (("predicted", "quality"), ..., "plan.predicted lacks the field 'quality'"),
        (("predicted", "quality"), None, "plan.predicted.quality is None"),
        (("predicted", "quality"), "80", "plan.predicted.quality is '80'; give a finite number"),
        (("predicted", "quality_ci95"), [1.0], "plan.predicted.quality_ci95 has 1 entries; give 2"),
        (("stages", 0, "gpus"), 1.0, "plan.stages[0].gpus is 1.0; give a whole number"),
        (("stages", 0, "gpus"), 2, "plan.stages[0].gpus is 2, but its replicas take 1"),
        (("paper_strict",), 0, "plan.paper_strict is 0; give true or false"),
        (("status",), "great", "plan.status is 'great'; give one of 'optimal'"),
        (("routing", "thresholds", 1), "Never", "plan.routing.thresholds[1] is 'Never'; give a number or 'never'"),
        (("routing", "thresholds"), [1.0], "plan.routing.thresholds has 1 entries; 3 stages need 2"),
        (("stages",), {}, "plan.stages is {}; give a list"),
        (("judge",), [], "plan.judge is []; give an object"),
        (("provenance", "inputs"), [], "plan.provenance.inputs is []; give an object"),
        (("stages", 0, "replicas", 0, "nodes", 0, 0), [0, 0], "has 2 entries; give 3"),
        (("stages", 1, "replicas", 1, "nodes"), [], "places 1 of 3 replicas"),
        (("q_min",), 81.0, "it was edited after planning"),
        (("plan_id",), ..., "plan_id None"),
    ],
)
def test_reading_is_strict(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Plan.from_json(edited(path, value), "p.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("p.json")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"schema_version": NaN}', b"\xff"])
def test_what_is_not_a_plan_is_refused(text: bytes) -> None:
    with pytest.raises(InputError, match=r"plan\.json"):
        Plan.from_json(text)


def test_one_gpu_for_two_replicas_is_refused() -> None:
    plan = deepseek_plan()
    first, second, last = plan.stages
    moved = dataclasses.replace(second.replicas[0], nodes=(((0, 0, 4),),))
    clash = deepseek_plan(stages=(first, dataclasses.replace(second, replicas=(moved, second.replicas[1])), last))
    with pytest.raises(InputError, match="GPU 0 of node 0 to two replicas"):
        Plan.from_json(clash.to_json())


def test_missing_file_and_huge_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json cannot be read"):
        Plan.read(tmp_path / "nowhere.json")
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(65 * 1024 * 1024)
    with pytest.raises(InputError, match="is larger than"):
        Plan.read(huge)


def test_write_replaces_in_one_step(tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    target.write_text("old")
    before = target.stat().st_ino
    deepseek_plan().write(target)
    assert target.stat().st_ino != before
    assert os.listdir(tmp_path) == ["plan.json"]


@pytest.mark.parametrize("where", ["missing/plan.json", ".", "x" * 300])
def test_unwritable_target_leaves_nothing(where: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be written|not a regular file"):
        deepseek_plan().write(tmp_path / where)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"file/plan\.json cannot be written \(Not a directory\)"):
        deepseek_plan().write(tmp_path / "file" / "plan.json")
    assert (tmp_path / "file").read_text() == "kept"


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    deepseek_plan().write(tmp_path / ("x" * 250))
    assert Plan.read(tmp_path / ("x" * 250)) == deepseek_plan()


def test_texts_that_are_no_unicode_are_replaced() -> None:
    provenance = Provenance("0.1.0", {"p\udcff.yaml": "0" * 64}, {"m\ud800": "größe\udcfe"})
    plan = deepseek_plan(provenance=provenance)
    assert plan.provenance == Provenance("0.1.0", {"p\ufffd.yaml": "0" * 64}, {"m\ufffd": "größe\ufffd"})
    assert Plan.from_json(plan.to_json()) == plan


def test_links_are_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    link = tmp_path / "plan.json"
    link.symlink_to(target)
    with pytest.raises(InputError, match=r"plan\.json is not a regular file"):
        deepseek_plan().write(link)
    assert link.is_symlink()
    assert target.read_text() == "kept"


def test_required_numbers_must_be_finite() -> None:
    with pytest.raises(InputError, match=r"Plan\.q_min is nan"):
        deepseek_plan(q_min=math.nan)


def test_derived_numbers() -> None:
    plan = deepseek_plan()
    assert (plan.gpus, plan.pool_gpus) == (27, 32)
    assert plan.binding_stage.index == 2
    assert sum(piece[2] for piece in plan.idle_gpus) == 5


def test_plans_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        deepseek_plan().q_min = 1.0  # type: ignore[misc]
