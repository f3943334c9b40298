"""Divisions of activations that go into what made them change nothing that a layer gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import ragged
from jaxinfer.calibrate.folding import fold, tied
from jaxinfer.calibrate.statistics import exchange, forward, linears
from jaxinfer.models import decoder
from tests import tiny

FAMILIES = {
    "llama": {},
    "qwen2": dict(qkv_bias=True),
    "gemma": dict(norm_offset=1.0, activation="gelu_tanh"),
    "gpt2": dict(norm="layer", gated=False, qkv_bias=True, out_bias=True, mlp_bias=True),
    "sandwich": dict(norm_style="sandwich"),
    "post": dict(norm_style="post"),
}
NOWHERE = {"gpt2": ["mlp.down"], "post": ["attention.qkv", "mlp.up"]}


def layer(rng, seed, **changes):
    """A layer with scales and biases that are not one and zero, and what enters it."""
    config = tiny.config(**changes)
    p = tiny.params(config, seed).layers[0]
    p = jax.tree.map(
        lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32) if x.ndim == 1 else x, p
    )
    p = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), p)
    tokens = jnp.zeros((2, 9), jnp.int32)
    batch = ragged.rectangle(tokens, jnp.full(2, 9), jnp.zeros(2, jnp.int32))
    x = jnp.asarray(rng.normal(size=(18, config.d_model)), jnp.float32)
    return config, p, x, batch


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_layer_gives_what_it_gave(rng, seed, family, dtype):
    config, p, x, batch = layer(rng, seed, **FAMILIES[family])
    own, kind = config.layers[0], jnp.dtype(dtype)
    expected = forward(x, p, batch, config=config, layer=own)
    nowhere = []
    for name in linears(p):
        value = linears(p)[name]
        s = jnp.exp(jnp.asarray(rng.normal(size=value.w.shape[1]), jnp.float32))
        s = tied(s, name, config, own)
        folded = fold(p, name, s, config, own, kind)
        if folded is None:
            nowhere.append(name)
            continue
        p, moved = folded
        assert moved.shape == s.shape
        w = linears(p)[name].w * moved[None]
        p = exchange(p, {name: dataclasses.replace(linears(p)[name], w=w)})
        assert not np.array_equal(w, value.w)
        found = forward(x, p, batch, config=config, layer=own)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    assert nowhere == NOWHERE.get(family, [])
    for norm in (p.pre_attention, p.pre_mlp):
        if norm is not None:
            np.testing.assert_array_equal(norm.scale, norm.scale.astype(kind).astype(jnp.float32))


def test_heads_that_share_values_are_divided_alike(rng):
    config = tiny.config()
    top = jnp.asarray(rng.uniform(1, 9, size=64), jnp.float32)
    found = tied(top, "attention.out", config, config.layers[0]).reshape(2, 2, 16)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    np.testing.assert_array_equal(found[:, 0], top.reshape(2, 2, 16).max(axis=1))
    np.testing.assert_array_equal(tied(top, "mlp.up", config, config.layers[0]), top)


def test_a_norm_that_cannot_hold_a_division_keeps_its_scale(rng, seed):
    """Gemma keeps scale - 1 in bfloat16: near zero there is nothing between steps of 1/256."""
    config, p, _, _ = layer(rng, seed, norm_offset=1.0)
    p = dataclasses.replace(
        p, pre_mlp=p.pre_mlp.replace(scale=jnp.full(config.d_model, 1 / 128 - 1, jnp.float32))
    )
    s = jnp.full(config.d_model, 3.0, jnp.float32)
    folded = fold(p, "mlp.up", s, config, config.layers[0], jnp.dtype(jnp.bfloat16))
    assert folded is not None
    np.testing.assert_array_equal(folded[0].pre_mlp.scale, p.pre_mlp.scale)
    np.testing.assert_array_equal(folded[1], np.ones(config.d_model))


def test_places_are_named_as_the_layer_has_them(seed):
    p = decoder.init(tiny.config(), jax.random.key(seed)).layers[0]
    assert list(linears(p)) == ["attention.qkv", "attention.out", "mlp.up", "mlp.down"]
