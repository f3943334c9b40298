"""The programs of the serving path: the only jit, with donation, static buckets and ahead-of-time
compiles.

What a sequence is doing lives on the device in `State`; a step takes the parameters, the state
(donated) and a small feed. Two programs do all the work: `advance` runs one ragged step (prompt
chunks, decodes, or both), `decode_loop` several decode steps without the host. Both stop a row by
themselves at a stop id or its limit.
"""

import contextlib
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxinfer import ragged, sampler
from jaxinfer.cache import Cache, KVDtype, near, put_back
from jaxinfer.config import ModelConfig
from jaxinfer.generate import decode, score
from jaxinfer.models import decoder
from pallas_kernels.backend import one_cpu

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


def admit(state: State, entry: Entry) -> State:
    """Write requests into their slots, forgetting whoever was there."""
    slots, V = entry.slots, state.history.counts.shape[1]
    history = sampler.start_history(entry.known, entry.known_lengths, V, entry.prompt_lengths)
    history = history.replace(recent=entry.recent)
    return state.replace(
        cache=state.cache.replace(
            lengths=sampler.set_rows(state.cache.lengths, slots, entry.lengths)
        ),
        remaining=sampler.set_rows(state.remaining, slots, entry.remaining),
        active=sampler.set_rows(state.active, slots, jnp.zeros_like(slots, bool)),
        sampling=sampler.set_rows(state.sampling, slots, entry.sampling),
        history=sampler.set_rows(state.history, slots, history),
        mask=sampler.clear_masks(state.mask, slots),
    )


def assign(
    tables: tuple[jax.Array | None, ...], changes: tuple[Changes, ...]
) -> tuple[jax.Array | None, ...]:
    """The page tables, a group each, with new pages."""
    return tuple(
        None if table is None else table.at[new.slots, new.columns].set(new.pages, mode="drop")
        for table, new in zip(tables, changes, strict=True)
    )


def halt(state: State, slots: Array) -> State:
    """Stop slots [A] from decoding."""
    return state.replace(active=sampler.set_rows(state.active, slots, jnp.zeros_like(slots, bool)))


def mask(state: State, masks: Masks) -> State:
    """Say what slots may take, until they are told anew."""
    return state.replace(mask=sampler.set_masks(state.mask, masks.slots, masks.bits))


def advance(
    params: decoder.Params,
    config: ModelConfig,
    state: State,
    feed: Feed,
    *,
    max_count: int,
    span: int,
    top_n: int | None,
) -> tuple[State, Output]:
    """One ragged step."""
    B = state.tokens.shape[0]
    at = jnp.minimum(feed.slots, B - 1)
    live = (feed.slots < B) & (~feed.decodes | state.active[at])
    before = jnp.where(feed.fresh, 0, state.cache.lengths[at])
    batch = ragged.pack(
        feed.tokens,
        feed.counts,
        before,
        feed.slots,
        live,
        reach=feed.reach,
        max_count=max_count,
        span=span,
    )
    tokens = jnp.where(batch.tokens < 0, state.tokens[at][batch.rows], batch.tokens)
    batch = batch.replace(tokens=tokens, slots=jnp.where(live, feed.slots, B))
    hidden, cache = decoder.forward(params, config, batch, state.cache)
    reads = (batch.positions >= 0) & ~feed.decodes[batch.rows]
    history = sampler.see_prompt(state.history, at[batch.rows], tokens, reads)
    found = decoder.unembed(params, config, ragged.last_tokens(hidden, batch))
    samples = live & feed.final
    mine = State(
        cache=cache.replace(lengths=batch.lengths),
        tokens=state.tokens[at],
        remaining=state.remaining[at],
        active=samples,
        sampling=_rows(state.sampling, at),
        history=_rows(history, at),
        mask=_rows(state.mask, at),
    )
    mine, output = _sample(mine, found, top_n)
    slots = jnp.where(samples, feed.slots, B)
    state = state.replace(
        cache=cache,
        tokens=sampler.set_rows(state.tokens, slots, mine.tokens),
        remaining=sampler.set_rows(state.remaining, slots, mine.remaining),
        active=sampler.set_rows(state.active, slots, mine.active),
        history=sampler.set_rows(history, slots, mine.history),
    )
    return state, jax.tree.map(lambda x: x[:, None], output)


def _rows(tree, at):
    return jax.tree.map(lambda x: x[at], tree)


def decode_loop(
    params: decoder.Params,
    config: ModelConfig,
    state: State,
    decodes: jax.Array,
    steps: jax.Array,
    *,
    max_steps: int,
    span: int,
    top_n: int | None,
) -> tuple[State, Output]:
    """Up to `steps` (int32, <= max_steps) decode steps of the slots marked in decodes [B]; ends
    early when all stop.
    """
    B = state.tokens.shape[0]
    output = Output(tokens=jnp.full((B, max_steps), -1, jnp.int32))
    if top_n is not None:
        output = output.replace(
            logprobs=jnp.zeros((B, max_steps), jnp.float32),
            top_ids=jnp.zeros((B, max_steps, top_n), jnp.int32),
            top_logprobs=jnp.zeros((B, max_steps, top_n), jnp.float32),
        )
    waiting = state.active & ~decodes

    def body(carry):
        i, state, output = carry
        found, cache = decode(params, config, state.tokens, state.cache, state.active, span=span)
        state, drawn = _sample(state.replace(cache=cache), found, top_n)
        return i + 1, state, jax.tree.map(lambda whole, new: whole.at[:, i].set(new), output, drawn)

    def more(carry):
        return (carry[0] < steps) & carry[1].active.any()

    start = state.replace(active=state.active & decodes)
    if one_cpu():
        # a slice or gathered pages are a copy there: one for all steps in place of one a step (8 rows
        # of 512 slots in 1,024, 360M model: 17 to 10 ms a step)
        start = start.replace(cache=near(start.cache, span))
    _, after, output = jax.lax.while_loop(more, body, (jnp.int32(0), start, output))
    if one_cpu():
        after = after.replace(cache=put_back(state.cache, after.cache, max_steps))
    return after.replace(active=after.active | waiting), output


def _sample(state: State, logits: jax.Array, top_n: int | None) -> tuple[State, Output]:
    """Draw a token for every active row (cache.lengths: its position) and note what follows from
    it.
    """
    taken = state.active
    drawn = sampler.sample(
        logits,
        state.sampling,
        state.history,
        state.cache.lengths,
        mask=state.mask.replace(masked=state.mask.masked & taken),
        top_n=top_n,
    )
    remaining = state.remaining - taken.astype(jnp.int32)
    output = Output(
        tokens=jnp.where(taken, drawn.token, -1),
        logprobs=drawn.logprob,
        top_ids=drawn.top_ids,
        top_logprobs=drawn.top_logprobs,
    )
    state = state.replace(
        tokens=jnp.where(taken, drawn.token, state.tokens),
        remaining=remaining,
        active=taken & (remaining > 0) & ~sampler.stops(state.sampling, drawn.token),
        history=sampler.update(state.history, drawn.token, taken),
    )
    return state, output


class Programs:
    """The compiled programs of one model, one for each bucket of shapes; `compiled` counts them.

    A program is compiled ahead of its first call and then called directly, so nothing retraces in
    service.
    """

    def __init__(self, params: decoder.Params, config: ModelConfig, mesh=None):
        self.params, self.config, self.mesh = params, config, mesh
        self._programs: dict[Hashable, jax.stages.Compiled] = {}

    @property
    def compiled(self) -> int:
        return len(self._programs)

    def with_params(self, params: decoder.Params) -> "Programs":
        """The same compiled programs for other parameters of the same form."""
        other = Programs(params, self.config, self.mesh)
        other._programs = self._programs
        return other

    def texts(self) -> list[str]:
        """The optimized HLO of every program, in the order of their first calls."""
        return [program.as_text() or "" for program in self._programs.values()]

    def admit(self, state: State, entry: Entry) -> State:
        return self._run(admit, (), state, entry)

    def assign(self, state: State, changes: tuple[Changes, ...]) -> State:
        tables = self._run(assign, (), state.cache.tables, changes)
        return state.replace(cache=state.cache.replace(tables=tables))

    def halt(self, state: State, slots: Array) -> State:
        return self._run(halt, (), state, slots)

    def mask(self, state: State, masks: Masks) -> State:
        return self._run(mask, (), state, masks)

    def advance(
        self, state: State, feed: Feed, *, max_count: int, span: int, top_n: int | None
    ) -> tuple[State, Output]:
        statics = (("max_count", max_count), ("span", span), ("top_n", top_n))
        return self._run(advance, statics, state, feed)

    def decode_loop(
        self,
        state: State,
        decodes: Array,
        steps: Array,
        *,
        max_steps: int,
        span: int,
        top_n: int | None,
    ) -> tuple[State, Output]:
        statics = (("max_steps", max_steps), ("span", span), ("top_n", top_n))
        return self._run(decode_loop, statics, state, decodes, steps)

    def _run(self, function, statics, state, *feed):
        shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves(feed))
        key = (function, statics, shapes)
        model = (self.params,) if statics else ()
        with jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext():
            if key not in self._programs:
                self._programs[key] = self._compile(function, dict(statics), model, state, feed)
            return self._programs[key](*model, state, *feed)

    def _compile(self, function, statics, model, state, feed):
        config = self.config

        def program(*args):
            if model:
                return function(args[0], config, *args[1:], **statics)
            return function(*args)

        program.__name__ = function.__name__
        places = jax.tree.map(lambda x: x.sharding, state)
        out = (places, None) if model else places
        # the state keeps its placement from step to step; without a mesh everything is on one
        # device anyway
        out = out if self.mesh is not None else None
        jitted = jax.jit(program, donate_argnums=(len(model),), out_shardings=out)
        return jitted.lower(*model, state, *feed).compile()


class Scorer:
    """`score` compiled for one model, texts padded to power-of-two lengths."""

    def __init__(
        self,
        params: decoder.Params,
        config: ModelConfig,
        mesh=None,
        *,
        kv_dtype: KVDtype | None = None,
    ):
        self._params, self._mesh = params, mesh
        self._score = jax.jit(
            lambda params, tokens, lengths: score(
                params, config, tokens, lengths, kv_dtype=kv_dtype
            )
        )

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        """float32 [len(ids)]: see `generate.score`."""
        padded = 16
        while padded < len(ids):
            padded *= 2
        tokens = np.zeros((1, padded), np.int32)
        tokens[0, : len(ids)] = ids
        with jax.set_mesh(self._mesh) if self._mesh is not None else contextlib.nullcontext():
            return np.asarray(self._score(self._params, tokens, np.asarray([len(ids)], np.int32)))[
                0, : len(ids)
            ]
