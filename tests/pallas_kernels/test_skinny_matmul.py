"""Every backend of the skinny matmul equals its specification on fresh inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.skinny_matmul import mosaic_gpu, skinny_matmul
from pallas_kernels.skinny_matmul.cases import CASES
from pallas_kernels.skinny_matmul.product import Blocks
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


def arguments_of(kind, T, rows, columns, *, norm=False, residual=False, gate=None):
    """The operands of a backend, as shapes: (x, values, scale, zero, bias, residual, norm, prefetch)."""
    shape = jax.ShapeDtypeStruct
    values = {
        "int4": shape((rows, columns // 8), jnp.int32),
        "int8": shape((rows, columns), jnp.int8),
        "fp8": shape((rows, columns), jnp.float8_e4m3fn),
        "float": shape((rows, columns), jnp.bfloat16),
    }[kind]
    scale = {"int4": shape((rows, columns // GROUP), jnp.bfloat16), "float": None}
    scale = scale.get(kind, shape((rows,), jnp.float32))
    added = shape((T, rows // 2 if gate else rows), jnp.bfloat16) if residual else None
    before = shape((columns,), jnp.bfloat16) if norm else None
    return (
        shape((T, columns), jnp.bfloat16),
        values,
        scale,
        None,
        None,
        added,
        before,
        values,
    )


def lowered(arguments, gate=None, blocks=None):
    def run(*operands):
        rules = dict(gate=gate, norm_eps=1e-6, out_dtype=jnp.bfloat16, blocks=blocks)
        return mosaic_gpu.skinny_matmul(*operands, **rules)

    return jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("kind", ["float", "int8", "fp8", "int4"])
@pytest.mark.parametrize("T", [1, 5, 13])
def test_the_kernel_lowers_for_cuda_without_a_gpu(kind, T):
    text = lowered(arguments_of(kind, T, 2000, 4096, norm=True, residual=True, gate="silu"), "silu")
    assert text.count("stablehlo.custom_call") == 1
    assert "mosaic_gpu" in text
    assert "dot_general" not in text


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
@pytest.mark.parametrize("kind", ["float", "int8", "int4"])
def test_every_case_has_blocks_that_fit(case, kind):
    x, values, scale, *_ = arguments_of(kind, 1, case.rows, case.columns)
    blocks = mosaic_gpu.tuned_blocks(values, "silu" if case.gated else None)
    reason = mosaic_gpu.why_not(x, values, scale, None, None, None, jnp.bfloat16, blocks)
    assert reason is None
    fit = mosaic_gpu.fitting(blocks, kind, 1, case.columns, False)
    assert fit.warps <= blocks.warps
    assert fit.unroll <= blocks.unroll


def test_blocks_come_from_the_nearest_measured_shape():
    def near(kind, rows, columns, gate=None):
        return mosaic_gpu.tuned_blocks(arguments_of(kind, 1, rows, columns)[1], gate)

    assert near("int8", 4096, 14336) == near("int8", 5120, 13824) != near("int8", 4096, 4096)
    assert near("int8", 28672, 4096, "silu").whole
    assert not near("int8", 6144, 4096).whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=jnp.zeros((1, 4096), jnp.float32)), "bfloat16 activations"),
        (dict(x=jnp.zeros((129, 4096), jnp.bfloat16)), r"1 to 128 rows .*, got 129"),
        (dict(scale=jnp.ones((8,), jnp.float16)), "float32 or bfloat16"),
        (dict(gate="gelu"), "knows the gates silu, gelu_tanh, relu, got 'gelu'"),
        (dict(x=jnp.zeros((1, 72), jnp.bfloat16), values=jnp.zeros((8, 72), jnp.int8)), "got 72"),
        (
            dict(x=jnp.zeros((16, 14336), jnp.bfloat16), values=jnp.zeros((8, 14336), jnp.int8)),
            "got 16 x 14336",
        ),
    ],
)
def test_the_named_kernel_never_falls_back(change, message):
    good = dict(
        x=jnp.zeros((1, 4096), jnp.bfloat16),
        values=jnp.zeros((8, 4096), jnp.int8),
        scale=jnp.ones((8,)),
        backend="mosaic_gpu",
    )
    with pytest.raises(NotImplementedError, match=message):
        skinny_matmul(**{**good, **change})


def test_four_bit_zero_points_are_refused_by_the_kernel():
    with pytest.raises(NotImplementedError, match="zero points"):
        skinny_matmul(
            jnp.zeros((1, 1024), jnp.bfloat16),
            jnp.zeros((8, 128), jnp.int32),
            jnp.ones((8, 8)),
            zero=jnp.ones((8, 8)),
            backend="mosaic_gpu",
        )


FORMS = [
    Blocks(8, 1, 8),
    Blocks(4, 2, 4),
    Blocks(16, 1, 2, whole=False),
    Blocks(8, 2, 4, whole=False),
]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS[1:5])
@pytest.mark.parametrize("T", [1, 2, 7, 8, 9, 16])
@pytest.mark.parametrize("blocks", FORMS, ids=str)
@pytest.mark.parametrize(
    ("rows", "columns", "names", "gate"),
    [
        (1000, 4096, ("norm", "bias"), None),
        (2 * 1416, 4096, ("norm", "residual"), "silu"),
        (272, 6144, (), "gelu_tanh"),
    ],
)
def test_the_kernel_on_a_gpu(rng, kind, T, blocks, rows, columns, names, gate):
    (values, scale, _), _ = weight_of(rng, kind, rows, columns)
    if kind == "int8":
        scale = scale / 8000
    extras = extras_of(rng, T, rows, columns, names, gate)
    x = jnp.asarray(rng.normal(size=(T, columns)), jnp.bfloat16)
    rules = dict(norm_eps=1e-6, gate=gate, out_dtype=jnp.float32)
    rest = [extras.get(name) for name in ("bias", "residual", "norm")]
    expected = skinny_matmul(
        x, values, scale, gate=gate, out_dtype=jnp.float32, backend="reference", **extras
    )
    run = jax.jit(
        lambda x, values: mosaic_gpu.skinny_matmul(
            x, values, scale, None, *rest, values, blocks=blocks, **rules
        )
    )
    found = np.asarray(run(x, values))
    assert relative(found, np.asarray(expected, np.float64)) < 1e-2
    assert (found == np.asarray(run(x, values))).all()


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4"])
def test_cases_on_a_gpu(rng, case, kind):
    (values, scale, _), _ = weight_of(rng, kind, 512, case.columns)
    values = jnp.tile(values, (-(-case.rows // 512), 1))[: case.rows]
    scale = (
        None
        if scale is None
        else jnp.tile(scale, (-(-case.rows // 512),) + (1,) * (scale.ndim - 1))
    )
    scale = None if scale is None else scale[: case.rows] / 8000
    x = jnp.asarray(rng.normal(size=(1, case.columns)), jnp.bfloat16)
    rules = dict(gate="silu" if case.gated else None, out_dtype=jnp.float32)
    expected = skinny_matmul(x, values, scale, backend="reference", **rules)
    found = skinny_matmul(x, values, scale, backend="mosaic_gpu", **rules)
    assert relative(found, np.asarray(expected, np.float64)) < 1e-2


@pytest.mark.gpu
def test_a_row_does_not_depend_on_its_neighbours(rng):
    (values, scale, _), _ = weight_of(rng, "int8", 256, 4096)
    x = np.asarray(rng.normal(size=(5, 4096)), np.float32)
    x[3] = np.nan
    rules = dict(backend="mosaic_gpu", out_dtype=jnp.float32)
    poisoned = skinny_matmul(jnp.asarray(x, jnp.bfloat16), values, scale, **rules)
    x[3] = 0
    clean = skinny_matmul(jnp.asarray(x, jnp.bfloat16), values, scale, **rules)
    others = np.asarray([0, 1, 2, 4])
    assert (np.asarray(poisoned)[others] == np.asarray(clean)[others]).all()
    assert np.isnan(np.asarray(poisoned)[3]).all()
