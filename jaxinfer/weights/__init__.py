"""Weights on disk: found, checked, and read slice by slice into their final place."""

from collections.abc import Callable
from pathlib import Path

from jaxinfer.config import ModelConfig
from jaxinfer.quantize import Recipe
from jaxinfer.weights import huggingface, orbax
from jaxinfer.weights.export import save
from jaxinfer.weights.hub import resolve
from jaxinfer.weights.huggingface import read_config
from jaxinfer.weights.loaded import Loaded
from jaxinfer.weights.safetensors_file import CheckpointError
from jaxinfer.weights.summary import describe

DESCRIPTIONS = ("config.json", orbax.SIDE_FILE)

__all__ = [
    "CheckpointError",
    "Loaded",
    "config_of",
    "describe",
    "load",
    "read_config",
    "resolve",
    "save",
]


def config_of(path_or_hub_id: str | Path) -> ModelConfig:
    """What a checkpoint of either layout describes; of one on the hub its description alone is
    fetched. CheckpointError: it is unusable.
    """
    folder = resolve(path_or_hub_id, DESCRIPTIONS)
    if orbax.is_checkpoint(folder):
        return orbax.read_description(folder).config
    return read_config(folder)[2]


def load(
    path_or_hub_id: str | Path,
    *,
    dtype=None,
    mesh=None,
    quantize: str | Recipe | None = None,
    show_progress: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Loaded:
    """A model from a Hugging Face checkpoint, or an Orbax one where there is jaxinfer.json.

    Arguments as in `huggingface.load`; an Orbax restore reports no progress.
    """
    folder = resolve(path_or_hub_id)
    if orbax.is_checkpoint(folder):
        return orbax.restore(folder, dtype=dtype, mesh=mesh, quantize=quantize)
    return huggingface.load(
        folder,
        dtype=dtype,
        mesh=mesh,
        quantize=quantize,
        show_progress=show_progress,
        progress=progress,
    )
