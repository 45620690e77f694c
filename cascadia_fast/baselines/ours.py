"""Our own planner, as it plans the problem file (arXiv 2506.04203, and beyond it).

Cascades of any of the models, thresholds, GPUs per model and shapes of the engines are chosen together, exactly, on the
planning half: see `cascadia-fast plan`. It is planned for the same requests, rate, floor, GPUs, latency model and judge
as every other system, and is served by the same simulator. A comparison is of latency on equal GPUs, so that the p95 of
whole paths is made least there, whatever the file's objective is, and within none of its deadline, budget and losses to
survive, which other systems know nothing of; `paper-objective` makes the slowest stage's p95 least.

Nothing is done here that the planner does not do by itself, but one thing: what it would refuse is served all the same,
as that of any other system is. A floor out of reach becomes the best quality in reach. A rate beyond the cap on
utilisation is planned with a cap of 0.99; one beyond that gets the plan of the largest rate that these GPUs carry at
the floor, and is overloaded.
"""

from __future__ import annotations

from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.relaxing import plan_anyway
from cascadia_fast.blueprint import OURS, Plan


def plan_ours(case: Case) -> Plan:
    """Plan with the problem's goal; raises as `plan_anyway`."""
    return plan_anyway(case, OURS, lambda eased: eased.planner().plan())
