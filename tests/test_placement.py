"""Replicas on nodes: nothing overlaps, nothing straddles, and whatever fits by count packs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadia_fast.errors import InputError, PoolTooSmallError
from cascadia_fast.placement import Placement, pieces_of, place, place_in_pools, replicas_by_node


def gpus_taken(placement: Placement, gpus_per_node: int) -> list[int]:
    """Every GPU any replica or idle piece takes, as node * gpus_per_node + index."""
    taken = []
    for node, first, count in [
        *(piece for group in placement.replicas for replica in group for piece in replica),
        *placement.idle,
    ]:
        assert first >= 0
        assert first + count <= gpus_per_node
        taken += [node * gpus_per_node + first + k for k in range(count)]
    return taken


def valid_shapes(gpus_per_node: int, largest: int) -> list[tuple[int, int]]:
    shapes = []
    for tp in range(1, gpus_per_node + 1):
        for pp in range(1, largest // tp + 1):
            try:
                pieces_of(tp, pp, gpus_per_node)
            except InputError:
                continue
            shapes.append((tp, pp))
    return shapes


@st.composite
def packings(draw: st.DrawFn) -> tuple[list[tuple[int, int, int, int]], int, int]:
    gpus_per_node = draw(st.sampled_from([1, 2, 4, 6, 8, 12, 16]))
    shapes = valid_shapes(gpus_per_node, 3 * gpus_per_node)
    groups = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.sampled_from(shapes)), max_size=6))
    requests = [(stage, count, tp, pp) for stage, count, (tp, pp) in groups]
    spare = draw(st.integers(0, 2 * gpus_per_node))
    return requests, sum(count * tp * pp for _, count, tp, pp in requests) + spare, gpus_per_node


@given(packings(), st.booleans())
def test_whatever_fits_by_count_packs(packing: tuple[list[tuple[int, int, int, int]], int, int], spread: bool) -> None:
    requests, gpus, gpus_per_node = packing
    placement = place(requests, gpus, gpus_per_node, spread=spread)
    assert sorted(gpus_taken(placement, gpus_per_node)) == list(range(gpus))
    for (_, count, tp, pp), replicas in zip(requests, placement.replicas, strict=True):
        assert len(replicas) == count
        for replica in replicas:
            assert sum(piece[2] for piece in replica) == tp * pp
            assert len(replica) == -(-tp * pp // gpus_per_node)
            assert all(piece[1] % tp == 0 and piece[2] % tp == 0 for piece in replica)


def test_a_replica_larger_than_a_node_takes_whole_nodes_and_a_remainder() -> None:
    placement = place([(0, 2, 1, 1), (2, 1, 4, 5), (1, 1, 8, 1)], gpus=32, gpus_per_node=8)
    small, large, middle = placement.replicas
    assert large == (((0, 0, 8), (1, 0, 8), (3, 0, 4)),)
    assert middle == (((2, 0, 8),),)
    assert small == (((3, 4, 1),), ((3, 5, 1),))
    assert placement.idle == ((3, 6, 2),)


def test_partial_node_is_used_last() -> None:
    placement = place([(0, 1, 4, 1), (1, 1, 8, 1)], gpus=12, gpus_per_node=8)
    assert placement.replicas == ((((1, 0, 4),),), (((0, 0, 8),),))
    assert placement.idle == ()


def test_one_gpu_too_many_is_refused() -> None:
    with pytest.raises(PoolTooSmallError, match="need 9 GPUs") as caught:
        place([(0, 1, 8, 1), (1, 1, 1, 1)], gpus=8, gpus_per_node=8)
    assert caught.value.gpus_needed == 9


@pytest.mark.parametrize(("tp", "pp"), [(3, 1), (2, 3), (8, 0), (12, 2), (2, 7)])
def test_shapes_outside_the_chain_are_refused(tp: int, pp: int) -> None:
    with pytest.raises(InputError, match=f"tp {tp} x pp {pp}"):
        place([(0, 1, tp, pp)], gpus=64, gpus_per_node=8)


def test_negative_count_is_refused() -> None:
    with pytest.raises(InputError, match="stage 2 asks for -1"):
        place([(1, -1, 1, 1)], gpus=8, gpus_per_node=8)


def most_on_a_node(placement: Placement, index: int) -> int:
    return max(counts[index] for counts in replicas_by_node(placement).values())


@given(st.integers(1, 40), st.sampled_from([1, 2, 4, 8]), st.integers(1, 12))
def test_one_stage_is_spread_as_evenly_as_its_nodes_allow(count: int, tp: int, nodes: int) -> None:
    gpus = max(nodes, -(-count * tp // 8)) * 8
    placement = place([(0, count, tp, 1)], gpus, 8, spread=True)
    assert most_on_a_node(placement, 0) == -(-count // (gpus // 8))


def test_every_stage_is_spread_beside_the_others() -> None:
    requests = [(0, 8, 1, 1), (1, 4, 2, 1), (2, 2, 4, 1)]
    placement = place(requests, gpus=32, gpus_per_node=8, spread=True)
    assert [most_on_a_node(placement, index) for index in range(3)] == [2, 1, 1]
    packed = place(requests, gpus=32, gpus_per_node=8)
    assert [most_on_a_node(packed, index) for index in range(3)] == [8, 4, 2]


def test_groups_of_one_stage_avoid_each_other() -> None:
    placement = place([(0, 2, 4, 1), (0, 2, 2, 1)], gpus=32, gpus_per_node=8, spread=True)
    assert all(sum(counts) == 1 for counts in replicas_by_node(placement).values())


def test_a_replica_over_several_nodes_counts_once_on_each() -> None:
    placement = place([(0, 1, 4, 5), (1, 2, 2, 1)], gpus=32, gpus_per_node=8, spread=True)
    assert {node for node, counts in replicas_by_node(placement).items() if counts[0]} == {0, 1, 2}
    assert [counts[0] for counts in replicas_by_node(placement).values() if counts[0]] == [1, 1, 1]


def test_reserved_gpus_are_the_last_of_the_pool() -> None:
    """A pool of 16 that keeps 5 free is a pool of 11."""
    for spread in (False, True):
        placement = place([(0, 2, 4, 1), (1, 3, 1, 1)], gpus=11, gpus_per_node=8, spread=spread)
        assert max(gpus_taken(placement, 8)) == 10


def test_pools_are_placed_each_by_itself() -> None:
    requests = [(1, (0, 2, 4, 1)), (0, (1, 1, 8, 1)), (1, (2, 1, 2, 1))]
    first, second = place_in_pools(requests, [("a", 8, 8), ("b", 12, 4)])
    assert first.replicas == ((((0, 0, 8),),),)
    assert second.replicas == ((((0, 0, 4),), ((1, 0, 4),)), (((2, 0, 2),),))
    assert (first.idle, second.idle) == ((), ((2, 2, 2),))


def test_the_pool_that_is_too_small_is_named() -> None:
    with pytest.raises(PoolTooSmallError, match="need 8 GPUs and pool b has 4; add 4"):
        place_in_pools([(1, (0, 1, 8, 1))], [("pool a", 16, 8), ("pool b", 4, 8)])


def test_tensor_parallelism_over_whole_nodes_takes_whole_nodes() -> None:
    placement = place([(0, 1, 2, 1), (1, 1, 16, 1)], gpus=24, gpus_per_node=8)
    assert placement.replicas[1] == (((0, 0, 8), (1, 0, 8)),)
