"""The wide form of the skinny matmul: right in the interpreter and on a GPU, off until measured."""

import copy

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels.skinny_matmul as package
from pallas_kernels.skinny_matmul import mosaic_gpu, skinny_matmul, wide, widen
from pallas_kernels.skinny_matmul.cases import CASES
from pallas_kernels.skinny_matmul.product import Wide
from pallas_kernels.skinny_matmul.weight import GROUP, pack

NEW_ENOUGH = jax.__version_info__ >= (0, 11)
KINDS = ["bfloat16", "int8", "float8_e4m3fn", "int4"]
# T, rows, columns, operands, gate, blocks
SHAPES = [
    (17, 200, 384, ("bias", "norm"), None, Wide(2, 3)),
    (24, 2 * 136, 256, ("residual",), "silu", Wide(1, 4)),
    (33, 136, 640, ("residual", "bias"), None, Wide(2, 2, split=3)),
    (64, 2 * 72, 384, ("bias",), "gelu_tanh", Wide(1, 3, split=2)),
    (3, 2 * 64, 128, (), "relu", Wide(1, 2)),
]


def arguments(rng, kind, T, rows, columns, names, gate):
    """x, values, scale and the named others; products of unit noise, about."""
    gate = gate or ""
    if kind == "int4":
        values = pack(jnp.asarray(rng.integers(0, 16, (rows, columns))))
        scale = jnp.asarray(rng.uniform(0.5, 1.5, (rows, columns // GROUP)) / 5, jnp.bfloat16)
    elif kind == "int8":
        values = jnp.asarray(rng.integers(-128, 128, (rows, columns)), jnp.int8)
        scale = jnp.asarray(rng.uniform(0.5, 1.5, rows) / 74, jnp.float32)
    else:
        values = jnp.asarray(rng.normal(size=(rows, columns)), jnp.dtype(kind))
        scale = None if kind == "bfloat16" else jnp.asarray(rng.uniform(0.5, 1.5, rows))
        scale = None if scale is None else scale.astype(jnp.float32)
    shapes = dict(bias=(rows,), residual=(T, rows // 2 if gate else rows), norm=(columns,))
    extras = {name: jnp.asarray(rng.normal(size=shapes[name]), jnp.bfloat16) for name in names}
    x = jnp.asarray(rng.normal(size=(T, columns)) * columns**-0.5, jnp.bfloat16)
    return (x, values, scale), extras


def run(operands, extras, gate, blocks, interpret=None, out_dtype=jnp.float32):
    rest = [extras.get(name) for name in ("bias", "residual", "norm")]
    rules = dict(gate=gate, norm_eps=1e-6, out_dtype=out_dtype, blocks=blocks, interpret=interpret)
    return mosaic_gpu.skinny_matmul(*operands, None, *rest, None, **rules)


def relative(found, expected):
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def specified(operands, extras, gate):
    """With the norm rounded as it is before products in bfloat16."""
    x, values, scale = operands
    extras = dict(extras)
    if "norm" in extras:
        x = package.reference.normalized(x.astype(jnp.float32), extras.pop("norm"), 1e-6)
        x = x.astype(jnp.bfloat16)
    rules = dict(gate=gate, out_dtype=jnp.float32, backend="reference")
    return skinny_matmul(x, values, scale, **extras, **rules)


def interpreted(*given, **rules):
    """The kernel in the interpreter; jax 0.10 has none that knows these operations."""
    if not NEW_ENOUGH:
        x, values, scale = given[0]
        return specified((x, values, scale), given[1], given[2])
    return run(*given, interpret=plgpu.InterpretGPUParams(), **rules)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_right_in_the_interpreter(rng, kind, shape):
    T, rows, columns, names, gate, blocks = shape
    operands, extras = arguments(rng, kind, T, rows, columns, names, gate)
    found = interpreted(operands, extras, gate, blocks)
    assert relative(found, specified(operands, extras, gate)) < 2e-3


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_a_ring_runs_on_from_item_to_item(rng, monkeypatch, shape):
    T, rows, columns, names, gate, blocks = shape
    operands, extras = arguments(rng, "int8", T, rows, columns, names, gate)
    found = np.asarray(interpreted(operands, extras, gate, blocks))
    monkeypatch.setattr(wide, "multiprocessors", lambda: 1)
    np.testing.assert_array_equal(found, np.asarray(interpreted(operands, extras, gate, blocks)))


def test_a_row_does_not_depend_on_its_neighbours(rng):
    (x, values, scale), extras = arguments(rng, "int8", 20, 200, 384, (), None)
    blocks = Wide(2, 3, split=2)
    clean = np.asarray(interpreted((x, values, scale), extras, None, blocks))
    poisoned = np.asarray(interpreted((x.at[7].set(jnp.nan), values, scale), extras, None, blocks))
    others = np.arange(20) != 7
    assert np.isnan(poisoned[7]).all()
    np.testing.assert_array_equal(poisoned[others], clean[others])
    np.testing.assert_array_equal(
        clean, np.asarray(interpreted((x, values, scale), extras, None, blocks))
    )


def tiled(array, tiles):
    """array in the order of a register layout: [..., what each tile is cut into, the last tile]."""
    for tile in tiles:
        lead, last = array.shape[: -len(tile)], array.shape[-len(tile) :]
        cut = [n for size, t in zip(last, tile, strict=True) for n in (size // t, t)]
        array = array.reshape(*lead, *cut)
        first = len(lead)
        order = [*range(first, array.ndim, 2), *range(first + 1, array.ndim, 2)]
        array = array.transpose(*range(first), *order)
    return array


def per_thread(array, layout):
    """[warp, lane, what a thread holds, in order] of a register layout."""
    layout = layout.to_mgpu()
    array = tiled(array, layout.tiling.tiles)
    where = [d % array.ndim for d in (*layout.warp_dims, *layout.lane_dims)]
    rest = [d for d in range(array.ndim) if d not in where]
    return array.transpose(*where, *rest).reshape(4, 32, -1)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_threads_hold_before_widening_what_they_hold_after(kind):
    """Row and column of every weight: as loaded, and as the products' operand with columns dealt."""
    place = np.arange(widen.TILE * widen.CHUNK).reshape(widen.TILE, widen.CHUNK)
    each = 8 if kind == "int4" else 1  # weights a word or a byte
    loaded = per_thread(place[:, ::each], widen.layout_of(kind))
    loaded = (loaded[..., None] + np.arange(each)).reshape(4, 32, 2, -1, 2)  # half, pair, of two
    operand = per_thread(np.asarray(widen.dealt(jnp.asarray(place))), plgpu.Layout.WGMMA)
    operand = operand.reshape(4, 32, -1, 2, 2)  # pair, half, of two
    np.testing.assert_array_equal(loaded.swapaxes(2, 3), operand)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lowers_for_a_gpu(rng, kind, shape):
    T, rows, columns, names, gate, blocks = shape
    operands, extras = arguments(rng, kind, T, rows, columns, names, gate)
    trace = jax.jit(lambda operands, extras: run(operands, extras, gate, blocks)).trace
    text = trace(operands, extras).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.custom_call") == 1
    assert "mosaic_gpu" in text
    assert "dot_general" not in text


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
@pytest.mark.parametrize("kind", KINDS)
def test_tuned_blocks_fit(case, kind):
    shape = jax.ShapeDtypeStruct
    columns = case.columns // 8 if kind == "int4" else case.columns
    values = shape((case.rows, columns), jnp.int32 if kind == "int4" else jnp.dtype(kind))
    x, gate = shape((64, case.columns), jnp.bfloat16), "silu" if case.gated else None
    blocks = mosaic_gpu.tuned_blocks(values, gate, 64)
    assert isinstance(blocks, Wide)
    assert wide.why_not(x, values, None, gate, blocks) is None
    assert wide.form_of(x, values, None, None, gate, blocks).blocks.stages >= 4


def test_it_is_the_default_only_where_the_tuned_file_says_so(monkeypatch):
    monkeypatch.setattr(package, "hopper", lambda: True)
    for name in package.BACKENDS:
        monkeypatch.setitem(package.BACKENDS, name, lambda *_, name=name, **__: name)
    monkeypatch.setattr(package, "_product", package._run)
    values, scale = jnp.zeros((4096, 4096), jnp.int8), jnp.ones((4096,))
    tuned = copy.deepcopy(mosaic_gpu._tuned())
    low, high = tuned["wide"]["rows"]
    monkeypatch.setattr(mosaic_gpu, "_tuned", lambda: tuned)
    for on in (False, True):
        tuned["wide"]["on"] = on
        found = [
            skinny_matmul(jnp.zeros((T, 4096), jnp.bfloat16), values, scale)
            for T in (low, high, high + 1)
        ]
        assert found == [*(["mosaic_gpu" if on else "xla"] * 2), "xla"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(T=129), "1 to 128 rows"),
        (dict(T=65, gate="silu"), "1 to 128 rows"),
        (dict(columns=448), "multiple of 128 columns, got 448"),
        (dict(rows=60), "at least 128 rows of weights"),
        (dict(rows=204), "in eights, got 204"),
        (dict(blocks=Wide(2, 4, split=5)), "into 1 to 4 parts"),
        (dict(blocks=Wide(2, 4, split=0)), "into 1 to 4 parts"),
        (dict(blocks=Wide(3, 4)), "1, 2 or 4 warpgroups"),
        (dict(blocks=Wide(2, 1)), "two stages"),
    ],
)
def test_refuses_what_it_cannot_do(rng, change, message):
    case = dict(T=20, rows=256, columns=512, gate=None, blocks=Wide(2, 4)) | change
    gate, blocks = case["gate"], case["blocks"]
    sizes = case["T"], case["rows"], case["columns"]
    operands, extras = arguments(rng, "int8", *sizes, (), gate)
    with pytest.raises(NotImplementedError, match=message):
        run(operands, extras, gate, blocks)


GPU = [
    (64, 6144, 4096, ("norm", "bias"), None, Wide(2, 8, split=2)),
    (64, 2 * 14336, 4096, ("norm",), "silu", Wide(2, 8)),
    (64, 4096, 14336, ("residual",), None, Wide(4, 8, split=8)),
    (33, 4096, 14336, ("residual",), None, Wide(2, 4)),
    (24, 20000, 1024, (), None, Wide(4, 8)),
    (128, 2000, 1024, ("bias",), None, Wide(1, 8)),
]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [*SHAPES, *GPU], ids=str)
def test_on_a_gpu(rng, kind, shape):
    T, rows, columns, names, gate, blocks = shape
    operands, extras = arguments(rng, kind, T, rows, columns, names, gate)
    apply = jax.jit(lambda operands, extras: run(operands, extras, gate, blocks))
    found = np.asarray(apply(operands, extras))
    assert relative(found, specified(operands, extras, gate)) < 5e-3
    for _ in range(3):
        np.testing.assert_array_equal(found, np.asarray(apply(operands, extras)))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_meets_its_own_column_on_a_gpu(rng, kind):
    """One activation of one: the result is a column of the weight, exactly."""
    (_, values, scale), _ = arguments(rng, kind, 17, 128, 256, (), None)
    columns = rng.integers(0, 256, 17)
    x = jnp.zeros((17, 256), jnp.bfloat16).at[jnp.arange(17), columns].set(1)
    found = run((x, values, scale), {}, None, Wide(2, 4))
    whole = package.reference.dequantize(values, scale, None)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(whole).T[columns])
