"""What XLA does best with few rows and quantized weights, on every platform.

The weight is widened to the type of x inside the product (XLA fuses that into the matrix-vector
kernels it writes for one row) and the channel's scale is applied to the sums. Four-bit weights are
widened whole: XLA cannot scale sums group by group in one kernel.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.skinny_matmul.reference import dequantize, epilogue, normalized
from pallas_kernels.skinny_matmul.weight import kind_of


def skinny_matmul(
    x, values, scale, zero, bias, residual, norm, prefetch, *, gate, norm_eps, out_dtype
):
    """Shapes as the package's function."""
    if norm is not None:
        x = normalized(x.astype(jnp.float32), norm, norm_eps).astype(x.dtype)
    if kind_of(values) == "int4":
        weight, scale = dequantize(values, scale, zero), None
    else:
        weight = values
    y = jax.lax.dot_general(
        x,
        weight.astype(x.dtype),
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    if scale is not None:
        y = y * scale.astype(jnp.float32)[None]
    if jnp.dtype(out_dtype) == x.dtype:
        y = y.astype(out_dtype).astype(
            jnp.float32
        )  # what a library's product writes: half the bytes
    return epilogue(y, bias, residual, gate).astype(out_dtype)
