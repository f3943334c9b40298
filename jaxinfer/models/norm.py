"""Normalization: RMSNorm (Zhang and Sennrich 2019) and LayerNorm, in float32."""

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.config import ModelConfig


@struct.dataclass
class Norm:
    """scale [D]; bias [D] or None."""

    scale: jax.Array
    bias: jax.Array | None = None


def rms(x: jax.Array, scale: jax.Array, eps: float, offset: float) -> jax.Array:
    """x [..., D] / rms(x) * (scale + offset), in x's dtype."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    scale = scale.astype(jnp.float32) + offset
    return (wide * scale.reshape((1,) * (x.ndim - 1) + scale.shape)).astype(x.dtype)


def norm(x: jax.Array, p: Norm, config: ModelConfig) -> jax.Array:
    """x [T, D] -> [T, D], by the config's kind."""
    if config.norm == "rms":
        return rms(x, p.scale, config.norm_eps, config.norm_offset)
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + config.norm_eps)
    wide = wide * p.scale.astype(jnp.float32)[None]
    if p.bias is not None:
        wide = wide + p.bias.astype(jnp.float32)[None]
    return wide.astype(x.dtype)
