"""Catalog entries as the native core takes them, and the engines that are put together from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cascadia_fast import _core

if TYPE_CHECKING:
    from cascadia_fast.architecture import ArchitectureSpec
    from cascadia_fast.catalog import GpuSpec
    from cascadia_fast.problem import Problem, Stage

__all__ = ["EngineParts", "native_architecture", "native_gpu"]


@dataclass(frozen=True)
class EngineParts:
    """What the engines of one stage have in common, whatever their shape."""

    architecture: _core.Architecture
    precision: _core.Precision
    gpu: _core.Gpu
    efficiency: _core.Efficiency
    limits: _core.EngineLimits

    @classmethod
    def of(
        cls, problem: Problem, stage: Stage, max_num_seqs: int | None = None, max_batched_tokens: int | None = None
    ) -> Self:
        """Return the parts for a stage; limits that are not given are the problem's."""
        return cls(
            architecture=native_architecture(stage.model.architecture),
            precision=_core.Precision(weights=stage.weights, kv=stage.kv_dtype),
            gpu=native_gpu(problem.gpu),
            efficiency=_core.Efficiency(**problem.profile.efficiency(stage.weights, stage.kv_dtype, problem.engine)),
            limits=_core.EngineLimits(
                max_num_seqs=problem.max_num_seqs if max_num_seqs is None else max_num_seqs,
                max_batched_tokens=problem.max_batched_tokens if max_batched_tokens is None else max_batched_tokens,
                memory_utilization=problem.memory_utilization,
                gpus_per_node=problem.gpus_per_node,
            ),
        )

    def shapes(self, most_gpus: int) -> list[_core.Shape]:
        """Return the shapes of at most so many GPUs that hold the model, smallest first."""
        return _core.valid_shapes(
            architecture=self.architecture,
            precision=self.precision,
            gpu=self.gpu,
            gpus_total=most_gpus,
            limits=self.limits,
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
