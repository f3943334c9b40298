"""What calibration remembers of the activations that meet one weight: sums, not the activations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.config import LayerConfig, ModelConfig
from jaxinfer.models.decoder import Layer, run_layer
from jaxinfer.models.linear import Linear
from jaxinfer.ragged import Ragged


class Statistics(struct.PyTreeNode):
    """Of the rows x [count, in] seen so far, float32: top [in] = max|x|, total [in] = sum|x|, gram
    [in, in] = x^T x (None where nobody asked for it).
    """

    count: jax.Array
    top: jax.Array
    total: jax.Array
    gram: jax.Array | None

    @classmethod
    def empty(cls, columns: int, *, gram: bool = True) -> "Statistics":
        zeros = jnp.zeros(columns, jnp.float32)
        square = jnp.zeros((columns, columns), jnp.float32) if gram else None
        return cls(jnp.zeros((), jnp.int32), zeros, zeros, square)

    def add(self, x: jax.Array) -> "Statistics":
        """The same with the rows x [n, in] seen too."""
        wide = x.astype(jnp.float32)
        gram = self.gram
        if gram is not None:
            gram = gram + jnp.matmul(wide.T, wide, precision=jax.lax.Precision.HIGHEST)
        return Statistics(
            self.count + x.shape[0],
            jnp.maximum(self.top, jnp.abs(wide).max(axis=0)),
            self.total + jnp.abs(wide).sum(axis=0),
            gram,
        )

    @property
    def mean(self) -> jax.Array:
        """mean|x| [in]."""
        return self.total / jnp.maximum(self.count, 1).astype(jnp.float32)

    def divided(self, s: jax.Array) -> "Statistics":
        """Those of x / s, s [in]."""
        gram = None if self.gram is None else self.gram / (s[:, None] * s[None])
        return Statistics(self.count, self.top / s, self.total / s, gram)


def linears(layer: Layer) -> dict[str, Linear]:
    """The linear maps of a layer by their place, like "attention.qkv"."""
    found, _ = jax.tree_util.tree_flatten_with_path(layer, is_leaf=is_linear)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): value
        for path, value in found
        if is_linear(value)
    }


def is_linear(x) -> bool:
    return isinstance(x, Linear)


def exchange(layer: Layer, new: dict[str, Linear]) -> Layer:
    """The layer with the linear maps of `new` in their places."""

    def choose(path, value):
        return new.get(jax.tree_util.keystr(path, simple=True, separator="."), value)

    return jax.tree_util.tree_map_with_path(choose, layer, is_leaf=is_linear)


@functools.partial(jax.jit, static_argnames=("config", "layer"))
def observe(
    x: jax.Array,
    p: Layer,
    seen: dict[str, Statistics],
    batch: Ragged,
    *,
    config: ModelConfig,
    layer: LayerConfig,
) -> tuple[jax.Array, dict[str, Statistics]]:
    """x [T, D] through one layer, without a cache -> [T, D], and what its linear maps have seen."""
    rows: dict[str, jax.Array] = {}
    tapped = {
        name: dataclasses.replace(value, tap=functools.partial(rows.__setitem__, name))
        for name, value in linears(p).items()
    }
    y, _ = run_layer(x, exchange(p, tapped), config, layer, batch)
    return y, {name: seen[name].add(rows[name]) for name in seen}


@functools.partial(jax.jit, static_argnames=("config", "layer"))
def forward(
    x: jax.Array, p: Layer, batch: Ragged, *, config: ModelConfig, layer: LayerConfig
) -> jax.Array:
    """x [T, D] through one layer, without a cache."""
    return run_layer(x, p, config, layer, batch)[0]
