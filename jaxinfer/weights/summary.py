"""What a checkpoint is, as plain numbers, from its descriptions and headers alone: no weight is
read.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxinfer.config import ModelConfig
from jaxinfer.models import decoder, registry
from jaxinfer.quantize import Form
from jaxinfer.weights import checkpoint, huggingface, orbax, prequantized
from jaxinfer.weights.loaded import check_dtype, default_dtype


def describe(folder: str | Path, *, dtype=None, cache_dtype=None) -> dict:
    """The numbers of a checkpoint of either layout, ready for JSON.

    parameters counts a tied head once. bytes is what they take once loaded in `dtype` (None: the
    one loading would choose). kv_bytes_per_token is what one position costs in all layers, in
    `cache_dtype` (None: as the weights); kv_windowed_bytes_per_token is the part of layers that
    keep only a window. CheckpointError: the checkpoint cannot be used.
    """
    folder = Path(folder)
    dtype, cache_dtype = check_dtype(dtype), check_dtype(cache_dtype)
    if orbax.is_checkpoint(folder):
        return _orbax(folder, dtype, cache_dtype)
    return _huggingface(folder, dtype, cache_dtype)


def _huggingface(folder, dtype, cache_dtype):
    hf, family, config, form = huggingface.read_quantized_config(folder)
    tensors, _ = checkpoint.match(folder, family, config, form)
    entries = {entry for tensor in tensors.values() for entry in tensor.entries}
    stored: dict[str, int] = {}
    for entry in entries:
        stored[entry.dtype] = stored.get(entry.dtype, 0) + entry.size
    used = dtype or default_dtype(checkpoint.dtype_of(tensors))
    parts, forms = huggingface.parts_of(tensors), {}
    for i, leaf in enumerate(decoder.leaves(config)):
        found = prequantized.form_of(leaf, parts, used, None) if leaf.quantizable else None
        if found is not None:
            forms[i] = found[0]
    return {
        "layout": "huggingface",
        "family": family.name,
        "architecture": hf["architectures"][0],
        "stored_bytes": dict(sorted(stored.items())),
        "files": {path.name: path.stat().st_size for path in sorted({e.path for e in entries})},
        **_numbers(config, used, cache_dtype or used, form and form.name, forms),
    }


def _orbax(folder, dtype, cache_dtype):
    described = orbax.read_description(folder)
    config = described.config
    used = dtype or default_dtype(np.dtype(described.dtype))
    return {
        "layout": "orbax",
        "family": config.family,
        "architecture": registry.by_name(config.family).architectures[0],
        "stored_bytes": {described.quantize or described.dtype: sum(described.files.values())},
        "files": described.files,
        **_numbers(config, used, cache_dtype or used, described.quantize, orbax.read_forms(folder)),
    }


def _numbers(
    config: ModelConfig,
    used: np.dtype,
    cache: np.dtype,
    method: str | None,
    forms: Mapping[int, Form],
) -> dict:
    held = sum(
        forms[i].nbytes((leaf.shape[0], leaf.shape[1]))
        if i in forms
        else math.prod(leaf.shape) * used.itemsize
        for i, leaf in enumerate(decoder.leaves(config))
    )
    per_layer = 2 * config.num_kv_heads * config.head_dim * cache.itemsize
    windows = [layer.window for layer in config.layers if layer.window is not None]
    return {
        "parameters": sum(map(math.prod, decoder.canonical_shapes(config).values())),
        "bytes": held,
        "dtype": used.name,
        "quantize": method,
        "kv_bytes_per_token": per_layer * len(config.layers),
        "kv_windowed_bytes_per_token": per_layer * len(windows),
        "kv_dtype": cache.name,
        "layers": len(config.layers),
        "d_model": config.d_model,
        "d_ff": config.d_ff,
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "windows": sorted(set(windows)),
        "context": config.max_position,
        "vocabulary": config.vocab_size,
        "tied": config.tied,
    }
