"""Pools of GPUs: what of each GPU type, node size and price a plan may use."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from cascadia_fast import catalog
from cascadia_fast.catalog import GpuSpec
from cascadia_fast.errors import InputError
from cascadia_fast.schema import PoolEntry

BYTES_PER_GB = 1e9


@dataclass(frozen=True, slots=True)
class GpuPool:
    """Equal GPUs in equal nodes, of which the last may be partial.

    Parameters
    ----------
    name
        Unique in the cluster; the catalog's name of the GPU where the problem gives none.
    spec
        The GPU and its power, with the links that the problem gives, if it gives any.
    gpus
        How many may be used; reserved ones are not among them.
    gpus_per_node
        GPUs of a full node.
    price_usd_per_hour
        Price of one GPU; None where no price is known.
    tp_across_nodes
        Whether an engine's tensor parallelism may span whole nodes.
    """

    name: str
    spec: GpuSpec
    gpus: int
    gpus_per_node: int
    price_usd_per_hour: float | None
    tp_across_nodes: bool = False

    def resized(self, gpus: int) -> GpuPool:
        """Return the pool with another number of GPUs that may be used."""
        return dataclasses.replace(self, gpus=gpus)


def pools_of(cluster: Sequence[PoolEntry], where: str) -> tuple[GpuPool, ...]:
    """Return the pools of a cluster.

    Entries without a name are one pool if nothing but their size tells them apart, at most one has a partial node, and
    none reserves GPUs: reserved ones are the last of a pool.

    Raises
    ------
    InputError
        A GPU is unknown, an entry has no size or two, reserves all it has, or two have one name.
    """
    named: dict[str, int] = {}
    found: list[GpuPool] = []
    mergeable: list[bool] = []
    for index, entry in enumerate(cluster):
        pool = _pool(entry, f"{where}: cluster[{index}]")
        if entry.name is not None and named.setdefault(entry.name, index) != index:
            raise InputError(
                f"{where}: cluster[{index}].name is {entry.name!r} and so is cluster[{named[entry.name]}].name; name "
                "them apart"
            )
        merges = entry.name is None and entry.reserved == 0
        twin = next((k for k, other in enumerate(found) if merges and mergeable[k] and _mergeable(other, pool)), None)
        if twin is None:
            found.append(pool)
            mergeable.append(merges)
        else:
            found[twin] = dataclasses.replace(pool, gpus=found[twin].gpus + pool.gpus)
    return _with_names(found, set(named))


def _pool(entry: PoolEntry, place: str) -> GpuPool:
    """One entry; without a name it has the empty one."""
    try:
        gpu = catalog.gpu(entry.gpu)
    except InputError as error:
        raise InputError(f"{place}.gpu: {error}") from None
    per_node = gpu.gpus_per_node if entry.gpus_per_node is None else entry.gpus_per_node
    if (entry.nodes is None) == (entry.gpus is None):
        both = "both nodes and gpus" if entry.nodes is not None else "neither nodes nor gpus"
        raise InputError(f"{place} has {both}; give the number of full nodes or the number of GPUs in total")
    total = entry.gpus if entry.gpus is not None else (entry.nodes or 0) * per_node
    if entry.reserved >= total:
        size = f"{place}.gpus is {total}" if entry.gpus is not None else f"{place}.nodes makes {total} GPUs"
        raise InputError(f"{size} and {place}.reserved is {entry.reserved}; reserve fewer than there are")
    return GpuPool(
        name=entry.name or "",
        spec=_with_links(gpu, entry),
        gpus=total - entry.reserved,
        gpus_per_node=per_node,
        price_usd_per_hour=gpu.price_usd_per_hour if entry.price_usd_per_hour is None else entry.price_usd_per_hour,
        tp_across_nodes=entry.tp_across_nodes,
    )


def _with_links(gpu: GpuSpec, entry: PoolEntry) -> GpuSpec:
    given = {
        "link_bytes_per_s": entry.link_gb_per_s,
        "internode_bytes_per_s": entry.internode_gb_per_s,
    }
    links = {field: gb_per_s * BYTES_PER_GB for field, gb_per_s in given.items() if gb_per_s is not None}
    if not links:
        return gpu
    figures = " and ".join(f"{field} {bytes_per_s:g}" for field, bytes_per_s in links.items())
    return dataclasses.replace(gpu, **links, source=f"{gpu.source}; {figures} from the problem file")  # type: ignore[arg-type]


def _mergeable(first: GpuPool, second: GpuPool) -> bool:
    alike = dataclasses.replace(first, gpus=second.gpus) == second
    return alike and (first.gpus % first.gpus_per_node == 0 or second.gpus % second.gpus_per_node == 0)


def _with_names(pools: Sequence[GpuPool], taken: set[str]) -> tuple[GpuPool, ...]:
    """Name those without a name after their GPU; equal names are numbered from the second on."""
    found = []
    for pool in pools:
        if not pool.name:
            names = (pool.spec.name if number == 1 else f"{pool.spec.name}-{number}" for number in count(1))
            pool = dataclasses.replace(pool, name=next(name for name in names if name not in taken))
            taken.add(pool.name)
        found.append(pool)
    return tuple(found)
