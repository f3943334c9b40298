"""The compiled decode loop streams its weights as they are stored and updates its cache in place: no
second copy of either.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import cache as kv
from jaxinfer import quantize, step
from jaxinfer.config import LayerConfig, Rope
from jaxinfer.generate import cache_dtype
from jaxinfer.models import decoder
from tests import tiny

SPAN = 32
FULL = LayerConfig(rope=Rope(rotary_dim=16))


def held(config, kind, seed) -> decoder.Params:
    """Random parameters as they would be served: plain, or quantized where the layout allows."""
    dtype = jnp.bfloat16 if kind == "bf16" else jnp.float32
    params = decoder.init(config, jax.random.key(seed), dtype)
    if kind not in quantize.METHODS:
        return decoder.prepare(params)

    def shrink(leaf, x):
        if not leaf.quantizable:
            return x
        values, scale = quantize.round_rows(np.asarray(x))
        return quantize.QTensor(jnp.asarray(values), jnp.asarray(scale), method=kind)

    return jax.tree.map(shrink, decoder.layout(config), params, is_leaf=decoder.is_leaf)


def new_state(config, params, slots, capacity, kv_dtype=None) -> step.State:
    rings, groups = kv.plan_rings(config, capacity, max_chunk=8)
    cache = kv.init_cache(config, rings, groups, slots, kv_dtype or cache_dtype(params))
    return step.new_state(cache, config.vocab_size)


def loop(config, span):
    """The decode loop over `span` slots, jitted as the serving path does."""

    @functools.partial(jax.jit, donate_argnums=1)
    def run(params, state, decodes, steps):
        return step.decode_loop(
            params, config, state, decodes, steps, max_steps=8, span=span, top_n=None
        )

    return run


@pytest.mark.parametrize("slots", [1, 8])
@pytest.mark.parametrize("kind", ["f32", "bf16", "int8", "w8a8"])
def test_decode_makes_no_copy_of_the_weights(seed, kind, slots):
    rope = LayerConfig(rope=Rope(rotary_dim=32))
    config = tiny.config(
        d_model=512, d_ff=1024, num_heads=4, num_kv_heads=2, head_dim=32, layers=(rope,) * 4
    )
    params = held(config, kind, seed)
    weights = sum(x.nbytes for x in jax.tree.leaves(params.layers))
    state = new_state(config, params, slots, SPAN)
    compiled = loop(config, SPAN).lower(params, state, jnp.ones((slots,), bool), jnp.int32(8))
    assert compiled.compile().memory_analysis().temp_size_in_bytes < weights / 8


@pytest.mark.parametrize(("slots", "kv_heads"), [(1, 1), (1, 2), (8, 2)])
def test_decode_makes_no_copy_of_the_cache(seed, slots, kv_heads):
    config = tiny.config(
        num_heads=2 * kv_heads, num_kv_heads=kv_heads, layers=(FULL,) * 4, max_position=1024
    )
    params = held(config, "f32", seed)
    state = new_state(config, params, slots, 1024)
    kept = sum(x.nbytes for x in jax.tree.leaves(state.cache.layers))
    compiled = loop(config, 1024).lower(params, state, jnp.ones((slots,), bool), jnp.int32(8))
    assert compiled.compile().memory_analysis().temp_size_in_bytes < kept / 4


@pytest.mark.parametrize("slots", [1, 8])
@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
def test_decode_widens_no_narrow_cache(seed, kv_dtype, slots):
    config = tiny.config(head_dim=64, layers=(FULL,) * 2, max_position=8192)
    params = held(config, "f32", seed)
    length = 65536 // slots
    state = new_state(config, params, slots, length, kv_dtype)
    kept = sum(x.nbytes for x in jax.tree.leaves(state.cache.layers))
    one = kv.vector_bytes(64, kv_dtype)
    assert kept == 2 * 2 * 2 * slots * length * one == 2 * 2 * 2 * 65536 * 68
    compiled = loop(config, length).lower(params, state, jnp.ones((slots,), bool), jnp.int32(8))
    memory = compiled.compile().memory_analysis()
    assert memory.temp_size_in_bytes < kept / 4  # one of four arrays, in float32: nearly all of it
    assert memory.alias_size_in_bytes >= kept


def test_decode_reads_and_writes_within_the_span(rng, seed):
    config = tiny.config(layers=(FULL,) * 2)
    params = held(config, "f32", seed)
    state = new_state(config, params, 3, 64)
    lengths = jnp.asarray(rng.integers(1, SPAN - 8, 3), jnp.int32)
    drawn = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state.cache.layers
    )
    active = jnp.asarray([True, True, False])
    state = state.replace(
        cache=state.cache.replace(layers=drawn, lengths=lengths),
        tokens=jnp.asarray(rng.integers(0, config.vocab_size, 3), jnp.int32),
        remaining=jnp.full((3,), 100, jnp.int32),
        active=active,
    )
    found = {}
    for span in (SPAN, 64):
        copy = jax.tree.map(jnp.copy, state)
        found[span] = loop(config, span)(params, copy, active, jnp.int32(8))
    (after, output), (expected, wanted) = found[SPAN], found[64]
    np.testing.assert_array_equal(output.tokens, wanted.tokens)
    for x, y, before in zip(
        *(jax.tree.leaves(s.cache.layers) for s in (after, expected, state)), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(x[:, :, SPAN:], before[:, :, SPAN:])
        np.testing.assert_array_equal(x[2], before[2])
