"""Systems and cases for tests of comparisons: small, quick, and known by their names in other processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from cascadia_fast.baselines.case import Case
from cascadia_fast.blueprint import Plan
from cascadia_fast.comparison.setup import CaseSetup, Setup
from cascadia_fast.errors import NoPlanError
from cascadia_fast.problem import Problem


@dataclass(frozen=True)
class PlainSystem:
    """What a comparison wants of a system."""

    name: str
    plan: Callable[[Case], Plan]
    kind: str = "baseline"
    title: str = "A system"
    source: str = "nowhere"
    page: str = "What it does."


def best(case: Case) -> Plan:
    return case.planner().plan()


def alternating(case: Case) -> Plan:
    return case.planner().plan(method="alternating", objective="max_stage_p95")


def too_small(case: Case) -> Plan:
    """A plan for a tenth of the traffic."""
    return case.planner().plan(rate_per_s=case.rate_per_s / 10, objective="min_gpus")


def hopeless(case: Case) -> Plan:
    raise NoPlanError("it fits nowhere; use larger GPUs")


def broken(case: Case) -> Plan:
    raise ZeroDivisionError("a mistake of mine")


def killed(case: Case) -> Plan:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


OURS = PlainSystem("ours", best, kind="ours")
ALTERNATING = PlainSystem("alternating", alternating, kind="ablation")
TOO_SMALL = PlainSystem("too-small", too_small)
HOPELESS = PlainSystem("hopeless", hopeless)
BROKEN = PlainSystem("broken", broken)
KILLED = PlainSystem("killed", killed)


@cache
def example() -> Problem:
    return Problem.example()


def setup(*systems: Any, seeds: int = 2, requests: int = 2000, **case: Any) -> Setup:
    """The built-in example at half its rate, with some systems."""
    case = {"rates_per_s": (30.0,), **case}
    return Setup(
        cases=(CaseSetup.of("example", example(), **case),),
        systems=systems or (OURS, ALTERNATING),
        seeds=tuple(range(seeds)),
        requests=requests,
    )
