"""Masks of allowed tokens in the sampler: against plain NumPy and the distribution that is left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxinfer import sampler
from jaxinfer.request import SamplingParams

SIGNIFICANCE = 1e-6
draw = jax.jit(sampler.sample, static_argnames="top_n")
process = jax.jit(sampler.process)


def packed(allowed: np.ndarray) -> np.ndarray:
    """[B, V] bool -> [B, W] uint32; the bits past V are noise."""
    B, V = allowed.shape
    whole = np.ones((B, sampler.mask_words(V) * 32), bool)
    whole[:, :V] = allowed
    return np.packbits(whole, axis=1, bitorder="little").view(np.uint32)


def some(rng, rows: int, vocab: int) -> np.ndarray:
    allowed = rng.random((rows, vocab)) < 0.4
    allowed[np.arange(rows), rng.integers(0, vocab, rows)] = True
    return allowed


def masks(allowed: np.ndarray, rows: list[int]) -> sampler.Mask:
    """Only `rows` have a mask."""
    B, V = allowed.shape
    slots = np.full((B,), B, np.int32)
    slots[: len(rows)] = rows
    bits = np.zeros((B, sampler.mask_words(V)), np.uint32)
    bits[: len(rows)] = packed(allowed)[rows]
    return sampler.set_masks(sampler.no_mask(B, V), jnp.asarray(slots), jnp.asarray(bits))


@pytest.mark.parametrize("vocab", [31, 32, 33, 64, 101])
def test_only_allowed_tokens_are_left_and_other_rows_unchanged(rng, vocab):
    params = [
        SamplingParams(temperature=0.0, seed=0),
        SamplingParams(temperature=1.0, seed=1),
        SamplingParams(temperature=1.0, seed=2, logit_bias={3: 4.0}),
        SamplingParams(temperature=1.0, seed=3, top_k=3),
    ]
    logits = rng.normal(0, 2, (4, vocab)).astype(np.float32)
    allowed = some(rng, 4, vocab)
    sampling = sampler.pack(params, vocab)
    mask = masks(allowed, [0, 2, 3])
    got = np.asarray(process(jnp.asarray(logits), sampling, None, mask))
    want = logits.copy()
    want[2, 3] += 4.0
    for row in (0, 2, 3):
        want[row, ~allowed[row]] = -np.inf
    want[3, want[3] < np.sort(want[3])[-3]] = -np.inf
    np.testing.assert_allclose(got, want, 1e-6)
    token = np.asarray(
        draw(jnp.asarray(logits), sampling, None, jnp.zeros(4, jnp.int32), mask=mask).token
    )
    assert token[0] == want[0].argmax()
    assert all(np.isfinite(want[row, token[row]]) for row in range(4))


def test_one_program_for_any_mix(rng):
    vocab, traced = 70, []

    @jax.jit
    def step(logits, sampling, positions, mask):
        traced.append(1)
        return sampler.sample(logits, sampling, None, positions, mask=mask, top_n=2)

    sampling = sampler.pack([SamplingParams(temperature=0.7, seed=i) for i in range(3)], vocab)
    logits = jnp.asarray(rng.normal(0, 2, (3, vocab)), jnp.float32)
    for rows in ([], [1], [0, 1, 2]):
        step(logits, sampling, jnp.arange(3, dtype=jnp.int32), masks(some(rng, 3, vocab), rows))
    assert len(traced) == 1
    plain = draw(logits, sampling, None, jnp.arange(3, dtype=jnp.int32)).token
    free = step(logits, sampling, jnp.arange(3, dtype=jnp.int32), sampler.no_mask(3, vocab)).token
    np.testing.assert_array_equal(plain, free)


def test_a_masked_draw_is_the_renormalized_distribution(rng, seed):
    vocab, draws = 37, 20_000
    logits = np.tile(rng.normal(0, 1.5, vocab).astype(np.float32), (draws, 1))
    allowed = np.tile(some(rng, 1, vocab), (draws, 1))
    one = SamplingParams(temperature=0.8, seed=int(rng.integers(2**32)))
    sampling = jax.tree.map(lambda x: jnp.repeat(x, draws, 0), sampler.pack([one], vocab))
    mask = sampler.Mask(bits=jnp.asarray(packed(allowed)), masked=jnp.ones(draws, bool))
    places = jnp.arange(draws, dtype=jnp.int32)
    tokens = np.asarray(draw(jnp.asarray(logits), sampling, None, places, mask=mask).token)
    weights = np.where(allowed[0], np.exp(logits[0].astype(np.float64) / 0.8), 0)
    expected = weights / weights.sum() * draws
    counts = np.bincount(tokens, minlength=vocab)
    assert not counts[~allowed[0]].any()
    used = expected > 5
    observed = [*counts[used], counts[~used].sum()]
    wanted = [*expected[used], expected[~used].sum()]
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    assert stats.chisquare(observed, wanted).pvalue > SIGNIFICANCE, f"{seed=}"


@pytest.mark.parametrize("mode", ["raw", "processed"])
def test_logprobs_are_of_the_model_or_of_what_is_left(rng, mode):
    vocab = 45
    logits = rng.normal(0, 2, (2, vocab)).astype(np.float32)
    allowed = some(rng, 2, vocab)
    params = [SamplingParams(temperature=t, seed=1, logprobs=3, logprobs_mode=mode) for t in (0, 1)]
    mask = masks(allowed, [0, 1])
    found = draw(
        jnp.asarray(logits),
        sampler.pack(params, vocab),
        None,
        jnp.zeros(2, jnp.int32),
        mask=mask,
        top_n=3,
    )
    scores = logits if mode == "raw" else np.where(allowed, logits, -np.inf)
    scores = scores - np.log(np.exp(scores.astype(np.float64)).sum(1, keepdims=True))
    token = np.asarray(found.token)
    assert allowed[np.arange(2), token].all()
    np.testing.assert_allclose(found.logprob, scores[np.arange(2), token], 1e-4, 1e-5)


def test_where_edits_leave_nothing_the_mask_wins(rng):
    """EOS alone is allowed and min_tokens holds it back; a bad word is all that may come."""
    vocab, eos = 40, 5
    logits = rng.normal(0, 2, (3, vocab)).astype(np.float32)
    params = [
        SamplingParams(temperature=1.0, seed=1, min_tokens=9),
        SamplingParams(temperature=0.0, seed=1, bad_word_ids=((7,), (8,))),
        SamplingParams(temperature=0.0, seed=1, bad_word_ids=((7,),)),
    ]
    allowed = np.zeros((3, vocab), bool)
    allowed[0, eos] = allowed[1, [7, 8]] = allowed[2, [7, 9]] = True
    history = sampler.empty_history(3, vocab)
    sampling = sampler.pack(params, vocab, (eos,))
    mask = masks(allowed, [0, 1, 2])
    found = draw(jnp.asarray(logits), sampling, history, jnp.zeros(3, jnp.int32), mask=mask)
    best = 7 + int(logits[1, 7] < logits[1, 8])
    assert np.asarray(found.token).tolist() == [eos, best, 9]


def test_a_row_is_free_again_when_its_mask_is_cleared(rng):
    vocab = 50
    logits = jnp.asarray(rng.normal(0, 2, (3, vocab)), jnp.float32)
    sampling = sampler.pack([SamplingParams(temperature=1.0, seed=i) for i in range(3)], vocab)
    mask = sampler.clear_masks(masks(some(rng, 3, vocab), [0, 1]), jnp.asarray([1, 3], jnp.int32))
    left = np.isfinite(np.asarray(process(logits, sampling, None, mask))).all(axis=1)
    assert left.tolist() == [False, True, True]
