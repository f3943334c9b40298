"""What sequences are doing, as the device holds it, and what a step is told and tells."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxinfer import sampler
from jaxinfer.cache import Cache

Array = Any  # numpy where the host feeds it, traced inside a program


class State(struct.PyTreeNode):
    """Per slot [B]: tokens, the latest token, not yet in the cache; remaining, how many it may
    still get; active, whether it decodes. history may be None where no request needs it.
    """

    cache: Cache
    tokens: jax.Array
    remaining: jax.Array
    active: jax.Array
    sampling: sampler.Sampling
    history: sampler.History
    mask: sampler.Mask


@struct.dataclass
class Feed:
    """One ragged step. tokens [T]: -1 stands for the slot's latest token. Per row [R]: slots (>= B:
    unused row), counts, reach; fresh: the slot starts from nothing; final: a token is sampled;
    decodes: only if still active.
    """

    tokens: Array
    slots: Array
    counts: Array
    reach: Array
    fresh: Array
    final: Array
    decodes: Array


@struct.dataclass
class Entry:
    """Requests that enter slots [A] (>= B: unused): their sampling rows, token limits, positions
    already in the slot's cache, and the prompt's last tokens (`History.recent`). known [A, n], of
    which known_lengths count: tokens of the prompt (the first prompt_lengths) and of the answer
    that are not to be read, where the draws depend on them.
    """

    slots: Array
    remaining: Array
    sampling: sampler.Sampling
    lengths: Array
    known: Array
    known_lengths: Array
    prompt_lengths: Array
    recent: Array


@struct.dataclass
class Changes:
    """New pages in one group's page table: slots (>= B: unused), columns, pages, each [C]."""

    slots: Array
    columns: Array
    pages: Array


@struct.dataclass
class Masks:
    """What slots [R] (>= B: unused) may take next: bits [R, ceil(V / 32)], see `sampler.Mask`."""

    slots: Array
    bits: Array


class Output(struct.PyTreeNode):
    """tokens, logprobs [rows, n]: -1 where none was sampled; top_ids, top_logprobs [rows, n,
    top_n]. Only tokens where top_n was None.
    """

    tokens: jax.Array
    logprobs: Any = None
    top_ids: Any = None
    top_logprobs: Any = None


def new_state(cache: Cache, vocab_size: int) -> State:
    """Every slot empty."""
    B = cache.lengths.shape[0]
    return State(
        cache=cache,
        tokens=jnp.zeros((B,), jnp.int32),
        remaining=jnp.zeros((B,), jnp.int32),
        active=jnp.zeros((B,), bool),
        sampling=jax.tree.map(jnp.asarray, sampler.greedy(B)),
        history=sampler.empty_history(B, vocab_size),
        mask=sampler.no_mask(B, vocab_size),
    )
