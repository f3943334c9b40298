"""The compiled programs of one model: the only jit of the serving path, with donation, static
buckets and ahead-of-time compiles.
"""

import contextlib
from collections.abc import Hashable

import jax

from jaxinfer.cache import Pages
from jaxinfer.config import ModelConfig
from jaxinfer.models import decoder
from jaxinfer.step.edits import admit, assign, copy_in, copy_out, halt, mask
from jaxinfer.step.state import (
    Array,
    Changes,
    Entry,
    Feed,
    Masks,
    Output,
    State,
)
from jaxinfer.step.steps import advance, decode_loop


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

    def copy_out(self, state: State, pages: Array, *, group: int) -> tuple[Pages, ...]:
        return self._run(copy_out, (("group", group),), state, pages, looks=True)

    def copy_in(self, state: State, pages: Array, kept: tuple[Pages, ...], *, group: int) -> State:
        return self._run(copy_in, (("group", group),), state, pages, kept)

    def advance(
        self, state: State, feed: Feed, *, max_count: int, span: int, top_n: int | None
    ) -> tuple[State, Output]:
        statics = (("max_count", max_count), ("span", span), ("top_n", top_n))
        return self._run(advance, statics, state, feed, model=True)

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
        return self._run(decode_loop, statics, state, decodes, steps, model=True)

    def _run(self, function, statics, state, *feed, model: bool = False, looks: bool = False):
        """function(state, *feed), or (params, config, state, *feed) where it takes the model. looks:
        it leaves the state as it is, which else goes into it and a new one comes out.
        """
        shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves(feed))
        key = (function, statics, shapes)
        params = (self.params,) if model else ()
        with jax.set_mesh(self.mesh) if self.mesh is not None else contextlib.nullcontext():
            if key not in self._programs:
                places = jax.tree.map(lambda x: x.sharding, state)
                # the state keeps its placement from step to step; without a mesh everything is on
                # one device anyway
                out = (places, None) if model else places
                jitted = jax.jit(
                    self._program(function, dict(statics), model),
                    donate_argnums=() if looks else (len(params),),
                    out_shardings=None if looks or self.mesh is None else out,
                )
                self._programs[key] = jitted.lower(*params, state, *feed).compile()
            return self._programs[key](*params, state, *feed)

    def _program(self, function, statics, model: bool):
        config = self.config

        def program(*args):
            if model:
                return function(args[0], config, *args[1:], **statics)
            return function(*args, **statics)

        program.__name__ = function.__name__
        return program
