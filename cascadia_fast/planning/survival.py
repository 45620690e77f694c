"""Plans that keep their deadline after losing any one replica, or any one node (N+1).

Losing a replica costs its station one replica whichever it is, so a plan with one replica to spare at every station
survives it. What losing a node costs depends on where the replicas lie: plan with some spare, spread the replicas over
the nodes, see how many of a station share one, and plan again with so many to spare until that is enough. Whatever
planned it, the result is then checked loss by loss, with the load that is left to the survivors.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from cascadia_fast.errors import NoPlanError, PoolTooSmallError
from cascadia_fast.placement import Placement, replicas_by_node

Kind = Literal["replica", "node"]
# Plans to look at; each takes milliseconds.
MOST_PLANS = 100
PlanT = TypeVar("PlanT")


@dataclass(frozen=True, slots=True)
class PlacedGroups:
    """The groups of replicas in one pool and where they lie.

    Parameters
    ----------
    pool
        The pool's name.
    groups
        Indexes, into all groups of the plan, of the requests of the placement.
    placement
        Where their replicas lie.
    """

    pool: str
    groups: tuple[int, ...]
    placement: Placement


@dataclass(frozen=True, slots=True)
class Loss:
    """What one loss would do.

    Parameters
    ----------
    kind
        What is lost.
    pool
        The pool it lies in.
    node
        The node, from 0; None for a replica, of which all of a group are alike.
    lost
        Replicas lost of every group of the plan.
    latency_s
        The latency after it; infinite when the survivors cannot carry the load.
    survives
        Whether that is within the deadline.
    """

    kind: Kind
    pool: str
    node: int | None
    lost: tuple[int, ...]
    latency_s: float
    survives: bool


@dataclass(frozen=True, slots=True)
class Spared(Generic[PlanT]):
    """A plan with enough to spare for the loss of any node.

    Parameters
    ----------
    plan
        The plan.
    spare
        Replicas that each station has to spare.
    first
        The plan with one to spare everywhere: no plan that survives is better.
    rounds
        How often was planned.
    """

    plan: PlanT
    spare: tuple[int, ...]
    first: PlanT
    rounds: int


def spare_for_nodes(
    plan: Callable[[tuple[int, ...]], PlanT | None], most_lost: Callable[[PlanT], tuple[int, ...]], stations: int
) -> Spared[PlanT] | None:
    """Return a plan that has at every station the replicas to spare that the loss of one node takes; None: none found.

    Parameters
    ----------
    plan
        Plans with so many replicas to spare at every station; None where it cannot.
    most_lost
        For a plan, placed, the most replicas of each station that share a node.
    stations
        How many stations there are.
    """
    one = (1,) * stations
    open_, seen = [(stations, one)], {one}
    first: PlanT | None = None
    for rounds in range(1, MOST_PLANS + 1):
        if not open_:
            break
        _, spare = heapq.heappop(open_)
        found = plan(spare)
        if found is None:
            continue
        first = found if first is None else first
        lost = most_lost(found)
        short = [station for station in range(stations) if lost[station] > spare[station]]
        if not short:
            return Spared(found, spare, first, rounds)
        # One more at one station may be enough: with other numbers of replicas they lie elsewhere.
        for station in short:
            more = (*spare[:station], spare[station] + 1, *spare[station + 1 :])
            if more not in seen:
                seen.add(more)
                heapq.heappush(open_, (sum(more), more))
    return None


def most_on_one_node(stations: Sequence[int], placed: Sequence[PlacedGroups], count: int) -> tuple[int, ...]:
    """Return for each of `count` stations the most of its replicas that have a piece on one node.

    `stations` are those of the plan's groups.
    """
    most = [0] * count
    for pool in placed:
        for replicas in replicas_by_node(pool.placement).values():
            here = [0] * count
            for group, number in zip(pool.groups, replicas, strict=True):
                here[stations[group]] += number
            most = list(map(max, most, here))
    return tuple(most)


def check_losses(
    kind: Kind,
    replicas: Sequence[int],
    placed: Sequence[PlacedGroups],
    latency_s: Callable[[tuple[int, ...]], float],
    deadline_s: float,
) -> tuple[Loss, ...]:
    """Return what every single loss would do: one for each group of replicas, or for each node in use.

    Parameters
    ----------
    kind
        What is lost.
    replicas
        Of each group of the plan.
    placed
        The pools with their groups' placement.
    latency_s
        The plan's latency with so many replicas of each group; infinite where they do not carry the load. It is asked
        once for the same survivors.
    deadline_s
        What the latency must keep.
    """
    known: dict[tuple[int, ...], float] = {}
    losses = []
    for pool in placed:
        for node, lost in _losses(kind, pool, len(replicas)):
            survivors = tuple(had - gone for had, gone in zip(replicas, lost, strict=True))
            if survivors not in known:
                known[survivors] = latency_s(survivors)
            after_s = known[survivors]
            losses.append(Loss(kind, pool.pool, node, lost, after_s, math.isfinite(after_s) and after_s <= deadline_s))
    return tuple(losses)


def worst_loss(losses: Sequence[Loss]) -> Loss:
    """Return the loss after which the latency is largest."""
    return max(losses, key=lambda loss: loss.latency_s)


def cannot_survive(kind: Kind, gpus: int, survives: Callable[[int], bool], most_gpus: int) -> NoPlanError:
    """Return the error for GPUs on which no plan survives a loss; it says how many GPUs would be enough.

    Parameters
    ----------
    kind
        What may be lost.
    gpus
        How many GPUs there are.
    survives
        Whether some plan on so many GPUs survives.
    most_gpus
        Look no further than this.
    """
    enough = min(max(2 * gpus, 2), most_gpus)
    while not survives(enough):
        if enough >= most_gpus:
            return NoPlanError(
                f"no plan was found on {gpus:,} GPUs, nor on {most_gpus:,}, that survives the loss of any one {kind}; "
                "lower the rate or q_min, or set survive to none"
            )
        enough = min(2 * enough, most_gpus)
    too_few = max(gpus, enough // 2)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if survives(middle):
            enough = middle
        else:
            too_few = middle
    return PoolTooSmallError(
        f"no plan was found on {gpus:,} GPUs that survives the loss of any one {kind}; {enough:,} GPUs would be enough",
        gpus_needed=enough,
    )


def _losses(kind: Kind, pool: PlacedGroups, groups: int) -> list[tuple[int | None, tuple[int, ...]]]:
    """The node, and the replicas lost of every group of the plan, of every loss in a pool."""
    if kind == "node":
        taken: list[tuple[int | None, Sequence[int]]] = sorted(replicas_by_node(pool.placement).items())
    else:
        own = range(len(pool.groups))
        placed = [index for index in own if pool.placement.replicas[index]]
        taken = [(None, [int(index == lost) for index in own]) for lost in placed]
    found = []
    for node, replicas in taken:
        lost = [0] * groups
        for group, number in zip(pool.groups, replicas, strict=True):
            lost[group] = number
        found.append((node, tuple(lost)))
    return found
