"""Plans how a GPU fleet serves a cascade of large language models.

>>> import cascadia_fast as cf
>>> plan = cf.plan(cf.Problem.example())  # doctest: +SKIP

The public names below are imported when they are first used, so that ``import cascadia_fast`` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cascadia_fast.blueprint import Plan as Plan
    from cascadia_fast.errors import CascadiaError as CascadiaError
    from cascadia_fast.errors import InputError as InputError
    from cascadia_fast.errors import NoPlanError as NoPlanError
    from cascadia_fast.monitor import Monitor as Monitor
    from cascadia_fast.planner import Planner as Planner
    from cascadia_fast.planner import plan as plan
    from cascadia_fast.problem import Problem as Problem
    from cascadia_fast.simulation import Simulation as Simulation
    from cascadia_fast.simulation import simulate as simulate
    from cascadia_fast.workload import ScoredRequests as ScoredRequests
    from cascadia_fast.workload import Workload as Workload

_HOME = {
    "CascadiaError": "errors",
    "InputError": "errors",
    "Monitor": "monitor",
    "NoPlanError": "errors",
    "Plan": "blueprint",
    "Planner": "planner",
    "Problem": "problem",
    "ScoredRequests": "workload",
    "Simulation": "simulation",
    "Workload": "workload",
    "plan": "planner",
    "simulate": "simulation",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
