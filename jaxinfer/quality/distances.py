"""What lies between two models' distributions of the next token, position by position.

Logits are formed a block of positions at a time, so that memory does not grow with the text.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinfer.generate import hidden_states
from jaxinfer.models import decoder
from jaxinfer.quality.settings import Side

BLOCK = 256  # positions whose vocabulary-wide logits are held at once, of both sides
TOP = 5


class Distances(struct.PyTreeNode):
    """Per position [n]. reference, candidate: log-probability (nats) of the token that follows. kl:
    sum_v p (log p - log q) in nats, p the reference's distribution. same_top: the most likely token
    is the same. top_overlap: which part of the TOP most likely tokens both have. accepted:
    sum_v min(p, q), the chance that a token drawn by the candidate is kept when the reference
    verifies it (Leviathan et al. 2023, section 3).
    """

    reference: jax.Array
    candidate: jax.Array
    kl: jax.Array
    same_top: jax.Array
    top_overlap: jax.Array
    accepted: jax.Array


@jax.jit
def between(reference: jax.Array, candidate: jax.Array, following: jax.Array) -> Distances:
    """logits [n, V] float32 of both, following [n] int32 -> `Distances` of n positions."""
    log_p, log_q = (jax.nn.log_softmax(x, axis=1) for x in (reference, candidate))
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    kl = jnp.where(p > 0, p * (log_p - log_q), 0.0).sum(axis=1)
    count = min(TOP, reference.shape[1])
    # behind a barrier: XLA would sort the whole vocabulary where a slice of top_k is looked at
    ours, theirs = (
        jax.lax.optimization_barrier(jax.lax.top_k(x, count)[1]) for x in (reference, candidate)
    )
    shared = (ours[:, :, None] == theirs[:, None, :]).any(axis=2)
    return Distances(
        reference=jnp.take_along_axis(log_p, following[:, None], axis=1)[:, 0],
        candidate=jnp.take_along_axis(log_q, following[:, None], axis=1)[:, 0],
        kl=jnp.where(kl < 0, 0.0, kl),  # rounding; NaN stays
        same_top=(ours[:, 0] == theirs[:, 0]).astype(jnp.float32),
        top_overlap=shared.astype(jnp.float32).mean(axis=1),
        accepted=jnp.minimum(p, q).sum(axis=1),
    )


class Reader:
    """One side's logits over windows of a text, read through its cache where that has a type of its
    own (`Model.kv_dtype`).
    """

    def __init__(self, side: Side):
        self._params, self._in_force = side.model.params, side.in_force
        config, kv_dtype = side.model.config, side.model.kv_dtype

        def hidden(params, tokens):
            return hidden_states(params, config, tokens, kv_dtype=kv_dtype)

        def logits(params, hidden, places):
            return decoder.unembed(params, config, hidden[places])

        self._run_hidden, self._run_logits = jax.jit(hidden), jax.jit(logits)

    def hidden(self, ids: Sequence[int]) -> jax.Array:
        """The last hidden state after every token, [T, D]."""
        with self._in_force():
            return self._run_hidden(self._params, np.asarray(ids, np.int32)[None])

    def logits(self, hidden: jax.Array, places: np.ndarray) -> jax.Array:
        """float32 [n, V] after the tokens at `places` [n] int32."""
        with self._in_force():
            return self._run_logits(self._params, hidden, places)


class Kept(Reader):
    """A reader that keeps the hidden states of what it has read on the host: for a reference that
    many candidates are compared with.
    """

    def __init__(self, side: Side):
        super().__init__(side)
        self._found: dict[tuple[int, ...], np.ndarray] = {}

    def hidden(self, ids: Sequence[int]) -> jax.Array:
        key = tuple(ids)
        if key not in self._found:
            self._found[key] = np.asarray(super().hidden(ids))
        return jnp.asarray(self._found[key])


def read(reference: Reader, candidate: Reader, ids: Sequence[int], first: int) -> Distances:
    """Distances (numpy) of the predictions of ids[first:], each from all ids before it; first >= 1."""
    hidden = reference.hidden(ids), candidate.hidden(ids)
    parts, T = [], len(ids)
    for start in range(first - 1, T - 1, BLOCK):
        places = np.minimum(np.arange(start, start + BLOCK, dtype=np.int32), T - 2)
        following = np.asarray(ids, np.int32)[places + 1]
        ours = reference.logits(hidden[0], places)
        theirs = candidate.logits(hidden[1], places)
        found = between(ours, theirs, following)
        count = min(BLOCK, T - 1 - start)
        parts.append(jax.tree.map(lambda x, count=count: np.asarray(x)[:count], found))
    return join(parts)


def join(parts: Sequence[Distances]) -> Distances:
    """Positions of all parts in a row."""
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
