"""`Plan` and its JSON: byte-identical round trips, strict reading, atomic writing, an id that ignores timings."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from builders import (
    GEARED,
    LEARNED,
    ROUTED,
    VERIFIED,
    alternating_report,
    baseline_plan,
    deepseek_plan,
    one_stage_plan,
    two_pools_plan,
)
from hypothesis import given
from hypothesis import strategies as st

from cascadia_fast import schema, summary_units
from cascadia_fast.blueprint import (
    HighsProof,
    Metric,
    Objective,
    Plan,
    PlannedWorkload,
    Predicted,
    Provenance,
    Routing,
    Survive,
)
from cascadia_fast.blueprint_routing import Gear
from cascadia_fast.errors import InputError

PLANS = {
    "deepseek": deepseek_plan(),
    "one stage": one_stage_plan(),
    "alternating": deepseek_plan(status="feasible", solver=alternating_report()),
    "two pools": two_pools_plan(),
    "learned score": baseline_plan("frugalgpt", LEARNED),
    "win probability": baseline_plan("routellm", ROUTED),
    "verification": baseline_plan("automix", VERIFIED),
    "gears": baseline_plan("cascadeserve", GEARED, batching="prompts_first"),
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
        objective_value=latency_s,
        latency_s=latency_s,
        solver=alternating_report(),
        predicted=Predicted(latency_s, None, 1e-300, 0.1, quality, (quality, 5e-324), min(rate, 1e12), None, quality),
        routing=Routing("cascade", (threshold, threshold), ((None, threshold), (0.1, math.inf))),
    )
    text = plan.to_json()
    assert Plan.from_json(text) == plan
    assert Plan.from_json(text).to_json() == text
    assert b"NaN" not in text
    assert b"Infinity" not in text


def test_json_has_the_documented_fields() -> None:
    document = json.loads(PLANS["deepseek"].to_json())
    assert list(document)[:5] == ["schema_version", "plan_id", "status", "objective", "objective_value"]
    assert document["routing"] == {
        "kind": "cascade",
        "thresholds": [87.0, "never"],
        "threshold_intervals": [[86.0, 88.0], [None, "never"]],
        "signal": None,
        "router": None,
        "gears": [],
        "switching": None,
    }
    assert (document["system"], document["batching"]) == ("cascadia-fast", "chunked")
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
        "usd_per_request",
        "energy_j_per_request",
        "quality_lower",
    }


def test_other_systems_say_how_they_route() -> None:
    gears = json.loads(PLANS["gears"].to_json())
    assert (gears["system"], gears["batching"]) == ("cascadeserve", "prompts_first")
    assert gears["routing"]["kind"] == "gears"
    assert gears["routing"]["gears"][1:] == [
        {"up_to_per_s": 1.25, "stages": [0, 1, 2], "thresholds": [87.0, "never"]},
        {"up_to_per_s": None, "stages": [0, 1], "thresholds": [55.0]},
    ]
    assert gears["routing"]["switching"] == {"window_s": 13.5, "queue_factor": 8.0}
    verified = json.loads(PLANS["verification"].to_json())["routing"]
    assert verified["router"] == {"cuts": [0.25, 0.75], "paths": [5, 3, 1]}
    assert verified["signal"] == {
        "kind": "verification",
        "auc": 0.7,
        "seed": 0,
        "center": 70.0,
        "spread": 30.0,
        "noise_sd": 0.8,
        "votes": 8,
    }
    assert len({plan.plan_id for plan in PLANS.values()}) == len(PLANS)


def test_a_judge_is_asked_where_thresholds_wait_for_its_scores() -> None:
    asked = {name: plan.routing.asks_judge for name, plan in PLANS.items()}
    assert {name for name, judged in asked.items() if judged} == {"deepseek", "alternating", "two pools", "gears"}
    alone = dataclasses.replace(GEARED, gears=(Gear(None, (2,), ()),))
    assert not alone.asks_judge


def change_routing(routing: Routing, **changes: Any) -> Plan:
    """A plan with a routing that is changed field by field; dots lead into records."""
    for name, value in changes.items():
        field, _, inner = name.partition("__")
        if inner:
            value = dataclasses.replace(getattr(routing, field), **{inner: value})
        routing = dataclasses.replace(routing, **{field: value})
    return baseline_plan("other", routing)


@pytest.mark.parametrize(
    ("routing", "changes", "message"),
    [
        (LEARNED, {"signal__auc": 0.5}, "Signal.auc is 0.5; it must be above 0.5"),
        (LEARNED, {"signal__seed": -1}, "Signal.seed is -1"),
        (LEARNED, {"signal__spread": 0.0}, "Signal.spread is 0; it must be positive"),
        (LEARNED, {"signal__noise_sd": -0.1}, "Signal.noise_sd is -0.1"),
        (LEARNED, {"signal__votes": 8}, "Signal.votes is 8; a verification has at least one, anything else 0"),
        (VERIFIED, {"signal__votes": 0}, "Signal.votes is 0; a verification has at least one"),
        (LEARNED, {"signal": ROUTED.signal}, "plan.routing.signal is win_probability, as the kind of routing is"),
        (
            ROUTED,
            {"signal": LEARNED.signal},
            "plan.routing.signal is learned_score, as the kind of routing is 'router'",
        ),
        (ROUTED, {"signal": None}, "signal is missing, as the kind of routing is 'router'; give win_probability or"),
        (GEARED, {"signal": LEARNED.signal}, "as the kind of routing is 'gears'; give none"),
        (ROUTED, {"router": None}, "plan.routing lacks router, as its kind is 'router'; give it for 'router' alone"),
        (LEARNED, {"router": ROUTED.router}, "plan.routing has router, as its kind is 'cascade'; give it for 'router'"),
        (LEARNED, {"gears": GEARED.gears}, "plan.routing has gears, as its kind is 'cascade'"),
        (GEARED, {"switching": None}, "plan.routing lacks switching, as its kind is 'gears'"),
        (GEARED, {"gears": ()}, "plan.routing lacks gears"),
        (LEARNED, {"thresholds": (1.0,)}, "plan.routing.thresholds has 1 entries; 3 stages need 2"),
        (ROUTED, {"thresholds": (1.0,)}, "thresholds has 1 entries; routing of kind 'router' needs 0"),
        (ROUTED, {"router__cuts": (0.7, 0.31)}, "Router.cuts are [0.7, 0.31]; they must ascend"),
        (ROUTED, {"router__paths": (1, 2)}, "Router.paths has 2 entries; 2 cuts need one more"),
        (ROUTED, {"router__paths": (1, 0, 4)}, "Router.paths are [1, 0, 4]; each must visit a stage"),
        (ROUTED, {"router__paths": (1, 2, 8)}, "paths has 8, which visits more than the plan's 3 stages"),
        (VERIFIED, {"router__paths": (1, 3, 4)}, "paths has 4, which leaves out the first stage"),
        (GEARED, {"switching__window_s": 0.0}, "Switching.window_s is 0; it must be positive"),
        (GEARED, {"switching__queue_factor": -1.0}, "Switching.queue_factor is -1"),
        (GEARED, {"gears": GEARED.gears[:2]}, "are for rates up to [0.5, 1.25]; they must be positive and ascend"),
        (GEARED, {"gears": GEARED.gears[1::-1] + GEARED.gears[2:]}, "rates up to [1.25, 0.5, None]"),
        (GEARED, {"gears": (Gear(0.0, (0,), ()), Gear(None, (0,), ()))}, "rates up to [0.0, None]"),
        (GEARED, {"gears": (Gear(None, (0,), ()),) * 2}, "rates up to [None, None]"),
        (GEARED, {"gears": (Gear(None, (0, 3), (5.0,)),)}, "plan.routing.gears[0] runs stage 3; the plan has 3 stages"),
        (
            GEARED,
            {"gears": [Gear(float(k) or None, (0,), ()) for k in range(257)]},
            "gears has 257 entries; at most 256",
        ),
    ],
)
def test_routing_agrees_with_itself_and_the_stages(routing: Routing, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        change_routing(routing, **changes)
    assert message in str(caught.value)


def test_gears_run_ascending_stages() -> None:
    for stages in ((), (1, 0), (0, 0), (-1, 0)):
        with pytest.raises(InputError, match=r"Gear\.stages are .*; give at least one, ascending from 0"):
            Gear(None, stages, ())
    with pytest.raises(InputError, match=r"Gear\.thresholds has 2 entries; 2 stages need 1"):
        Gear(None, (0, 2), (1.0, 2.0))


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
        objective_value=np.float64(np.inf),
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
        (("schema_version",), 1, "schema_version 1 and this version of cascadia-fast reads 3; plan again"),
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
        (
            ("objective",),
            "min_latency",
            "plan.objective is 'min_latency'; give one of 'max_stage_p95', 'end_to_end_p95'",
        ),
        (("objective",), "ttft_p95", "plan.latency_metric is 'max_stage_p95'; it must be the objective, 'ttft_p95'"),
        (("objective",), "min_gpus", "plan.objective_value is 135.0, but min_gpus came to 27.0"),
        (("objective",), "min_cost", "plan.objective_value is 135.0, but min_cost came to 64.8"),
        (("objective_value",), None, "plan.objective_value is None, but max_stage_p95 came to 135.0"),
        (("latency_metric",), "p95", "plan.latency_metric is 'p95'; give one of 'max_stage_p95'"),
        (("survive",), "rack", "plan.survive is 'rack'; give one of 'none', 'replica', 'node'"),
        (("slo_s",), 200.0, "plan.slo_s is 200.0 and plan.slo_metric None; give both, or neither"),
        (("q_confidence",), 0.9, "plan.q_confidence and plan.predicted.quality_lower belong together"),
        (("solver", "family"), "pair", "plan.solver.family is 'pair'; give one of 'homogeneous'"),
        (("solver", "gap"), 0.5, "plan.solver.gap is 0.5, but the objective is 135.0 and its bound 135.0"),
        (("solver", "gap"), -0.5, "plan.solver.gap is -0.5; a bound that the plan beats is none"),
        (("solver", "gap"), None, "plan.solver.bound and plan.solver.gap belong together"),
        (("solver", "complete"), False, "plan.status is 'optimal', but its search was stopped"),
        (("judge", "kind"), "hosted", "plan.judge.model is None; give it, as the judge is hosted"),
        (("judge", "model"), "tiny", "plan.judge.model is 'tiny'; drop it, as the judge is external"),
        (("judge", "gpus"), 1, "plan.judge.gpus is 1, but its replicas take 0"),
        (
            ("pools", 0, "name"),
            "other",
            "runs on h100-sxm-80gb in the pool 'h100-sxm-80gb'; plan.pools has other of h100",
        ),
        (("pools", 0, "gpus"), 26, "plan.pools has 26 GPUs in 'h100-sxm-80gb', but replicas take 27 of them"),
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


def test_the_judge_takes_part_in_every_check() -> None:
    plan = PLANS["two pools"]
    assert (plan.gpus, plan.pool_gpus, len(list(plan.groups))) == (28, 40, 5)
    (engine,) = plan.judge.replicas
    for change, message in (
        ({"replicas": ()}, "plan.judge.gpus is 1, but its replicas take 0"),
        ({"replicas": (dataclasses.replace(engine, nodes=()),)}, "plan.judge places 0 of 1 replicas"),
        ({"replicas": (dataclasses.replace(engine, pool="h100"),)}, "runs on l40s in the pool 'h100'"),
        ({"rate_per_s": None}, "plan.judge.rate_per_s is None; give it"),
        ({"kind": "external"}, "plan.judge.model is 'llama-3.1-8b'; drop it"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            two_pools_plan(judge=dataclasses.replace(plan.judge, **change))
    clash = dataclasses.replace(plan.judge, replicas=(dataclasses.replace(engine, nodes=(((0, 1, 1),),)),))
    with pytest.raises(InputError, match="GPU 1 of node 0 to two replicas"):
        Plan.from_json(two_pools_plan(judge=clash).to_json())
    with pytest.raises(InputError, match=r"plan\.pools has one name twice"):
        two_pools_plan(pools=(*plan.pools, plan.pools[0]))


def test_the_largest_rate_is_bounded_from_above() -> None:
    solver = dataclasses.replace(alternating_report(), bound=1.8, gap=0.2)
    rate = deepseek_plan(objective="max_rate", objective_value=1.5, solver=solver, status="feasible")
    assert Plan.from_json(rate.to_json()) == rate
    with pytest.raises(InputError, match=r"plan\.solver\.gap is 0\.2, but the objective is 1\.5 and its bound 1\.2"):
        dataclasses.replace(rate, solver=dataclasses.replace(solver, bound=1.2))


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


def _words(annotation: Any) -> Iterator[str]:
    """Every text that a type of literals, nested or not, may be."""
    for argument in get_args(annotation):
        if isinstance(argument, str):
            yield argument
        else:
            yield from _words(argument)


def test_plans_and_problems_know_the_same_objectives() -> None:
    fields = schema.Goal.model_fields
    known = set(get_args(Objective))
    assert known == set(summary_units.OBJECTIVES)
    for name, words in (("objective", known), ("survive", set(get_args(Survive)))):
        assert set(_words(fields[name].annotation)) == words
    assert set(get_args(Metric)) == set(schema.LATENCY_METRICS)


def test_plans_are_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        deepseek_plan().q_min = 1.0  # type: ignore[misc]
