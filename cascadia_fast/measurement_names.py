"""What benchmark files call models, engines and number formats, and what we do."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cascadia_fast import catalog
from cascadia_fast.catalog import ModelSpec
from cascadia_fast.errors import CascadiaError, InputError, did_you_mean

ENGINES = {
    "vllm": "vllm",
    "sglang": "sglang",
    "trtllm": "trtllm",
    "trt": "trtllm",
    "tensorrt-llm": "trtllm",
    "tensorrt_llm": "trtllm",
}
# Names of formats in files and engines, by the format whose bytes and arithmetic they have.
_WEIGHTS = {
    "bf16": ("bf16", "bfloat16", "fp16", "float16", "half"),
    "fp8": (
        "fp8",
        "fp8_block",
        "fp8_static",
        "fp8_ootb",
        "fp8_e4m3",
        "w8a8_fp8",
        "modelopt",
        "modelopt_fp8",
        "fbgemm_fp8",
    ),
    "int8": ("int8", "int8_wo", "w8a8", "w8a8_int8", "w8a16", "sq", "smoothquant"),
    "int4": ("int4", "int4_wo", "awq", "awq_marlin", "gptq", "gptq_marlin", "w4a16", "w4a16_awq", "w4a8", "w4afp8"),
    "mxfp4": ("mxfp4", "w4a16_mxfp4", "w4a8_mxfp4_fp8", "w4a8_mxfp4_mxfp8"),
    "nvfp4": ("nvfp4", "fp4", "modelopt_fp4", "w4a16_nvfp4"),
}
_UNSAID = ("auto", "none")
BITS = {"bf16": 16, "fp8": 8, "int8": 8, "int4": 4, "mxfp4": 4, "nvfp4": 4}
# SGLang's name for experts in int4 beside everything else in fp8.
MIXED = "w4afp8"
_WEIGHTS_BY_NAME = {name: known for known, names in _WEIGHTS.items() for name in names}
_KV = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "bf16",
    "float16": "bf16",
    "fp8": "fp8",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
}
# A quantised copy of a catalogued checkpoint is named after it with one of these behind.
_SUFFIX = r"[-_.](fp8|fp4|nvfp4|mxfp4|int8|int4|awq|gptq|w4a16|w8a8|w8a16|bf16|quantized)(?![a-z0-9])"
_QUANTISED = re.compile(f"{_SUFFIX}.*$", re.IGNORECASE)
_QUANTISATION = re.compile(_SUFFIX, re.IGNORECASE)


class Unusable(Exception):
    """A run that cannot be used; the message is the reason, without the place."""


def find_model(text: str, configs: Mapping[str, str]) -> tuple[str, ModelSpec] | str:
    """A model by the name in a file; a reason when there is none.

    Files name checkpoints by a local path, or a quantised copy that someone else published; both end in the name of
    the checkpoint they are of.
    """
    last = _last_part(text)
    for name in (text, last):
        if folded(name) in configs:
            path = configs[folded(name)]
            return path, catalog.model_from_config(path)
    for name in dict.fromkeys((text, last, _QUANTISED.sub("", last))):
        try:
            return name, catalog.model(name)
        except InputError:
            continue
        except CascadiaError as error:
            return str(error)
    hint = did_you_mean(last, catalog.model_names())
    return f"unknown model {shown(text)}; give its config with --model-config {last}=config.json{hint}"


def engine_named(text: str) -> str:
    """The engine: ``vllm``, ``sglang`` or ``trtllm``."""
    found = ENGINES.get(text.lower())
    if found is None:
        raise Unusable(
            f"unknown engine {shown(text)}{did_you_mean(text, ENGINES) or '; known are vllm, sglang, trtllm'}"
        )
    return found


def weights_in_name(model: str) -> str | None:
    """The format that the name of a quantised checkpoint ends in."""
    words = [word for word in _QUANTISATION.findall(_last_part(model)) if word.lower() in _WEIGHTS_BY_NAME]
    return words[-1] if words else None


def weights_named(text: str, called: str = "weights") -> str | None:
    """The format of weights, ``nvfp4`` among them; None for the checkpoint's own. `called` is the column's name."""
    if text.lower() in _UNSAID:
        return None
    found = _WEIGHTS_BY_NAME.get(text.lower())
    if found is None:
        known = did_you_mean(text, _WEIGHTS_BY_NAME) or f"; known are {', '.join(_WEIGHTS)}"
        raise Unusable(f"unknown {called} {shown(text)}{known}")
    return found


def kv_named(text: str, called: str = "kv") -> str | None:
    """The format of the KV cache; None for what the engine chooses itself."""
    if text.lower() in _UNSAID:
        return None
    found = _KV.get(text.lower())
    if found is None:
        raise Unusable(f"unknown {called} {shown(text)}; known are bf16, fp8")
    return found


def _last_part(text: str) -> str:
    """The checkpoint's name in a path or a Hugging Face id."""
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1]


def folded(name: str) -> str:
    """A name as names are compared."""
    return name.strip().casefold()


def shown(value: object) -> str:
    """A value for messages, shortened."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"
