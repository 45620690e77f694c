"""Catalog entries as the native core takes them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from cascadia_fast import _core

if TYPE_CHECKING:
    from cascadia_fast.architecture import ArchitectureSpec
    from cascadia_fast.catalog import GpuSpec

__all__ = ["native_architecture", "native_gpu"]


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
