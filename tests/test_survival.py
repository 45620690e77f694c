"""Every loss is looked at, and what is planned for is what a node can take."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadia_fast.errors import NoPlanError, PoolTooSmallError
from cascadia_fast.placement import place, place_in_pools
from cascadia_fast.planning.survival import (
    PlacedGroups,
    cannot_survive,
    check_losses,
    most_on_one_node,
    spare_for_nodes,
    worst_loss,
)


def placed(requests: list[tuple[int, int, int, int]], gpus: int, spread: bool = True) -> PlacedGroups:
    return PlacedGroups("h100", tuple(range(len(requests))), place(requests, gpus, 8, spread=spread))


def test_every_group_can_lose_a_replica() -> None:
    requests = [(0, 3, 1, 1), (1, 0, 2, 1), (1, 2, 4, 1)]
    losses = check_losses("replica", [3, 0, 2], [placed(requests, 16)], lambda left: 10.0 / min(left[0], left[2]), 6.0)
    assert [(loss.lost, loss.latency_s, loss.survives) for loss in losses] == [
        ((1, 0, 0), 5.0, True),
        ((0, 0, 1), 10.0, False),
    ]
    assert worst_loss(losses).lost == (0, 0, 1)


def test_every_node_can_be_lost_with_all_that_lies_there() -> None:
    requests = [(0, 2, 4, 1), (1, 1, 4, 5), (0, 2, 1, 1)]
    pool = placed(requests, 40)
    losses = check_losses("node", [2, 1, 2], [pool], lambda left: math.inf if left[1] == 0 else 1.0, 2.0)
    assert [loss.node for loss in losses] == sorted({n for g in pool.placement.replicas for r in g for n, _, _ in r})
    # The pipeline of 20 GPUs lies on three nodes, and is lost with any of them.
    assert sum(loss.lost[1] for loss in losses) == 3
    assert [loss.survives for loss in losses] == [loss.lost[1] == 0 for loss in losses]
    assert sum(loss.lost[0] for loss in losses) == 2
    assert sum(loss.lost[2] for loss in losses) == 2


def test_losses_of_every_pool_are_looked_at_and_survivors_evaluated_once() -> None:
    requests = [(0, (0, 2, 4, 1)), (1, (0, 1, 8, 1)), (0, (1, 2, 4, 1))]
    first, second = place_in_pools(requests, [("a", 16, 8), ("b", 8, 8)], spread=True)
    pools = [PlacedGroups("a", (0, 2), first), PlacedGroups("b", (1,), second)]
    asked = []

    def latency_s(left: tuple[int, ...]) -> float:
        asked.append(left)
        return float(sum(left))

    losses = check_losses("node", [2, 1, 2], pools, latency_s, 10.0)
    assert [(loss.pool, loss.node, loss.lost) for loss in losses] == [
        ("a", 0, (1, 0, 1)),
        ("a", 1, (1, 0, 1)),
        ("b", 0, (0, 1, 0)),
    ]
    assert asked == [(1, 1, 1), (2, 0, 2)]
    assert most_on_one_node([0, 0, 1], pools, 3) == (1, 1, 0)


def test_groups_of_a_station_on_one_node_add_up() -> None:
    assert most_on_one_node([0, 0], [placed([(0, 2, 2, 1), (0, 3, 1, 1)], 8)], 1) == (5,)


@given(st.integers(1, 12), st.integers(2, 6), st.sampled_from([1, 2, 4, 8]))
def test_what_is_planned_for_nodes_survives_each(needed: int, nodes: int, tp: int) -> None:
    """A plan has what is needed and what is to be spared; after losing any node what is needed is left."""
    gpus = 8 * nodes

    def plan(spare: tuple[int, ...]) -> int | None:
        return needed + spare[0] if (needed + spare[0]) * tp <= gpus else None

    def most_lost(count: int) -> tuple[int, ...]:
        return most_on_one_node([0], [placed([(0, count, tp, 1)], gpus)], 1)

    found = spare_for_nodes(plan, most_lost, 1)
    least = next((n for n in range(needed, gpus // tp + 1) if n - most_lost(n)[0] >= needed), None)
    if found is None:
        assert least is None
        return
    assert found.plan == least  # of one shape, the first that suffices is the smallest
    assert found.first == needed + 1
    losses = check_losses(
        "node", [found.plan], [placed([(0, found.plan, tp, 1)], gpus)], lambda left: 1.0 if left[0] >= needed else 2, 1
    )
    assert all(loss.survives for loss in losses)


def test_one_node_is_never_enough_to_lose_one() -> None:
    assert spare_for_nodes(lambda spare: spare[0] if spare[0] <= 8 else None, lambda n: (n + 1,), 1) is None


@given(st.integers(1, 300), st.integers(1, 1000))
def test_the_gpus_said_to_be_enough_are_the_fewest(gpus: int, more: int) -> None:
    needed = gpus + more
    error = cannot_survive("replica", gpus, lambda n: n >= needed, 10_000)
    assert isinstance(error, PoolTooSmallError)
    assert error.gpus_needed == needed
    assert f"{needed:,} GPUs would be enough" in str(error)


def test_a_loss_that_no_number_of_gpus_survives() -> None:
    error = cannot_survive("node", 16, lambda n: False, 1024)
    assert type(error) is NoPlanError
    with pytest.raises(NoPlanError, match=r"on 16 GPUs, nor on 1,024, that survives the loss of any one node"):
        raise error
