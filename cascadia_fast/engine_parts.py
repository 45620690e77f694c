"""Catalog entries as the native core takes them, and the engines that are put together from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cascadia_fast import _core

if TYPE_CHECKING:
    from cascadia_fast.architecture import ArchitectureSpec
    from cascadia_fast.catalog import GpuSpec
    from cascadia_fast.pools import GpuPool
    from cascadia_fast.problem import Problem, Stage

__all__ = ["EngineParts", "native_architecture", "native_gpu"]


@dataclass(frozen=True)
class EngineParts:
    """What the engines of one stage on one pool have in common, whatever their shape."""

    architecture: _core.Architecture
    precision: _core.Precision
    gpu: _core.Gpu
    efficiency: _core.Efficiency
    limits: _core.EngineLimits
    spanning_tp: tuple[int, ...]

    @classmethod
    def of(
        cls,
        problem: Problem,
        stage: Stage,
        pool: GpuPool,
        max_num_seqs: int | None = None,
        max_batched_tokens: int | None = None,
    ) -> Self:
        """Return the parts for a stage on a pool; limits that are not given are the problem's."""
        return cls(
            architecture=native_architecture(stage.model.architecture),
            precision=_core.Precision(weights=stage.weights, kv=stage.kv_dtype),
            gpu=native_gpu(pool.spec),
            efficiency=_core.Efficiency(**problem.profile.efficiency(stage.weights, stage.kv_dtype, problem.engine)),
            limits=_core.EngineLimits(
                max_num_seqs=problem.max_num_seqs if max_num_seqs is None else max_num_seqs,
                max_batched_tokens=problem.max_batched_tokens if max_batched_tokens is None else max_batched_tokens,
                memory_utilization=problem.memory_utilization,
                gpus_per_node=pool.gpus_per_node,
            ),
            spanning_tp=_spanning_tp(stage.model.architecture.heads, pool),
        )

    def shapes(self, most_gpus: int) -> list[_core.Shape]:
        """Return the shapes of at most so many GPUs that hold the model, smallest first."""
        found = self._shapes_on_nodes_of(self.limits.gpus_per_node, most_gpus)
        for tp in self.spanning_tp:
            # Whole nodes that share one tensor parallelism are, but for their links, one large node.
            found += [shape for shape in self._shapes_on_nodes_of(tp, most_gpus) if shape.tp == tp]
        return sorted(found, key=lambda shape: (shape.gpus, shape.tp))

    def _shapes_on_nodes_of(self, gpus_per_node: int, most_gpus: int) -> list[_core.Shape]:
        return _core.valid_shapes(
            architecture=self.architecture,
            precision=self.precision,
            gpu=self.gpu,
            gpus_total=most_gpus,
            limits=_core.EngineLimits(
                max_num_seqs=self.limits.max_num_seqs,
                max_batched_tokens=self.limits.max_batched_tokens,
                memory_utilization=self.limits.memory_utilization,
                gpus_per_node=gpus_per_node,
            ),
        )

    def replica(self, shape: _core.Shape) -> _core.Replica:
        """Return one engine."""
        return _core.Replica(
            architecture=self.architecture,
            precision=self.precision,
            gpu=self.gpu,
            efficiency=self.efficiency,
            shape=shape,
            limits=self.limits,
        )


def _spanning_tp(heads: int, pool: GpuPool) -> tuple[int, ...]:
    """Degrees of tensor parallelism that fill several nodes of a pool that allows it."""
    node = pool.gpus_per_node
    return tuple(tp for tp in range(2 * node, heads + 1, node) if heads % tp == 0) if pool.tp_across_nodes else ()


def native_architecture(spec: ArchitectureSpec) -> _core.Architecture:
    """Return the sizes of a model."""
    return _core.Architecture(**dataclasses.asdict(spec))


def native_gpu(spec: GpuSpec) -> _core.Gpu:
    """Return the peak figures of a GPU and its links."""
    return _core.Gpu(
        memory_bytes=spec.memory_bytes,
        bandwidth_bytes_per_s=spec.bandwidth_bytes_per_s,
        bf16_flops_per_s=spec.bf16_flops_per_s,
        fp8_flops_per_s=spec.fp8_flops_per_s,
        int8_ops_per_s=spec.int8_ops_per_s,
        link_bytes_per_s=spec.link_bytes_per_s,
        internode_bytes_per_s=spec.internode_bytes_per_s,
    )
