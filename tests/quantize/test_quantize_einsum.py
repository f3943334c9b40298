"""Quantized weights: the error that rounding allows, and no more; the same through a whole model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import quantize
from jaxinfer.generate import logits
from jaxinfer.models import decoder
from pallas_kernels.skinny_matmul import reference, skinny_matmul, weight
from tests import tiny


def qtensor(w, method="int8", **settings):
    """One weight as a load would make it, all rows at once."""
    recipe = quantize.Recipe(method, **settings)
    form = recipe.form(w.shape[1])
    rounder = quantize.Rounder(recipe, form)
    if rounder.surveys:
        rounder.survey("w", 0, w)
    found = {name: jnp.asarray(x) for name, x in rounder.round("w", 0, w).items()}
    if form.outliers:
        found["columns"] = jnp.asarray(rounder.columns)
    return quantize.QTensor(method=form.method, **found)


def truth(w):
    """What a `QTensor` stands for, number by number."""
    values, scale = np.asarray(w.values), np.asarray(w.scale, np.float64)
    out, columns = w.shape
    group = w.group or columns
    scale = scale.reshape(out, -1)
    held = np.zeros((out, columns))
    for o in range(out):
        for c in range(columns):
            if w.kind == "int4":
                number = (int(values[o, c // 8]) >> (4 * weight.ORDER.index(c % 8))) & 15
                number -= 8 if w.zero is None else float(w.zero[o, c // group])
            else:
                number = float(values[o, c])
            held[o, c] = number * scale[o, c // group]
    if w.columns is not None:
        held[:, np.asarray(w.columns)] += np.asarray(w.outliers, np.float64)
    return held


SETTINGS = [
    {"method": "int8"},
    {"method": "int4"},
    {"method": "int4", "symmetric": False, "group": 8},
    {"method": "fp8"},
    {"method": "fp8", "shared": "tensor"},
    {"method": "fp8", "shared": "block", "group": 16},
    {"method": "w8a8"},
    {"method": "llm_int8"},
]


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_product_is_as_exact_as_its_rounding(rng, rows, settings):
    w = rng.normal(size=(24, 32)).astype(np.float32)
    w *= rng.uniform(0.1, 10, size=(24, 1)).astype(np.float32)
    w[3] = 0
    w[5, 16:] = 0
    x = rng.normal(size=(rows, 32)).astype(np.float32)
    q = qtensor(w, **settings)
    held = truth(q)
    np.testing.assert_allclose(quantize.dequantize(q), held, rtol=1e-5, atol=1e-6)
    gone, top = np.abs(held - w), np.abs(w)
    if q.kind == "fp8":  # half of the last of three bits, or of the least step
        scale = np.repeat(np.asarray(q.scale).reshape(24, -1), q.group or 32, 1)
        assert (gone <= np.maximum(top / 16, scale * 2**-10) * 1.001).all()
    elif q.kind == "int4":
        scale = np.repeat(np.asarray(q.scale, np.float32), q.group, 1)
        assert (gone <= scale * (0.53 if q.zero is None else 1.03)).all()
    else:
        assert (gone <= np.maximum(np.asarray(q.scale)[:, None] * 0.5001, top / 256)).all()
    assert not held[3].any()
    read = x.astype(np.float64)
    if q.method in ("w8a8", "llm_int8"):
        plain = np.ones(32, bool)
        if q.columns is not None:
            plain[np.asarray(q.columns)] = False
        step = np.abs(x[:, plain]).max(axis=1, keepdims=True) / 127
        read[:, plain] = np.rint(x[:, plain] / step) * step
    found = np.asarray(quantize.einsum(jnp.asarray(x), q), np.float64)
    room = 2e-4 + 1e-4 * np.abs(read @ held.T)
    if q.method == "int8":  # on CPU in two digits, within 2**-16 of each row's largest
        room += np.abs(x).max(axis=1, keepdims=True) * 2.0**-16 * np.abs(held).sum(axis=1)[None]
    assert (np.abs(found - read @ held.T) <= room).all()


def test_int8_weights_have_the_slopes_of_what_they_stand_for(rng):
    q = qtensor(rng.normal(size=(8, 16)).astype(np.float32))
    x, pull = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 16), (3, 8)))
    of_x = jax.grad(lambda x: (quantize.einsum(x, q) * pull).sum())(x)
    np.testing.assert_allclose(of_x, pull @ truth(q), rtol=1e-4, atol=1e-4)
    of_scale = jax.grad(lambda s: (quantize.einsum(x, q.replace(scale=s)) * pull).sum())(q.scale)
    expected = (pull * (x @ q.values.T.astype(jnp.float32))).sum(axis=0)
    np.testing.assert_allclose(of_scale, expected, rtol=1e-4, atol=1e-2)


def test_activations_are_smoothed_before_they_meet_the_weight(rng):
    x, w = (rng.normal(size=s).astype(np.float32) for s in ((3, 16), (8, 16)))
    s = rng.uniform(0.5, 2, size=16).astype(np.float32)
    q = qtensor(w * s[None], "int4").replace(smooth=jnp.asarray(1 / s))
    expected = (x / s) @ truth(q).T
    np.testing.assert_allclose(quantize.einsum(jnp.asarray(x), q), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(quantize.dequantize(q), truth(q) / s, rtol=1e-5, atol=1e-6)


def test_four_bits_are_packed_as_the_kernels_read_them(rng):
    w = rng.normal(size=(8, 256)).astype(np.float32)
    for symmetric in (True, False):
        q = qtensor(w, "int4", symmetric=symmetric)
        assert q.group == weight.GROUP
        np.testing.assert_array_equal(weight.pack(weight.unpack(q.values)), q.values)
        seen = reference.dequantize(*quantize.parts(q))
        np.testing.assert_allclose(seen, truth(q), rtol=1e-6)
        x = jnp.asarray(rng.normal(size=(2, 256)), jnp.float32)
        values, scale, zero = quantize.parts(q)
        np.testing.assert_allclose(
            skinny_matmul(x, values, scale, zero=zero), quantize.einsum(x, q), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("method", quantize.METHODS)
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_narrow_activations_inside_a_loop(rng, rows, method):
    """As a decoding loop has them: compiled, a weight from outside, a few rows."""
    q = qtensor(rng.normal(size=(64, 64)).astype(np.float32) / 8, method)
    x = jnp.asarray(rng.normal(size=(rows, 64)), jnp.bfloat16)

    @jax.jit
    def run(x, q):
        return jax.lax.fori_loop(0, 2, lambda _, x: quantize.einsum(x, q), x)

    expected = np.asarray(x, np.float64) @ truth(q).T @ truth(q).T
    assert run(x, q).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(run(x, q), np.float64), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_plain_products(rng, dtype, rows):
    x, w = (jnp.asarray(rng.normal(size=s), dtype) for s in ((rows, 16), (8, 16)))
    found = quantize.einsum(x, w)
    assert found.dtype == dtype
    expected = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    np.testing.assert_allclose(
        np.asarray(found, np.float64),
        expected,
        rtol=2e-2 if dtype == jnp.bfloat16 else 1e-5,
        atol=0.05,
    )


@pytest.mark.parametrize("rows", [16, 48, 64])
def test_products_of_products_read_nothing_past_their_end(rng, rows):
    """Sums over columns between two products: fused into the second, they are read out of bounds."""
    w = rng.normal(size=(2, 960, 2560)).astype(np.float32)
    x = rng.normal(size=(rows, 2560)).astype(np.float32)

    @jax.jit
    def chain(x, first, second):
        found = quantize.einsum(x, first)
        return found.sum(), quantize.einsum(x + 1e-3 * found[:, :1], second).sum()

    found = x.astype(np.float64) @ w[0].T
    after = (x + 1e-3 * found[:, :1]) @ w[1].T.astype(np.float64)
    size = np.abs(found).sum() * 1e-5
    np.testing.assert_allclose(chain(x, *w), (found.sum(), after.sum()), atol=size)


@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("method", [None, "int8", "w8a8"])
def test_sums_are_float32_until_the_end(rng, rows, method):
    """Asked for float32, bfloat16 products are not rounded on the way: logits that lie close part."""
    wide = rng.normal(size=(48, 64)).astype(np.float32)
    w = qtensor(wide, method) if method else jnp.asarray(wide, jnp.bfloat16)
    x = jnp.asarray(rng.normal(size=(rows, 64)), jnp.bfloat16)
    exact = jax.jit(lambda x, w: quantize.einsum(x, w, jnp.float32))(x, w)
    rounded = jax.jit(quantize.einsum)(x, w)
    assert (exact.dtype, rounded.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(exact.astype(jnp.bfloat16)), np.asarray(rounded))
    assert (np.asarray(exact) != np.asarray(rounded, np.float32)).mean() > 0.9


@pytest.mark.parametrize("method", quantize.METHODS)
def test_rows_of_an_embedding(rng, method):
    w = rng.normal(size=(9, 16)).astype(np.float32)
    q = qtensor(w, method)
    ids = jnp.asarray([3, 3, 8])
    found = quantize.rows(q, ids, jnp.float32)
    np.testing.assert_allclose(found, truth(q)[[3, 3, 8]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("top", [1e-44, 1e-39, 1e-30, 9.9e37])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_row_of_extreme_size_is_held_and_spoils_no_other(rng, settings, top):
    """From float32's least numbers, which a device may take for zeros, nearly to its largest."""
    w = rng.uniform(-1, 1, size=(24, 32)).astype(np.float32)
    w[3] *= top
    w[3, :2] = top, -top
    held = np.asarray(quantize.dequantize(qtensor(w, **settings)), np.float64)
    gone = np.abs(held - w)
    assert gone[3].max() <= max(1e-36, 0.08 * top) or (top < 1 and "shared" in settings)
    if top < 1 or "shared" not in settings:
        assert np.delete(gone, 3, axis=0).max() < 0.1
    assert (np.abs(held) <= 1.1 * np.abs(w).max()).all()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1.1e38])
@pytest.mark.parametrize("method", quantize.METHODS)
def test_weights_that_are_not_finite_are_refused(bad, method):
    w = np.ones((2, 16), np.float32)
    w[1, 3] = bad
    with pytest.raises(ValueError, match="finite weights"):
        qtensor(w, method)


@pytest.mark.parametrize("method", quantize.METHODS)
def test_a_quantized_model_is_that_of_the_rounded_weights(seed, method):
    config = tiny.config()
    params = tiny.params(config, seed)

    def shrink(leaf, x):
        return qtensor(np.asarray(x), method) if leaf.quantizable and not leaf.head else x

    small = jax.tree.map(shrink, decoder.layout(config), params, is_leaf=decoder.is_leaf)
    tokens = jnp.asarray(np.random.default_rng(seed).integers(0, tiny.VOCAB, (2, 20)), jnp.int32)
    wide = jax.tree.map(quantize.dequantize, small, is_leaf=decoder.is_leaf)
    full, same, less = (logits(p, config, tokens) for p in (params, wide, small))
    error = float(jnp.linalg.norm(less - full) / jnp.linalg.norm(full))
    if method in ("w8a8", "llm_int8"):
        assert 0 < error < 0.15
    else:
        np.testing.assert_allclose(less, same, rtol=1e-3, atol=2e-4 * float(jnp.abs(full).max()))
        assert error > 0
