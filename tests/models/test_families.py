"""Every family equals transformers: logits and greedy tokens of fresh random checkpoints, in
float32.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxinfer import cache as kv
from jaxinfer import ragged
from jaxinfer.models import decoder, registry
from tests import oracle
from tests.models.small_configs import SMALL

PROMPT, CHUNK, STEPS, LENGTH = 20, 5, 64, 100


def random_model(hf: dict, seed: int):
    """A transformers model with weights large enough that its tokens vary."""
    torch.manual_seed(seed)
    settings = json.loads(
        json.dumps({k: v for k, v in hf.items() if k not in ("model_type", "architectures")})
    )
    config = transformers.AutoConfig.for_model(hf["model_type"], **settings)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:  # norms start at one, Gemma's and all biases at zero
                p.add_(0.3 * torch.randn_like(p))
            else:
                embedding = "emb" in name or "wte" in name or "wpe" in name
                p.copy_((0.02 if embedding else 2.0 * p.shape[1] ** -0.5) * torch.randn_like(p))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    assert type(model).__name__ == hf["architectures"][0]
    return model


def saved_config(model) -> dict:
    """What save_pretrained writes into config.json."""
    return json.loads(model.config.to_json_string()) | {"architectures": [type(model).__name__]}


def transferred(model):
    """(config, params) of ours from a transformers model; every row of every tensor is used once."""
    hf = saved_config(model)
    family = registry.family_of(hf)
    config = family.read(hf)
    state = {name: x.numpy() for name, x in model.state_dict().items()}
    if config.tied:
        state.pop("lm_head.weight")
    shapes, tensors, used = decoder.canonical_shapes(config), {}, dict.fromkeys(state, 0)
    for canonical, source in family.tensors(config).items():
        x = state[source.name].T if source.transposed else state[source.name]
        rows = shapes[canonical][0]
        assert len(x) == (source.rows or rows), (canonical, source, x.shape)
        tensors[canonical] = x[source.first : source.first + rows]
        assert tensors[canonical].shape == shapes[canonical]
        used[source.name] += rows
        if used[source.name] == len(x):
            del used[source.name]
    assert [name for name in used if not family.ignores(name)] == []
    return config, decoder.assemble(config, tensors)


@functools.partial(jax.jit, static_argnames="config")
def cacheless_logits(params, config, tokens):
    """tokens [T] -> [T, V]."""
    batch = ragged.rectangle(tokens[None], jnp.full((1,), len(tokens)), jnp.zeros((1,), jnp.int32))
    hidden, _ = decoder.forward(params, config, batch)
    return decoder.unembed(params, config, hidden)


@functools.partial(jax.jit, static_argnames="config")
def cached_greedy(params, config, prompt):
    """prompt [PROMPT] -> the next STEPS tokens, through rings that wrap: prefill in chunks, then
    decode.
    """
    total = PROMPT + STEPS
    rings, groups = kv.plan_rings(config, total, max_chunk=CHUNK)
    cache = kv.init_cache(config, rings, groups, 1, jnp.float32)
    reach = jnp.full((1,), total, jnp.int32)

    def step(cache, tokens):  # tokens [1, T]
        counts = jnp.full((1,), tokens.shape[1], jnp.int32)
        batch = ragged.rectangle(tokens, counts, cache.lengths, reach=reach)
        hidden, cache = decoder.forward(params, config, batch, cache)
        logits = decoder.unembed(params, config, ragged.last_tokens(hidden, batch))
        return cache, jnp.argmax(logits, axis=1).astype(jnp.int32)

    def decode(state, _):
        cache, token = step(state[0], state[1][:, None])
        return (cache, token), state[1]

    cache, tokens = jax.lax.scan(step, cache, prompt.reshape(-1, 1, CHUNK))
    _, tokens = jax.lax.scan(decode, (cache, tokens[-1]), None, length=STEPS)
    return tokens[:, 0]


def distinct_model(hf: dict):
    """(seed, model, tokens [LENGTH], its logits, the greedy tokens after PROMPT), the greedy
    choices varied and clear.

    A near tie between two tokens would be decided by rounding, and says nothing.
    """
    for _ in range(30):
        seed = int(np.random.default_rng().integers(2**31))
        model = random_model(hf, seed)
        tokens = (
            np.random.default_rng(seed).integers(hf["vocab_size"], size=LENGTH).astype(np.int32)
        )
        with torch.no_grad():
            ids = torch.tensor(tokens[None], dtype=torch.long)
            truth = model(ids).logits[0].numpy()
            prompt, seen = ids[:, :PROMPT], torch.ones((1, PROMPT), dtype=torch.long)
            path = model.generate(
                prompt, attention_mask=seen, max_new_tokens=STEPS, do_sample=False
            )
            choices = model(path[:, :-1]).logits[0, PROMPT - 1 :].sort().values
        generated = path[0, PROMPT:].tolist()
        gap = (choices[:, -1] - choices[:, -2]).min() / choices.abs().max()
        if gap > 2e-5 and len(set(generated)) > 3 and len(set(truth.argmax(axis=1).tolist())) > 8:
            return seed, model, tokens, truth, generated
    raise AssertionError(
        f"{hf['model_type']}: no checkpoint with clear and varied greedy choices in 30 tries"
    )


@pytest.mark.parametrize("name", SMALL)
def test_equals_transformers(name):
    seed, model, tokens, truth, generated = distinct_model(SMALL[name])
    config, params = transferred(model)
    for found in (cacheless_logits(params, config, tokens), oracle.logits(params, config, tokens)):
        error = np.abs(np.asarray(found) - truth).max() / np.abs(truth).max()
        assert error <= 1e-4, f"{name} {seed=}: relative error {error}"
    prompt = tokens[:PROMPT]
    assert cached_greedy(params, config, prompt).tolist() == generated, f"{name} {seed=}"
    reach = PROMPT + STEPS
    assert oracle.greedy(params, config, prompt.tolist(), 8, reach=reach) == generated[:8], (
        f"{name} {seed=}"
    )


def test_every_family_is_tested():
    tested = {registry.family_of(hf).name for hf in SMALL.values()}
    assert tested == {family.name for family in registry.FAMILIES}
