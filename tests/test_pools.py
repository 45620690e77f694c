"""Pools of GPUs: which entries of a cluster are one, what they are called, and what is kept for others."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cascadia_fast import catalog
from cascadia_fast.errors import InputError
from cascadia_fast.pools import GpuPool, pools_of
from cascadia_fast.problem import Problem
from cascadia_fast.schema import PoolEntry

H100 = {"gpu": "h100-sxm-80gb", "nodes": 3}


def pools(*entries: dict[str, Any]) -> tuple[GpuPool, ...]:
    return pools_of([PoolEntry(**entry) for entry in entries], "p.yaml")


def sizes(*entries: dict[str, Any]) -> list[tuple[str, int]]:
    return [(pool.name, pool.gpus) for pool in pools(*entries)]


def test_a_pool_has_what_the_catalog_knows() -> None:
    (pool,) = pools(H100)
    assert pool == GpuPool("h100-sxm-80gb", catalog.gpu("h100"), 24, 8, catalog.gpu("h100").price_usd_per_hour)
    assert pool.spec.power_w == 700
    assert pool.resized(20).gpus == 20


def test_entries_that_differ_in_size_only_are_one_pool() -> None:
    assert sizes(H100, {"gpu": "H100", "gpus": 12}) == [("h100-sxm-80gb", 36)]


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"gpu": "h100", "nodes": 1, "price_usd_per_hour": 9.0}, [("h100-sxm-80gb", 24), ("h100-sxm-80gb-2", 8)]),
        ({"gpu": "h100", "nodes": 1, "gpus_per_node": 4}, [("h100-sxm-80gb", 24), ("h100-sxm-80gb-2", 4)]),
        ({"gpu": "h100", "nodes": 1, "internode_gb_per_s": 99}, [("h100-sxm-80gb", 24), ("h100-sxm-80gb-2", 8)]),
        ({"gpu": "h100", "nodes": 1, "tp_across_nodes": True}, [("h100-sxm-80gb", 24), ("h100-sxm-80gb-2", 8)]),
        ({"gpu": "h100", "nodes": 1, "reserved": 2}, [("h100-sxm-80gb", 24), ("h100-sxm-80gb-2", 6)]),
        ({"gpu": "h100", "nodes": 1, "name": "mine"}, [("h100-sxm-80gb", 24), ("mine", 8)]),
        ({"gpu": "h200", "nodes": 1, "name": "h100-sxm-80gb"}, [("h100-sxm-80gb-2", 24), ("h100-sxm-80gb", 8)]),
    ],
)
def test_what_differs_is_a_pool_of_its_own(second: dict[str, Any], expected: list[tuple[str, int]]) -> None:
    assert sizes(H100, second) == expected


def test_two_partial_nodes_are_two_pools() -> None:
    """One pool has one partial node; 20 and 3 GPUs are two full nodes and two partial ones."""
    assert sizes({"gpu": "h100", "gpus": 20}, {"gpu": "h100", "gpus": 3}) == [
        ("h100-sxm-80gb", 20),
        ("h100-sxm-80gb-2", 3),
    ]


def test_links_are_those_of_the_problem() -> None:
    (pool,) = pools(H100 | {"link_gb_per_s": 200, "internode_gb_per_s": 12.5})
    assert (pool.spec.link_bytes_per_s, pool.spec.internode_bytes_per_s) == (200e9, 12.5e9)
    assert pool.spec.source.endswith(
        "; link_bytes_per_s 2e+11 and internode_bytes_per_s 1.25e+10 from the problem file"
    )
    assert pool.spec.bandwidth_bytes_per_s == catalog.gpu("h100").bandwidth_bytes_per_s


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([H100 | {"reserved": 24}], "p.yaml: cluster[0].nodes makes 24 GPUs and p.yaml: cluster[0].reserved is 24"),
        ([{"gpu": "h100", "gpus": 3, "reserved": 4}], "cluster[0].gpus is 3 and p.yaml: cluster[0].reserved is 4"),
        ([H100 | {"name": "x"}] * 2, "cluster[1].name is 'x' and so is cluster[0].name; name them apart"),
    ],
)
def test_bad_pools(entries: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        pools(*entries)


def test_replace_changes_the_only_pool() -> None:
    problem = Problem.example()
    fewer = problem.replace(gpus=20)
    assert (fewer.gpus, fewer.gpus_per_node, fewer.pools[0].name) == (20, 8, problem.pools[0].name)
    linked = problem.replace(pools={"h100-sxm-80gb": {"internode_gb_per_s": 12.5, "reserved": 4, "name": "mine"}})
    assert (linked.pools[0].gpus, linked.pools[0].name) == (problem.gpus - 4, "mine")
    again = linked.replace(price_usd_per_hour=1.5)
    assert (again.pools[0].gpus, again.price_usd_per_hour) == (problem.gpus - 4, 1.5)
    assert again.pools[0].spec == linked.pools[0].spec
    assert linked.replace(gpus=problem.gpus).gpus == problem.gpus
    assert problem.replace(pools={"h100-sxm-80gb": {"nodes": 3}}).gpus == 24


def test_replace_asks_which_of_several_pools(tmp_path: Any) -> None:
    fields = {
        "cascade": [{"model": "llama-3.1-8b", "pools": "fast"}],
        "cluster": [{"name": "fast", "gpu": "h100", "nodes": 2}, {"name": "cheap", "gpu": "a100", "nodes": 1}],
        "workload": {"requests": "requests.csv", "rate_per_s": 2},
        "goal": {"q_min": 60},
    }
    problem = Problem.from_dict(fields, tmp_path)
    assert [(pool.name, pool.gpus) for pool in problem.pools] == [("fast", 16), ("cheap", 8)]
    assert (problem.gpus, problem.gpu.name, problem.pools_for(problem.stages[0])) == (24, "h100-sxm-80gb", (0,))
    assert repr(problem) == "Problem([llama-3.1-8b] on 16 x h100-sxm-80gb + 8 x a100-sxm-80gb, q_min 60)"
    says = "gpus cannot be replaced in a cluster of several pools (fast, cheap); say of which, as in pools={"
    with pytest.raises(InputError, match=re.escape(says)):
        problem.replace(gpus=4)
    other = problem.replace(pools={"cheap": {"gpus": 12, "price_usd_per_hour": 0.5}})
    assert [pool.gpus for pool in other.pools] == [16, 12]
    assert [pool.price_usd_per_hour for pool in other.pools] == [problem.price_usd_per_hour, 0.5]
