"""GPUs and models known by name.

The numbers are data (``data/gpus.json``, ``data/models.json``), each with its unit in the key, its source and its date.
Any other model works from its own Hugging Face ``config.json``.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from .architecture import (
    ArchitectureSpec,
    architecture_from_config,
    max_model_len_from_config,
    native_weights_from_config,
)
from .errors import InputError, did_you_mean

__all__ = [
    "ArchitectureSpec",
    "GpuSpec",
    "ModelSpec",
    "architecture_from_config",
    "checkpoints_of",
    "gpu",
    "gpu_names",
    "model",
    "model_from_config",
    "model_names",
]


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """One GPU and the links it hangs on; peak figures without sparsity, SI units.

    Parameters
    ----------
    name
        Catalog name.
    memory_bytes
        Device memory.
    bandwidth_bytes_per_s
        Peak bandwidth of the device memory.
    bf16_flops_per_s, fp8_flops_per_s, int8_ops_per_s
        Peak dense matrix throughput; None where the GPU has no such units.
    link_bytes_per_s
        Bandwidth to the other GPUs of its node (NVLink, xGMI or PCIe), per GPU and direction.
    internode_bytes_per_s
        Network bandwidth to other nodes, per GPU and direction.
    gpus_per_node
        GPUs of the usual node.
    price_usd_per_hour
        On-demand price of one GPU when the catalog was made; None where no price was found.
    power_w
        Thermal design power.
    source
        Where the figures come from, with the date of the reading.
    """

    name: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    bf16_flops_per_s: float
    fp8_flops_per_s: float | None
    int8_ops_per_s: float | None
    link_bytes_per_s: float
    internode_bytes_per_s: float
    gpus_per_node: int
    price_usd_per_hour: float | None
    power_w: float
    source: str


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A language model: its sizes, and the precision its checkpoint is stored in.

    Parameters
    ----------
    name
        Catalog name, or the name of the file it was read from.
    huggingface_id
        ``organisation/name`` on Hugging Face; empty when unknown.
    architecture
        The sizes.
    native_weights
        ``bf16``, ``fp8``, ``int8``, ``int4``, ``mxfp4``, ….
    max_model_len
        Longest context, prompt and output together, in tokens.
    source
        Where the figures come from.
    """

    name: str
    huggingface_id: str
    architecture: ArchitectureSpec
    native_weights: str
    max_model_len: int
    source: str


def gpu(name: str) -> GpuSpec:
    """Return the GPU of that catalog name or alias (case does not count).

    Raises
    ------
    InputError
        The name is unknown; the message gives the nearest known one.
    """
    known = _index("gpus")
    try:
        return _gpu(known[_key(name)])
    except KeyError:
        hint = did_you_mean(name, known) or f"; known are {', '.join(gpu_names())}"
        raise InputError(f"unknown GPU {name!r}{hint}") from None


def model(name_or_path: str | os.PathLike[str], base_dir: str | os.PathLike[str] | None = None) -> ModelSpec:
    """Return a model by catalog name, alias, Hugging Face id, or the path of a Hugging Face ``config.json``.

    Parameters
    ----------
    name_or_path
        Names win over files; case does not count in names.
    base_dir
        Relative paths start here; the current directory if not given.

    Raises
    ------
    InputError
        The name is unknown (the message gives the nearest known one), or the file cannot be read as a model.
    UnsupportedError
        The model is of a kind that cannot be planned.
    """
    known = _index("models")
    text = os.fspath(name_or_path)
    if _key(text) in known:
        return _catalog_model(known[_key(text)])
    path = os.path.join(base_dir or "", os.path.expanduser(text))
    is_path = isinstance(name_or_path, os.PathLike) or text.endswith(".json") or text.startswith((".", "~", "/"))
    if is_path or os.path.exists(path):
        return model_from_config(path)
    listed = "cascadia_fast.catalog.model_names() lists the catalog"
    hint = did_you_mean(text, known)
    if not hint:
        raise InputError(
            f"unknown model {text!r}; give a catalog name, a Hugging Face id, or the path of any Hugging Face "
            f"config.json ({listed})"
        )
    nearest = difflib.get_close_matches(_key(text), map(_key, model_names()), n=3, cutoff=0.5)
    also = [name for name in nearest if repr(name) not in hint]
    near = f"near are also {', '.join(also)}; " if also else ""
    raise InputError(f"unknown model {text!r}{hint} ({near}any Hugging Face config.json works too; {listed})")


def model_from_config(path: str | os.PathLike[str]) -> ModelSpec:
    """Read a model from a Hugging Face ``config.json``.

    Raises
    ------
    InputError
        The file is missing, is a directory, is not JSON, or lacks a field; the message says which.
    UnsupportedError
        The model is of a kind that cannot be planned.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise InputError(f"model config {str(path)!r} is a directory; give the config.json inside it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"model config {str(path)!r} is not a regular file; copy what it delivers to one")
    try:
        content = path.read_bytes()
        config = json.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"model config {str(path)!r} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"model config {str(path)!r} is not JSON: {error}") from None
    where = f"model config {str(path)!r}"
    stem = path.absolute().parent.name if path.stem == "config" else path.stem
    return ModelSpec(
        name=stem.lower(),
        huggingface_id=_huggingface_id(config.get("_name_or_path")) if isinstance(config, dict) else "",
        architecture=architecture_from_config(config, where),
        native_weights=native_weights_from_config(config, where),
        max_model_len=max_model_len_from_config(config, where),
        source=f"{path.name}, sha256 {hashlib.sha256(content).hexdigest()}",
    )


def gpu_names() -> tuple[str, ...]:
    """Return the catalog names of all GPUs, sorted."""
    return tuple(sorted(_data("gpus")))


def model_names() -> tuple[str, ...]:
    """Return the catalog names of all models, sorted."""
    return tuple(sorted(_checkpoints()))


def checkpoints_of(name: str) -> frozenset[str]:
    """Return the names of all checkpoints of a model: those of its catalog entry, or `name` alone when it has none."""
    known = _index("models").get(_key(name))
    return frozenset(_checkpoints()[known][0]["checkpoints"] if known else (name,))


@functools.cache
def _gpu(name: str) -> GpuSpec:
    entry = _data("gpus")[name]
    price = f"; price: {entry['price_source']}" if entry["price_source"] else ""
    return GpuSpec(
        name=name,
        memory_bytes=entry["memory_bytes"],
        bandwidth_bytes_per_s=entry["bandwidth_bytes_per_s"],
        bf16_flops_per_s=entry["bf16_flops_per_s"],
        fp8_flops_per_s=entry["fp8_flops_per_s"],
        int8_ops_per_s=entry["int8_ops_per_s"],
        link_bytes_per_s=entry["link_bytes_per_s"],
        internode_bytes_per_s=entry["internode_bytes_per_s"],
        gpus_per_node=entry["gpus_per_node"],
        price_usd_per_hour=entry["price_usd_per_hour"],
        power_w=entry["power_w"],
        source=f"{entry['source']} ({entry['date']}){price}",
    )


@functools.cache
def _catalog_model(name: str) -> ModelSpec:
    entry, huggingface_id = _checkpoints()[name]
    config: Mapping[str, object] = entry["config"]
    where = f"the catalog's model {name!r}"
    return ModelSpec(
        name=name,
        huggingface_id=huggingface_id,
        architecture=architecture_from_config(config, where),
        native_weights=entry["native_weights"] or native_weights_from_config(config, where),
        max_model_len=max_model_len_from_config(config, where),
        source=f"{entry['source']} ({entry['date']})",
    )


@functools.cache
def _data(table: str) -> Mapping[str, Mapping[str, Any]]:
    content = resources.files(__package__).joinpath("data", f"{table}.json").read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = json.loads(content)
    return entries


@functools.cache
def _checkpoints() -> Mapping[str, tuple[Mapping[str, Any], str]]:
    """Map each checkpoint name to its catalog entry and Hugging Face id; checkpoints of one entry differ in weights."""
    return {name: (entry, known) for entry in _data("models").values() for name, known in entry["checkpoints"].items()}


@functools.cache
def _index(table: str) -> Mapping[str, str]:
    """Map every name, alias and Hugging Face id, folded, to the name it stands for."""
    index = {_key(alias): name for entry in _data(table).values() for alias, name in entry["aliases"].items()}
    if table == "gpus":
        return index | {_key(name): name for name in _data(table)}
    for name, (_, huggingface_id) in _checkpoints().items():
        index[_key(name)] = index[_key(huggingface_id)] = name
    return index


def _key(name: str) -> str:
    return name.strip().casefold().replace("_", "-").replace(" ", "-")


def _huggingface_id(value: object) -> str:
    """Return `value` if it looks like ``organisation/name``, else an empty string: some configs hold a local path."""
    is_id = isinstance(value, str) and value.count("/") == 1 and not value.startswith(("/", ".", "~"))
    return str(value) if is_id else ""
