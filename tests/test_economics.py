"""Money and energy of a plan, by hand."""

from __future__ import annotations

import dataclasses

import pytest
from builders import deepseek_plan, two_pools_plan

from cascadia_fast.economics import cost_usd_per_hour, energy_j_per_request, gpus_usd_per_hour, usd_per_request

POWER_W = {"h100-sxm-80gb": 700.0, "l40s": 350.0}


def test_gpus_cost_what_their_pools_charge() -> None:
    price = {"a": 2.0, "b": 0.5, "c": None}
    assert gpus_usd_per_hour({"a": 3, "b": 4}, price) == 8.0
    assert gpus_usd_per_hour({"a": 3, "c": 1}, price) is None
    assert gpus_usd_per_hour({"a": 3, "c": 0}, price) == 6.0
    assert gpus_usd_per_hour({"a": 3}, {"a": 0.0}) == 0.0


def test_every_stage_but_the_last_pays_a_judge_call() -> None:
    plan = deepseek_plan()
    price = {"h100-sxm-80gb": 2.4}
    assert cost_usd_per_hour(plan.stages, plan.judge, price) == pytest.approx(27 * 2.4)
    paid = dataclasses.replace(plan.judge, usd_per_call=0.002)
    calls_per_hour = (1.5 + 0.97) * 3600
    assert cost_usd_per_hour(plan.stages, paid, price) == pytest.approx(27 * 2.4 + 0.002 * calls_per_hour)
    alone = plan.stages[:1]
    assert cost_usd_per_hour(alone, paid, price) == pytest.approx(2.4)


def test_a_hosted_judge_costs_its_gpus() -> None:
    plan = two_pools_plan()
    price: dict[str, float | None] = {"h100": 2.0, "l40s": 0.5}
    assert cost_usd_per_hour(plan.stages, plan.judge, price) == pytest.approx(25 * 2.0 + 3 * 0.5)
    assert cost_usd_per_hour(plan.stages, plan.judge, {**price, "l40s": None}) is None


def test_one_request_costs_its_share_of_an_hour() -> None:
    assert usd_per_request(54.0, 1.5) == pytest.approx(0.01)
    assert usd_per_request(None, 1.5) is None


def test_energy_is_board_power_of_the_busy_share() -> None:
    plan = two_pools_plan()
    h100_busy = 1 * 0.71 + 4 * 0.84 + 20 * 0.9
    l40s_busy = 2 * 0.84 + 1 * 0.31
    joules = energy_j_per_request(plan.stages, plan.judge, POWER_W, 1.5)
    assert joules == pytest.approx((700 * h100_busy + 350 * l40s_busy) / 1.5)
    assert energy_j_per_request(plan.stages, plan.judge, {**POWER_W, "l40s": None}, 1.5) is None
    assert energy_j_per_request(plan.stages[:1], deepseek_plan().judge, POWER_W, 1.5) == pytest.approx(700 * 0.71 / 1.5)
