"""Small cascades for the simulators: each engine, station and call for the native one and for the slow one at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reference import cascade_engine, cascade_simulation, gears
from reference.brute_force import engine

from cascadia_fast import _core

DISPATCHES = ("round_robin", "random", "least_outstanding", "capacity_weighted", "power_of_two")
BATCHINGS = ("chunked", "prompts_first")
ADMISSIONS = ("fcfs", "shortest_first")
ROUNDING = 1e-9
TIMES = ("arrived_s", "first_token_s", "finished_s", "times_s", "busy_s", "decoding_s", "peak_kv_share", "ended_s")
COUNTS = ("status", "gear", "replica", "preempted", "station", "steps", "prompt_tokens", "preemptions", "visits_done")


@dataclass(frozen=True)
class Kind:
    """A kind of engine."""

    core: _core.StepCosts
    slow: cascade_engine.Costs

    @classmethod
    def measured(cls, **arguments: Any) -> Kind:
        return cls(_core.StepCosts.measured(**arguments), cascade_engine.MeasuredCosts(**arguments))

    @classmethod
    def of_model(cls, model: str, *shape: Any, **limits: Any) -> Kind:
        replica = engine(model, *shape, **limits)
        return cls(_core.StepCosts(replica), cascade_engine.ReplicaCosts(replica, _core.EngineLimits(**limits)))


@dataclass(frozen=True)
class Station:
    # How many, and capacity of one; when it opens and closes, unless it is always open.
    engines: Sequence[tuple[Kind, int, float] | tuple[Kind, int, float, float, float]]
    dispatch: str = "capacity_weighted"
    scheduler: dict[str, Any] = field(default_factory=dict)

    def core(self) -> _core.Station:
        engines: list[Any] = [(kind.core, *rest) for kind, *rest in self.engines]
        return _core.Station(engines, scheduler=_core.Scheduler(**self.scheduler), dispatch=self.dispatch)

    def slow(self) -> cascade_simulation.Station:
        engines: list[Any] = [(kind.slow, *rest) for kind, *rest in self.engines]
        return cascade_simulation.Station(engines, cascade_engine.Scheduler(**self.scheduler), self.dispatch)


@dataclass(frozen=True)
class Case:
    """One call of `simulate`."""

    stages: Sequence[Station]
    judge: Station | None
    arguments: dict[str, Any]
    gears: gears.Gears | None = None

    def core(self, **changes: Any) -> Any:
        """A `_core.Simulated`; it has visits unless asked not to, which its type cannot know."""
        judge = None if self.judge is None else self.judge.core()
        arguments = {"gears": self._core_gears(), **self.arguments, **changes}
        return _core.simulate([station.core() for station in self.stages], judge=judge, **arguments)

    def slow(self) -> cascade_simulation.Simulated:
        judge = None if self.judge is None else self.judge.slow()
        stages = [station.slow() for station in self.stages]
        return cascade_simulation.simulate(stages, judge=judge, gears=self.gears, **self.arguments)

    def _core_gears(self) -> _core.Gears | None:
        if self.gears is None:
            return None
        given = self.gears
        limits_per_s, first = np.array(given.up_to_per_s, float), np.array(given.first_station, np.int32)
        return _core.Gears(limits_per_s, given.window_s, given.queue_factor, first)


def check(case: Case, rounding: float = ROUNDING) -> cascade_simulation.Simulated:
    """Both simulators on one case; the slow one's answer comes back."""
    found, expected = case.core(), case.slow()
    for name in COUNTS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    for name in TIMES:
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=rounding, atol=0, equal_nan=True, err_msg=name
        )
    assert not found.interrupted
    return expected


def steady(step_s: float) -> Kind:
    """One place; every step takes the same."""
    return Kind.measured(decode_step_s=[step_s] * 2, prompt_step_s=[step_s] * 9, sampled_s=[0.0] * 2)


def one_engine(
    kind: Kind, arrival_s: Any, tokens_in: Any, tokens_out: Any, *, scheduler: dict[str, Any] | None = None, **more: Any
) -> Case:
    """Every request once, at one engine."""
    requests = max(np.asarray(of_each).size for of_each in (arrival_s, tokens_in, tokens_out))
    arguments: dict[str, Any] = {
        "tokens_in": np.broadcast_to(np.asarray(tokens_in, np.int32), (1, requests)).copy(),
        "tokens_out": np.broadcast_to(np.asarray(tokens_out, np.int32), (1, requests)).copy(),
        "path": np.ones(requests, np.uint16),
        "drawn": np.arange(requests, dtype=np.int32),
        "arrival_s": None if arrival_s is None else np.asarray(arrival_s, float),
        **more,
    }
    return Case([Station([(kind, 1, 1.0)], scheduler=scheduler or {})], None, arguments)


class Dice:
    """Draws of a case, each of which a test may fix instead."""

    def __init__(self, seed: int, fixed: dict[str, Any]) -> None:
        self.rng = np.random.default_rng(seed)
        self.fixed = fixed

    def one_of(self, name: str, choices: Sequence[Any]) -> Any:
        drawn = choices[int(self.rng.integers(len(choices)))]
        return self.fixed.get(name, drawn)


def random_case(seed: int, *, exact: bool = False, requests: int = 60, **fixed: Any) -> Case:
    """A cascade of one to three stages of small engines with made-up step times.

    `exact`: all times are multiples of a power of two, so that sums have no rounding and events fall together.
    """
    dice = Dice(seed, fixed)
    rng = dice.rng
    count, scored = dice.one_of("stages", (1, 2, 3)), int(rng.integers(5, 40))
    hosted = dice.one_of("judge", ("external", "hosted")) == "hosted" and count > 1
    longest = dice.one_of("longest", (12, 60))
    closed = dice.one_of("loop", ("open", "open", "closed")) == "closed"
    # Left open: which of the steps that start when a request is cancelled still takes its client's next one.
    timeout = dice.one_of("timeout", (False, False, True)) and not (closed and exact)
    gap_s = float(dice.one_of("gap_s", (0.25, 1.0, 4.0)))
    gaps_s = rng.exponential(gap_s, requests)
    arrival_s = np.cumsum(np.floor(gaps_s) if exact else gaps_s)
    delays_s = rng.exponential(3.0, int(rng.integers(1, 5))) * rng.integers(0, 2)

    def lengths() -> NDArray[np.int32]:
        return rng.integers(1, longest, (count, scored), endpoint=True).astype(np.int32)

    arguments: dict[str, Any] = {
        "tokens_in": lengths(),
        "tokens_out": lengths(),
        "path": rng.integers(1, 2**count, scored).astype(np.uint16),
        "drawn": rng.integers(0, scored, requests).astype(np.int32),
        "arrival_s": None if closed else arrival_s,
        "concurrency": int(rng.integers(1, 20)) if closed else 0,
        "seed": int(rng.integers(2**40)),
        "timeout_s": float(dice.one_of("timeout_s", range(5, 60))) if timeout else np.inf,
    }
    if hosted:
        arguments |= {"judge_tokens_in": lengths(), "judge_tokens_out": lengths()}
    else:
        arguments["judge_delay_s"] = np.floor(delays_s) if exact else delays_s
    if closed and not exact:
        # Clients that wait for steps of the same few durations keep in step, but for rounding, which would then decide.
        dice.fixed = {"replicas_each": 1, "attention": 2.0**-7, **fixed}
    stages = [_random_station(dice, longest, exact) for _ in range(count)]
    return Case(stages, _random_station(dice, longest, exact) if hosted else None, arguments)


def _random_station(dice: Dice, longest: int, exact: bool) -> Station:
    scheduler = {
        "batching": dice.one_of("batching", BATCHINGS),
        "admission": dice.one_of("admission", ADMISSIONS),
        "block_tokens": dice.one_of("block_tokens", (1, 4, 16)),
        "watermark": dice.one_of("watermark", (0.0, 0.01, 0.25)),
        "prefix_hit_share": dice.one_of("prefix_hit_share", (0.0, 0.0, 0.5, 1.0)),
    }
    kinds = [_random_kind(dice, longest, exact) for _ in range(int(dice.rng.integers(1, 4)))]
    engines = [
        (kind, dice.one_of("replicas_each", (1, 2)), dice.one_of("capacity_per_s", (0.5, 1.0, 1.0, 3.0)))
        for kind in kinds
    ]
    return Station(engines, dice.one_of("dispatch", DISPATCHES), scheduler)


def _random_kind(dice: Dice, longest: int, exact: bool) -> Kind:
    rng = dice.rng
    round_s: Callable[[Any], Any] = (lambda time_s: np.ceil(time_s * 16) / 16) if exact else (lambda time_s: time_s)
    max_num_seqs = int(rng.integers(1, 9))
    budget = max_num_seqs + int(rng.integers(0, 40))
    # From requests of which some can never be served, to a cache that is never full.
    room = dice.one_of("kv", (1.5, 2.5, 6.0, 1e9))
    steps_s = {
        "decode_step_s": 0.25 * rng.random() + np.cumsum(rng.random(max_num_seqs + 1)) * 0.1,
        "prompt_step_s": 0.25 * rng.random() + np.cumsum(rng.random(budget + 1)) * 0.05,
        "sampled_s": np.cumsum(rng.random(max_num_seqs + 1)) * 0.05,
    }
    # What attention costs: nothing, mostly decodes, mostly prompts.
    small_s = float(dice.one_of("attention", (0.0, 2.0**-10, 2.0**-7)))
    return Kind.measured(
        **{name: round_s(times_s) for name, times_s in steps_s.items()},
        sequence_s=4 * small_s,
        context_token_s=small_s,
        prompt_pair_s=small_s / 4,
        request_s=float(round_s(dice.one_of("request_s", (0.0, 0.3, 2.0)))),
        kv_capacity_tokens=float(np.ceil(room * longest)),
    )
