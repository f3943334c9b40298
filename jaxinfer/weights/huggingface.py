"""Checkpoints in the layout of Hugging Face transformers: `config.json` and safetensors files.

Everything is checked before the first array is made; then each parameter is read, converted,
quantized and placed on its own, so that the host holds one parameter beside those already placed.
"""

import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxinfer import sharding
from jaxinfer.config import ModelConfig
from jaxinfer.models import decoder, registry
from jaxinfer.models.family import Family
from jaxinfer.quantize import check_method
from jaxinfer.weights import checkpoint, placement
from jaxinfer.weights.hub import resolve
from jaxinfer.weights.loaded import Loaded, check_dtype, default_dtype
from jaxinfer.weights.progress import Progress
from jaxinfer.weights.safetensors_file import (
    BLOCK,
    CheckpointError,
    Entry,
    read_json,
    read_rows,
)

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
MOST_LAYERS = 4096


def read_config(folder: str | Path) -> tuple[dict, Family, ModelConfig]:
    """config.json as parsed, its family, and what it describes. CheckpointError: it is unusable."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise CheckpointError(
            f"{folder}: needs config.json, which is missing; give the folder of a whole checkpoint"
        )
    hf = read_json(path, "the model's description")
    for key in LAYER_COUNTS:
        if isinstance(hf.get(key), int) and hf[key] > MOST_LAYERS:
            raise CheckpointError(
                f"{path}: needs at most {MOST_LAYERS} layers, got {key}={hf[key]}"
            )
    try:
        family = registry.family_of(hf)
        return hf, family, family.read(hf)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def load(
    path_or_hub_id: str | Path,
    *,
    dtype=None,
    mesh=None,
    quantize: str | None = None,
    show_progress: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Loaded:
    """Read a checkpoint into `Params` that lie where `mesh` says (None: on the default device).

    dtype: float32, bfloat16 or float16 by name or type (None: the checkpoint's; float32 on CPU).
    quantize: "int8" or "w8a8" rounds matrices while they load. show_progress: a bar on stderr,
    where that is a terminal. progress(bytes placed, bytes in all) is called after every parameter.
    CheckpointError: the checkpoint cannot be used.
    """
    return _load(
        resolve(path_or_hub_id),
        check_dtype(dtype),
        mesh,
        quantize,
        Progress(show_progress, progress),
    )


def _load(folder: Path, dtype, mesh, method, progress: Progress) -> Loaded:
    check_method(method)
    _, family, config = read_config(folder)
    layout = decoder.layout(config, sharding.model_shards(mesh))
    tensors, head = checkpoint.match(folder, family, config)
    dtype = default_dtype(checkpoint.dtype_of(tensors)) if dtype is None else dtype

    def fill(name: str, start: int, stop: int, out: np.ndarray) -> None:
        tensor = tensors[name]
        read_rows(tensor.entry, tensor.first + start, tensor.first + stop, out, tensor.transposed)

    def build(leaf):
        try:
            value = placement.place(leaf, fill, dtype, mesh, method)
        except OSError as error:
            raise CheckpointError(
                f"{folder}: cannot read it: {error.strerror}; fetch it again"
            ) from error
        except placement.RoundingError as error:
            raise CheckpointError(f"{folder}: tensor {leaf.pieces[0].name}: {error}") from error
        progress.advance(math.prod(leaf.shape) * dtype.itemsize)
        return value

    if head is not None:
        _check_tied(folder, tensors["embed"].entry, head)
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(layout, is_leaf=decoder.is_leaf))
    with progress.over(total * dtype.itemsize):
        params = jax.tree.map(build, layout, is_leaf=decoder.is_leaf)
    return Loaded(params, config, folder)


def _check_tied(folder: Path, embed: Entry, head: Entry) -> None:
    step = max(1, BLOCK // (4 * embed.shape[1]))
    for start in range(0, embed.shape[0], step):
        stop = min(start + step, embed.shape[0])
        blocks = []
        for entry in (embed, head):
            blocks.append(np.empty((stop - start, embed.shape[1]), np.float32))
            read_rows(entry, start, stop, blocks[-1])
        if not np.array_equal(*blocks, equal_nan=True):
            raise CheckpointError(
                f"{folder}: config.json ties the output head to the embedding, but the files hold "
                "a different head; set tie_word_embeddings to false in config.json if the head is "
                "meant"
            )
