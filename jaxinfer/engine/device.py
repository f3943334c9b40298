"""What an engine keeps on its devices: parameters, state, and the programs that change it.

Every program takes the state and leaves a new one; nobody else holds it.
"""

from collections.abc import Sequence

import jax
import numpy as np

from jaxinfer import cache as kv
from jaxinfer import sharding
from jaxinfer.engine import copies
from jaxinfer.models import attention, decoder
from jaxinfer.pages import Move
from jaxinfer.scheduler import Limits
from jaxinfer.step import Changes, Entry, Feed, Masks, Output, Programs, State, new_state


class Device:
    """kv_dtype: of pages. num_pages: per group of layers; () where every slot owns its place."""

    def __init__(
        self,
        programs: Programs,
        limits: Limits,
        rings: Sequence[kv.Ring],
        groups: Sequence[int],
        kv_dtype: np.dtype,
        *,
        page_size: int | None,
        num_pages: Sequence[int],
    ):
        self.programs = programs
        self._limits, self._rings, self._groups = limits, rings, groups
        self._page_size, self._num_pages, self._kv_dtype = page_size, num_pages, kv_dtype
        self._state: State | None = self._new_state()

    @property
    def state(self) -> State:
        assert self._state is not None
        return self._state

    def reset(self) -> None:
        """Forget everything but the parameters: every slot empty, every page unwritten."""
        self._state = None  # frees its memory first
        self._state = self._new_state()

    def halt(self, slot: int) -> None:
        """Stop a slot from decoding."""
        self._state = self.programs.halt(self.state, np.asarray([slot], np.int32))

    def admit(self, entry: Entry) -> None:
        self._state = self.programs.admit(self.state, entry)

    def assign(self, changes: tuple[Changes, ...]) -> None:
        self._state = self.programs.assign(self.state, changes)

    def mask(self, masks: Masks) -> None:
        self._state = self.programs.mask(self.state, masks)

    def move(self, moves: Sequence[Move]) -> None:
        """Copy pages to the host and back, one after the other."""
        for move in moves:
            parked = move.parked
            if move.out:
                parked.content = copies.copy_out(self.programs, self.state, move.pages)
            else:
                state = copies.copy_in(self.programs, self.state, move.pages, parked.content)
                self._state, parked.content = state, None

    def warm_move(self, group: int, size: int) -> None:
        """Compile what copies `size` pages of a group."""
        self._state = copies.nothing(self.programs, self.state, group, size)

    def advance(self, feed: Feed, span: int, top_n: int | None) -> Output:
        """One ragged step."""
        count = min(self._limits.chunk, len(feed.tokens))
        self._state, output = self.programs.advance(
            self.state, feed, max_count=count, span=span, top_n=top_n
        )
        return output

    def decode(self, decodes: np.ndarray, steps: int, span: int, top_n: int | None) -> Output:
        """Up to `steps` tokens of the slots marked in decodes [B]."""
        self._state, output = self.programs.decode_loop(
            self.state,
            decodes,
            np.int32(steps),
            max_steps=self._limits.decode_steps,
            span=span,
            top_n=top_n,
        )
        return output

    def _new_state(self) -> State:
        params, config, mesh = self.programs.params, self.programs.config, self.programs.mesh
        cache = kv.init_cache(
            config,
            self._rings,
            self._groups,
            self._limits.slots,
            self._kv_dtype,
            num_kv_heads=attention.held_kv_heads(config, params.shards),
            page_size=self._page_size,
            num_pages=self._num_pages,
            mesh=mesh,
        )
        state = new_state(cache, config.vocab_size)
        if mesh is None:
            return state
        rest = jax.device_put(state.replace(cache=None), sharding.place("", mesh))
        return rest.replace(cache=cache)


def check_same_form(old: decoder.Params, new: decoder.Params) -> None:
    """ValueError where compiled programs could not take `new` in place of `old`."""
    if jax.tree.structure(old) != jax.tree.structure(new):
        raise ValueError(
            "new parameters need the structure of the old ones (fused and quantized the same), got "
            f"{jax.tree.structure(new)}, not {jax.tree.structure(old)}"
        )
    pairs = zip(jax.tree.leaves_with_path(old), jax.tree.leaves_with_path(new), strict=True)
    for (path, one), (_, other) in pairs:
        forms = [(x.shape, x.dtype) for x in (one, other)]
        if forms[0] != forms[1] or not other.sharding.is_equivalent_to(one.sharding, one.ndim):
            raise ValueError(
                f"new parameters need the old ones' shapes, dtypes and shardings; at "
                f"{jax.tree_util.keystr(path)} required {forms[0]} {one.sharding}, got {forms[1]} "
                f"{other.sharding}; cast or place it with jax.device_put"
            )
