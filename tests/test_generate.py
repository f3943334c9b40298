"""The pure functions equal the oracle, inside a caller's jit, vmap and grad."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import SamplingParams, decode, generate, logits, new_cache, pack, prefill, score
from tests import oracle, tiny

NEW = 12


@pytest.fixture(scope="module")
def model():
    seed = np.random.SeedSequence().entropy % 2**31
    print(f"seed={seed}")
    config = tiny.config()
    params = tiny.params(config, seed)
    rows = tiny.prompts(np.random.default_rng(seed), (5, 23, 1, 14))
    return config, params, rows, [oracle.greedy(params, config, row, NEW) for row in rows]


def test_logits_equal_the_oracle(model):
    config, params, rows, _ = model
    tokens, lengths = tiny.rectangle(rows)
    found = jax.jit(logits, static_argnums=1)(params, config, tokens, lengths)
    assert found.dtype == jnp.float32
    for row, ids in enumerate(rows):
        expected = oracle.logits(params, config, ids)
        np.testing.assert_allclose(
            found[row, : len(ids)], expected, atol=1e-4 * np.abs(expected).max()
        )


@pytest.mark.parametrize("chunk", [None, 6])
def test_generate_equals_the_oracle(model, chunk):
    config, params, rows, expected = model
    run = jax.jit(functools.partial(generate, max_new_tokens=NEW, chunk=chunk), static_argnums=1)
    found = run(params, config, *tiny.rectangle(rows))
    np.testing.assert_array_equal(found.tokens, expected)
    np.testing.assert_array_equal(found.lengths, [NEW] * len(rows))
    whole = [row + tuple(more) for row, more in zip(rows, expected, strict=True)]
    scored = score(params, config, *(jnp.asarray(x) for x in tiny.rectangle(whole)))
    for row, ids in enumerate(rows):  # the log-probabilities of generation are those of scoring
        np.testing.assert_allclose(
            found.logprobs[row], scored[row, len(ids) : len(ids) + NEW], atol=1e-4
        )


def test_generate_stops_at_a_stop_token_and_leaves_neighbours_alone(model):
    config, params, rows, expected = model
    stop = expected[1][4]
    first = expected[1].index(stop)
    settings = [
        SamplingParams(temperature=0, stop_token_ids=(stop,) if i == 1 else ())
        for i in range(len(rows))
    ]
    sampling = pack(settings, config.vocab_size)
    found = generate(
        params,
        config,
        *(jnp.asarray(x) for x in tiny.rectangle(rows)),
        sampling,
        max_new_tokens=NEW,
    )
    assert found.lengths.tolist() == [NEW, first + 1, NEW, NEW]
    np.testing.assert_array_equal(found.tokens[1, : first + 1], expected[1][: first + 1])
    np.testing.assert_array_equal(found.tokens[1, first + 1 :], 0)
    np.testing.assert_array_equal(found.tokens[3], expected[3])


def test_sampled_rows_do_not_depend_on_their_batch(model):
    config, params, rows, _ = model
    settings = [SamplingParams(temperature=1.0, seed=i) for i in range(len(rows))]
    together = generate(
        params,
        config,
        *(jnp.asarray(x) for x in tiny.rectangle(rows)),
        pack(settings, config.vocab_size),
        max_new_tokens=NEW,
    )
    alone = generate(
        params,
        config,
        jnp.asarray([rows[3]]),
        None,
        pack(settings[3:], config.vocab_size),
        max_new_tokens=NEW,
    )
    np.testing.assert_array_equal(together.tokens[3], alone.tokens[0])


def test_prefill_and_decode_by_hand(model):
    config, params, rows, expected = model
    cache = new_cache(params, config, len(rows), 64, max_chunk=8)
    found, cache = jax.jit(functools.partial(prefill, chunk=8), static_argnums=1)(
        params, config, *tiny.rectangle(rows), cache
    )
    step = jax.jit(decode, static_argnums=1)
    active = jnp.asarray([True, True, False, True])
    for i in range(4):
        token = found.argmax(axis=1).astype(jnp.int32)
        np.testing.assert_array_equal(token[active], np.asarray(expected)[np.asarray(active), i])
        found, cache = step(params, config, token, cache, active)
    assert cache.lengths.tolist() == [
        len(row) + 4 * bool(on) for row, on in zip(rows, active, strict=True)
    ]


def test_what_lies_outside_a_sequence_is_never_read(model):
    config, params, rows, expected = model
    cache = new_cache(params, config, len(rows), 64, max_chunk=32)
    cache = cache.replace(layers=jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), cache.layers))
    found, cache = prefill(params, config, *(jnp.asarray(x) for x in tiny.rectangle(rows)), cache)
    found, _ = decode(params, config, found.argmax(axis=1).astype(jnp.int32), cache)
    np.testing.assert_array_equal(found.argmax(axis=1), [more[1] for more in expected])


def test_streams_longer_than_their_buffer_equal_the_oracle(model):
    config, params, rows, _ = model
    stream = dict(stream_window=7, sinks=2)
    run = jax.jit(
        functools.partial(generate, max_new_tokens=40, chunk=5, **stream), static_argnums=1
    )
    found = run(params, config, *tiny.rectangle(rows))
    for row, ids in enumerate(rows):
        assert found.tokens[row].tolist() == oracle.greedy(params, config, ids, 40, stream=(2, 7))


def test_score_is_differentiable_and_its_gradient_is_right(model):
    config, params, rows, _ = model
    tokens, lengths = (jnp.asarray(x) for x in tiny.rectangle(rows))

    def loss(params):
        return score(params, config, tokens, lengths).sum()

    grads = jax.jit(jax.grad(loss))(params)
    keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(params)))
    direction = jax.tree.unflatten(
        jax.tree.structure(params),
        [jax.random.normal(k, x.shape) for k, x in zip(keys, jax.tree.leaves(params), strict=True)],
    )
    size = np.sqrt(sum(float((d**2).sum()) for d in jax.tree.leaves(direction)))
    direction = jax.tree.map(lambda d: d / size, direction)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)))
    step, loss = 1e-2, jax.jit(loss)

    def moved(by):
        return loss(jax.tree.map(lambda x, d: x + by * d, params, direction))

    ahead, behind = moved(step), moved(-step)
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=0.05, atol=0.5)


def test_score_under_vmap_equals_a_batch(model):
    config, params, rows, _ = model
    tokens, lengths = (jnp.asarray(x) for x in tiny.rectangle(rows))
    one = jax.vmap(lambda t, n: score(params, config, t[None], n[None])[0])
    np.testing.assert_allclose(
        one(tokens, lengths), score(params, config, tokens, lengths), atol=1e-4
    )


def test_shapes_are_checked(model):
    config, params, *_ = model
    with pytest.raises(ValueError, match=r"shape \[B, T\], got \(3,\)"):
        logits(params, config, jnp.zeros((3,), jnp.int32))
    with pytest.raises(ValueError, match="lengths need shape"):
        score(params, config, jnp.zeros((2, 3), jnp.int32), jnp.ones((3,), jnp.int32))
