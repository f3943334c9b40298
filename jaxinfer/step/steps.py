"""Programs that read and write tokens: a ragged step, and several decode steps without the host.

Both stop a row by themselves at a stop id or its limit.
"""

import jax
import jax.numpy as jnp

from jaxinfer import ragged, sampler
from jaxinfer.cache import near, put_back
from jaxinfer.config import ModelConfig
from jaxinfer.generate import decode
from jaxinfer.models import decoder
from jaxinfer.step.state import Feed, Output, State
from pallas_kernels.backend import one_cpu


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
