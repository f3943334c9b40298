"""Rotary position embedding and its length extensions, as transformers computes them.

Rotations pair dimension i with i + rotary_dim / 2 (the layout of Hugging Face checkpoints).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.config import Rope


def _plain(rope: Rope) -> np.ndarray:
    return rope.theta ** -(np.arange(0, rope.rotary_dim, 2, dtype=np.float64) / rope.rotary_dim)


def _yarn(rope: Rope) -> np.ndarray:
    """YaRN (Peng et al.

    2023, section 3.2): interpolate slow dimensions, keep fast ones, ramp between.
    """

    def dimension(rotations):
        ratio = rope.original_max_position / (rotations * 2 * math.pi)
        return rope.rotary_dim * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    high = high + 0.001 if low == high else high
    ramp = np.clip((np.arange(rope.rotary_dim // 2) - low) / (high - low), 0, 1)
    plain = _plain(rope)
    return plain / rope.factor * ramp + plain * (1 - ramp)


def _llama3(rope: Rope) -> np.ndarray:
    """Llama 3.1's scaling: long waves are divided by the factor, short ones kept, smooth between."""
    plain = _plain(rope)
    wave = 2 * math.pi / plain
    old = rope.original_max_position
    smooth = (old / wave - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - smooth) * plain / rope.factor + smooth * plain
    scaled = np.where(wave > old / rope.low_freq_factor, plain / rope.factor, plain)
    medium = (wave >= old / rope.high_freq_factor) & (wave <= old / rope.low_freq_factor)
    return np.where(medium, blended, scaled)


def frequencies(rope: Rope, reach: jax.Array) -> jax.Array:
    """Inverse frequencies [T, rotary_dim / 2] float32, given how far each token's sequence reaches
    (reach [T]).

    Only "dynamic" (NTK-aware, by length) and "longrope" depend on the reach.
    """
    static = {"yarn": _yarn, "llama3": _llama3}
    if rope.scaling == "longrope":
        short, long = (_plain(rope) / np.asarray(f) for f in (rope.short_factor, rope.long_factor))
        far = (reach > rope.original_max_position)[:, None]
        return jnp.where(
            far, jnp.asarray(long, jnp.float32)[None], jnp.asarray(short, jnp.float32)[None]
        )
    if rope.scaling == "dynamic":
        old = rope.original_max_position
        length = jnp.maximum(reach, old).astype(jnp.float32)[:, None]
        stretch = (rope.factor * length / old) - (rope.factor - 1)
        base = rope.theta * stretch ** (rope.rotary_dim / (rope.rotary_dim - 2))
        exponent = np.arange(0, rope.rotary_dim, 2, dtype=np.float32) / rope.rotary_dim
        return 1.0 / base ** exponent[None]
    fixed = static.get(rope.scaling, _plain)(rope)
    if rope.scaling == "linear":
        fixed = fixed / rope.factor
    return jnp.asarray(fixed, jnp.float32)[None]


def table(rope: Rope, positions: jax.Array, reach: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin, each [T, rotary_dim / 2] float32, for positions [T]; reach [T]: see
    `frequencies`.
    """
    angle = positions.astype(jnp.float32)[:, None] * frequencies(rope, reach)
    return jnp.cos(angle) * rope.attention_factor, jnp.sin(angle) * rope.attention_factor


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x [T, N, H] with its first rotary_dim dimensions rotated."""
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    a, b = (x[..., i : i + half].astype(jnp.float32) for i in (0, half))
    parts = [(a * cos - b * sin).astype(x.dtype), (b * cos + a * sin).astype(x.dtype)]
    if 2 * half < x.shape[-1]:
        parts.append(x[..., 2 * half :])
    return jnp.concatenate(parts, axis=-1)
