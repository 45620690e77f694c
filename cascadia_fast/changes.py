"""What `Problem.replace` changes, as fields of the problem file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from cascadia_fast import catalog
from cascadia_fast.errors import InputError, did_you_mean
from cascadia_fast.pools import BYTES_PER_GB, GpuPool
from cascadia_fast.workload import Workload

Fields = dict[str, Any]


class Changes(TypedDict, total=False):
    """The fields that `Problem.replace` takes.

    `models` and `pools` map names of the cascade's models and of the cluster's pools to the fields of theirs that
    change, such as ``{"llama-3.1-8b": {"min_replicas": 2}}`` and ``{"h100": {"gpus": 12}}``.
    """

    gpus: int
    price_usd_per_hour: float | None
    pools: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Any]]
    workload: Workload
    rate_per_s: float
    rate_from: str
    headroom: float
    q_min: float
    q_confidence: float | None
    objective: str
    slo_s: float | None
    slo_metric: str | None
    budget_usd_per_hour: float | None
    survive: str
    skip_models: bool
    mixed_shapes: bool
    time_limit_s: float
    max_utilization: float
    paper_strict: bool
    method: str
    latency: str
    simulated_auc: float | None
    judge_seed: int
    judge_latency_s: float
    judge_usd_per_call: float
    judge_model: str | None
    judge_weights: str | None
    judge_kv_dtype: str
    judge_output_tokens: int
    judge_instruction_tokens: int


_WORKLOAD = ("rate_per_s", "rate_from", "headroom")
_JUDGE = ("latency_s", "usd_per_call", "seed", "model", "weights", "kv_dtype", "output_tokens", "instruction_tokens")
_ELSEWHERE = ("gpus", "price_usd_per_hour", "pools", "models", "workload")
_PLACES = {
    **{name: ("workload", name) for name in _WORKLOAD},
    **{f"judge_{name}": ("judge", name) for name in _JUDGE},
    "simulated_auc": ("judge", "simulated_auc"),
}
_PLACES |= {name: ("goal", name) for name in Changes.__annotations__ if name not in (*_PLACES, *_ELSEWHERE)}
# What only says more of another field goes with it.
_DEPENDENT = {
    "slo_s": ("slo_metric",),
    "judge_model": ("judge_weights", "judge_kv_dtype", "judge_output_tokens", "judge_instruction_tokens"),
}


def apply_changes(fields: Fields, changes: Changes, models: Sequence[str], pools: Sequence[GpuPool]) -> None:
    """Change fields of a problem file in place; they are checked when they are parsed again.

    Parameters
    ----------
    fields
        Those that were given, as plain Python values.
    changes
        What to change.
    models, pools
        The names of the cascade's models and the pools of the cluster.

    Raises
    ------
    InputError
        A change, a model or a pool is unknown, or GPUs are changed without saying of which pool.
    """
    given: Mapping[str, Any] = changes
    for name in given:
        if name not in Changes.__annotations__:
            raise InputError(f"a problem has no field {name!r} to replace{did_you_mean(name, Changes.__annotations__)}")
    for name, value in given.items():
        if name in _PLACES:
            section, key = _PLACES[name]
            fields.setdefault(section, {})[key] = value
        if value is None:
            for other in _DEPENDENT.get(name, ()):
                if other not in given:
                    section, key = _PLACES[other]
                    fields[section].pop(key, None)
    for name, change in _found("models", given, models):
        fields["cascade"][models.index(name)].update(change)
    _change_pools(fields, given, pools)


def _change_pools(fields: Fields, changes: Mapping[str, Any], pools: Sequence[GpuPool]) -> None:
    of_the_pool = {name: changes[name] for name in ("gpus", "price_usd_per_hour") if name in changes}
    if of_the_pool and len(pools) > 1:
        field, value = next(iter(of_the_pool.items()))
        raise InputError(
            f"{field} cannot be replaced in a cluster of several pools ({', '.join(pool.name for pool in pools)}); say "
            f"of which, as in pools={{{pools[0].name!r}: {{{field!r}: {value!r}}}}}"
        )
    by_pool = {name: dict(change) for name, change in _found("pools", changes, [pool.name for pool in pools])}
    if of_the_pool:
        by_pool[pools[0].name] = by_pool.get(pools[0].name, {}) | of_the_pool
    if by_pool:
        fields["cluster"] = [_entry(pool) | _sized(by_pool.get(pool.name, {})) for pool in pools]


def _entry(pool: GpuPool) -> Fields:
    """A pool as an entry of the cluster: the GPUs that may be used, none of them reserved."""
    known = catalog.gpu(pool.spec.name)
    links = {
        name: ours_bytes_per_s / BYTES_PER_GB
        for name, ours_bytes_per_s, bytes_per_s in (
            ("link_gb_per_s", pool.spec.link_bytes_per_s, known.link_bytes_per_s),
            ("internode_gb_per_s", pool.spec.internode_bytes_per_s, known.internode_bytes_per_s),
        )
        if ours_bytes_per_s != bytes_per_s
    }
    return {
        "name": pool.name,
        "gpu": pool.spec.name,
        "gpus": pool.gpus,
        "gpus_per_node": pool.gpus_per_node,
        "price_usd_per_hour": pool.price_usd_per_hour,
        "tp_across_nodes": pool.tp_across_nodes,
        **links,
    }


def _sized(change: Mapping[str, Any]) -> Fields:
    """A number of nodes takes the place of the number of GPUs."""
    return {**({"gpus": None} if "nodes" in change and "gpus" not in change else {}), **change}


def _found(what: str, changes: Mapping[str, Any], known: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
    wanted = changes.get(what, {})
    if not isinstance(wanted, Mapping) or not all(isinstance(change, Mapping) for change in wanted.values()):
        raise InputError(
            f"{what} is {wanted!r}; give the fields to replace by name, as in {what}={{name: {{field: value}}}}"
        )
    for name in wanted:
        if name not in known:
            hint = did_you_mean(str(name), known) or f"; known are {', '.join(known)}"
            raise InputError(f"{what} names {name!r}, which the problem does not have{hint}")
    return list(wanted.items())
