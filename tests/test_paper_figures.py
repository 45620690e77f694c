"""What the paper's table is made from: rates under a deadline, ratios with bounds, and what a signal foretells."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Last on the path: the package itself stays the installed one.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks import paper_figures, paper_reasons
from benchmarks.matched_load import LADDER, SCALE, SEEDS, Matched, Place, carried_here
from benchmarks.paper_figures import Carried, Factor, carried


def point(rate_per_s: float, scale: float | None, at_least: float | None = None) -> dict[str, Any]:
    return {"rate_per_s": rate_per_s, "scale95": scale, "at_least": at_least}


def test_the_rate_under_a_deadline_is_interpolated() -> None:
    ramp = [point(1, 2), point(2, 4), point(4, 16)]
    assert carried(ramp, 4) == Carried(2.0)
    assert carried(ramp, 8).rate_per_s == pytest.approx(2 * 2**0.5)  # half way from 4 to 16 on logarithmic paper
    assert carried(ramp, 1) == Carried(1, "most")
    assert carried(ramp, 20) == Carried(4, "least")


def test_overload_ends_what_is_carried() -> None:
    assert carried([point(1, 2), point(2, None, 8)], 4).rate_per_s == pytest.approx(2**0.5)
    # However short the run: what is overloaded does not count as served.
    assert carried([point(1, 2), point(2, None, 3)], 4) == Carried(1.0)
    assert carried([point(1, 2), point(2, None, None)], 4) == Carried(1.0)
    assert carried([point(1, None, 3)], 4) == Carried(1, "most")


def pair(case: str, rate_per_s: float, ratio: float | None, bound: str | None, equal: bool) -> dict[str, Any]:
    return {
        "case": case,
        "system": "it",
        "rate_per_s": rate_per_s,
        "bound": bound,
        "on_equal_terms": equal,
        "scale95_over_ours": {"mean": ratio},
    }


RESULTS = {
    "cases": [{"name": "a", "middle_rate": 2.0}, {"name": "b", "middle_rate": 30.0}],
    "ratios": [
        pair("a", 1.0, 2.0, "exact", True),
        pair("b", 15.0, 8.0, "exact", True),
        pair("a", 2.0, 100.0, "exact", False),
        pair("b", 30.0, 50.0, "at_least", False),
        pair("b", 30.0, 0.1, "at_most", False),
        pair("a", 2.0, None, None, False),
    ],
}


def test_only_pairs_on_equal_terms_count_and_the_others_are_told() -> None:
    found = paper_figures.scale_factor(RESULTS["ratios"], "it")
    assert (found.ratios, found.mean) == ((2.0, 8.0), pytest.approx(4))
    assert str(found) == (
        "up to 8.00×, avg 4.00× (2 of 6 on equal terms, floor missed 1, they in overload 1, ours in overload 1, "
        f"both in overload 1; avg {(2 * 8 * 100 * 50 * 0.1) ** 0.2:.2f}× with overloads and misses as they came)"
    )
    assert str(Factor((), 3, theirs_overloaded=3)) == "– (0 of 3 on equal terms, they in overload 3)"
    assert Factor((), 3).mean is None


def test_scales_are_put_together_by_rate() -> None:
    by_rate = paper_figures.scale_factors_by_rate(RESULTS, "it")
    assert {factor: len(found.ratios) for factor, found in by_rate.items()} == {0.5: 2, 1.0: 0}


def test_savings_that_nobody_attains_are_said_to_be_none() -> None:
    lines = [{"system": "it", "saving": None}, {"system": "it", "saving": 0.25}, {"system": "it", "saving": -0.1}]
    assert paper_figures.saving_text({"savings": lines}, "it") == "+10 % to −25 %, avg −8 % (2 of 3 told)"
    assert paper_figures.saving_text({"savings": lines[:1]}, "it") == "nowhere attained (of 1)"


def on_trial(places: list[Place], row: Callable[[str, float, int], tuple[str, float | None]]) -> Matched:
    """What `matched` makes of trials whose status and scale are functions of system, rate and seed."""
    rates = [2.0, *(factor * place.alone_per_s for place in places for factor in LADDER)]

    def trial(system: str, rate_per_s: float, seed: int) -> dict[str, Any]:
        status, scale = row(system, rate_per_s, seed)
        quality = {"quality": 85.0, "quality_low": 84.0, "quality_high": 86.0}
        return {"status": status, "plan": None, "measured": {"scale95": scale, "p95_s": scale, **quality}}

    rows = {
        place.cell(system, rate_per_s, seed): trial(system, rate_per_s, seed)
        for place in places
        for system in ("ours", "single")
        for rate_per_s in rates
        for seed in SEEDS
    }
    return Matched(dict.fromkeys(places, 2.0), tuple(places), rows)


def crossing(system: str, rate_per_s: float, seed: int) -> tuple[str, float]:
    """Seeds a factor of 2 apart on both sides; ours carries twice as much at the same scale."""
    return "served", SCALE * rate_per_s / (20.0 if system == "ours" else 10.0) * 2.0 ** (seed - 1)


def test_load_is_matched_where_the_mean_over_seeds_crosses_the_scale() -> None:
    high, low = Place("a", 80.0, 32, 10.0), Place("a", 70.0, 32, 10.0)
    made = on_trial([high, low], crossing)
    assert carried_here(made.rows, high, "single").rate_per_s == pytest.approx(10)
    assert carried_here(made.rows, high, "ours").rate_per_s == pytest.approx(20)
    assert (made.scales("single").places, made.scales("single").mean) == (2, pytest.approx(2))
    assert (made.traffic("single").places, made.traffic("single").mean) == (2, pytest.approx(2))
    assert made.traffic("single", highest_only=True).places == 1


def test_overload_is_no_traffic_and_a_missed_floor_no_equal_terms() -> None:
    def overloaded(system: str, rate_per_s: float, seed: int) -> tuple[str, float]:
        return "unstable" if system == "single" and rate_per_s > 6 and seed == 1 else "served", 2.0

    place = Place("a", 80.0, 32, 10.0)
    made = on_trial([place], overloaded)
    last = max(factor * 10 for factor in LADDER if factor * 10 <= 6)
    assert carried_here(made.rows, place, "single", keeps_up=True).rate_per_s == pytest.approx(last)
    assert carried_here(made.rows, place, "single").bound == "least"
    assert (made.traffic("single").beyond, made.traffic("single").mean) == (1, pytest.approx(32 / last))
    missed = on_trial([Place("a", 90.0, 32, 10.0)], crossing)  # quality is 84 to 86
    assert (missed.traffic("single").missed, missed.traffic("single").ratios) == (1, ())
    assert (missed.scales("single").missed, missed.scales("single").ratios) == (1, ())


def test_auc_counts_pairs_of_unequal_gain_by_weight_and_equal_values_by_half() -> None:
    value, gain = np.array([3.0, 1.0, 2.0, 1.0]), np.array([5.0, 5.0, 0.0, 0.0])
    assert paper_reasons.auc(value, gain, np.ones(4)) == (2 + 0.5) / 4
    assert paper_reasons.auc(value, gain, np.array([1.0, 0, 1, 1])) == 1
    assert paper_reasons.auc(value, np.array([4.0, 3, 2, 1]), np.ones(4)) == 4.5 / 6
