"""Prefill, decode, generate and score as pure functions for JAX programs.

Everything here may be called inside a caller's own `jit`; `config` and the keyword-only integers
are static. `logits` and `score` keep no cache and are differentiable. Arrays: tokens [B, T] int32
with row b's text in its first lengths[b] places; what lies past a length is never looked at.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer import cache as kv
from jaxinfer import ragged, sampler
from jaxinfer.config import ModelConfig
from jaxinfer.models import attention, decoder
from pallas_kernels.backend import platform

SCORE_BLOCK = 1024  # tokens whose vocabulary-wide logits `score` holds at once
READ_CHUNK = 256  # tokens that are read through a cache at once


def _zeros(tokens: jax.Array) -> jax.Array:
    return jnp.zeros(tokens.shape[:1], jnp.int32)


def _lengths(tokens: jax.Array, lengths: jax.Array | None) -> jax.Array:
    if tokens.ndim != 2:
        raise ValueError(
            f"tokens need shape [B, T], got {tokens.shape}; add a batch axis with tokens[None]"
        )
    if lengths is None:
        return jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32)
    if lengths.shape != tokens.shape[:1]:
        raise ValueError(
            f"lengths need shape [B] for tokens [B, T], got {lengths.shape=} and {tokens.shape=}"
        )
    return lengths


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
    lengths = _lengths(tokens, lengths)
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
    lengths = _lengths(tokens, lengths)
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
    lengths = _lengths(tokens, lengths)
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
    lengths = _lengths(tokens, lengths)
    B, T = tokens.shape
    hidden = hidden_states(params, config, tokens, lengths).reshape(B, T, -1).astype(jnp.float32)
    position, end = jnp.arange(T)[None], lengths[:, None]
    taken = position < end if pooling == "mean" else position == end - 1
    pooled = jnp.where(taken[:, :, None], hidden, 0.0).sum(axis=1)
    norm = jnp.sqrt(jnp.square(pooled).sum(axis=1, keepdims=True))
    return pooled / jnp.where(norm > 0.0, norm, 1.0)


def cache_dtype(params: decoder.Params):
    """What the cache holds: the parameters' dtype, and float32 on CPU (which rewrites narrower
    caches each step).
    """
    return jnp.float32 if platform() == "cpu" else params.norm.scale.dtype


def new_cache(
    params: decoder.Params,
    config: ModelConfig,
    batch: int,
    max_length: int,
    *,
    max_chunk: int | None = None,
    stream_window: int | None = None,
    sinks: int = 0,
    dtype=None,
    mesh=None,
) -> kv.Cache:
    """An empty cache for `batch` sequences of up to `max_length` tokens, written at most
    `max_chunk` at a time.

    max_chunk None: max_length. dtype: None (`cache_dtype`), a dtype, or a name of `cache.KV_DTYPES`:
    int8 and fp8 keep a scale with each key and value. See `cache.plan_rings` for stream_window and sinks.
    """
    rings, groups = kv.plan_rings(
        config,
        max_length,
        max_chunk=max_chunk or max_length,
        stream_window=stream_window,
        sinks=sinks,
    )
    heads = attention.held_kv_heads(config, params.shards)
    dtype = dtype or cache_dtype(params)
    return kv.init_cache(config, rings, groups, batch, dtype, num_kv_heads=heads, mesh=mesh)


def prefill(
    params: decoder.Params,
    config: ModelConfig,
    tokens: jax.Array,
    lengths: jax.Array | None,
    cache: kv.Cache,
    *,
    chunk: int | None = None,
) -> tuple[jax.Array, kv.Cache]:
    """Write prompts behind what the cache holds: ([B, V] float32 logits after each row's last
    token, cache).

    chunk: write that many tokens of each row at a time (static; None: all at once), at most the
    cache's max_chunk. A row with length 0 writes nothing and its logits mean nothing.
    """
    lengths = _lengths(tokens, lengths)
    B, T = tokens.shape
    step = T if chunk is None else min(chunk, T)
    reach = cache.lengths + lengths
    last = jnp.zeros((B, params.norm.scale.shape[0]), params.norm.scale.dtype)
    for start in range(0, T, step):
        counts = jnp.clip(lengths - start, 0, step)
        batch = ragged.rectangle(
            tokens[:, start : start + step], counts, cache.lengths, reach=reach
        )
        hidden, cache = decoder.forward(params, config, batch, cache)
        last = jnp.where((counts > 0)[:, None], ragged.last_tokens(hidden, batch), last)
    return decoder.unembed(params, config, last), cache


def decode(
    params: decoder.Params,
    config: ModelConfig,
    tokens: jax.Array,
    cache: kv.Cache,
    active: jax.Array | None = None,
    *,
    reach: jax.Array | None = None,
    span: int | None = None,
) -> tuple[jax.Array, kv.Cache]:
    """One more token of every row, [B] int32: ([B, V] float32 logits after it, cache).

    active [B] bool: rows that take part (None: all); the others write nothing. span (static): cache
    slots attention reads, at least the longest row or the ring's capacity (None: all). reach [B]:
    see `Ragged`.
    """
    counts = jnp.ones_like(tokens) if active is None else active.astype(jnp.int32)
    batch = ragged.rectangle(tokens[:, None], counts, cache.lengths, reach=reach, span=span)
    hidden, cache = decoder.forward(params, config, batch, cache)
    return decoder.unembed(params, config, hidden), cache


@struct.dataclass
class Generated:
    """tokens [B, max_new_tokens] int32 (0 past a row's end); lengths [B]: how many are real, a stop
    token included; logprobs [B, max_new_tokens] float32: raw log-probability of each token, equal
    to what `score` gives it.
    """

    tokens: jax.Array
    lengths: jax.Array
    logprobs: jax.Array


def generate(
    params: decoder.Params,
    config: ModelConfig,
    tokens: jax.Array,
    lengths: jax.Array | None = None,
    sampling: sampler.Sampling | None = None,
    *,
    max_new_tokens: int,
    chunk: int | None = None,
    stream_window: int | None = None,
    sinks: int = 0,
    kv_dtype: kv.KVDtype | None = None,
) -> Generated:
    """Continue prompts, all on the device: greedy, or as `sampling` (`sampler.pack`) says, stop ids
    included. kv_dtype: what the cache holds, `new_cache`'s dtype.

    The loop ends when every row has stopped. Rows draw by their own keys and do not depend on each
    other.
    """
    lengths = _lengths(tokens, lengths)
    B, T = tokens.shape
    if sampling is None:
        sampling = sampler.greedy(B)
    history = sampler.start_history(tokens, lengths, config.vocab_size)
    cache = new_cache(
        params,
        config,
        B,
        T + max_new_tokens,
        max_chunk=chunk or T,
        stream_window=stream_window,
        sinks=sinks,
        dtype=kv_dtype,
    )
    found, cache = prefill(params, config, tokens, lengths, cache, chunk=chunk)
    reach = lengths + max_new_tokens

    def choose(found, history, cache, active, out, i):
        drawn = sampler.sample(found, sampling, history, cache.lengths, top_n=0)
        assert drawn.logprob is not None  # as top_n asks
        history = sampler.update(history, drawn.token, active)
        token = jnp.where(active, drawn.token, 0)
        out = Generated(
            tokens=out.tokens.at[:, i].set(token),
            lengths=out.lengths + active.astype(jnp.int32),
            logprobs=out.logprobs.at[:, i].set(jnp.where(active, drawn.logprob, 0.0)),
        )
        return token, history, active & ~sampler.stops(sampling, token), out

    def body(state):
        i, token, active, history, cache, out = state
        found, cache = decode(params, config, token, cache, active, reach=reach)
        token, history, active, out = choose(found, history, cache, active, out, i)
        return i + 1, token, active, history, cache, out

    out = Generated(
        tokens=jnp.zeros((B, max_new_tokens), jnp.int32),
        lengths=jnp.zeros((B,), jnp.int32),
        logprobs=jnp.zeros((B, max_new_tokens), jnp.float32),
    )
    everyone = jnp.ones((B,), bool)
    token, history, active, out = choose(found, history, cache, everyone, out, 0)
    state = (jnp.int32(1), token, active, history, cache, out)
    more = functools.partial(_unfinished, max_new_tokens)
    return jax.lax.while_loop(more, body, state)[-1]


def _unfinished(limit, state):
    return (state[0] < limit) & state[2].any()
