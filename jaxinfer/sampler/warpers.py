"""Temperature, then top-k, top-p, min-p and typical-p: in the order of Hugging Face transformers.

A set of tokens is found through its threshold, digit by digit over the ordered integer image of
float32 (as a radix select would), by sums over the vocabulary: no sort, exact, and plain reductions
where the vocabulary is sharded. Tokens that tie with the last one kept are all kept. Greedy rows
pass unchanged.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.sampler.penalties import Stage
from jaxinfer.sampler.settings import Sampling

DIGIT_BITS = 1  # of the threshold, found by one pass; 2 would halve the passes, each of 3 sums


def warpers(sampling: Sampling, vocab_size: int) -> list[Stage]:
    """The stages of this module."""
    drawn = sampling.temperature > 0
    top_k = drawn & (sampling.top_k > 0) & (sampling.top_k < vocab_size)
    top_p = drawn & (sampling.top_p < 1)
    min_p = drawn & (sampling.min_p > 0)
    typical = drawn & (sampling.typical_p < 1)
    return [
        Stage(drawn, lambda x: x / jnp.where(drawn, sampling.temperature, 1.0)[:, None]),
        Stage(top_k, lambda x: _mask(x, top_k, _top_k(x, sampling.top_k))),
        Stage(top_p, lambda x: _mask(x, top_p, _top_p(x, sampling.top_p))),
        Stage(min_p, lambda x: _mask(x, min_p, _min_p(x, sampling.min_p))),
        Stage(typical, lambda x: _mask(x, typical, _typical(x, sampling.typical_p))),
    ]


def heaviest(values: jax.Array, weights: jax.Array, target: jax.Array) -> jax.Array:
    """[B, V] bool: the largest values whose weights reach `target`; no more than needed, save ties.

    Args:
      values: [B, V] float32.
      weights: [B, V] >= 0, int32 or float32.
      target: [B] of that type. Where all weights together fall short of it (by rounding),
        everything is kept.
    """
    order = _ordered(values)

    def digit(i: jax.Array, threshold: jax.Array) -> jax.Array:
        shift = jnp.uint32(32 - DIGIT_BITS) - jnp.uint32(DIGIT_BITS) * i.astype(jnp.uint32)
        reached = jnp.zeros_like(threshold)
        for value in range(1, 2**DIGIT_BITS):
            candidate = threshold | (jnp.uint32(value) << shift)
            above = jnp.where(order >= candidate[:, None], weights, jnp.zeros_like(weights))
            reached = reached + (jnp.sum(above, axis=1) >= target).astype(jnp.uint32)
        return threshold | (reached << shift)

    start = jnp.zeros(values.shape[:1], jnp.uint32)
    threshold = lax.fori_loop(0, 32 // DIGIT_BITS, digit, start)
    return order >= threshold[:, None]


def _ordered(values: jax.Array) -> jax.Array:
    """uint32 with the order of float32 `values`; -0 is made equal to 0."""
    bits = lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _mask(logits: jax.Array, rows: jax.Array, keep: jax.Array) -> jax.Array:
    return jnp.where(keep | ~rows[:, None], logits, -jnp.inf)


def _weights(logits: jax.Array) -> jax.Array:
    """exp(logits - max): probabilities up to a factor, the largest of them 1."""
    return jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))


def _top_k(logits: jax.Array, k: jax.Array) -> jax.Array:
    return heaviest(logits, jnp.ones(logits.shape, jnp.int32), k)


def _top_p(logits: jax.Array, p: jax.Array) -> jax.Array:
    """Nucleus sampling, Holtzman et al. 2020."""
    weights = _weights(logits)
    return heaviest(logits, weights, p * jnp.sum(weights, axis=1))


def _min_p(logits: jax.Array, p: jax.Array) -> jax.Array:
    """Nguyen et al. 2024: at least `p` of the likeliest token's probability."""
    return logits >= jnp.max(logits, axis=1, keepdims=True) + jnp.log(p)[:, None]


def _typical(logits: jax.Array, p: jax.Array) -> jax.Array:
    """Meister et al. 2022: tokens whose surprise is nearest to the entropy, up to a mass of `p`."""
    log_probs = jax.nn.log_softmax(logits, axis=1)
    probs = jnp.exp(log_probs)
    entropy = -jnp.sum(jnp.where(probs > 0, probs * log_probs, 0.0), axis=1, keepdims=True)
    return heaviest(-jnp.abs(log_probs + entropy), probs, p * jnp.sum(probs, axis=1))
