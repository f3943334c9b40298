"""Where a division of activations can go for nothing: into what made them.

A linear map that reads a norm takes it in the norm's scale; the attention output in the rows of v
(equal for the query heads that share a key-value head); the second half of a gated MLP in the rows of
up. Elsewhere the division stays beside the weight (`QTensor.smooth`).
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.config import LayerConfig, ModelConfig
from jaxinfer.models.decoder import Layer
from jaxinfer.models.linear import Linear

NEAR = 1 / 64
NORMS = {"attention.qkv": "pre_attention", "mlp.up": "pre_mlp"}


def tied(top: jax.Array, name: str, config: ModelConfig, layer: LayerConfig) -> jax.Array:
    """top [in] of the linear map `name`, with one value where one division has to serve several."""
    if name != "attention.out" or layer.mixer != "attention":
        return top
    K, H = config.num_kv_heads, config.head_dim
    heads = top.reshape(K, -1, H)
    return jnp.broadcast_to(heads.max(axis=1, keepdims=True), heads.shape).reshape(-1)


def fold(
    p: Layer, name: str, s: jax.Array, config: ModelConfig, layer: LayerConfig, dtype: np.dtype
) -> tuple[Layer, jax.Array] | None:
    """The layer (of one shard) whose map `name` reads its activations divided by s [in], and s; None
    where nothing before it can divide.

    A norm's scale is rounded to `dtype`, in which it will be kept, and the s that is given back is
    what that divides by: 1 where rounding would take more than NEAR of a scale (Gemma keeps it
    less one, so that small ones are coarse).
    """
    norm = getattr(p, NORMS[name], None) if name in NORMS else None
    if norm is not None:
        offset = config.norm_offset if config.norm == "rms" else 0.0
        whole = norm.scale + offset
        scale = (whole / s - offset).astype(dtype).astype(s.dtype)
        held = scale + offset
        near = (held != 0) & (jnp.abs(held * s - whole) <= NEAR * jnp.abs(whole))
        s = jnp.where(near, whole / jnp.where(near, held, 1.0), 1.0)
        scale = jnp.where(near, scale, norm.scale)
        bias = None if norm.bias is None else norm.bias / s
        return replace(p, **{NORMS[name]: replace(norm, scale=scale, bias=bias)}), s
    if name == "attention.out" and layer.mixer == "attention":
        K, H = config.num_kv_heads, config.head_dim
        own = s.reshape(K, -1, H)[:, 0].reshape(-1)
        qkv = _divided(p.attention.qkv, own)
        return replace(p, attention=replace(p.attention, qkv=qkv)), s
    if name == "mlp.down" and layer.mlp == "dense" and config.gated:
        return replace(p, mlp=replace(p.mlp, up=_divided(p.mlp.up, s))), s
    return None


def _divided(p: Linear, s: jax.Array) -> Linear:
    """The last rows of a linear map divided by s."""
    count = len(s)
    assert isinstance(p.w, jax.Array)
    return replace(
        p,
        w=p.w.at[-count:].divide(s[:, None]),
        b=None if p.b is None else p.b.at[-count:].divide(s),
    )
