"""Where a plan sends each request: thresholds between stages, a router in front of them, or gears that load shifts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cascadia_fast.errors import InputError
from cascadia_fast.plan_json import NEVER, Record

# The classes below name themselves in `super(...)`: with slots, a dataclass is a second class that plain `super()` does
# not know.

OURS = "cascadia-fast"
"""The `system` of plans that the planner of this package makes."""

Threshold = Annotated[float, NEVER]
Interval = tuple[float | None, Threshold]


MOST_VOTES = 1000  # each takes 30 µs for a few thousand requests


@dataclass(frozen=True, slots=True)
class Signal(Record):
    """What decides in place of the judge's scores, simulated from quality with a stated accuracy.

    Kind ``learned_score``: a score of every answer, 0 to 100, by a model so small that it costs nothing (FrugalGPT).
    ``win_probability``: of a request, before anything is answered, that the largest model of the plan answers it better
    than the smallest (RouteLLM). ``verification``: the share of `votes` of the first stage's model that call its own
    answer right (AutoMix).

    `auc` is the probability that the signal orders two answers of unequal quality rightly (two requests of unequal
    gain); `center`, `spread` and `noise_sd` are how `cascadia_fast.signals` makes it so, with the noise of `seed`.
    """

    kind: Literal["learned_score", "win_probability", "verification"]
    auc: float
    seed: int
    center: float
    spread: float
    noise_sd: float
    votes: int = 0

    def __post_init__(self) -> None:
        super(Signal, self).__post_init__()
        if not 0.5 < self.auc <= 1:
            raise InputError(f"Signal.auc is {self.auc:g}; it must be above 0.5 (guessing) and at most 1")
        if self.seed < 0:
            raise InputError(f"Signal.seed is {self.seed}; it must not be negative")
        if self.spread <= 0:
            raise InputError(f"Signal.spread is {self.spread:g}; it must be positive")
        if self.noise_sd < 0:
            raise InputError(f"Signal.noise_sd is {self.noise_sd:g}; it must not be negative")
        if self.votes > MOST_VOTES:
            raise InputError(f"Signal.votes is {self.votes:,}; at most {MOST_VOTES:,} are simulated")
        if (self.votes > 0) != (self.kind == "verification"):
            raise InputError(f"Signal.votes is {self.votes}; a verification has at least one, anything else 0")


@dataclass(frozen=True, slots=True)
class Router(Record):
    """Which stages each request visits, by its signal alone.

    A request whose signal reaches k of the ascending `cuts` takes ``paths[k]``: it visits stage s of the plan if bit s
    is set, the lowest first, and the last one's answer counts.
    """

    cuts: tuple[float, ...]
    paths: tuple[int, ...]

    def __post_init__(self) -> None:
        super(Router, self).__post_init__()
        if list(self.cuts) != sorted(self.cuts):
            raise InputError(f"Router.cuts are {list(self.cuts)}; they must ascend")
        if len(self.paths) != len(self.cuts) + 1:
            raise InputError(f"Router.paths has {len(self.paths)} entries; {len(self.cuts)} cuts need one more")
        if min(self.paths) < 1:
            raise InputError(f"Router.paths are {list(self.paths)}; each must visit a stage, so be 1 or more")


@dataclass(frozen=True, slots=True)
class Gear(Record):
    """A cascade of some of the plan's `stages`, by their places in it, for rates of at most `up_to_per_s`.

    The last gear is for every rate beyond the others': its `up_to_per_s` is None. Thresholds are as those of `Routing`.
    """

    up_to_per_s: float | None
    stages: tuple[int, ...]
    thresholds: tuple[Threshold, ...]

    def __post_init__(self) -> None:
        super(Gear, self).__post_init__()
        if not self.stages or list(self.stages) != sorted(set(self.stages)) or self.stages[0] < 0:
            raise InputError(f"Gear.stages are {list(self.stages)}; give at least one, ascending from 0")
        if len(self.thresholds) != len(self.stages) - 1:
            raise InputError(
                f"Gear.thresholds has {len(self.thresholds)} entries; {len(self.stages)} stages need "
                f"{len(self.stages) - 1}"
            )


@dataclass(frozen=True, slots=True)
class Switching(Record):
    """When gears change: by the rate of arrivals in the last whole window of `window_s`.

    A gear for less load is not taken while that rate is below `queue_factor` times the number of requests that wait at
    the first stage of the gear in use.
    """

    window_s: float
    queue_factor: float

    def __post_init__(self) -> None:
        super(Switching, self).__post_init__()
        if self.window_s <= 0:
            raise InputError(f"Switching.window_s is {self.window_s:g}; it must be positive")
        if self.queue_factor < 0:
            raise InputError(f"Switching.queue_factor is {self.queue_factor:g}; it must not be negative")


@dataclass(frozen=True, slots=True)
class Routing(Record):
    """Where requests go.

    Kind ``cascade``: stage i accepts when the score of its answer is at least ``thresholds[i]`` (inf: never), and the
    last stage always accepts. Any value in the half-open ``threshold_intervals[i]`` = (low, high] routes the scored
    requests alike; a low of None is open. With a `signal`, a learned score takes the place of the judge's.
    ``router``: a `signal` and the `router` decide, once. ``gears``: each of the `gears` is a cascade of its own, and
    requests keep the gear they came in with.
    """

    kind: Literal["cascade", "router", "gears"]
    thresholds: tuple[Threshold, ...]
    threshold_intervals: tuple[Interval, ...]
    signal: Signal | None = None
    router: Router | None = None
    gears: tuple[Gear, ...] = ()
    switching: Switching | None = None

    @property
    def asks_judge(self) -> bool:
        """Whether a judge scores any answer."""
        return self.signal is None and (bool(self.thresholds) or any(gear.thresholds for gear in self.gears))
