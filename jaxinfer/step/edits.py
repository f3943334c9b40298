"""Programs that change a state between steps: who is where, which pages, what may come next."""

import jax
import jax.numpy as jnp

from jaxinfer import sampler
from jaxinfer.cache import Cache, Pages
from jaxinfer.step.state import Array, Changes, Entry, Masks, State


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


def copy_out(state: State, pages: Array, *, group: int) -> tuple[Pages, ...]:
    """What those pages [n] of a group hold, [n, K, page_size, ...] of each of its layers."""
    of = _layers(state.cache, group)
    return jax.tree.map(lambda x: x[pages], tuple(state.cache.layers[i] for i in of))


def copy_in(state: State, pages: Array, kept: tuple[Pages, ...], *, group: int) -> State:
    """Put back what `copy_out` took, into pages [n] (past the last page: dropped)."""
    layers = list(state.cache.layers)
    for i, new in zip(_layers(state.cache, group), kept, strict=True):
        layers[i] = jax.tree.map(lambda x, y: x.at[pages].set(y, mode="drop"), layers[i], new)
    return state.replace(cache=state.cache.replace(layers=tuple(layers)))


def _layers(cache: Cache, group: int) -> list[int]:
    return [i for i, of in enumerate(cache.groups) if of == group]
