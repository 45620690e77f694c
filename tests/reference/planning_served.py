"""What deployments of one routing do, for `planning_oracle.py`: latencies, price, and whether they hold what they must.

A deployment is a tuple with an entry for every model of the problem and, last, for a hosted judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from reference.planning_instance import SLACK, Instance, Paths, Route, draw_paths, judge_lengths
from reference.planning_losses import Placed, placements
from reference.planning_stations import Groups, Station

FloatArray = NDArray[np.float64]
Deployment = tuple[Groups, ...]
LATENCIES = ("max_stage_p95", "end_to_end_p95", "ttft_p95")


class Metrics(NamedTuple):
    """What a deployed routing achieves."""

    max_stage_p95: float
    end_to_end_p95: float
    ttft_p95: float
    min_cost: float
    min_gpus: float


class Served:
    """One routing's stations, one per model of the problem, the hosted judge last, and what deployments of them do."""

    def __init__(self, instance: Instance, found: Route) -> None:
        self.instance, self.route = instance, found
        self.last = int(found.accepted_by.max())  # position of the last model that runs: nobody judges its answers
        self.judged = found.subset[: self.last]
        weight = instance.requests.weight / instance.requests.weight.sum()
        self.reaches = [self._reaches(model) for model in range(len(instance.models))]
        self.shares = [
            np.bincount(model.cell_of[reaches], weight[reaches], model.lengths.size)
            for model, reaches in zip(instance.models, self.reaches, strict=True)
        ]
        self.calls = sum(float(self.shares[model].sum()) for model in self.judged)  # judge calls per request
        known = instance.known
        self.stations = [
            Station(model.engines, model.lengths, share, instance.traffic, known, model.least, model.most)
            for model, share in zip(instance.models, self.shares, strict=True)
        ]
        if instance.judge.engines:
            share = np.concatenate([share * (model in self.judged) for model, share in enumerate(self.shares)])
            lengths = judge_lengths(instance)
            self.stations.append(Station(instance.judge.engines, lengths, share, instance.traffic, known))
        self._known: dict[tuple[int, Groups, str], FloatArray] = {}

    def _reaches(self, model: int) -> NDArray[np.bool_]:
        if model not in self.route.subset:
            return np.zeros(self.instance.requests.size, bool)
        return self.route.accepted_by >= self.route.subset.index(model)

    # What a deployment is like.

    def stage_s(self, deployment: Deployment) -> float:
        return max(station.p95_s(groups) for station, groups in zip(self.stations, deployment, strict=True))

    def path_s(self, deployment: Deployment, metric: str) -> FloatArray:
        """Latency of every path, shape (P,); waits of a path at different stations are independent."""
        calls = np.minimum(self.route.accepted_by + 1, self.last)[self.paths.request]
        total = calls * self.instance.judge.latency_s
        for at, groups in enumerate(deployment):
            first = metric == "ttft_p95" and at == self.route.subset[self.last]
            key = (at, groups, metric if first else "")
            if key not in self._known:
                self._known[key] = self._spent_s(at, groups, first)
            total = total + self._known[key]
        return total

    def _spent_s(self, at: int, groups: Groups, first: bool) -> FloatArray:
        """Seconds that every path spends at one station: in all, or until its first token."""
        spent = np.zeros(self.paths.request.size)
        if not self.stations[at].reached:
            return spent
        seen = self.stations[at].samples(groups)
        if at < len(self.instance.models):
            self._visit(spent, at, seen.first_token_s if first else seen.latency_s, self.paths.node)
            return spent
        begins = np.cumsum([0] + [model.lengths.size for model in self.instance.models])
        for model in self.judged:
            self._visit(spent, model, seen.latency_s[:, begins[model] : begins[model + 1]], self.paths.judge_node)
        return spent

    def _visit(self, spent: FloatArray, model: int, samples_s: FloatArray, node: NDArray[np.intp]) -> None:
        visits = np.flatnonzero(self.reaches[model][self.paths.request])
        cell = self.instance.models[model].cell_of[self.paths.request[visits]]
        spent[visits] += samples_s[node[visits, self.route.subset.index(model)], cell]

    def quantile_s(self, path_s: FloatArray, q: float = 0.95) -> float:
        """The least latency within which a share q of the requests is served."""
        weight = self.instance.requests.weight[self.paths.request]
        order = np.argsort(path_s, kind="stable")
        mass = np.cumsum(weight[order])
        return float(path_s[order[np.searchsorted(mass, q * mass[-1] * (1 - 1e-12))]])

    @property
    def paths(self) -> Paths:
        key = ("paths", self.route.subset)
        if key not in self.instance.known:
            self.instance.known[key] = draw_paths(self.instance, self.route.subset)
        found = self.instance.known[key]
        assert isinstance(found, Paths)
        return found

    def gpus(self, deployment: Deployment) -> list[int]:
        """GPUs taken of every pool."""
        taken = [0] * len(self.instance.pools)
        for station, groups in zip(self.stations, deployment, strict=True):
            for engine, count in groups:
                taken[station.engines[engine].pool] += count * station.engines[engine].gpus
        return taken

    def usd_per_hour(self, deployment: Deployment) -> float:
        prices = [pool.usd_per_gpu_hour for pool in self.instance.pools]
        gpus_usd = sum(count * price for count, price in zip(self.gpus(deployment), prices, strict=True))
        return gpus_usd + self.judge_usd_per_hour

    @property
    def judge_usd_per_hour(self) -> float:
        return self.calls * self.instance.traffic.rate_per_s * 3600 * self.instance.judge.usd_per_call

    def latency_s(self, deployment: Deployment, metric: str) -> float:
        stage_s = self.stage_s(deployment)
        if metric == "max_stage_p95" or not math.isfinite(stage_s):
            return stage_s
        return self.quantile_s(self.path_s(deployment, metric))

    def metrics(self, deployment: Deployment) -> Metrics:
        latencies = [self.latency_s(deployment, metric) for metric in LATENCIES]
        return Metrics(*latencies, self.usd_per_hour(deployment), float(sum(self.gpus(deployment))))

    # What must hold.

    def allowed(self, deployment: Deployment, slack: float = SLACK) -> bool:
        """Whether a deployment meets every constraint but the floor on quality, deadlines within a relative slack."""
        goal, pools = self.instance.goal, self.instance.pools
        if any(taken > pool.gpus for taken, pool in zip(self.gpus(deployment), pools, strict=True)):
            return False
        if self.usd_per_hour(deployment) > goal.budget_usd_per_hour * (1 + SLACK):
            return False
        for station, groups in zip(self.stations, deployment, strict=True):
            replicas = sum(count for _, count in groups)
            if not station.least <= replicas <= station.most:
                return False
        return self._in_time(deployment, slack) and self._survives(deployment, slack)

    def _in_time(self, deployment: Deployment, slack: float) -> bool:
        goal = self.instance.goal
        if not math.isfinite(goal.slo_s):  # without a deadline: every station stable, below the utilisation cap
            return math.isfinite(self.stage_s(deployment))
        return self.latency_s(deployment, goal.slo_metric) <= goal.slo_s * (1 + slack)

    def _survives(self, deployment: Deployment, slack: float) -> bool:
        survive = self.instance.goal.survive
        if survive == "none":
            return True
        if survive == "replica":
            return all(self._in_time(left, slack) for left in self._single_losses(deployment))
        return any(
            all(self._in_time(self._less(deployment, lost), slack) for lost in nodes)
            for nodes in placements(self._replicas(deployment), self.instance.pools)
        )

    def _single_losses(self, deployment: Deployment) -> Iterator[Deployment]:
        for at, groups in enumerate(deployment):
            if self.stations[at].reached:
                for number in range(len(groups)):
                    yield self._less(deployment, ((at, number),))

    def _replicas(self, deployment: Deployment) -> list[Placed]:
        return [
            Placed(self.stations[at].engines[engine].gpus, self.stations[at].engines[engine].pool, (at, number))
            for at, groups in enumerate(deployment)
            for number, (engine, count) in enumerate(groups)
            for _ in range(count)
        ]

    @staticmethod
    def _less(deployment: Deployment, lost: Sequence[tuple[int, int]]) -> Deployment:
        """The deployment without some replicas, each given as its station and the number of its group there."""
        left = [[count for _, count in groups] for groups in deployment]
        for at, number in lost:
            left[at][number] -= 1
        return tuple(
            tuple((engine, count) for (engine, _), count in zip(groups, counts, strict=True) if count > 0)
            for groups, counts in zip(deployment, left, strict=True)
        )
