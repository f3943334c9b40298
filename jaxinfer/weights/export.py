"""Parameters back to the layout of Hugging Face transformers: the inverse of loading."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from jaxinfer.config import ModelConfig
from jaxinfer.models import decoder
from jaxinfer.models.decoder import Params
from jaxinfer.models.family import Family, Source
from jaxinfer.quantize import QTensor
from jaxinfer.weights.checkpoint import INDEX, SINGLE, file_shape
from jaxinfer.weights.folder import copy_tokenizer, new_folder
from jaxinfer.weights.loaded import as_laid_out
from jaxinfer.weights.safetensors_file import write

MAX_SHARD_BYTES = 5_000_000_000


def save(
    folder: str | Path,
    params: Params,
    config: ModelConfig,
    family: Family,
    hf_config: Mapping,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    tokenizer_from: str | Path | None = None,
) -> None:
    """Write a folder that transformers (and `load`) can read: safetensors files, config.json,
    tokenizer files.

    hf_config: the content of config.json; it must describe `config`. The weights go to one file, or
    to several of at most max_shard_bytes (a larger tensor has its own). One tensor at a time is
    held on the host. ValueError: quantized parameters, or an hf_config of another model.
    """
    described = family.read(hf_config)
    if described != config:
        raise ValueError(
            f"hf_config needs to describe the model, {config}, got {described}; pass its own "
            "config.json"
        )
    if any(isinstance(leaf, QTensor) for leaf in jax.tree.leaves(params, is_leaf=decoder.is_leaf)):
        raise ValueError(
            "the Hugging Face layout needs unquantized parameters, got quantized ones; save them "
            "with Orbax"
        )
    tensors, read = _tensors(as_laid_out(params, config), config, family)
    parts = _parts(tensors, max_shard_bytes)
    names = (
        [SINGLE]
        if len(parts) == 1
        else [f"model-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
    )
    with new_folder(Path(folder)) as target:
        for name, part in zip(names, parts, strict=True):
            write(target / name, {tensor: tensors[tensor] for tensor in part}, read)
        if len(parts) > 1:
            weight_map = {
                tensor: name for name, part in zip(names, parts, strict=True) for tensor in part
            }
            size = sum(_bytes(*tensor) for tensor in tensors.values())
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            (target / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        dtype = params.norm.scale.dtype.name
        (target / "config.json").write_text(
            json.dumps({**hf_config, "torch_dtype": dtype}, indent=2) + "\n"
        )
        if tokenizer_from is not None:
            copy_tokenizer(Path(tokenizer_from), target)


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape)) * dtype.itemsize


def _tensors(
    params: Params, config: ModelConfig, family: Family
) -> tuple[dict[str, tuple[tuple[int, ...], np.dtype]], Callable[[str], np.ndarray]]:
    """(shape, dtype) of every tensor of the files, and a function that makes one."""
    shapes, rows = decoder.canonical_shapes(config), _rows(params, config)
    members: dict[str, list[tuple[str, Source]]] = {}
    for canonical, source in family.tensors(config).items():
        members.setdefault(source.name, []).append((canonical, source))
    tensors = {}
    for name, parts in members.items():
        canonical, source = parts[0]
        tensors[name] = (
            file_shape(shapes[canonical], source),
            np.dtype(rows[canonical][0][2].dtype),
        )

    def read(name):
        shape, dtype = tensors[name]
        out = np.zeros(shape, dtype)
        for canonical, source in members[name]:
            view = out.T if source.transposed else out
            for start, stop, value, at in rows[canonical]:
                view[source.first + start : source.first + stop] = np.asarray(
                    value[at : at + stop - start]
                )
        return out

    return tensors, read


def _rows(params: Params, config: ModelConfig) -> dict[str, list[tuple[int, int, jax.Array, int]]]:
    """Where each canonical tensor's rows are: start .. stop from row `at` of a parameter."""
    found: dict[str, list] = {}
    values = jax.tree.leaves(params, is_leaf=decoder.is_leaf)
    for leaf, value in zip(decoder.leaves(config, params.shards), values, strict=True):
        at = 0
        for piece in leaf.pieces:
            if piece.name is not None:
                found.setdefault(piece.name, []).append((piece.start, piece.stop, value, at))
            at += piece.stop - piece.start
    return found


def _parts(tensors, limit: int) -> list[list[str]]:
    parts, size = [[]], 0
    for name, tensor in tensors.items():
        if parts[-1] and size + _bytes(*tensor) > limit:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += _bytes(*tensor)
    return parts
