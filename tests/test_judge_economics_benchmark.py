"""Where the cascade stops paying: the price and the accuracy of the judge at which the benchmark says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Last on the path: the package itself stays the installed one.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks.judge_economics import GUESSING, LEAST_USD, Drawing, Trials, least_auc


@pytest.mark.parametrize("from_auc", [0.55, 0.7, 0.93])
def test_the_least_accuracy_is_found(from_auc: float) -> None:
    assert least_auc(lambda auc: 0.5 if auc >= from_auc else 0.0) == pytest.approx(from_auc, abs=0.01)


def test_no_accuracy_or_any_may_do() -> None:
    assert least_auc(lambda auc: 0.0) is None
    assert least_auc(lambda auc: 0.5) == GUESSING


@pytest.fixture(scope="module")
def drawing() -> Drawing:
    return Drawing(Trials("llama_trace3"), 71.0, 0)


def test_the_best_single_model_asks_nobody_and_is_no_faster_than_the_best_cascade(drawing: Drawing) -> None:
    assert len(drawing.alone.stages) == 1
    best_s = drawing.case().planner().plan().predicted.end_to_end_p95_s
    assert best_s is not None
    assert drawing.deadline_s is not None
    assert best_s <= drawing.deadline_s
    assert drawing.served(drawing.alone)["judge_calls"] == 0


def test_a_cascade_is_cheaper_below_the_break_even_and_not_above_it(drawing: Drawing) -> None:
    price_usd, alone_usd = drawing.break_even_usd(), drawing.alone_usd_per_hour
    assert price_usd is not None
    assert alone_usd is not None
    assert price_usd > 100 * LEAST_USD
    below, above = (
        drawing.cheapest_usd_per_hour(drawing.case(judge_usd_per_call=factor * price_usd)) for factor in (0.98, 1.02)
    )
    assert below is not None
    assert below < alone_usd * (1 - 1e-4)
    assert above == pytest.approx(alone_usd)
