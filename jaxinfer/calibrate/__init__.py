"""Methods that look at activations: real text through a checkpoint, layer by layer.

One layer's float32 weights (before the first the embedding's), its statistics and the activations
that enter it are held beside what is already quantized; never the whole model in full precision.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer import ragged
from jaxinfer.calibrate.layers import CalibrationError, quantize_layer
from jaxinfer.calibrate.statistics import Statistics, forward, linears, observe
from jaxinfer.models import decoder
from jaxinfer.quantize import Recipe
from jaxinfer.weights.huggingface import Reader
from jaxinfer.weights.loaded import Loaded, check_dtype
from jaxinfer.weights.safetensors_file import CheckpointError

__all__ = ["CalibrationError", "Statistics", "calibrate", "quantize_layer"]

WINDOW = 512  # tokens of calibration text that see each other
TOKENS = 32768  # in all, where nobody says
BLOCK = 4096  # that pass a layer at once
WITH_GRAM = ("awq", "gptq")  # methods that look at products of activations


def calibrate(
    folder: str | Path,
    recipe: Recipe,
    ids: Sequence[int],
    *,
    window: int = WINDOW,
    tokens: int = TOKENS,
    act_order: bool = True,
    clip: bool = True,
    dtype=None,
    progress: Callable[[int, int], None] | None = None,
) -> Loaded:
    """Quantize a Hugging Face checkpoint by what its layers see of a text.

    ids: the text. windows of `window` tokens at even distances of it, `tokens` in all at most, run
    through the model without a cache. act_order: GPTQ's order of columns. clip: whether
    GPTQ's four-bit grids leave out the largest weights of a group where the text says that it costs
    less (as its authors' `mse` option). dtype: of what is not quantized (None: as loading would
    choose). progress(layers done, layers in all). GPTQ's layers see what the quantized layers before
    them give (section 4 of its paper), others' what the float ones give. Parameters are laid out
    for one shard; saved, they restore on any mesh.
    ValueError: too little text, or a recipe that does not fit; CheckpointError: the checkpoint
    cannot be used.
    """
    reader = Reader(Path(folder), floats=True)
    config, wide = reader.config, np.dtype(np.float32)
    wanted = check_dtype(dtype) or reader.dtype
    batches = _batches(ids, min(window, config.max_position), tokens)
    plain = reader.layout.replace(layers=(), norm=reader.layout.norm, unembed=None)
    first = jax.tree.map(lambda leaf: reader.read(leaf, wide, None), plain, is_leaf=decoder.is_leaf)
    rows = [np.asarray(decoder.embed(first, config, batch)) for batch in batches]
    del first
    layers = []
    for i, (own, described) in enumerate(zip(config.layers, reader.layout.layers, strict=True)):
        p = _read(reader, described, wide)
        seen = {
            name: Statistics.empty(value.w.shape[1], gram=recipe.method in WITH_GRAM)
            for name, value in linears(p).items()
        }
        after = []
        for x, batch in zip(rows, batches, strict=True):
            y, seen = observe(jnp.asarray(x), p, seen, batch, config=config, layer=own)
            after.append(np.asarray(y))
        seen = {name: seen[name] for name in linears(p)}  # jit sorts names
        try:
            small = quantize_layer(
                p, seen, recipe, config, own, act_order=act_order, clip=clip, dtype=wanted
            )
        except CalibrationError:
            raise
        except ValueError as error:
            raise CheckpointError(f"{folder}: layer {i}: {error}") from error
        if recipe.method == "gptq":
            after = [
                np.asarray(forward(jnp.asarray(x), small, batch, config=config, layer=own))
                for x, batch in zip(rows, batches, strict=True)
            ]
        rows = after
        layers.append(jax.tree.map(_held(wanted), small, is_leaf=decoder.is_leaf))
        if progress is not None:
            progress(i + 1, len(config.layers))
    others = reader.layout.replace(layers=())
    params = jax.tree.map(
        lambda leaf: reader.read(leaf, wanted, recipe), others, is_leaf=decoder.is_leaf
    )
    return Loaded(params.replace(layers=tuple(layers)), config, reader.folder)


def _read(reader: Reader, described: Any, dtype: np.dtype) -> decoder.Layer:
    return jax.tree.map(
        lambda leaf: reader.read(leaf, dtype, None), described, is_leaf=decoder.is_leaf
    )


def _held(dtype: np.dtype):
    def cast(leaf):
        return leaf.astype(dtype) if isinstance(leaf, jax.Array) else leaf

    return cast


def _batches(ids: Sequence[int], window: int, tokens: int) -> list[ragged.Ragged]:
    """Windows at even distances, some BLOCK tokens together."""
    if window < 2 or tokens < window:
        raise ValueError(
            f"calibration needs a window of at least 2 tokens and at least one window, got {window=}, "
            f"{tokens=}"
        )
    if len(ids) < window:
        raise ValueError(
            f"calibration needs at least {window} tokens of text, got {len(ids)}; give a longer text, "
            "or a shorter window"
        )
    count = min(tokens, len(ids)) // window
    starts = np.linspace(0, len(ids) - window, count).astype(int)
    windows = np.stack([np.asarray(ids[start : start + window], np.int32) for start in starts])
    parts = np.split(windows, range(max(1, BLOCK // window), count, max(1, BLOCK // window)))
    return [_whole(jnp.asarray(part)) for part in parts]


def _whole(tokens: jax.Array) -> ragged.Ragged:
    rows = jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32)
    return ragged.rectangle(tokens, rows, jnp.zeros(tokens.shape[:1], jnp.int32))
