"""Quantized weights: what holds one, and what it stands for."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class QTensor:
    """values [out, in] int8, scale [out] float32: the weight is values * scale[:, None]."""

    values: jax.Array
    scale: jax.Array
    method: str = struct.field(pytree_node=False, default="int8")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


Weight = jax.Array | QTensor


def rows(w: Weight, ids: jax.Array, dtype) -> jax.Array:
    """The rows `ids` [T] of an embedding w [V, D] -> [T, D]."""
    if isinstance(w, QTensor):
        return (w.values[ids].astype(jnp.float32) * w.scale[ids][:, None]).astype(dtype)
    return w[ids].astype(dtype)


def parts(w: Weight) -> tuple[jax.Array, jax.Array | None]:
    """The values and the scales (None: a plain weight) that make up a weight."""
    return (w.values, w.scale) if isinstance(w, QTensor) else (w, None)
