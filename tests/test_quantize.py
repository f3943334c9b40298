"""Quantized weights: the error that rounding allows, and no more; the same through a whole model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import quantize
from jaxinfer.generate import logits
from jaxinfer.models import decoder
from tests import tiny


def qtensor(w, method):
    values, scale = quantize.round_rows(w)
    return quantize.QTensor(jnp.asarray(values), jnp.asarray(scale), method=method)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("method", quantize.METHODS)
def test_a_product_is_as_exact_as_its_rounding(rng, rows, method):
    w = rng.normal(size=(24, 32)).astype(np.float32) * rng.uniform(0.1, 10, size=(24, 1)).astype(
        np.float32
    )
    w[3] = 0
    x = rng.normal(size=(rows, 32)).astype(np.float32)
    q = qtensor(w, method)
    held = np.asarray(q.values, np.float32) * np.asarray(q.scale)[:, None]
    assert (np.abs(held - w) <= np.asarray(q.scale)[:, None] * 0.5001).all()
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    read = np.rint(x / step) * step if method == "w8a8" else x
    np.testing.assert_allclose(
        quantize.einsum(jnp.asarray(x), q), read @ held.T, rtol=1e-4, atol=1e-4
    )


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


def test_rows_of_an_embedding(rng):
    w = rng.normal(size=(9, 4)).astype(np.float32)
    q = qtensor(w, "int8")
    ids = jnp.asarray([3, 3, 8])
    held = np.asarray(q.values, np.float32) * np.asarray(q.scale)[:, None]
    np.testing.assert_allclose(quantize.rows(q, ids, jnp.float32), held[[3, 3, 8]], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_weights_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="finite weights"):
        quantize.round_rows(np.array([[1.0, bad]]))


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="one of int8, w8a8 or None, got 'int3'"):
        quantize.check_method("int3")


@pytest.mark.parametrize("method", quantize.METHODS)
def test_a_quantized_model_stays_close(seed, method):
    config = tiny.config()
    params = tiny.params(config, seed)

    def shrink(leaf, x):
        return qtensor(np.asarray(x), method) if leaf.quantizable else x

    small = jax.tree.map(shrink, decoder.layout(config), params, is_leaf=decoder.is_leaf)
    tokens = jnp.asarray(np.random.default_rng(seed).integers(0, tiny.VOCAB, (2, 20)), jnp.int32)
    full, less = (logits(p, config, tokens) for p in (params, small))
    error = float(jnp.linalg.norm(less - full) / jnp.linalg.norm(full))
    assert 0 < error < 0.1
