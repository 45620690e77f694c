"""Which GPUs of which node every replica takes.

A replica no larger than a node is one piece; its size divides the node and is a power of two, or is the node itself. A
larger replica is whole nodes plus at most one such remainder piece, so that a pipeline stage never straddles nodes.

Largest pieces first, one after another, always packs what the pool can hold, and the proof is one line: the allowed
sizes form a chain (1 | 2 | 4 | ... | node), so when a piece of size s is placed everything before it is a multiple of
s, hence it starts at a multiple of s, and as s divides the node it ends in the node it started in.

The same order leaves the choice of the node free: how many places of size s are left depends on how many GPUs are
taken, never on which. So replicas of one stage may be spread over the nodes, and still whatever fits packs.

GPUs to be kept free are the last of a pool: a pool that much smaller is what replicas are placed in.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cascadia_fast.errors import InputError, PoolTooSmallError

Request = tuple[int, int, int, int]
"""(stage, count, tp, pp) of one group of equal replicas."""

Piece = tuple[int, int, int]
"""(node, first GPU on the node, GPUs), counted from 0."""

Replica = tuple[Piece, ...]
"""The pieces of one replica, whole nodes first."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the replicas run.

    Attributes
    ----------
    replicas : for each request, in order, its `count` replicas.
    idle : the GPUs nobody uses, node by node.
    """

    replicas: tuple[tuple[Replica, ...], ...]
    idle: tuple[Piece, ...]


def pieces_of(tp: int, pp: int, gpus_per_node: int) -> tuple[int, int]:
    """Whole nodes and GPUs of the remainder piece of one (tp, pp) replica.

    Raises
    ------
    InputError
        The shape breaks the chain rule of this module, so packing could fail although enough GPUs are free.
    """
    whole, rest = divmod(tp * pp, gpus_per_node)
    power_of_two = rest & (rest - 1) == 0
    tp_fits = tp >= 1 and (gpus_per_node % tp == 0 or tp % gpus_per_node == 0)
    if not tp_fits or pp < 1 or (rest and (gpus_per_node % rest or not power_of_two)):
        raise InputError(
            f"shape tp {tp} x pp {pp} does not pack on nodes of {gpus_per_node} GPUs; tp must divide the node or be "
            "whole nodes, and what is left beside whole nodes must be a power of two that divides it"
        )
    return whole, rest


def place(
    requests: Sequence[Request], gpus: int, gpus_per_node: int, *, spread: bool = False, pool: str = "the pool"
) -> Placement:
    """Place replicas on nodes of `gpus_per_node` GPUs, the last of which may be a partial one.

    Parameters
    ----------
    requests : (stage, count, tp, pp) for each group of equal replicas.
    gpus : GPUs in the pool.
    gpus_per_node : GPUs of a full node.
    spread : put replicas of one stage on as many nodes as possible, so that losing a node costs each stage little;
        otherwise one after another, so that free nodes stay whole.
    pool : what errors call the pool.

    Raises
    ------
    InputError
        A count is negative or a shape breaks the chain rule.
    PoolTooSmallError
        The replicas need more GPUs than the pool has.
    """
    needed = sum(count * tp * pp for _, count, tp, pp in requests)
    if needed > gpus:
        raise PoolTooSmallError(
            f"the replicas need {needed} GPUs and {pool} has {gpus}; add {needed - gpus}", gpus_needed=needed
        )
    pieces: list[tuple[int, int, int]] = []  # (size, request, pieces of this size per replica)
    for index, (stage, count, tp, pp) in enumerate(requests):
        if count < 0:
            raise InputError(f"stage {stage + 1} asks for {count} replicas; give 0 or more")
        whole, rest = pieces_of(tp, pp, gpus_per_node)
        if whole:
            pieces.append((gpus_per_node, index, whole))
        if rest:
            pieces.append((rest, index, 1))
    pieces.sort(key=lambda piece: -piece[0])  # stable: equal sizes keep the order of the requests

    placed: list[list[Replica]] = [[()] * count for _, count, _, _ in requests]
    nodes = _Nodes(gpus, gpus_per_node)
    for size, index, per_replica in pieces:
        replicas = placed[index]
        taken = nodes.take(size, len(replicas) * per_replica, requests[index][0] if spread else None)
        for number, before in enumerate(replicas):
            replicas[number] = before + tuple(taken[number * per_replica : (number + 1) * per_replica])
    return Placement(tuple(tuple(replicas) for replicas in placed), nodes.idle())


def place_in_pools(
    requests: Sequence[tuple[int, Request]],
    pools: Sequence[tuple[str, int, int]],
    *,
    spread: bool = False,
) -> tuple[Placement, ...]:
    """Place the replicas of every pool; a pool's placement has its own requests, in the order given.

    Parameters
    ----------
    requests : the pool, as an index, and what `place` takes.
    pools : (name, GPUs that may be used, GPUs per node).
    spread : as in `place`.

    Raises
    ------
    InputError, PoolTooSmallError
        As `place`; the message names the pool.
    """
    return tuple(
        place([request for at, request in requests if at == pool], gpus, gpus_per_node, spread=spread, pool=name)
        for pool, (name, gpus, gpus_per_node) in enumerate(pools)
    )


def replicas_by_node(placement: Placement) -> dict[int, list[int]]:
    """Return for every node in use how many replicas of each request have a piece there."""
    found: dict[int, list[int]] = {}
    for index, replicas in enumerate(placement.replicas):
        for replica in replicas:
            for node in {node for node, _, _ in replica}:
                found.setdefault(node, [0] * len(placement.replicas))[index] += 1
    return found


class _Nodes:
    """The GPUs of a pool while replicas are placed, largest pieces first."""

    def __init__(self, gpus: int, gpus_per_node: int) -> None:
        full, rest = divmod(gpus, gpus_per_node)
        self._size = [gpus_per_node] * full + [rest] * (rest > 0)
        self._used = [0] * len(self._size)
        self._of_stage: dict[int, Counter[int]] = {}
        self._first = 0  # every node before it is full

    def take(self, size: int, count: int, spread_stage: int | None) -> list[Piece]:
        """Take `count` pieces of one size: the first that are free, or spread over nodes with few of the stage."""
        if spread_stage is None:
            return [self._first_free(size) for _ in range(count)]
        of_stage = self._of_stage.setdefault(spread_stage, Counter())
        nodes = [
            (of_stage[node], self._used[node] - end, node)
            for node, end in enumerate(self._size)
            if self._used[node] + size <= end
        ]
        heapq.heapify(nodes)
        taken = []
        for _ in range(count):
            before, minus_free, node = nodes[0]
            taken.append(self._take(node, size))
            of_stage[node] += 1
            if size + minus_free + size <= 0:
                heapq.heapreplace(nodes, (before + 1, minus_free + size, node))
            else:
                heapq.heappop(nodes)
        return taken

    def idle(self) -> tuple[Piece, ...]:
        return tuple(
            (node, used, end - used)
            for node, (used, end) in enumerate(zip(self._used, self._size, strict=True))
            if used < end
        )

    def _first_free(self, size: int) -> Piece:
        while self._used[self._first] + size > self._size[self._first]:
            self._first += 1
        return self._take(self._first, size)

    def _take(self, node: int, size: int) -> Piece:
        piece = (node, self._used[node], size)
        self._used[node] += size
        return piece
