"""Every way to put replicas on nodes, for `planning_oracle.py`: a loss takes all that a node holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

Name = tuple[int, int]
"""Station, and number of the group there."""


class Placed(NamedTuple):
    """A replica that lies in one node."""

    gpus: int
    pool: int
    name: Name


class Nodes(Protocol):
    """GPUs of one type in nodes, the last of which may be partial."""

    @property
    def gpus(self) -> int: ...
    @property
    def gpus_per_node(self) -> int: ...


class Node(NamedTuple):
    """What is free on a node, and what it holds."""

    pool: int
    free: int
    holds: tuple[Name, ...] = ()


def placements(replicas: Sequence[Placed], pools: Sequence[Nodes]) -> Iterator[list[tuple[Name, ...]]]:
    """What each node holds, of the nodes that hold something; placements that differ only in equal nodes once."""
    empty = [
        Node(number, min(pool.gpus_per_node, pool.gpus - first))
        for number, pool in enumerate(pools)
        for first in range(0, pool.gpus, pool.gpus_per_node)
    ]
    reached = {tuple(sorted(empty))}
    for replica in sorted(replicas, key=lambda replica: -replica.gpus):
        reached = {
            tuple(sorted((*nodes[:at], _with(node, replica), *nodes[at + 1 :])))
            for nodes in reached
            for at, node in enumerate(nodes)
            if node.pool == replica.pool and node.free >= replica.gpus
        }
    for nodes in sorted(reached):
        yield [node.holds for node in nodes if node.holds]


def _with(node: Node, replica: Placed) -> Node:
    return Node(node.pool, node.free - replica.gpus, tuple(sorted((*node.holds, replica.name))))
