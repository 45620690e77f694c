"""What engines reach of the hardware's peaks: the fitted numbers behind every predicted time."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

from .catalog import gpu
from .errors import InputError, did_you_mean

__all__ = ["WEIGHT_FORMATS", "efficiency_for", "profile"]

WEIGHT_FORMATS = ("bf16", "fp8", "int8", "int4", "mxfp4")


def efficiency_for(gpu_name: str, weights: str) -> tuple[dict[str, float], str]:
    """Return the efficiencies of one GPU type and weight format, and how far they can be trusted.

    One set of numbers serves all: bf16 and fp8 were fitted with a compute efficiency each and came out alike, and the
    experts of mxfp4 were measured together with those of fp8.

    Parameters
    ----------
    gpu_name
        A GPU of the catalog, or an alias.
    weights
        Weight format: ``bf16``, ``fp8``, ``int8``, ``int4`` or ``mxfp4``.

    Returns
    -------
    efficiency
        Keyword arguments of ``_core.Efficiency``: fractions of a peak, or seconds where the name ends in ``_s``.
    status
        ``provisional``: fitted to measurements of this GPU and format. ``transferred``: never measured here; the
        fractions of other hardware, or of other formats, are assumed to hold.

    Raises
    ------
    InputError
        The GPU or the weight format is unknown.
    """
    if weights not in WEIGHT_FORMATS:
        hint = did_you_mean(weights, WEIGHT_FORMATS) or f"; known are {', '.join(WEIGHT_FORMATS)}"
        raise InputError(f"unknown weight format {weights!r}{hint}")
    fitted = profile()
    measured = gpu(gpu_name).name in fitted["gpus"] and weights in fitted["weights"]
    return dict(fitted["efficiency"]), str(fitted["status"]) if measured else "transferred"


@functools.cache
def profile() -> dict[str, Any]:
    """Return the shipped fit: its numbers, their provenance (table, checksum, command) and their errors."""
    text = resources.files("cascadia_fast").joinpath("data", "efficiency.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content
