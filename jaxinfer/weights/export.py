"""Parameters back to the layout of Hugging Face transformers: the inverse of loading."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.config import ModelConfig
from jaxinfer.models import decoder
from jaxinfer.models.decoder import Params
from jaxinfer.models.family import Family, Source
from jaxinfer.quantize import QTensor
from jaxinfer.quantize import rows as take
from jaxinfer.weights.checkpoint import INDEX, SINGLE, file_shape
from jaxinfer.weights.folder import copy_tokenizer, new_folder
from jaxinfer.weights.formats import WRITERS
from jaxinfer.weights.formats.settings import WHERE
from jaxinfer.weights.formats.writing import Described
from jaxinfer.weights.loaded import as_laid_out
from jaxinfer.weights.repack import Repacker, Span, packable
from jaxinfer.weights.safetensors_file import write

HEADS = {"embed", "unembed", "positions"}
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
    format: str | None = None,
) -> None:
    """Write a folder that transformers (and `load`) can read: safetensors files, config.json,
    tokenizer files.

    hf_config: the content of config.json; it must describe `config`. The weights go to one file, or
    to several of at most max_shard_bytes (a larger tensor has its own). One tensor at a time is
    held on the host. format: of quantized parameters, a key of `formats.WRITERS`: the integers and
    scales of linear maps are written as they are, embeddings and the output head as floats.
    ValueError: quantized parameters that no format is named for, or that it cannot hold; an
    hf_config of another model.
    """
    described = family.read(hf_config)
    if described != config:
        raise ValueError(
            f"hf_config needs to describe the model, {config}, got {described}; pass its own "
            "config.json"
        )
    leaves = jax.tree.leaves(params, is_leaf=decoder.is_leaf)
    if format is None and any(isinstance(leaf, QTensor) for leaf in leaves):
        raise ValueError(
            "the Hugging Face layout needs unquantized parameters, or the name of a format for them "
            f"({', '.join(WRITERS)}), got quantized ones and none; name one, or save with Orbax"
        )
    tensors, read, packed = _tensors(as_laid_out(params, config), config, family, format)
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
            json.dumps({**hf_config, "torch_dtype": dtype, **packed}, indent=2) + "\n"
        )
        if tokenizer_from is not None:
            copy_tokenizer(Path(tokenizer_from), target)


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return int(np.prod(shape)) * dtype.itemsize


def _tensors(
    params: Params, config: ModelConfig, family: Family, format: str | None
) -> tuple[Described, Callable[[str], np.ndarray], dict]:
    """(shape, dtype) of every tensor of the files, a function that makes one, and what config.json
    says of their quantization.
    """
    shapes, rows = decoder.canonical_shapes(config), _rows(params, config)
    members: dict[str, list[tuple[str, Source]]] = {}
    for canonical, source in family.tensors(config).items():
        members.setdefault(source.name, []).append((canonical, source))
    tensors, spans, plain = {}, {}, []
    own = np.dtype(params.norm.scale.dtype)
    for name, parts in members.items():
        canonical, source = parts[0]
        value = rows[canonical][0][2]
        dtype = own if isinstance(value, QTensor) else np.dtype(value.dtype)
        tensors[name] = (file_shape(shapes[canonical], source), dtype)
        values = [row[2] for part, _ in parts for row in rows[part]]
        if format is not None and packable(name, parts, values):
            spans[name] = [
                Span(source.first + start, stop - start, value, at)
                for part, source in parts
                for start, stop, value, at in rows[part]
                if isinstance(value, QTensor)
            ]
        elif len(tensors[name][0]) == 2 and not {part for part, _ in parts} & HEADS:
            plain.append(name)
    packed = None
    if format is not None:
        found = {name: tensors.pop(name)[0] for name in spans}
        packed = Repacker(format, spans, found, plain, own)

    def read(name):
        if packed is not None and name in packed.tensors:
            return packed.read(name)
        shape, dtype = tensors[name]
        out = np.zeros(shape, dtype)
        for canonical, source in members[name]:
            view = out.T if source.transposed else out
            for start, stop, value, at in rows[canonical]:
                view[source.first + start : source.first + stop] = np.asarray(
                    take(value, jnp.arange(at, at + stop - start), dtype)
                )
        return out

    more = {} if packed is None else packed.tensors
    settings = {} if packed is None else {WHERE: packed.config}
    return tensors | more, read, settings


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
