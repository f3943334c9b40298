"""Flags that say which model, and how it is held."""

from absl.flags import FlagValues

from jaxinfer import compile_cache
from jaxinfer.cache import KV_DTYPES
from jaxinfer.cli.flags import INTEGER, Flags
from jaxinfer.model import MAX_SLOTS, Model, load
from jaxinfer.quantize import METHODS
from jaxinfer.weights.loaded import DTYPES


def define_name(flags: Flags) -> None:
    flags.text(
        "model",
        "a folder with a checkpoint, or a Hugging Face hub id; without it, the model that ships with "
        "jaxinfer",
        form="FOLDER|ORG/NAME",
    )


def define(flags: Flags) -> None:
    flags.group("Model")
    define_name(flags)
    flags.choice(
        "dtype", "of the weights; without it the checkpoint's own, and float32 on CPU", DTYPES
    )
    flags.choice("quantize", "round the weights while loading", METHODS)
    define_kv_dtype(flags)
    flags.text("mesh", "spread over several devices, like data=2,model=4", form="AXES")
    flags.text(
        "compile_cache",
        "where compiled programs are kept; without it ~/.cache/jaxinfer/xla",
        form="FOLDER",
    )


def define_kv_dtype(flags: Flags) -> None:
    flags.choice(
        "kv_dtype",
        "of the cached keys and values, int8 and fp8 with a scale for each; without it that of the "
        "weights, and float32 on CPU",
        tuple(KV_DTYPES),
    )


def define_slots(flags: Flags) -> None:
    flags.one("max_slots", INTEGER, "how many texts run at once; further ones wait", MAX_SLOTS)


def read(values: FlagValues, **options) -> Model:
    """Load the model; ValueError or OSError says why it cannot be."""
    if values.compile_cache is not None:
        compile_cache.enable(values.compile_cache)
    return load(
        values.model,
        dtype=values.dtype,
        mesh=values.mesh,
        quantize=values.quantize,
        kv_dtype=values.kv_dtype,
        **options,
    )
