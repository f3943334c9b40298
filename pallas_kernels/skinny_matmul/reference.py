"""The specification of `skinny_matmul` in plain jnp: every step in float32, the weight whole."""

import jax
import jax.numpy as jnp

from pallas_kernels.skinny_matmul.weight import GROUP, kind_of, unpack

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


def dequantize(values: jax.Array, scale: jax.Array | None, zero: jax.Array | None) -> jax.Array:
    """The weight [out, in] in float32, of the arrays that `weight` describes."""
    kind = kind_of(values)
    if scale is None:
        return values.astype(jnp.float32)
    scale = scale.astype(jnp.float32)
    if kind != "int4":
        return values.astype(jnp.float32) * scale[:, None]
    middle = jnp.full_like(scale, 8) if zero is None else zero.astype(jnp.float32)
    nibbles = unpack(values).astype(jnp.float32)
    return (nibbles - jnp.repeat(middle, GROUP, 1)) * jnp.repeat(scale, GROUP, 1)


def normalized(x: jax.Array, norm: jax.Array | None, eps: float) -> jax.Array:
    """x [T, in] float32 divided by its root mean square over `in`, times norm [in]."""
    if norm is None:
        return x
    mean = jnp.mean(x * x, axis=1, keepdims=True)
    return x * jax.lax.rsqrt(mean + eps) * norm.astype(jnp.float32)[None]


def epilogue(
    y: jax.Array, bias: jax.Array | None, residual: jax.Array | None, gate: str | None
) -> jax.Array:
    """y [T, out] float32 -> [T, out] or, gated, [T, out / 2], float32."""
    if bias is not None:
        y = y + bias.astype(jnp.float32)[None]
    if gate is not None:
        half = y.shape[1] // 2
        y = ACTIVATIONS[gate](y[:, :half]) * y[:, half:]
    return y if residual is None else y + residual.astype(jnp.float32)


def skinny_matmul(
    x, values, scale, zero, bias, residual, norm, prefetch, *, gate, norm_eps, out_dtype
):
    """Shapes as the package's function."""
    wide = normalized(x.astype(jnp.float32), norm, norm_eps)
    weight = dequantize(values, scale, zero)
    y = jax.lax.dot_general(
        wide, weight, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST
    )
    return epilogue(y, bias, residual, gate).astype(out_dtype)
