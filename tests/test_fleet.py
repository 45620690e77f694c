"""The engines of a fleet: which shapes on which pools, as far as the problem leaves a choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascadia_fast.errors import ModelDoesNotFitError
from cascadia_fast.fleet import LARGEST_OVER_SMALLEST, StageFleet, build_fleet, build_judge_fleet
from cascadia_fast.problem import Problem

FAST = {"name": "fast", "gpu": "h100-sxm-80gb", "nodes": 4}
SMALL = {"name": "small", "gpu": "l40s", "nodes": 8, "gpus_per_node": 2}


def problem(tmp_path: Path, large: dict[str, Any] | None = None, *cluster: dict[str, Any], **judge: Any) -> Problem:
    fields = {
        "cascade": [{"model": "llama-3.1-8b"}, {"model": "llama-3.1-70b", **(large or {})}],
        "cluster": list(cluster or (FAST, SMALL)),
        "workload": {"requests": "requests.csv", "rate_per_s": 2},
        "goal": {"q_min": 60},
        "judge": judge,
    }
    return Problem.from_dict(fields, tmp_path)


def shapes(fleet: StageFleet, pool: int | None = None) -> list[tuple[int, int]]:
    return [
        (replica.shape.tp, replica.shape.pp)
        for replica, own in zip(fleet.replicas, fleet.pools, strict=True)
        if pool in (None, own)
    ]


def test_every_pool_has_its_engines(tmp_path: Path) -> None:
    together = build_fleet(problem(tmp_path))
    for index, pool in enumerate((FAST, SMALL)):
        for stage, alone in zip(together, build_fleet(problem(tmp_path, None, pool)), strict=True):
            assert shapes(stage, index) == shapes(alone)
    small, large = together
    assert (small.least_gpus, large.least_gpus) == (1, 2)
    # An L40S has 48 GB: four of them hold what two H100 do, in two nodes.
    assert min(tp * pp for tp, pp in shapes(large, 1)) == 4
    assert max(tp for tp, _ in shapes(large, 1)) == 2
    assert large.largest == max(8, LARGEST_OVER_SMALLEST * 4)
    assert len(large.statuses) == len(large.replicas) == len(large.pools)
    assert {large.statuses[k].reason.count("l40s") > 0 for k, pool in enumerate(large.pools) if pool == 1} == {True}


def test_replicas_have_the_links_of_their_pool(tmp_path: Path) -> None:
    slow = FAST | {"name": "slow", "link_gb_per_s": 30}
    fleet = build_fleet(problem(tmp_path, {"tp": 8, "pp": 1}, FAST, slow))[1]
    fast_s, slow_s = (replica.linear_s(np.array([64.0, 4096.0]), np.array([64.0, 1.0])) for replica in fleet.replicas)
    assert fleet.pools == (0, 1)
    assert (slow_s > fast_s).all()


def test_pinned_shapes_and_pools_leave_what_they_say(tmp_path: Path) -> None:
    assert shapes(build_fleet(problem(tmp_path, {"tp": 2, "pp": 4}))[1]) == [(2, 4), (2, 4)]
    assert shapes(build_fleet(problem(tmp_path, {"tp": 4}))[1]) == [(4, 1), (4, 2)]
    only = build_fleet(problem(tmp_path, {"pools": ["small"]}))[1]
    assert set(only.pools) == {1}
    assert shapes(only) == shapes(build_fleet(problem(tmp_path))[1], 1)
    # Pinned engines may be larger than any that would be looked at.
    assert shapes(build_fleet(problem(tmp_path, {"tp": 8, "pp": 5, "pools": ["fast"]}))[1]) == [(8, 5)]


def test_tensor_parallelism_crosses_nodes_where_it_is_allowed(tmp_path: Path) -> None:
    spanning = SMALL | {"tp_across_nodes": True}
    across = build_fleet(problem(tmp_path, None, spanning))[1]
    inside = build_fleet(problem(tmp_path, None, SMALL))[1]
    more = set(shapes(across)) - set(shapes(inside))
    assert more == {(4, 1), (4, 2), (8, 1)}
    assert set(shapes(inside)) <= set(shapes(across))
    assert shapes(across) == sorted(shapes(across), key=lambda shape: (shape[0] * shape[1], shape[0]))
    wide = build_fleet(problem(tmp_path, {"tp": 16, "pp": 1}, FAST | {"tp_across_nodes": True}))[1]
    assert shapes(wide) == [(16, 1)]
    # Sums over the network cost more than half a matrix product saves: a step of one token is slower than on a node.
    node = build_fleet(problem(tmp_path, {"tp": 8, "pp": 1}, FAST))[1]
    assert wide.replicas[0].linear_s(4096, 1) > 0.5 * node.replicas[0].linear_s(4096, 1)


def test_a_pool_that_cannot_hold_a_model_has_no_engine(tmp_path: Path) -> None:
    tiny = {"name": "tiny", "gpu": "l40s", "nodes": 1, "gpus_per_node": 1}
    huge = {"model": "deepseek-v3"}
    fleet = build_fleet(problem(tmp_path, huge | {"tp": 8}, FAST, tiny))[1]
    assert set(fleet.pools) == {0}
    with pytest.raises(ModelDoesNotFitError) as caught:
        build_fleet(problem(tmp_path, huge | {"tp": 1, "pp": 1}, FAST, tiny))
    says = (
        "deepseek-v3 in fp8 fits no number of h100-sxm-80gb GPUs with tensor parallelism inside nodes of 8 (pool fast)"
        ", nor of l40s GPUs with tensor parallelism inside nodes of 1 (pool tiny), as tp 1 pp 1; use smaller weights "
        "or GPUs with more memory, or drop what is pinned"
    )
    assert str(caught.value) == says
    with pytest.raises(ModelDoesNotFitError, match="inside nodes of 1, as tp 1 pp 1; use smaller weights"):
        build_fleet(problem(tmp_path, huge | {"tp": 1, "pp": 1}, tiny))


def test_a_hosted_judge_has_engines_of_its_own(tmp_path: Path) -> None:
    judged = problem(tmp_path, model="llama-3.1-8b", weights="fp8")
    fleet = build_judge_fleet(judged)
    assert fleet is not None
    assert fleet.least_gpus == 1
    assert set(fleet.pools) == {0, 1}
    assert len(build_fleet(judged)) == 2
    assert build_judge_fleet(problem(tmp_path)) is None
