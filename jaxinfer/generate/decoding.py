"""Token by token through a cache: prefill, decode, and the loop around them."""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer import cache as kv
from jaxinfer import ragged, sampler
from jaxinfer.config import ModelConfig
from jaxinfer.models import attention, decoder
from pallas_kernels.backend import platform


def text_lengths(tokens: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """What a caller gave, or the whole width; ValueError where shapes do not fit."""
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
    lengths = text_lengths(tokens, lengths)
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
    lengths = text_lengths(tokens, lengths)
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
