"""Products of a few rows of activations with a large, often quantized, weight: a decode step.

Such a product reads every weight once, so its floor is memory, and its epilogue (scale, bias,
gated activation, residual) and the RMS norm before it are free if they need no pass of their own.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.backend import hopper
from pallas_kernels.skinny_matmul import mosaic_gpu, reference, xla
from pallas_kernels.skinny_matmul.reference import ACTIVATIONS
from pallas_kernels.skinny_matmul.weight import GROUP, kind_of, shape_of

BACKENDS = {
    "reference": reference.skinny_matmul,
    "xla": xla.skinny_matmul,
    "mosaic_gpu": mosaic_gpu.skinny_matmul,
}


def skinny_matmul(
    x: jax.Array,
    values: jax.Array,
    scale: jax.Array | None = None,
    *,
    zero: jax.Array | None = None,
    bias: jax.Array | None = None,
    residual: jax.Array | None = None,
    norm: jax.Array | None = None,
    norm_eps: float = 1e-6,
    gate: str | None = None,
    out_dtype=None,
    prefetch: jax.Array | None = None,
    backend: str | None = None,
) -> jax.Array:
    """x [T, in] times the weight [out, in] of (values, scale, zero), over `in` -> [T, out].

    `weight` says which types `values` may have and what scale and zero mean. In order: x is divided
    by its root mean square (plus norm_eps) and multiplied by norm [in], if given; the sums are
    float32; bias [out] is added; with gate ("silu", "gelu", "gelu_tanh" or "relu") the first half
    of `out` gates the second, act(y[:, :out/2]) * y[:, out/2:]; residual [T, out or out/2] is
    added; the result is out_dtype, x's by default. prefetch names the `values` that the next
    product reads: a backend may start to bring them into the device's cache. It never changes the
    result.

    A named `backend` never falls back: it raises NotImplementedError for what it cannot do. By
    default the kernel runs where it was measured to be faster (`mosaic_gpu`), XLA elsewhere; any
    number of rows is right. Derivatives are always those
    of the XLA backend.
    """
    _check(x, values, scale, zero, bias, residual, norm, gate)
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend needs one of {', '.join(BACKENDS)} or None, got {backend!r}")
    rules = (gate, float(norm_eps), jnp.dtype(out_dtype or x.dtype).name)
    if backend is None and hopper() and mosaic_gpu.faster(x, values):
        blocks = mosaic_gpu.tuned_blocks(values, gate, x.shape[0])
        if not mosaic_gpu.why_not(x, values, scale, zero, norm, gate, rules[-1], blocks):
            backend = "mosaic_gpu"
    return _product(backend or "xla", rules, x, values, scale, zero, bias, residual, norm, prefetch)


def _run(backend, rules, *operands):
    gate, norm_eps, out_dtype = rules
    return BACKENDS[backend](*operands, gate=gate, norm_eps=norm_eps, out_dtype=out_dtype)


_product = jax.custom_jvp(_run, nondiff_argnums=(0, 1))


@_product.defjvp
def _differentiated(backend, rules, operands, tangents):
    return jax.jvp(functools.partial(_run, "xla", rules), operands, tangents)


def _check(x, values, scale, zero, bias, residual, norm, gate):
    if x.ndim != 2 or values.ndim != 2 or shape_of(values)[1] != x.shape[1]:
        raise ValueError(
            "skinny_matmul needs x [T, in] and a weight [out, in] (four-bit: int32 [out, in/8]), got "
            f"{x.shape=}, {values.shape=}, {values.dtype=}"
        )
    kind, (out, columns) = kind_of(values), shape_of(values)
    if kind == "int4" and columns % GROUP:
        raise ValueError(f"four-bit weights need a multiple of {GROUP} columns, got {columns}")
    wanted = {"float": None, "int4": (out, columns // GROUP)}.get(kind, (out,))
    half = out // 2 if gate else out
    if gate is not None and (gate not in ACTIVATIONS or out % 2):
        raise ValueError(
            f"gate needs one of {', '.join(ACTIVATIONS)} and an even number of rows, got {gate=}, {out=}"
        )
    for name, array, shape in (
        ("scale", scale, wanted),
        ("zero", zero, wanted if kind == "int4" else None),
        ("bias", bias, (out,)),
        ("residual", residual, (x.shape[0], half)),
        ("norm", norm, (columns,)),
    ):
        missing = name == "scale" and array is None and shape is not None
        if missing or (array is not None and (shape is None or array.shape != shape)):
            raise ValueError(
                f"{kind} weights [{out}, {columns}] need {name} {shape}, got "
                f"{None if array is None else array.shape}"
            )
