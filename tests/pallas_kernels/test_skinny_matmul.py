"""Every backend of the skinny matmul equals its specification on fresh inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.skinny_matmul import skinny_matmul
from pallas_kernels.skinny_matmul.weight import GROUP, ORDER, pack, unpack

KINDS = ["float32", "bfloat16", "int8", "float8_e4m3fn", "int4", "int4 with zero"]


def weight_of(rng, kind, rows, columns):
    """(values, scale, zero) and the weight that they hold in float64, worked out in numpy."""
    if kind.startswith("int4"):
        nibbles = rng.integers(0, 16, (rows, columns))
        scale = rng.uniform(0.5, 1.5, (rows, columns // GROUP)).astype(np.float32)
        zero = rng.integers(0, 16, scale.shape).astype(np.float32) if "zero" in kind else None
        middle = 8.0 if zero is None else np.repeat(zero, GROUP, 1).astype(np.float64)
        truth = (nibbles - middle) * np.repeat(scale, GROUP, 1).astype(np.float64)
        return (pack(jnp.asarray(nibbles)), scale, zero), truth
    if kind == "int8":
        values = rng.integers(-128, 128, (rows, columns)).astype(np.int8)
    else:
        values = rng.normal(size=(rows, columns)).astype(jnp.dtype(kind))
    scale = rng.uniform(0.5, 1.5, rows).astype(np.float32) if kind in KINDS[2:] else None
    truth = values.astype(np.float64) * (1.0 if scale is None else scale[:, None])
    return (jnp.asarray(values), scale, None), truth


def extras_of(rng, T, rows, columns, names, gate):
    """The named ones of bias, residual and norm, as float32 numpy arrays."""
    shapes = dict(bias=(rows,), residual=(T, rows // 2 if gate else rows), norm=(columns,))
    return {name: rng.normal(size=shapes[name]).astype(np.float32) for name in names}


def expected_of(x, weight, gate, bias=0.0, residual=0.0, norm=None, norm_eps=1e-6):
    x = np.asarray(x, np.float64)
    if norm is not None:
        x = x / np.sqrt((x * x).mean(1, keepdims=True) + norm_eps) * norm
    y = x @ weight.T + bias
    if gate == "silu":
        left, right = np.split(y, 2, axis=1)
        y = left * 0.5 * (1 + np.tanh(left / 2)) * right
    return y + residual


def relative(found, expected):
    found = np.asarray(found, np.float64)
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["reference", "xla"])
@pytest.mark.parametrize(
    ("names", "gate"), [((), None), (("bias", "residual", "norm"), "silu"), (("bias",), None)]
)
def test_equals_float64(rng, kind, backend, names, gate):
    T, rows = int(rng.integers(1, 6)), 2 * int(rng.integers(3, 20))
    columns = GROUP * 2 if "int4" in kind else int(rng.integers(5, 70))
    operands, truth = weight_of(rng, kind, rows, columns)
    values, scale, zero = operands
    extras = extras_of(rng, T, rows, columns, names, gate)
    x = rng.normal(size=(T, columns)).astype(np.float32)
    found = skinny_matmul(
        jnp.asarray(x), values, scale, zero=zero, gate=gate, backend=backend, **extras
    )
    assert found.dtype == jnp.float32
    assert relative(found, expected_of(x, truth, gate, **extras)) < 1e-5


@pytest.mark.parametrize("kind", KINDS[1:])
def test_xla_in_bfloat16(rng, kind):
    operands, truth = weight_of(rng, kind, 48, 256)
    values, scale, zero = operands
    x = jnp.asarray(rng.normal(size=(3, 256)), jnp.bfloat16)
    found = skinny_matmul(x, values, scale, zero=zero, out_dtype=jnp.float32, backend="xla")
    assert relative(found, expected_of(x, truth, None)) < 1e-2
    assert skinny_matmul(x, values, scale, zero=zero).dtype == jnp.bfloat16


def test_packing_keeps_every_nibble(rng):
    nibbles = jnp.asarray(rng.integers(0, 16, (5, 64)), jnp.int8)
    words = pack(nibbles)
    assert words.shape == (5, 8)
    assert (unpack(words) == nibbles).all()
    word = int(np.asarray(words).view(np.uint32)[2, 3])
    assert [(word >> 4 * i) & 15 for i in range(8)] == [int(nibbles[2, 24 + n]) for n in ORDER]


def test_derivatives_are_those_of_the_plain_product(rng):
    operands, truth = weight_of(rng, "int8", 6, 16)
    x, bias = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 16), (6,)))

    def loss(x, bias):
        return (skinny_matmul(x, *operands[:2], bias=bias) ** 2).sum()

    found = jax.grad(loss, argnums=(0, 1))(x, bias)
    y = expected_of(x, truth, None, bias=np.asarray(bias, np.float64))
    np.testing.assert_allclose(found[0], 2 * y @ truth, rtol=1e-4)
    np.testing.assert_allclose(found[1], 2 * y.sum(0), rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=jnp.zeros((2, 12))), r"x \[T, in\] and a weight \[out, in\]"),
        (dict(scale=None), r"need scale \(6,\), got None"),
        (dict(scale=jnp.ones((5,))), r"need scale \(6,\), got \(5,\)"),
        (dict(zero=jnp.ones((6,))), r"need zero None, got \(6,\)"),
        (dict(bias=jnp.ones((3,))), r"need bias \(6,\), got \(3,\)"),
        (dict(residual=jnp.ones((2, 6)), gate="silu"), r"need residual \(2, 3\)"),
        (dict(norm=jnp.ones((6,))), r"need norm \(16,\)"),
        (dict(gate="tanh"), r"gate needs one of silu.*gate='tanh'"),
        (dict(values=jnp.zeros((6, 16), jnp.int16)), "weights need one of the types"),
        (dict(backend="cuda"), "backend needs one of"),
    ],
)
def test_arguments_are_checked(change, message):
    good = dict(x=jnp.zeros((2, 16)), values=jnp.zeros((6, 16), jnp.int8), scale=jnp.ones((6,)))
    with pytest.raises(ValueError, match=message):
        skinny_matmul(**{**good, **change})


def test_four_bit_weights_need_whole_groups():
    with pytest.raises(ValueError, match="multiple of 128 columns, got 64"):
        skinny_matmul(jnp.zeros((1, 64)), jnp.zeros((4, 8), jnp.int32), jnp.ones((4, 1)))
