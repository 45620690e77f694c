"""Traffic that changes: traces 1, 2 and 3 one after another for 8, 16 and 10 minutes, as in the paper.

    python -m benchmarks.drift [--cascades deepseek llama] [--seeds 5] [--json FILE]

Every phase has a floor of its own: the trace's highest, then its third. Plans are made from the planning half of each
phase's requests and serve the other half. When traffic changes is known; noticing it is not part of this. Ours plans
every phase and moves from plan to plan as `benchmarks.drift_transition` says, draining and loading included; or takes,
phase by phase, what does best in a rehearsal on the planning half, staying among it; or keeps its first plan.
CascadeServe keeps its first placement and shifts gears, and the single model keeps everything.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.drift_plans import LANES, first_plan, rehearsed, replanned, scale95
from benchmarks.drift_report import EVERY_PHASE, FIRST_PLAN, REHEARSED, Move, Row, Setting, brief, markdown
from benchmarks.drift_run import Deployment, Served
from benchmarks.drift_traffic import LEAD_IN_S, Cases, Traffic
from benchmarks.paper_cases import DEEPSEEK, LLAMA, floors
from cascadia_fast.baselines.systems import system_named
from cascadia_fast.blueprint import Plan
from cascadia_fast.planner import Planner

CASCADES = {"deepseek": DEEPSEEK, "llama": LLAMA}
FLOORS = (0, 2)  # of the four that stand for the paper's
OTHERS = ("cascadeserve", "cascadeserve-tuned", "single")
SEEDS = 5
# Times the traces' own rates. What a cascade carries is looked for at its highest floors, where simulations are short.
LOADS = {"deepseek": (0.5, 1.0, 1.5, 2.0, 3.0), "llama": (1.0,)}
MINUTE_S = 60.0


def rows_of(cascade: str, seeds: int) -> Iterator[Row]:
    """Serve all systems' plans, under both floors and with every seed."""
    cases = Cases(CASCADES[cascade])
    by_trace = [floors(Planner(problem, 1)) for problem in cases.problems]
    reload_s = cases.reload_s()
    for level in FLOORS:
        q_min = tuple(float(found[level]) for found in by_trace)
        for load in LOADS[cascade] if level == FLOORS[0] else (1.0,):
            for seed in range(seeds):
                setting = Setting(cascade, level == FLOORS[0], q_min, load, seed)
                traffic = cases.traffic(q_min, seed, load)
                rehearsal = cases.traffic(q_min, seed, load, rehearsal=True)
                for name, plans in _plans(traffic, rehearsal, reload_s, seed):
                    served = Deployment(plans, traffic, reload_s, LANES).run(seed)
                    yield _row(setting, name, traffic, served, reload_s)


def _plans(
    traffic: Traffic, rehearsal: Traffic, reload_s: Mapping[int, float], seed: int
) -> Iterator[tuple[str, list[Plan]]]:
    """Every system's plans: one for each phase, or one for all."""
    yield EVERY_PHASE, replanned(traffic)
    yield REHEARSED, rehearsed(traffic, rehearsal, reload_s, seed)
    yield FIRST_PLAN, [first_plan(traffic)]
    for name in OTHERS:
        yield name, [system_named(name).plan(traffic.phases[0].case)]


def _row(setting: Setting, name: str, traffic: Traffic, served: Served, reload_s: Mapping[int, float]) -> Row:
    counts = traffic.arrival_s >= LEAD_IN_S
    by_phase = [counts & (traffic.phase == place) for place in range(len(traffic.phases))]
    return Row(
        setting=setting,
        system=name,
        scale95=scale95(served, traffic, counts),
        p95_s=_p95(served.latency_s[counts]),
        phase_scale95=tuple(scale95(served, traffic, chosen) for chosen in by_phase),
        quality=tuple(float(served.quality[chosen].mean()) for chosen in by_phase),
        after_p95_s=tuple(_p95(served.latency_s[_minute_after(traffic, start_s)]) for start_s in traffic.boundaries_s),
        moves=tuple(_moves(served, reload_s)),
    )


def _minute_after(traffic: Traffic, start_s: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    found: np.ndarray[tuple[int], np.dtype[np.bool_]] = (traffic.arrival_s >= start_s) & (
        traffic.arrival_s < start_s + MINUTE_S
    )
    return found


def _p95(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float | None:
    """None where nothing came."""
    return float(np.quantile(values, 0.95, method="higher")) if values.size else None


def _moves(served: Served, reload_s: Mapping[int, float]) -> Iterator[Move]:
    """What each transition came to; nothing where there are none."""
    history, plan_of_time = served.history, served.schedule
    for index, change in enumerate(history.transitions):
        new = [history.replicas[number] for number in change.new]
        opened_s = [plan_of_time.windows[number].opens_s for number in change.new]
        done_s = max([change.boundary_s, *opened_s])
        from_s = plan_of_time.routes_from_s[index]
        after = {history.replicas[number].model for number in (*change.kept, *change.new)}
        yield Move(
            stay=len(change.kept),
            gpus=sum(replica.kind.gpus for replica in new),
            reload_s=sum(reload_s[replica.model] for replica in new),
            routed_after_s=from_s - change.boundary_s,
            done_after_s=done_s - change.boundary_s,
            closed_s=sum(
                done_s - min(from_s, done_s) - plan_of_time.open_s(_of(served, model), from_s, done_s)
                for model in after
            ),
        )


def _of(served: Served, model: int) -> list[int]:
    """All replicas of a model."""
    return [
        number
        for number, replica in enumerate(served.history.replicas)
        if replica.model == model and served.schedule.windows[number].ever
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cascades", nargs="+", choices=CASCADES, default=list(CASCADES))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="drawings of the requests' halves")
    parser.add_argument("--all", action="store_true", help="print every table")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    rows = [row for cascade in options.cascades for row in rows_of(cascade, options.seeds)]
    print(markdown(rows) if options.all else brief(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
