"""What each row has seen: its prompt's tokens, how often it generated which, and the last few.

Only penalties, bad words and `min_tokens` need it; it takes 5 V bytes a row.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer.request import MAX_BAD_WORD_TOKENS

RECENT = MAX_BAD_WORD_TOKENS - 1  # what must precede the last token of the longest bad word


class History(struct.PyTreeNode):
    """What B rows have seen.

    prompt_seen: [B, V] bool. counts: [B, V] int32, occurrences among the generated tokens.
    recent: [B, RECENT] int32, the last tokens of prompt and continuation, newest at the right, -1
      before the beginning.
    generated: [B] int32, tokens generated so far.
    """

    prompt_seen: jax.Array
    counts: jax.Array
    recent: jax.Array
    generated: jax.Array


def empty_history(batch: int, vocab_size: int) -> History:
    """Rows that have seen nothing."""
    return History(
        prompt_seen=jnp.zeros((batch, vocab_size), jnp.bool_),
        counts=jnp.zeros((batch, vocab_size), jnp.int32),
        recent=jnp.full((batch, RECENT), -1, jnp.int32),
        generated=jnp.zeros((batch,), jnp.int32),
    )


def start_history(
    tokens: jax.Array, lengths: jax.Array, vocab_size: int, prompt_lengths: jax.Array | None = None
) -> History:
    """The history of sequences that are about to continue.

    Args:
      tokens: [B, T >= 1] int32, each row from the left; what lies past its length is not read.
      lengths: [B] int32, 0 .. T.
      vocab_size: V of the logits.
      prompt_lengths: [B] int32, how many of them are the prompt, the others having been generated
        (a request that resumes); None is all of them.
    """
    B, T = tokens.shape
    prompt_lengths = lengths if prompt_lengths is None else prompt_lengths
    place = jnp.arange(T, dtype=jnp.int32)[None, :]
    prompt = place < prompt_lengths[:, None]
    valid = place < lengths[:, None]
    row = jnp.arange(B, dtype=jnp.int32)[:, None]
    empty = empty_history(B, vocab_size)
    newest = lengths[:, None] - RECENT + jnp.arange(RECENT, dtype=jnp.int32)[None, :]
    recent = jnp.take_along_axis(tokens, jnp.clip(newest, 0, T - 1), axis=1)
    return History(
        prompt_seen=empty.prompt_seen.at[row, jnp.where(prompt & valid, tokens, vocab_size)].set(
            True, mode="drop"
        ),
        counts=empty.counts.at[row, jnp.where(valid & ~prompt, tokens, vocab_size)].add(
            1, mode="drop"
        ),
        recent=jnp.where(newest >= 0, recent, -1),
        generated=lengths - jnp.minimum(prompt_lengths, lengths),
    )


def see_prompt(history: History, rows: jax.Array, tokens: jax.Array, valid: jax.Array) -> History:
    """The history after prompt `tokens` [T] int32 of `rows` [T] int32, where `valid` [T] bool."""
    V = history.prompt_seen.shape[1]
    seen = history.prompt_seen.at[rows, jnp.where(valid, tokens, V)].set(True, mode="drop")
    return dataclasses.replace(history, prompt_seen=seen)


def update(history: History, tokens: jax.Array, active: jax.Array) -> History:
    """The history after rows with `active` [B] bool have generated `tokens` [B] int32."""
    B = tokens.shape[0]
    shifted = jnp.concatenate([history.recent[:, 1:], tokens[:, None]], axis=1)
    row = jnp.arange(B, dtype=jnp.int32)
    return History(
        prompt_seen=history.prompt_seen,
        counts=history.counts.at[row, tokens].add(active.astype(jnp.int32), mode="drop"),
        recent=jnp.where(active[:, None], shifted, history.recent),
        generated=history.generated + active.astype(jnp.int32),
    )
