"""A cache of int8 or fp8 gives what rounding every key and value by itself gives, however tokens come:
whole, in chunks, one by one, in rings, pages and streams, through the engine.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxinfer
from jaxinfer import (
    SamplingParams,
    decode,
    generate,
    logits,
    new_cache,
    prefill,
    score,
    score_alternatives,
)
from jaxinfer.engine import Engine
from jaxinfer.request import Request
from jaxinfer.scheduler import Limits
from tests import oracle, tiny

NEW = 8
NARROW = ("int8", "fp8")
STREAM = dict(stream_window=7, sinks=2)


def rounded(x, name):
    """[T, heads, H] in steps of each vector's largest element, in float64."""
    scale = np.abs(x).max(axis=-1, keepdims=True) / (127 if name == "int8" else 448)
    steps = x / np.where(scale == 0, 1, scale)
    steps = np.rint(steps) if name == "int8" else steps.astype(ml_dtypes.float8_e4m3fn)
    return steps.astype(np.float64) * scale


@pytest.fixture(scope="module")
def model():
    seed = np.random.SeedSequence().entropy % 2**31
    print(f"seed={seed}")
    config = tiny.config()
    rng = np.random.default_rng(seed)
    return config, tiny.params(config, seed), tiny.prompts(rng, (5, 23, 1, 14))


def check(found, params, config, ids, name, stream=None):
    """found [n, V], after the last n of ids: far nearer to the rounded truth than that to the plain
    one. (The two programs may round a number that lies between two steps either way.)
    """
    last = slice(len(ids) - len(found), None)
    stream = None if stream is None else (stream["sinks"], stream["stream_window"])
    kept = functools.partial(rounded, name=name)
    plain, truth = (
        oracle.logits(params, config, ids, stream=stream, kept=how)[last] for how in (None, kept)
    )
    assert np.abs(found - truth).mean() < 0.15 * np.abs(plain - truth).mean()


@pytest.mark.parametrize(
    ("name", "chunk", "stream"),
    [("int8", None, None), ("fp8", 12, None), ("int8", 6, STREAM), ("fp8", 6, STREAM)],
)
def test_prefill_and_decode_equal_the_oracle(model, name, chunk, stream):
    config, params, rows = model
    rows = [row + row for row in rows]
    sizes = dict(max_chunk=chunk or 46, dtype=name, **(stream or {}))
    cache = new_cache(params, config, len(rows), 64, **sizes)
    assert {x.dtype.name for x in jax.tree.leaves(cache.layers)} == {
        {"int8": "int8", "fp8": "uint8"}[name],
        "float32",
    }
    # what was never written may hold anything
    poison = jax.tree.map(
        lambda x: jnp.full_like(x, jnp.nan if x.dtype == jnp.float32 else 127), cache.layers
    )
    cache = cache.replace(layers=poison)
    run = jax.jit(functools.partial(prefill, chunk=chunk), static_argnums=1)
    found, cache = run(params, config, *tiny.rectangle(rows), cache)
    step = jax.jit(decode, static_argnums=1)
    after, texts = [found], [list(row) for row in rows]
    for _ in range(NEW):
        token = after[-1].argmax(axis=1).astype(jnp.int32)
        for text, one in zip(texts, token.tolist(), strict=True):
            text.append(one)
        found, cache = step(params, config, token, cache)
        after.append(found)
    after = np.stack(after, axis=1)  # [B, NEW + 1, V]
    for row, ids in enumerate(texts):
        check(after[row], params, config, ids, name, stream)


@pytest.mark.parametrize("name", NARROW)
def test_texts_are_scored_as_decoding_sees_them(model, name, monkeypatch):
    monkeypatch.setattr(sys.modules["jaxinfer.generate.scoring"], "READ_CHUNK", 6)
    config, params, rows = model
    tokens, lengths = (jnp.asarray(x) for x in tiny.rectangle(rows))
    found = logits(params, config, tokens, lengths, kv_dtype=name)
    for row, ids in enumerate(rows):
        check(np.asarray(found[row, : len(ids)]), params, config, ids, name)
    every = jax.nn.log_softmax(found[:, :-1])
    wanted = jnp.take_along_axis(every, tokens[:, 1:, None], axis=2)[:, :, 0]
    wanted = jnp.where(jnp.arange(1, tokens.shape[1])[None] < lengths[:, None], wanted, 0.0)
    scored = score(params, config, tokens, lengths, kv_dtype=name)
    np.testing.assert_allclose(scored[:, 1:], wanted, rtol=1e-4, atol=1e-4)
    others = score_alternatives(params, config, tokens, lengths, top_n=2, kv_dtype=name)
    np.testing.assert_allclose(others.logprobs, scored, rtol=1e-4, atol=1e-4)


def test_a_cache_in_full_width_changes_nothing(model):
    config, params, rows = model
    tokens, lengths = (jnp.asarray(x) for x in tiny.rectangle(rows))
    np.testing.assert_allclose(
        score(params, config, tokens, lengths, kv_dtype="float32"),
        score(params, config, tokens, lengths),
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_engine_gives_the_same_tokens_from_shared_pages_without_recompiling(model):
    config, params, rows = model
    run = jax.jit(
        functools.partial(generate, max_new_tokens=NEW, kv_dtype="int8"), static_argnums=1
    )
    expected = run(params, config, *tiny.rectangle(rows))
    limits = Limits(slots=2, max_length=40, chunk=32, budget=32, decode_steps=4)
    engine = Engine(params, config, limits, kv_dtype="int8", page_size=8)
    greedy = SamplingParams(temperature=0, max_new_tokens=NEW, logprobs=0)
    requests = [Request(str(i), row, greedy) for i, row in enumerate(rows)]
    rounds = []
    for _ in range(3):
        found: dict[str, list] = {request.id: [] for request in requests}
        for token in engine.run(requests):
            found[token.request_id].append(token)
        rounds.append((found, engine.compiled))
    assert rounds[1][1] == rounds[2][1]
    assert (
        engine.stats.prefix_tokens >= 2 * 16
    )  # of the prompt of 23: two pages in each later round
    for found, _ in rounds:
        for row, tokens in enumerate(found.values()):
            # sums in another order may round a key the other way: only a near tie may then differ
            for i, token in enumerate(tokens):
                assert token.logprob == pytest.approx(float(expected.logprobs[row, i]), abs=0.2)
                if token.token_id != int(expected.tokens[row, i]):
                    break


def test_a_model_decodes_and_scores_through_its_cache(model):
    config, params, rows = model
    narrow, plain = (jaxinfer.Model(params, config, kv_dtype=name) for name in ("fp8", None))
    done = narrow.generate(rows, temperature=0, max_new_tokens=NEW, logprobs=0)
    texts = [one.prompt_token_ids + one.token_ids for one in done]
    errors = []
    for one, ids, scored, other in zip(
        done, texts, narrow.score(texts), plain.score(texts), strict=True
    ):
        first = len(ids) - NEW
        np.testing.assert_allclose(one.logprobs, scored.logprobs[first:], atol=0.1)
        errors.append(np.abs(np.subtract(scored.logprobs[1:], other.logprobs[1:])).mean())
    assert min(errors[:2]) > 1e-4
    with pytest.raises(ValueError, match="kv_dtype needs to be one of"):
        jaxinfer.Model(params, config, kv_dtype="int4")
