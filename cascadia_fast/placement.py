"""Which GPUs of which node every replica takes.

A replica no larger than a node is one piece; its size divides the node and is a power of two, or is the node itself. A
larger replica is whole nodes plus at most one such remainder piece, so that a pipeline stage never straddles nodes.

Largest pieces first, one after another, always packs what the pool can hold, and the proof is one line: the allowed
sizes form a chain (1 | 2 | 4 | ... | node), so when a piece of size s is placed everything before it is a multiple of
s, hence it starts at a multiple of s, and as s divides the node it ends in the node it started in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cascadia_fast.errors import InputError, PoolTooSmallError

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
    if tp < 1 or pp < 1 or gpus_per_node % tp or (rest and (gpus_per_node % rest or not power_of_two)):
        raise InputError(
            f"shape tp {tp} x pp {pp} does not pack on nodes of {gpus_per_node} GPUs; tp must divide the node, and "
            "what is left beside whole nodes must be a power of two that divides it"
        )
    return whole, rest


def place(requests: Sequence[tuple[int, int, int, int]], gpus: int, gpus_per_node: int) -> Placement:
    """Place replicas on nodes of `gpus_per_node` GPUs, the last of which may be a partial one.

    Parameters
    ----------
    requests : (stage, count, tp, pp) for each group of equal replicas; the stage only names the group in errors.
    gpus : GPUs in the pool.
    gpus_per_node : GPUs of a full node.

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
            f"the replicas need {needed} GPUs and the pool has {gpus}; add {needed - gpus}", gpus_needed=needed
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
    offset = 0
    for size, index, per_replica in pieces:
        replicas = placed[index]
        step = size * per_replica
        for number, before in enumerate(replicas):
            first = offset + number * step
            replicas[number] = before + tuple(
                (gpu // gpus_per_node, gpu % gpus_per_node, size) for gpu in range(first, first + step, size)
            )
        offset += len(replicas) * step
    return Placement(tuple(tuple(replicas) for replicas in placed), _idle(offset, gpus, gpus_per_node))


def _idle(first: int, gpus: int, gpus_per_node: int) -> tuple[Piece, ...]:
    idle = []
    while first < gpus:
        end = min(gpus, (first // gpus_per_node + 1) * gpus_per_node)
        idle.append((first // gpus_per_node, first % gpus_per_node, end - first))
        first = end
    return tuple(idle)
