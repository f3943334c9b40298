"""Run by test_sharding.py in its own process, which has eight CPU devices: what sharded models
compute, as JSON.

Usage: python -m tests.eight_devices NAME...; one line a name of `small_configs.SMALL`, with the
collectives counted for those of COUNTED.
"""

import functools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer import sharding
from jaxinfer.engine import Engine
from jaxinfer.generate import decode, logits, new_cache
from jaxinfer.models import decoder, registry
from jaxinfer.request import Request, SamplingParams
from jaxinfer.scheduler import Limits
from tests.models.small_configs import SMALL

B, PROMPT, STEPS = 4, 6, 10
COUNTED = ("llama3", "qwen3", "gemma3", "phi3-long", "olmo2", "gpt2")
SERVED = ("qwen3", "gemma3")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def random_tensors(config, rng):
    """Canonical tensors, nothing at zero or one."""
    tensors = {}
    for name, shape in decoder.canonical_shapes(config).items():
        x = rng.standard_normal(shape, np.float32)
        if name.endswith(".scale"):
            x = 1.0 - config.norm_offset + 0.3 * x
        elif len(shape) == 1:
            x = 0.3 * x
        else:
            x = x * (0.02 if name in ("embed", "positions") else 2.0 * shape[1] ** -0.5)
        tensors[name] = x.astype(np.float32)
    return tensors


def place(config, tensors, mesh):
    """The parameters, each in its place on the mesh."""
    shards = sharding.model_shards(mesh)
    layout = decoder.layout(config, shards)
    places = jax.tree.map(
        lambda leaf: sharding.place(leaf.letters, mesh), layout, is_leaf=decoder.is_leaf
    )
    return jax.device_put(decoder.assemble(config, tensors, shards), places)


@functools.partial(jax.jit, static_argnames="config")
def greedy(params, config, prompt, cache):
    """prompt [B, PROMPT] -> tokens [B, PROMPT + STEPS], logits [B, PROMPT + STEPS - 1, V], a token
    at a time.
    """

    def step(state, forced):
        cache, token = state
        token = jnp.where(forced < 0, token, forced)
        found, cache = decode(params, config, token, cache)
        return (cache, jnp.argmax(found, axis=1).astype(jnp.int32)), (token, found)

    forced = jnp.concatenate([prompt, jnp.full((B, STEPS - 1), -1, jnp.int32)], axis=1)
    (_, last), (tokens, found) = jax.lax.scan(step, (cache, prompt[:, 0]), forced.T)
    return jnp.concatenate([tokens.T, last[:, None]], axis=1), jnp.swapaxes(found, 0, 1)


whole = jax.jit(logits, static_argnames="config")


def run(config, tensors, mesh, prompt):
    """(tokens, logits of the cached path) on a mesh; the parameters on it."""
    params = place(config, tensors, mesh)
    prompt = jax.device_put(prompt, sharding.place("B.", mesh))
    cache = new_cache(params, config, B, PROMPT + STEPS, max_chunk=1, mesh=mesh)
    tokens, found = greedy(params, config, prompt, cache)
    return np.asarray(tokens), np.asarray(found), params


def served(params, config, mesh, prompt):
    """The tokens that the engine gives, prompts in chunks."""
    engine = Engine(
        params, config, Limits(slots=B, max_length=32, chunk=4, decode_steps=3), mesh=mesh
    )
    greedy = SamplingParams(temperature=0, max_new_tokens=STEPS)
    rows = [
        Request(id=str(i), prompt_token_ids=tuple(row.tolist()), params=greedy)
        for i, row in enumerate(prompt)
    ]
    found = [row.tolist() for row in prompt]
    for token in engine.run(rows):
        found[int(token.request_id)].append(token.token_id)
    return found


def clear(found) -> bool:
    """Whether no choice is a near tie, which rounding would decide."""
    top = np.sort(found, axis=-1)
    return (top[..., -1] - top[..., -2]).min() > 2e-5 * np.abs(found).max()


def size_of_model_axis(config) -> int:
    return 4 if config.num_heads % 4 == 0 else 2


def collectives(config, mesh) -> dict[str, dict[str, int]]:
    """How many of each collective one decode step and one cacheless pass hold, as compiled."""
    params = place(config, random_tensors(config, np.random.default_rng(0)), mesh)
    cache = new_cache(params, config, B, 16, mesh=mesh)
    token = jax.device_put(np.zeros(B, np.int32), sharding.place("B", mesh))
    tokens = jax.device_put(np.zeros((B, 5), np.int32), sharding.place("B.", mesh))
    step = jax.jit(decode, static_argnames="config", donate_argnums=3)
    programs = {
        "decode": step.lower(params, config, token, cache),
        "whole": whole.lower(params, config, tokens),
    }
    found = {}
    for name, lowered in programs.items():
        text = lowered.compile().as_text()
        found[name] = {
            kind: len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in COLLECTIVES
        }
    return found


def split_collectives(config, mesh) -> tuple[dict, dict]:
    """`collectives` that one layer adds (two of the first layer against one), and those outside
    layers.
    """
    two, one = (collectives(config.replace(layers=config.layers[:1] * L), mesh) for L in (2, 1))
    layer = {
        name: {kind: two[name][kind] - one[name][kind] for kind in COLLECTIVES} for name in two
    }
    outside = {
        name: {kind: one[name][kind] - layer[name][kind] for kind in COLLECTIVES} for name in two
    }
    return layer, outside


def report(name: str) -> dict:
    hf = SMALL[name]
    config = registry.family_of(hf).read(hf)
    seed = int(np.random.default_rng().integers(2**31))
    rng = np.random.default_rng(seed)
    one = sharding.make_mesh("data=1,model=1")
    mesh = sharding.make_mesh({"data": 2, "model": size_of_model_axis(config)})
    while True:
        tensors = random_tensors(config, rng)
        prompt = rng.integers(config.vocab_size, size=(B, PROMPT)).astype(np.int32)
        with jax.set_mesh(one):
            tokens, truth, _ = run(config, tensors, one, prompt)
        if clear(truth):
            break
    with jax.set_mesh(mesh):
        sharded, cached, params = run(config, tensors, mesh, prompt)
        cacheless = np.asarray(whole(params, config, tokens[:, :-1]))
        engine = served(params, config, mesh, prompt) if name in SERVED else None
        layer, outside = split_collectives(config, mesh) if name in COUNTED else (None, None)
    top = np.abs(truth).max()
    return {
        "name": name,
        "seed": seed,
        "mesh": dict(mesh.shape),
        "tokens": tokens.tolist(),
        "sharded": sharded.tolist(),
        "served": engine,
        "cached_error": float(np.abs(cached - truth).max() / top),
        "cacheless_error": float(np.abs(cacheless - truth).max() / top),
        "layer": layer,
        "outside": outside,
    }


if __name__ == "__main__":
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    for name in sys.argv[1:]:
        print(json.dumps(report(name)), flush=True)
