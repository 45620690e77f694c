"""From one plan to the next: which replicas stay, where new ones go, in which order, and when each opens and closes.

Replicas that both plans have (the same model in the same shape) stay where they are. New ones take the GPUs of old
ones, at most `lanes` of them at a time, in an order that leaves every model in use a replica as long as there is such
an order; models that nobody serves yet come first. Old replicas in the way of the next new one take no more requests
and finish what they have. Once all its GPUs are free, the new one loads its weights and opens. Old replicas in nobody's
way close when the last new one has opened.

Requests are routed by the new plan once every model that it adds has a replica open: at the boundary, if it adds none,
or where one of them needs GPUs of a model that is given up, so that neither can wait for the other.
A model that is given up keeps its last replica until no request is on the way to it any more.

When a replica has finished what it has is known from simulation, and what it has depends on when it closed. So
`windows` is asked again after every simulation, until nothing changes: what happens first is right after the first one,
what follows from it after the second, and so on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cascadia_fast.placement import pieces_of

# A replica takes what comes strictly before it closes.
MOMENT_S = 1e-6


@dataclass(frozen=True)
class Kind:
    """A model, as an index into the cascade, in one shape."""

    model: int
    tp: int
    pp: int

    @property
    def gpus(self) -> int:
        return self.tp * self.pp


@dataclass(frozen=True)
class Replica:
    """An engine, and the GPUs that it takes, counted through all nodes."""

    kind: Kind
    gpus: frozenset[int]

    @property
    def model(self) -> int:
        return self.kind.model


@dataclass(frozen=True)
class Window:
    """When a replica takes requests: never, if it would close before it opens."""

    opens_s: float
    closes_s: float

    @property
    def ever(self) -> bool:
        return self.opens_s < self.closes_s


@dataclass(frozen=True)
class Transition:
    """What changes at a boundary; replicas are numbers, in order of their making.

    `new` is in the order in which they are made. `in_the_way_of` says of every old replica that goes of which of them,
    as a place in `new`; beyond the last one where it is in nobody's. `added` maps the models that only the new plan has
    to the place of their first replica; `given_up` maps those that only the old one has to their replicas.
    """

    boundary_s: float
    kept: tuple[int, ...]
    new: tuple[int, ...]
    in_the_way_of: Mapping[int, int]
    added: Mapping[int, int]
    given_up: Mapping[int, tuple[int, ...]]


@dataclass
class History:
    """All replicas that there ever are, and the transitions between plans; begins with `replicas`."""

    gpus: int
    gpus_per_node: int
    replicas: list[Replica]
    transitions: list[Transition] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.current: tuple[int, ...] = tuple(range(len(self.replicas)))

    def change(self, boundary_s: float, wanted: Mapping[Kind, int]) -> None:
        """Go on with another plan, which wants so many replicas of each kind."""
        old = {number: self.replicas[number] for number in self.current}
        kept, places = arrange(old, wanted, self.gpus, self.gpus_per_node)
        going = {number: replica for number, replica in old.items() if number not in kept}
        before, after = ({replica.model for replica in old.values()}, {kind.model for kind in wanted})
        order = rolling_order([old[number] for number in kept], list(going.values()), places, after)
        in_the_way_of = {
            number: next((place for place, new in enumerate(order) if new.gpus & replica.gpus), len(order))
            for number, replica in going.items()
        }
        new = tuple(range(len(self.replicas), len(self.replicas) + len(order)))
        self.transitions.append(
            Transition(
                boundary_s,
                kept,
                new,
                in_the_way_of,
                {model: next(n for n, one in enumerate(order) if one.model == model) for model in after - before},
                {model: tuple(n for n, one in going.items() if one.model == model) for model in before - after},
            )
        )
        self.replicas += order
        self.current = (*kept, *new)


def arrange(
    old: Mapping[int, Replica], wanted: Mapping[Kind, int], gpus: int, gpus_per_node: int
) -> tuple[tuple[int, ...], list[Replica]]:
    """Return the numbers of the old replicas that stay, and places for the other wanted ones.

    The largest are placed first, each on blocks of its own size, so that all fit (see `cascadia_fast.placement`), and
    on blocks where the fewest GPUs could have stayed with what they have. Where replicas of more than a node stand so
    that the rest does not fit, nothing stays.
    """
    taken: set[int] = set()
    kept: list[int] = []
    new: list[Replica] = []
    kinds = sorted(wanted, key=lambda kind: (-kind.gpus, kind.model, kind.tp))
    busy = {gpu for replica in old.values() for gpu in replica.gpus}
    for place, kind in enumerate(kinds):
        free = [number for number, one in old.items() if one.kind == kind and not one.gpus & taken]
        staying = free[: wanted[kind]]
        kept += staying
        taken |= {gpu for number in staying for gpu in old[number].gpus}
        later = {gpu for one in old.values() if one.kind in kinds[place + 1 :] for gpu in one.gpus}
        for _ in range(wanted[kind] - len(staying)):
            chosen: set[int] = set()
            whole, rest = pieces_of(kind.tp, kind.pp, gpus_per_node)
            for size in [gpus_per_node] * whole + [rest] * (rest > 0):
                blocks = [set(range(first, first + size)) for first in range(0, gpus - size + 1, size)]
                blocks = [block for block in blocks if not block & (taken | chosen)]
                if not blocks:
                    return arrange({}, wanted, gpus, gpus_per_node)
                chosen |= min(blocks, key=lambda block: (len(block & later), len(block & busy), min(block)))
            taken |= chosen
            new.append(Replica(kind, frozenset(chosen)))
    return tuple(kept), new


def rolling_order(
    kept: Sequence[Replica], going: Sequence[Replica], new: Sequence[Replica], after: set[int]
) -> list[Replica]:
    """Return the new replicas in an order in which no model in use is without a replica, as far as there is one.

    Until every model of the new plan (those of `after`) has one, the old plan routes requests, and needs its own.
    """
    there = Counter(replica.model for replica in (*kept, *going))
    standing, remaining, order = list(going), list(new), []
    while remaining:
        added = {model for model in after if not there[model]}
        needed = after | {model for model in there if there[model]} if added else after
        closing = [[old for old in standing if old.gpus & one.gpus] for one in remaining]
        ranks = []
        for one, closed in zip(remaining, closing, strict=True):
            lost = Counter(old.model for old in closed)
            gaps = sum(there[model] == count and model in needed for model, count in lost.items())
            ranks.append((gaps, one.model not in added, len(closed)))
        chosen = ranks.index(min(ranks))
        for old in closing[chosen]:
            standing.remove(old)
            there[old.model] -= 1
        there[remaining[chosen].model] += 1
        order.append(remaining.pop(chosen))
    return order


@dataclass(frozen=True)
class Seen:
    """What a simulation showed.

    `ended_s` maps replicas to when they were done with all they ever had, and `arrived_s` maps (transition, model) to
    when the last request that an earlier plan routed arrived at the model.
    """

    ended_s: Mapping[int, float] = field(default_factory=dict)
    arrived_s: Mapping[tuple[int, int], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Schedule:
    """When replicas take requests, and when each transition's new plan begins to route them."""

    windows: tuple[Window, ...]
    routes_from_s: tuple[float, ...]

    def open_s(self, numbers: Iterable[int], start_s: float, end_s: float) -> float:
        """Return for how long of a time one of the replicas, at least, takes requests."""
        total_s, covered_s = 0.0, start_s
        for window in sorted((self.windows[number] for number in numbers), key=lambda window: window.opens_s):
            from_s, until_s = max(window.opens_s, covered_s), min(window.closes_s, end_s)
            total_s += max(until_s - from_s, 0.0)
            covered_s = max(covered_s, until_s)
        return total_s


def schedule(history: History, reload_s: Mapping[int, float], lanes: int, seen: Seen) -> Schedule:
    """Return when every replica opens and closes, as far as it is known what the old ones had to finish.

    Parameters
    ----------
    history
        All replicas and transitions.
    reload_s
        How long a replica of each model loads.
    lanes
        How many new replicas may wait for GPUs, or load, at a time.
    seen
        What the last simulation showed.
    """
    opens_s = [0.0] * len(history.replicas)
    closes_s = [math.inf] * len(history.replicas)

    def free_s(number: int) -> float:
        """When its GPUs are; one that is given up before it opens may still be waiting for them itself."""
        own_s = opens_s[number] - reload_s[history.replicas[number].model]
        return max(closes_s[number], seen.ended_s.get(number, 0.0), own_s)

    def holder(change: Transition, model: int) -> int:
        """Which replica a model that is given up keeps longest: of those that are open, the last in anybody's way."""
        return min(
            change.given_up[model],
            key=lambda number: (max(opens_s[number], change.boundary_s), -change.in_the_way_of[number]),
        )

    routes_from_s: list[float] = []
    for index, change in enumerate(history.transitions):
        holders = {model: holder(change, model) for model in change.given_up}
        held_s = {
            number: max(seen.arrived_s.get((index, model), 0.0), opens_s[number]) + MOMENT_S
            for model, number in holders.items()
        }
        opened_s: list[float] = []
        for place, number in enumerate(change.new):
            begins_s = change.boundary_s if place < lanes else sorted(opened_s)[place - lanes]
            for old, way in change.in_the_way_of.items():
                if way == place:
                    closes_s[old] = max(begins_s, held_s.get(old, 0.0))
            own = history.replicas[number]
            before = [old for old in range(number) if history.replicas[old].gpus & own.gpus]
            opens_s[number] = max([begins_s, *map(free_s, before)]) + reload_s[own.model]
            opened_s.append(opens_s[number])
        end_s = max(opened_s, default=change.boundary_s)
        for old, way in change.in_the_way_of.items():
            if way == len(change.new):
                closes_s[old] = max(end_s, held_s.get(old, 0.0))
        # Where an added model needs GPUs of one that is given up, neither can wait for the other.
        last_added = max(change.added.values(), default=-1)
        waits = all(change.in_the_way_of[number] > last_added for number in holders.values())
        ready_s = [opened_s[place] for place in change.added.values()] if waits else []
        routes_from_s.append(max([change.boundary_s, *routes_from_s, *ready_s]))
    return Schedule(tuple(map(Window, opens_s, closes_s)), tuple(routes_from_s))
