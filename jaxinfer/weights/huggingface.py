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
from jaxinfer.models.linear import Leaf
from jaxinfer.quantize import Recipe, Weight, find
from jaxinfer.weights import checkpoint, formats, placement, prequantized
from jaxinfer.weights.hub import resolve
from jaxinfer.weights.loaded import Loaded, check_dtype, default_dtype
from jaxinfer.weights.progress import Progress
from jaxinfer.weights.safetensors_file import (
    BLOCK,
    CheckpointError,
    Entry,
    cast,
    read_json,
    read_rows,
)

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
MOST_LAYERS = 4096
INT8 = ("int8", "w8a8")  # two ways to multiply the same weights


def read_config(folder: str | Path) -> tuple[dict, Family, ModelConfig]:
    """config.json as parsed but for its quantization, its family, and what it describes.
    CheckpointError: it is unusable.
    """
    return read_quantized_config(folder)[:3]


def read_quantized_config(
    folder: str | Path,
) -> tuple[dict, Family, ModelConfig, formats.Format | None]:
    """As `read_config`, and how the checkpoint is quantized."""
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
        hf, form = formats.split(hf)
        family = registry.family_of(hf)
        return hf, family, family.read(hf), form
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def load(
    path_or_hub_id: str | Path,
    *,
    dtype=None,
    mesh=None,
    quantize: str | Recipe | None = None,
    show_progress: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Loaded:
    """Read a checkpoint into `Params` that lie where `mesh` says (None: on the default device).

    dtype: float32, bfloat16 or float16 by name or type (None: the checkpoint's; float32 on CPU).
    quantize: a recipe, or the name of a method that needs no text: matrices are rounded while they
    load (those of a checkpoint that is quantized already once more; "int8" and "w8a8" take int8
    weights as they are). show_progress: a bar on stderr, where that is a terminal. progress(bytes
    placed, bytes in all) is called after every parameter.
    CheckpointError: the checkpoint cannot be used.
    """
    recipe = find(quantize)
    if recipe is not None and recipe.calibrated:
        raise ValueError(f"{recipe.method} needs text; make a checkpoint with jaxinfer quantize")
    reader = Reader(resolve(path_or_hub_id), mesh)
    wanted = check_dtype(dtype) or reader.dtype
    bar = Progress(show_progress, progress)

    def build(leaf):
        value = reader.read(leaf, wanted, recipe)
        bar.advance(math.prod(leaf.shape) * wanted.itemsize)
        return value

    leaves = jax.tree.leaves(reader.layout, is_leaf=decoder.is_leaf)
    with bar.over(sum(math.prod(leaf.shape) for leaf in leaves) * wanted.itemsize):
        params = jax.tree.map(build, reader.layout, is_leaf=decoder.is_leaf)
    return Loaded(params, reader.config, reader.folder)


class Reader:
    """A checkpoint, checked, whose parameters can be read one at a time.

    config: what it describes; layout: its parameters' description over `mesh`; dtype: the one that
    loading would choose. floats: read packed weights as the floats that they stand for.
    CheckpointError: it cannot be used.
    """

    def __init__(self, folder: Path, mesh=None, *, floats: bool = False):
        self.folder, self._mesh, self._floats = folder, mesh, floats
        _, family, self.config, form = read_quantized_config(folder)
        self.layout = decoder.layout(self.config, sharding.model_shards(mesh))
        self._tensors, head = checkpoint.match(folder, family, self.config, form)
        self._packed = parts_of(self._tensors)
        self.dtype = default_dtype(checkpoint.dtype_of(self._tensors))
        if head is not None:
            _check_tied(folder, self._tensors["embed"].entry, head)

    def read(self, leaf: Leaf, dtype: np.dtype, recipe: Recipe | None) -> Weight:
        """One parameter in its place, rounded where there is a recipe that needs no text."""
        try:
            held = self._held(leaf, dtype, recipe)
            if held is not None:
                return held
            return placement.place(leaf, self._fill, dtype, self._mesh, recipe)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: cannot read it: {error.strerror}; fetch it again"
            ) from error
        except placement.RoundingError as error:
            raise CheckpointError(
                f"{self.folder}: tensor {leaf.pieces[0].name}: {error}"
            ) from error

    def _held(self, leaf: Leaf, dtype: np.dtype, recipe: Recipe | None) -> Weight | None:
        """A parameter that is packed in the files, as it is there; None where it is not, has no such
        form, or is to be rounded anew.
        """
        if self._floats or not leaf.quantizable or not self._packed:
            return None
        if recipe is None:
            return prequantized.place(leaf, self._packed, dtype, self._mesh)
        found = prequantized.form_of(leaf, self._packed, dtype, self._mesh)
        if recipe.method not in INT8 or found is None or found[0].kind != "int8":
            return None
        held = prequantized.place(leaf, self._packed, dtype, self._mesh)
        if held is None or held.group is not None:  # activations rounded whole need a scale a row
            return held
        return held.replace(method=recipe.method)

    def _fill(self, name: str, start: int, stop: int, out: np.ndarray) -> None:
        tensor = self._tensors[name]
        if name in self._packed:
            rows = prequantized.dense(self._packed[name], start, stop)
            cast(rows, out, tensor.entry)
            return
        read_rows(tensor.entry, tensor.first + start, tensor.first + stop, out, tensor.transposed)


def parts_of(tensors: dict[str, checkpoint.Tensor]) -> dict[str, prequantized.Part]:
    """The canonical tensors that are packed."""
    return {
        name: prequantized.Part(tensor.packed, tensor.first)
        for name, tensor in tensors.items()
        if tensor.packed is not None
    }


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
