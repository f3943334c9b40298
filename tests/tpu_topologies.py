"""Run by test_tpu_compile.py in its own process: compile real programs for TPUs that this machine
does not have.

Usage: python -m tests.tpu_topologies NAME...; one line of JSON a topology. libtpu compiles without
a device.
"""

import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jaxinfer import ragged, sharding
from jaxinfer.config import LayerConfig, ModelConfig, Rope
from jaxinfer.generate import decode, new_cache, prefill
from jaxinfer.models import decoder
from pallas_kernels.backend import platform
from tests.pallas_kernels.tpu_operations import copies_of, kernels_in

B, LENGTH, SHARDS = 16, 16384, 4
CHUNK = 64  # few enough tokens that one layer's cache outweighs all activations
ROPE = Rope(rotary_dim=128, theta=5e5)
CONFIG = ModelConfig(  # two layers of Llama 3 8B, one of them with a window
    family="llama",
    vocab_size=128256,
    d_model=4096,
    d_ff=14336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    layers=(LayerConfig(rope=ROPE), LayerConfig(rope=ROPE, window=512)),
    max_position=8192,
)
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def array(shape, dtype, letters, mesh):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.place(letters, mesh))


def model(mesh, shards):
    """Parameters and an empty cache, described."""
    params = jax.tree.map(
        lambda leaf: array(leaf.shape, jnp.bfloat16, leaf.letters, mesh),
        decoder.layout(CONFIG, shards),
        is_leaf=decoder.is_leaf,
    )
    cache = jax.eval_shape(lambda p: new_cache(p, CONFIG, B, LENGTH, max_chunk=CHUNK), params)
    cache = cache.replace(
        layers=jax.tree.map(lambda x: array(x.shape, x.dtype, "BK..", mesh), cache.layers),
        lengths=array((B,), jnp.int32, "B", mesh),
    )
    return params, cache


def compiled(function, params, *inputs) -> dict:
    """What the compiler says of function(params, CONFIG, *inputs), the cache (last) given up."""
    cache = inputs[-1]
    jitted = jax.jit(function, static_argnums=1, donate_argnums=1 + len(inputs))
    program = jitted.lower(params, CONFIG, *inputs).compile()
    memory, text = program.memory_analysis(), program.as_text()
    shards = {x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(cache.layers)}
    return {
        "arguments": memory.argument_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
        "kernels": kernels_in(text),
        "copies": [copy for shape in shards for copy in copies_of(shape, text)],
        "collectives": {
            kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in COLLECTIVES
        },
    }


def packed(params, config, tokens, counts, before, slots, cache):
    """A step over packed rows: prompts and decodes together, in any slots."""
    live = slots < B
    rules = dict(reach=before + counts, max_count=CHUNK)
    batch = ragged.pack(tokens, counts, before, slots, live, **rules)
    hidden, cache = decoder.forward(params, config, batch, cache)
    return decoder.unembed(params, config, ragged.last_tokens(hidden, batch)), cache


def report(topology: str) -> dict:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = sharding.make_mesh({"model": SHARDS}, devices=devices)
    with jax.set_mesh(mesh):
        params, cache = model(mesh, SHARDS)
        found = {
            "topology": topology,
            "platform": platform(),
            "cache": str(cache.layers[0].k.dtype),
        }
        rows, prompts = array((B,), jnp.int32, "B", mesh), array((B, CHUNK), jnp.int32, "B.", mesh)
        found["decode"] = compiled(decode, params, rows, cache)
        chunk = functools.partial(prefill, chunk=CHUNK)
        found["prefill"] = compiled(chunk, params, prompts, rows, cache)
    mesh = sharding.make_mesh({"data": 2, "model": SHARDS // 2}, devices=devices)
    with jax.set_mesh(mesh):
        params, cache = model(mesh, SHARDS // 2)
        tokens, row = array((4 * CHUNK,), jnp.int32, ".", mesh), array((8,), jnp.int32, ".", mesh)
        found["packed"] = compiled(packed, params, tokens, row, row, row, cache)
    return found


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps(report(name)), flush=True)
