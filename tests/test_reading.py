"""Embeddings and prompt log-probabilities equal what the oracle's hidden states and logits say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import embed, score, score_alternatives
from jaxinfer.generate import POOLINGS
from jaxinfer.models import decoder
from jaxinfer.reading import Reader
from tests import oracle, tiny

TOP = 3


@pytest.fixture(scope="module")
def model():
    seed = np.random.SeedSequence().entropy % 2**31
    print(f"seed={seed}")
    config = tiny.config()
    rows = tiny.prompts(np.random.default_rng(seed), (9, 33, 1))
    return config, tiny.params(config, seed), rows


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def hidden(params, config, ids):
    """The oracle's hidden states, [T, D], from its logits: more of them than D, linear in it."""
    named = decoder.canonical(config, params)
    weight = np.asarray(named["embed" if config.tied else "unembed"], np.float64)
    return np.linalg.lstsq(weight, oracle.logits(params, config, ids).T, rcond=None)[0].T


def test_alternatives_are_those_of_the_oracles_logits(model):
    config, params, rows = model
    tokens, lengths = tiny.rectangle(rows)
    run = jax.jit(score_alternatives, static_argnums=1, static_argnames="top_n")
    found = run(params, config, tokens, lengths, top_n=TOP)
    np.testing.assert_allclose(
        found.logprobs, score(params, config, jnp.asarray(tokens), jnp.asarray(lengths)), atol=1e-4
    )
    for row, ids in enumerate(rows):
        expected = log_softmax(np.asarray(oracle.logits(params, config, ids)))[:-1]
        for i, said in enumerate(expected, 1):
            order = np.argsort(-said, kind="stable")
            np.testing.assert_array_equal(found.top_ids[row, i], order[:TOP])
            np.testing.assert_allclose(
                found.top_logprobs[row, i], said[order[:TOP]], atol=1e-3, rtol=1e-3
            )
            assert found.ranks[row, i] == 1 + int((said > said[ids[i]]).sum())
        for value in jax.tree.leaves(found):  # nothing is said of the first, nor past the end
            assert not np.asarray(value)[row, 0].any()
            assert not np.asarray(value)[row, len(ids) :].any()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_embeddings_are_pooled_hidden_states_of_length_one(model, pooling):
    config, params, rows = model
    found = jax.jit(embed, static_argnums=1, static_argnames="pooling")(
        params, config, *tiny.rectangle(rows), pooling=pooling
    )
    reader = Reader(params, config, pooling=pooling)
    for row, ids in enumerate(rows):
        states = hidden(params, config, ids)
        expected = states.mean(0) if pooling == "mean" else states[-1]
        expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(found[row], expected, atol=1e-4)
        np.testing.assert_allclose(reader.embed(ids), expected, atol=1e-4)


def test_a_reader_says_it_token_by_token(model):
    config, params, rows = model
    reader = Reader(params, config)
    for ids in rows:
        first, *others = reader.score(ids, TOP)
        assert first is None
        expected = np.asarray(score(params, config, jnp.asarray([ids])))[0]
        assert [one.token_id for one in others] == list(ids[1:])
        np.testing.assert_allclose([one.logprob for one in others], expected[1:], atol=1e-4)
        for one in others:
            values = [value for _, value in one.top]
            assert len(values) == TOP
            assert values == sorted(values, reverse=True)
            assert (one.rank <= TOP) == (one.token_id in dict(one.top))


def test_another_pooling_is_refused(model):
    config, params, rows = model
    with pytest.raises(ValueError, match="mean, last, got 'max'"):
        embed(params, config, jnp.asarray([rows[0]]), pooling="max")
