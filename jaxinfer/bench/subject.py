"""What is measured: a model's config with weights from a checkpoint, or random ones of the same shapes.

Speed depends on shapes and types alone, so random weights measure a model that nobody has to
download. They are drawn on the device, a parameter at a time.
"""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer import shipped, weights
from jaxinfer.cache import KV_NAMES, KVDtype, kv_dtype_of
from jaxinfer.config import ModelConfig
from jaxinfer.generate import cache_dtype
from jaxinfer.models import decoder, presets
from jaxinfer.models.linear import Leaf
from jaxinfer.quantize import Part, QTensor, Weight, check_method, find
from jaxinfer.roofline import Format, formats
from jaxinfer.weights import orbax, placement
from jaxinfer.weights.loaded import check_dtype, default_dtype

SOURCES = ("checkpoint", "random")


@dataclass(frozen=True)
class Subject:
    """A model as it is held: name and how it came to be, for the rows of a result."""

    name: str
    params: decoder.Params
    config: ModelConfig
    source: str
    dtype: str
    quantize: str | None
    kv_dtype: KVDtype | None = None

    @property
    def weight_bytes(self) -> int:
        """What the parameters take on the device."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))

    @property
    def format(self) -> Format:
        """How the weights are stored and multiplied, for the roofline."""
        found = formats.find(self.quantize or self.dtype)
        grouped = [w for w in _quantized(self.params) if w.kind == "int4"]
        if grouped:
            scales = 2 if grouped[0].zero is None else 4
            found = dataclasses.replace(found, group=grouped[0].group, scale_bytes=scales)
        plain = jnp.dtype(self.dtype).itemsize
        widened = self.quantize is not None and found.compute == "bfloat16"
        return dataclasses.replace(
            found, plain=plain, compute=self.dtype if widened else found.compute
        )

    @property
    def cache_format(self) -> Format:
        """How keys and values are kept."""
        return formats.find(KV_NAMES[kv_dtype_of(self.kv_dtype or cache_dtype(self.params))])

    def describe(self) -> dict:
        """The fields every row begins with."""
        return {
            "model": self.name,
            "weights": self.source,
            "dtype": self.dtype,
            "quantize": self.quantize,
            "kv_dtype": self.cache_format.name,
        }


def prepare(
    model: str | None,
    *,
    source: str = "checkpoint",
    dtype: str | None,
    quantize: str | None,
    kv_dtype: KVDtype | None = None,
) -> Subject:
    """Hold a model (folder, hub id or preset; None: the shipped one) on the device.

    dtype None: what loading would choose; for random weights float32 on CPU and bfloat16 elsewhere.
    ValueError and OSError say what is wrong.
    """
    check_method(quantize)
    if source == "random":
        name, config = find_config(model, source)
        used = check_dtype(dtype) or default_dtype(np.dtype(jnp.bfloat16))
        params = random_params(config, used, quantize, seed=0)
    else:
        folder = _folder(model)
        loaded = weights.load(folder, dtype=dtype, quantize=quantize, show_progress=True)
        name, params, config = _name(folder), loaded.params, loaded.config
    params = decoder.prepare(params)
    held = params.norm.scale.dtype.name
    return Subject(name, params, config, source, held, quantize or _method(params), kv_dtype)


def _quantized(params: decoder.Params) -> list[QTensor]:
    leaves = jax.tree.leaves(params.layers, is_leaf=decoder.is_leaf)
    return [leaf for leaf in leaves if isinstance(leaf, QTensor)]


def _method(params: decoder.Params) -> str | None:
    """How a checkpoint holds its layers' matrices; None: as they are."""
    found = _quantized(params)
    return found[0].method if found else None


def find_config(model: str | None, source: str) -> tuple[str, ModelConfig]:
    """A model's name and config, without its weights; presets are for random ones."""
    if model is not None and not Path(model).exists() and (preset := presets.find(model)):
        if source != "random":
            raise ValueError(
                f"{model!r} names a preset, which has shapes and no weights; add --weights=random, or "
                "give a folder or a hub id"
            )
        return model.lower(), preset
    folder = _folder(model)
    if orbax.is_checkpoint(folder):
        return _name(folder), orbax.read_description(folder).config
    return _name(folder), weights.read_config(folder)[2]


def _folder(model: str | None) -> Path:
    if model is None:
        return shipped.target()
    try:
        return weights.resolve(model)
    except weights.CheckpointError as error:
        near = presets.near(model)
        if not near:
            raise
        raise ValueError(f"{error}; or a preset such as {', '.join(near)}") from error


def _name(folder: Path) -> str:
    return folder.resolve().name


def random_params(
    config: ModelConfig, dtype: np.dtype, method: str | None, seed: int
) -> decoder.Params:
    """Parameters drawn as `decoder.init` draws them, quantized ones directly in their small type."""
    described, tree = jax.tree.flatten(decoder.layout(config), is_leaf=decoder.is_leaf)
    key = jax.random.key(seed)
    drawn = [
        _draw(leaf, config, dtype, method, jax.random.fold_in(key, i))
        for i, leaf in enumerate(described)
    ]
    return jax.tree.unflatten(tree, drawn)


def _draw(leaf: Leaf, config, dtype, method, key) -> Weight:
    name = leaf.pieces[0].name or ""
    if name.endswith(".scale"):
        return jnp.full(leaf.shape, 1.0 - config.norm_offset, dtype)
    if name.endswith((".b", ".bias")):
        return jnp.zeros(leaf.shape, dtype)
    deviation = 0.02 if name in ("embed", "positions") else leaf.shape[-1] ** -0.5
    recipe = find(method)
    if recipe is None or not leaf.quantizable:
        return _normal(key, deviation, leaf.shape, jnp.dtype(dtype))
    form = placement.form_of(leaf, recipe, None)
    # int8: uniform in -127 .. 127; nibbles: uniform in -8 .. 7; fp8: normal of deviation 64
    step = {"int8": deviation * 3**0.5 / 127, "int4": deviation / 21.25**0.5, "fp8": deviation / 64}

    def array(name: str, part: Part):
        if name == "scale":
            return jnp.full(part.shape, step[form.kind], part.dtype)
        if name == "columns":
            return jnp.arange(*part.shape, dtype=jnp.int32)
        if name == "outliers":
            return _normal(key, deviation, part.shape, part.dtype)
        if form.kind == "fp8":
            return _normal(key, 64.0, part.shape, part.dtype)
        return _bytes(key, part.shape) if form.kind == "int8" else _words(key, part.shape)

    return placement.build(form, leaf, array)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _normal(key, deviation, shape, dtype):
    return (deviation * jax.random.normal(key, shape, jnp.float32)).astype(dtype)


@functools.partial(jax.jit, static_argnums=1)
def _words(key, shape):
    return jax.lax.bitcast_convert_type(jax.random.bits(key, shape, jnp.uint32), jnp.int32)


@functools.partial(jax.jit, static_argnums=1)
def _bytes(key, shape):
    return jax.random.randint(key, shape, -127, 128, jnp.int8)
