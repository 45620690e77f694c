"""All systems that can be compared, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

from cascadia_fast.baselines import ablations, automix, cascadeserve, frugalgpt, ours, routellm, sarathi, single
from cascadia_fast.baselines.case import Case
from cascadia_fast.blueprint import Plan
from cascadia_fast.errors import InputError, did_you_mean

Kind = Literal["ours", "baseline", "ablation"]


@dataclass(frozen=True)
class System:
    """One way to serve a case.

    Parameters
    ----------
    name, title
        On the command line, and for people.
    kind
        Ours, another system, or ours with one thing changed.
    source
        Where it is described.
    plan
        Plans a case. It sees nothing but the case, and raises only where a model fits no GPUs.
    page
        What is implemented, and which open choices were taken in its favour.
    """

    name: str
    title: str
    kind: Kind
    source: str
    plan: Callable[[Case], Plan]
    page: str


def _system(name: str, title: str, kind: Kind, source: str, plan: Callable[[Case], Plan], module: ModuleType) -> System:
    return System(name, title, kind, source, plan, (module.__doc__ or "").strip())


_PAPER = "arXiv 2506.04203"
_ROUTELLM = "arXiv 2406.18665"
_ABLATIONS: tuple[tuple[str, str, Callable[[Case], Plan]], ...] = (
    ("uniform-parallelism", "uniform parallelism", ablations.plan_uniform_parallelism),
    ("uniform-allocation", "uniform allocation", ablations.plan_uniform_allocation),
    ("common-threshold", "one common threshold", ablations.plan_common_threshold),
    ("no-skipping", "no model skipped", ablations.plan_no_skipping),
    ("alternating", "the paper's loop", ablations.plan_alternating),
    ("paper-objective", "the paper's objective", ablations.plan_paper_objective),
    ("confident", "the floor with confidence", ablations.plan_confident),
    ("tried", "cascades tried in simulation", ablations.plan_tried),
)

SYSTEMS: tuple[System, ...] = (
    _system("ours", "cascadia_fast", "ours", _PAPER, ours.plan_ours, ours),
    _system("single", "single model", "baseline", _PAPER, single.plan_single, single),
    _system("sarathi", "Sarathi-Serve", "baseline", "arXiv 2403.02310", sarathi.plan_sarathi, sarathi),
    _system(
        "cascadeserve", "CascadeServe", "baseline", "arXiv 2406.14424", cascadeserve.plan_cascadeserve, cascadeserve
    ),
    _system(
        "cascadeserve-tuned",
        "CascadeServe, parallelism tuned",
        "baseline",
        "arXiv 2406.14424",
        cascadeserve.plan_cascadeserve_tuned,
        cascadeserve,
    ),
    _system("routellm", "RouteLLM, uniform", "baseline", _ROUTELLM, routellm.plan_routellm, routellm),
    _system("routellm-ours", "RouteLLM, our allocation", "baseline", _ROUTELLM, routellm.plan_routellm_ours, routellm),
    _system("frugalgpt", "FrugalGPT", "baseline", "arXiv 2305.05176", frugalgpt.plan_frugalgpt, frugalgpt),
    _system("automix", "AutoMix", "baseline", "arXiv 2310.12963", automix.plan_automix, automix),
    *(_system(name, title, "ablation", _PAPER, plan, ablations) for name, title, plan in _ABLATIONS),
)


def system_named(name: str) -> System:
    """Return a system by its name.

    Raises
    ------
    InputError
        There is none of that name; the nearest one is named.
    """
    by_name = {system.name: system for system in SYSTEMS}
    if name not in by_name:
        hint = did_you_mean(name, by_name) or f"; known are {', '.join(by_name)}"
        raise InputError(f"there is no system {name!r}{hint}")
    return by_name[name]
