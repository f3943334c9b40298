"""Whole texts at once: hidden states, logits, log-probabilities, embeddings."""

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer import cache as kv
from jaxinfer import ragged
from jaxinfer.config import ModelConfig
from jaxinfer.generate.decoding import new_cache, text_lengths
from jaxinfer.models import decoder

READ_CHUNK = 256  # tokens that are read through a cache at once
SCORE_BLOCK = 1024  # tokens whose vocabulary-wide logits `score` holds at once


def _zeros(tokens: jax.Array) -> jax.Array:
    return jnp.zeros(tokens.shape[:1], jnp.int32)


def hidden_states(
    params: decoder.Params,
    config: ModelConfig,
    tokens: jax.Array,
    lengths: jax.Array | None = None,
    *,
    kv_dtype: kv.KVDtype | None = None,
) -> jax.Array:
    """The state after the last norm of every token: [B, T] -> [B * T, D].

    kv_dtype: read the tokens through a cache of that type, READ_CHUNK at a time, so that all keys and
    values are seen as decoding sees them; not differentiable. None: whole sequences, no cache.
    """
    lengths = text_lengths(tokens, lengths)
    if kv_dtype is None:
        batch = ragged.rectangle(tokens, lengths, _zeros(tokens))
        return decoder.forward(params, config, batch)[0]
    B, T = tokens.shape
    chunk = min(READ_CHUNK, T)
    count = -(-T // chunk)
    cache = new_cache(params, config, B, count * chunk, max_chunk=chunk, dtype=kv_dtype)
    tokens = jnp.pad(tokens, ((0, 0), (0, count * chunk - T))).reshape(B, count, chunk)

    def step(cache, part):
        tokens, start = part
        counts = jnp.clip(lengths - start, 0, chunk)
        batch = ragged.rectangle(tokens, counts, cache.lengths, reach=lengths)
        found, cache = decoder.forward(params, config, batch, cache)
        return cache, found.reshape(B, chunk, -1)

    starts = jnp.arange(count, dtype=jnp.int32) * chunk
    _, found = jax.lax.scan(step, cache, (jnp.swapaxes(tokens, 0, 1), starts))
    return jnp.swapaxes(found, 0, 1).reshape(B, count * chunk, -1)[:, :T].reshape(B * T, -1)


def logits(
    params: decoder.Params,
    config: ModelConfig,
    tokens: jax.Array,
    lengths: jax.Array | None = None,
    *,
    kv_dtype: kv.KVDtype | None = None,
) -> jax.Array:
    """The model's logits after every token: [B, T] -> float32 [B, T, V]; lengths None: rows are
    full. kv_dtype: as `hidden_states`.
    """
    hidden = hidden_states(params, config, tokens, lengths, kv_dtype=kv_dtype)
    return decoder.unembed(params, config, hidden).reshape(*tokens.shape, config.vocab_size)


def score(
    params: decoder.Params,
    config: ModelConfig,
    tokens: jax.Array,
    lengths: jax.Array | None = None,
    *,
    kv_dtype: kv.KVDtype | None = None,
) -> jax.Array:
    """log p(token t | tokens before it), float32 [B, T]; zero for the first token and past a row's
    length. kv_dtype: as `hidden_states`.

    Differentiable in params without kv_dtype. Logits are formed a block of tokens at a time, never [B, T, V] at
    once.
    """
    lengths = text_lengths(tokens, lengths)
    B, T = tokens.shape
    hidden = hidden_states(params, config, tokens, lengths, kv_dtype=kv_dtype)
    following = jnp.concatenate([tokens[:, 1:], tokens[:, :1]], axis=1).reshape(B * T)

    @jax.checkpoint
    def block(hidden, following):
        found = decoder.unembed(params, config, hidden)
        chosen = jnp.take_along_axis(found, following[:, None], axis=1)[:, 0]
        return chosen - jax.nn.logsumexp(found, axis=1)

    cuts = range(0, B * T, SCORE_BLOCK)
    parts = [block(hidden[i : i + SCORE_BLOCK], following[i : i + SCORE_BLOCK]) for i in cuts]
    after = jnp.concatenate(parts).reshape(B, T)
    result = jnp.concatenate([jnp.zeros((B, 1), jnp.float32), after[:, :-1]], axis=1)
    return jnp.where(jnp.arange(T)[None] < lengths[:, None], result, 0.0)


@struct.dataclass
class Alternatives:
    """logprobs [B, T] float32: as `score` gives them; ranks [B, T] int32: how many tokens were at
    least as likely (1: the likeliest), 0 where there is no log-probability; top_ids,
    top_logprobs [B, T, top_n]: the likeliest tokens in that place, likeliest first.
    """

    logprobs: jax.Array
    ranks: jax.Array
    top_ids: jax.Array
    top_logprobs: jax.Array


def score_alternatives(
    params: decoder.Params,
    config: ModelConfig,
    tokens: jax.Array,
    lengths: jax.Array | None = None,
    *,
    top_n: int,
    kv_dtype: kv.KVDtype | None = None,
) -> Alternatives:
    """As `score`, and which tokens would have been likelier; a row's first token has none of it
    (zeros). top_n is static, 0 .. V. Logits are formed a block of tokens at a time. kv_dtype: as
    `hidden_states`.
    """
    lengths = text_lengths(tokens, lengths)
    B, T = tokens.shape
    hidden = hidden_states(params, config, tokens, lengths, kv_dtype=kv_dtype)
    following = jnp.concatenate([tokens[:, 1:], tokens[:, :1]], axis=1).reshape(B * T)

    def block(hidden, following):
        found = decoder.unembed(params, config, hidden)
        total = jax.nn.logsumexp(found, axis=1)
        chosen = jnp.take_along_axis(found, following[:, None], axis=1)
        top, ids = jax.lax.top_k(found, top_n)
        ranks = (found >= chosen).sum(axis=1, dtype=jnp.int32)
        return Alternatives(chosen[:, 0] - total, ranks, ids, top - total[:, None])

    cuts = range(0, B * T, SCORE_BLOCK)
    parts = [block(hidden[i : i + SCORE_BLOCK], following[i : i + SCORE_BLOCK]) for i in cuts]
    known = (jnp.arange(T)[None] > 0) & (jnp.arange(T)[None] < lengths[:, None])

    def place(*parts):
        """A token later, so that what is said of a token stands in its own place."""
        after = jnp.concatenate(parts).reshape(B, T, *parts[0].shape[1:])
        moved = jnp.roll(after, 1, axis=1)
        mask = known.reshape(B, T, *[1] * (moved.ndim - 2))
        return jnp.where(mask, moved, jnp.zeros((), moved.dtype))

    return jax.tree.map(place, *parts)


POOLINGS = ("mean", "last")


def embed(
    params: decoder.Params,
    config: ModelConfig,
    tokens: jax.Array,
    lengths: jax.Array | None = None,
    *,
    pooling: str = "mean",
) -> jax.Array:
    """Texts as unit vectors, [B, T] -> float32 [B, D]: hidden states after the last norm, pooled
    over a row's tokens ("mean") or taken after its last one ("last"), then divided by their
    Euclidean length. A row of length 0 is zeros.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling needs to be one of {', '.join(POOLINGS)}, got {pooling!r}")
    lengths = text_lengths(tokens, lengths)
    B, T = tokens.shape
    hidden = hidden_states(params, config, tokens, lengths).reshape(B, T, -1).astype(jnp.float32)
    position, end = jnp.arange(T)[None], lengths[:, None]
    taken = position < end if pooling == "mean" else position == end - 1
    pooled = jnp.where(taken[:, :, None], hidden, 0.0).sum(axis=1)
    norm = jnp.sqrt(jnp.square(pooled).sum(axis=1, keepdims=True))
    return pooled / jnp.where(norm > 0.0, norm, 1.0)
