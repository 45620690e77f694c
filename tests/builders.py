"""Plans made by hand, for tests that need one but no planner."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from cascadia_fast.blueprint import (
    Calibration,
    HighsProof,
    Iteration,
    JudgePlan,
    Plan,
    PlannedWorkload,
    Pool,
    Predicted,
    Provenance,
    ReplicaGroup,
    Routing,
    SingleModel,
    SolverReport,
    StageCalibration,
    StagePlan,
)
from cascadia_fast.blueprint_routing import Gear, Router, Signal, Switching
from cascadia_fast.placement import Replica, place


def group(
    count: int,
    tp: int,
    pp: int,
    nodes: tuple[Replica, ...],
    share: float = 1.0,
    gpu: str = "h100-sxm-80gb",
    pool: str = "h100-sxm-80gb",
) -> ReplicaGroup:
    return ReplicaGroup(
        count=count,
        gpu=gpu,
        pool=pool,
        tp=tp,
        pp=pp,
        ep=1,
        share=share,
        capacity_per_s=0.4,
        nodes=nodes,
        max_num_seqs=256,
        max_batched_tokens=8192,
        max_model_len=131072,
    )


def deepseek_plan(**changes: Any) -> Plan:
    """The paper's cascade on 4 nodes of 8 H100, with numbers of the right size; `changes` replace its fields."""
    placement = place([(0, 1, 1, 1), (1, 1, 4, 1), (1, 2, 1, 1), (2, 1, 4, 5)], gpus=32, gpus_per_node=8)
    small, large_tp, large_dp, huge = placement.replicas
    stages = (
        StagePlan(
            0, "deepseek-r1-distill-qwen-7b", "bf16", "bf16", 1, 1.0, 1.5, 61.2, 0.71, 40.5, (group(1, 1, 1, small),)
        ),
        StagePlan(
            index=1,
            model="deepseek-r1-distill-llama-70b",
            weights="bf16",
            kv_dtype="bf16",
            gpus=6,
            reach=0.64705,
            rate_per_s=0.97,
            p95_s=88.4,
            utilization=0.84,
            mean_batch=22.25,
            replicas=(group(1, 4, 1, large_tp, 0.6), group(2, 1, 1, large_dp, 0.4)),
        ),
        StagePlan(2, "deepseek-r1", "int4", "bf16", 20, 0.47, 0.7, 135.0, 0.9, 61.0, (group(1, 4, 5, huge),)),
    )
    fields: dict[str, Any] = {
        "status": "optimal",
        "objective": "max_stage_p95",
        "objective_value": 135.0,
        "latency_metric": "max_stage_p95",
        "latency_s": 135.0,
        "q_min": 80.0,
        "q_confidence": None,
        "slo_s": None,
        "slo_metric": None,
        "budget_usd_per_hour": None,
        "survive": "none",
        "max_utilization": 0.9,
        "paper_strict": False,
        "predicted": Predicted(135.0, 92.5, 241.7, 1.9, 80.392, (74.1, 86.0), 2.71, 64.8, 0.012, 11107.0),
        "routing": Routing("cascade", (87.0, math.inf), ((86.0, 88.0), (None, math.inf))),
        "stages": stages,
        "skipped_models": (),
        "judge": JudgePlan("external", 0.27, 0.0, None),
        "pools": (Pool("h100-sxm-80gb", "h100-sxm-80gb", 32, 8, 2.4, placement.idle),),
        "workload": PlannedWorkload(51, 51.0, 1.5, "mean", 1.0, 1.09, {"1": 1.4, "10": 4.5, "60": 16.0}),
        "best_single_model": SingleModel("deepseek-r1", 32, 180.0, 86.3, 76.8, True),
        "solver": SolverReport(
            method="exact",
            certificate="optimal for this model, this grid and this sample",
            family="homogeneous",
            subsets=1,
            levels=(102, 102),
            distinct_routings=203,
            evaluated=18,
            pruned=185,
            complete=True,
            time_limit_s=None,
            bound=135.0,
            gap=0.0,
            seconds=0.0042,
            highs=HighsProof("optimal", 135.0, 3, 0.0005),
        ),
        "calibration": Calibration(
            "roofline-2026-11",
            "transferred",
            (
                StageCalibration("deepseek-r1-distill-qwen-7b", "calibrated", "18 runs of it"),
                StageCalibration("deepseek-r1", "transferred", "nothing was measured in int4"),
            ),
        ),
        "provenance": Provenance("0.1.0", {"cascade.yaml": "0" * 64}, {"h100-sxm-80gb": "data sheet"}),
        "warnings": ("arrivals are bursty: dispersion 16 over 60 s",),
    }
    return Plan(**{**fields, **changes})


def two_pools_plan(**changes: Any) -> Plan:
    """A plan of everything at once: two pools, two shapes at a stage, a hosted judge, constraints and a gap."""
    plan = deepseek_plan()
    small, large, huge = (dataclasses.replace(stage, replicas=_moved(stage.replicas)) for stage in plan.stages)
    (judge_nodes,) = place([(0, 1, 1, 1)], gpus=8, gpus_per_node=8).replicas
    small_l40s = dataclasses.replace(large.replicas[1], nodes=(((0, 1, 1),), ((0, 2, 1),)), pool="l40s", gpu="l40s")
    fields: dict[str, Any] = {
        "status": "feasible",
        "objective": "min_cost",
        "objective_value": 70.2,
        "latency_metric": "end_to_end_p95",
        "latency_s": 241.7,
        "q_confidence": 0.95,
        "slo_s": 260.0,
        "slo_metric": "end_to_end_p95",
        "budget_usd_per_hour": 90.0,
        "survive": "replica",
        "predicted": dataclasses.replace(plan.predicted, cost_usd_per_hour=70.2, quality_lower=80.05),
        "stages": (small, dataclasses.replace(large, replicas=(large.replicas[0], small_l40s)), huge),
        "skipped_models": ("qwen2.5-32b",),
        "judge": JudgePlan(
            kind="hosted",
            latency_s=0.0,
            usd_per_call=0.0,
            simulated_auc=None,
            model="llama-3.1-8b",
            weights="fp8",
            kv_dtype="bf16",
            gpus=1,
            rate_per_s=2.47,
            p95_s=0.27,
            utilization=0.31,
            replicas=(group(1, 1, 1, judge_nodes, pool="l40s", gpu="l40s"),),
        ),
        "pools": (
            Pool("h100", "h100-sxm-80gb", 32, 8, 2.4, ((3, 1, 7),)),
            Pool("l40s", "l40s", 8, 8, 0.9, ((0, 3, 5),)),
        ),
        "solver": dataclasses.replace(
            plan.solver,
            certificate="the best found in 60 s, on all pools",
            family="pooled",
            subsets=15,
            complete=False,
            time_limit_s=60.0,
            bound=69.9,
            gap=(70.2 - 69.9) / 70.2,
            highs=HighsProof("optimal", 70.2, 3, 0.0005),
        ),
    }
    return deepseek_plan(**{**fields, **changes})


LEARNED = Routing(
    "cascade", (62.5, math.inf), ((None, math.inf),) * 2, Signal("learned_score", 0.8, 3, 81.2, 31.0, 0.9)
)
ROUTED = Routing(
    "router", (), (), Signal("win_probability", 0.8, 0, 12.5, 40.0, 1.1), router=Router((0.31, 0.7), (1, 2, 4))
)
VERIFIED = Routing(
    "router", (), (), Signal("verification", 0.7, 0, 70.0, 30.0, 0.8, 8), router=Router((0.25, 0.75), (5, 3, 1))
)
GEARED = Routing(
    "gears",
    (),
    (),
    gears=(Gear(0.5, (2,), ()), Gear(1.25, (0, 1, 2), (87.0, math.inf)), Gear(None, (0, 1), (55.0,))),
    switching=Switching(13.5, 8.0),
)


def baseline_plan(system: str, routing: Routing, **changes: Any) -> Plan:
    """The DeepSeek plan as if another system had made it."""
    solver = dataclasses.replace(
        alternating_report(), method="baseline", certificate="a heuristic", evaluated=7, trace=()
    )
    asked = JudgePlan("external", 0.27 if routing.asks_judge else 0.0, 0.0, None)
    fields = {"status": "feasible", "solver": solver, "judge": asked, "system": system, "routing": routing}
    return deepseek_plan(**{**fields, **changes})


def _moved(groups: tuple[ReplicaGroup, ...]) -> tuple[ReplicaGroup, ...]:
    return tuple(dataclasses.replace(group, pool="h100") for group in groups)


def one_stage_plan(**changes: Any) -> Plan:
    """The smallest plan there is: one model, no thresholds, latency unknown."""
    (replicas,) = place([(0, 1, 1, 1)], gpus=1, gpus_per_node=1).replicas
    return deepseek_plan(
        **{
            "status": "unstable",
            "objective_value": None,
            "latency_s": None,
            "predicted": Predicted(None, None, None, None, 61.0, (60.0, 62.0), 0.5, None),
            "routing": Routing("cascade", (), ()),
            "stages": (
                StagePlan(0, "tiny", "bf16", "bf16", 1, 1.0, 1.5, None, 1.2, None, (group(1, 1, 1, replicas),)),
            ),
            "skipped_models": ("deepseek-r1",),
            "pools": (Pool("h100-sxm-80gb", "h100-sxm-80gb", 1, 1, None),),
            "best_single_model": None,
            "warnings": (),
            **changes,
        }
    )


def alternating_report() -> SolverReport:
    """Two rounds of the paper's loop, the first of them overloaded."""
    return SolverReport(
        method="alternating",
        certificate="none: the gap of the alternating method is unknown",
        family="homogeneous",
        subsets=1,
        levels=(102, 102),
        distinct_routings=203,
        evaluated=406,
        pruned=0,
        complete=True,
        time_limit_s=None,
        bound=None,
        gap=None,
        seconds=0.01,
        trace=(
            Iteration((50.0, math.inf), (1, 6, 20), None, 82.0, None),
            Iteration((87.0, 90.0), (1, 7, 24), 140.0, 80.4, 140.0),
        ),
    )
