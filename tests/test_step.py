"""The compiled decode loop streams its weights as they are stored: no second copy of them, wide or transposed."""

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


def held(config, kind, seed) -> decoder.Params:
    """Random parameters as they would be served: plain, or quantized where the layout allows."""
    dtype = jnp.bfloat16 if kind == "bf16" else jnp.float32
    params = decoder.init(config, jax.random.key(seed), dtype)
    if kind != "w8a8":
        return decoder.prepare(params)

    def shrink(leaf, x):
        if not leaf.quantizable:
            return x
        values, scale = quantize.round_rows(np.asarray(x))
        return quantize.QTensor(jnp.asarray(values), jnp.asarray(scale), method="w8a8")

    return jax.tree.map(shrink, decoder.layout(config), params, is_leaf=decoder.is_leaf)


@pytest.mark.parametrize("slots", [1, 8])
@pytest.mark.parametrize("kind", ["f32", "bf16", "w8a8"])
def test_decode_makes_no_copy_of_the_weights(seed, kind, slots):
    rope = LayerConfig(rope=Rope(rotary_dim=32))
    config = tiny.config(
        d_model=512, d_ff=1024, num_heads=4, num_kv_heads=2, head_dim=32, layers=(rope,) * 4
    )
    params = held(config, kind, seed)
    weights = sum(x.nbytes for x in jax.tree.leaves(params.layers))
    rings, groups = kv.plan_rings(config, SPAN, max_chunk=8)
    state = step.new_state(
        kv.init_cache(config, rings, groups, slots, cache_dtype(params)), config.vocab_size
    )

    @functools.partial(jax.jit, donate_argnums=1)
    def loop(params, state, decodes, steps):
        return step.decode_loop(
            params, config, state, decodes, steps, max_steps=8, span=SPAN, top_n=None
        )

    compiled = loop.lower(params, state, jnp.ones((slots,), bool), jnp.int32(8)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < weights / 8
