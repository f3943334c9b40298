"""The engine's device state, full: every slot in the middle of a sequence of random tokens."""

import functools

import jax
import jax.numpy as jnp

from jaxinfer.bench.subject import Subject
from jaxinfer.generate import new_cache
from jaxinfer.step import State, new_state
from pallas_kernels.narrow import TOPS, rounded

DEVIATION = 32.0  # of narrow keys and values, in steps
ENDLESS = 1 << 30  # tokens that a slot may still get: more than any measurement asks for


def filled(subject: Subject, batch: int, capacity: int, *, max_chunk: int = 1) -> State:
    """`batch` slots of `capacity` positions whose cache holds random keys and values.

    Pages are drawn one by one, so that the cache is never held twice.
    """
    params, config = subject.params, subject.config
    cache = jax.eval_shape(
        lambda: new_cache(
            params, config, batch, capacity, max_chunk=max_chunk, dtype=subject.kv_dtype
        )
    )
    described, tree = jax.tree.flatten(cache.layers)
    key = jax.random.key(batch)
    pages = [
        _drawn(jax.random.fold_in(key, i), page.shape, page.dtype)
        for i, page in enumerate(described)
    ]
    lengths = jnp.zeros((batch,), jnp.int32)
    cache = cache.replace(layers=jax.tree.unflatten(tree, pages), lengths=lengths)
    return new_state(cache, config.vocab_size)


def at(state: State, length: int) -> State:
    """The same slots, `length` positions written in each, all decoding without end."""
    (batch,) = state.tokens.shape
    return state.replace(
        cache=state.cache.replace(lengths=jnp.full((batch,), length, jnp.int32)),
        tokens=jnp.arange(batch, dtype=jnp.int32) % state.history.counts.shape[1],
        remaining=jnp.full((batch,), ENDLESS, jnp.int32),
        active=jnp.ones((batch,), bool),
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _drawn(key, shape, dtype):
    """Keys or values of deviation 1; or, of three axes, the scales that give it to narrow ones."""
    if len(shape) == 3:
        return jnp.full(shape, 1 / DEVIATION, dtype)
    drawn = jax.random.normal(key, shape, jnp.float32)
    if dtype not in TOPS:
        return drawn.astype(dtype)
    steps = jnp.clip(DEVIATION * drawn, -TOPS[dtype], TOPS[dtype])
    return rounded(steps, dtype)
