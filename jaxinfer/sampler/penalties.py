"""Edits of the logits that greedy rows see too: bias, bad words, minimal length, penalties.

They run in that order. Each is a `Stage`: the rows that need it and what it does; a stage that no
row needs is not run.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.sampler.history import History
from jaxinfer.sampler.settings import Sampling


class Stage(NamedTuple):
    """needed [B] bool: rows that it changes; run: [B, V] float32 to the same, others unchanged."""

    needed: jax.Array
    run: Callable[[jax.Array], jax.Array]


def apply(stages: Sequence[Stage], logits: jax.Array) -> jax.Array:
    """`logits` [B, V] through the stages in turn; one that no row needs costs a look at B flags."""
    for needed, run in stages:
        logits = lax.cond(jnp.any(needed), run, lambda x: x, logits)
    return logits


def edits(sampling: Sampling, history: History | None) -> list[Stage]:
    """The stages of this module. Without a history only the bias is left."""
    stages = [Stage(jnp.any(sampling.bias_ids >= 0, axis=1), lambda x: _bias(x, sampling))]
    if history is None:
        return stages
    repeats = sampling.repetition_penalty
    presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
    return [
        *stages,
        Stage(
            jnp.any(sampling.bad_words[:, :, -1] >= 0, axis=1),
            lambda x: _ban(x, _completing(sampling.bad_words, history.recent)),
        ),
        Stage(
            history.generated < sampling.min_tokens,
            lambda x: _ban(
                x,
                jnp.where(
                    (history.generated < sampling.min_tokens)[:, None], sampling.held_ids, -1
                ),
            ),
        ),
        Stage(
            repeats != 1.0,
            lambda x: _repetition(x, history.prompt_seen | (history.counts > 0), repeats[:, None]),
        ),
        Stage(
            (presence != 0.0) | (frequency != 0.0),
            lambda x: _occurrence(x, history.counts, presence[:, None], frequency[:, None]),
        ),
    ]


def _bias(logits: jax.Array, sampling: Sampling) -> jax.Array:
    rows, ids = _places(logits, sampling.bias_ids)
    return logits.at[rows, ids].add(sampling.bias_values, mode="drop")


def _ban(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """-inf at `ids` [B, I] int32, where -1 is none."""
    rows, ids = _places(logits, ids)
    return logits.at[rows, ids].set(-jnp.inf, mode="drop")


def _places(logits: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Row [B, 1] and column [B, I] indices of a scatter; V, out of range, stands for no id."""
    B, V = logits.shape
    return jnp.arange(B, dtype=jnp.int32)[:, None], jnp.where(ids < 0, V, ids)


def _completing(bad_words: jax.Array, recent: jax.Array) -> jax.Array:
    """[B, W] int32: the last token of each bad word whose other tokens were just seen, else -1."""
    before, last = bad_words[:, :, :-1], bad_words[:, :, -1]
    seen = jnp.all((before < 0) | (before == recent[:, None, :]), axis=2)
    return jnp.where(seen, last, -1)


def _repetition(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """Keskar et al. 2019 (CTRL) as in transformers: divides positive logits, multiplies others."""
    punished = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(seen, punished, logits)


def _occurrence(
    logits: jax.Array, counts: jax.Array, presence: jax.Array, frequency: jax.Array
) -> jax.Array:
    """OpenAI's penalties on generated tokens: `presence` once, `frequency` per occurrence."""
    counts = counts.astype(jnp.float32)
    return logits - frequency * counts - presence * (counts > 0).astype(jnp.float32)
