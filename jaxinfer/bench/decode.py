"""Decoding: the time of one step of the engine's own loop with every slot at work, against its floor."""

import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxinfer import roofline
from jaxinfer.bench import profile, slots, wall
from jaxinfer.bench.ceilings import Ceilings
from jaxinfer.bench.rows import against_floor
from jaxinfer.bench.subject import Subject
from jaxinfer.bench.timing import measure
from jaxinfer.engine import SMALLEST_SPAN, bucket
from jaxinfer.step import Output, Programs, State


@dataclass(frozen=True)
class Case:
    """batch rows that reach `context` positions in the last of `steps` steps."""

    batch: int
    context: int
    steps: int = 32

    def __post_init__(self):
        if self.batch < 1 or self.context < 2 or self.steps < 1:
            raise ValueError(
                "a decode case needs batch >= 1, context >= 2 and steps >= 1, got "
                f"{self.batch}, {self.context} and {self.steps}"
            )

    @property
    def taken(self) -> int:
        """The steps that are run: at most a quarter of the context, so that it hardly changes."""
        return max(1, min(self.steps, self.context // 4))

    @property
    def mean_context(self) -> int:
        """Positions that a step reads, on average."""
        return self.context - self.taken // 2


def run(
    subject: Subject,
    case: Case,
    ceilings: Ceilings,
    *,
    repeats: int = 5,
    with_wall: bool = True,
    trace: Path | None = None,
) -> dict:
    """One row: times in milliseconds, rates per second, and what they are of the ceilings.

    with_wall: also run `Model` with as many rows, where the context has room for it, and compare its
    wall time per step. trace: a folder for a profile, whose table goes into `kernels`. ValueError
    where the model has no such context.
    """
    most = subject.config.max_position
    if case.context > most:
        raise ValueError(f"the context needs to be at most the model's {most}, got {case.context}")
    row, step_s = _device(subject, case, ceilings, repeats, trace)
    if with_wall and wall.new_tokens(case.batch, case.context, case.taken) < case.context:
        wall_s = wall.seconds_per_step(subject, case.batch, case.context, case.taken)
        row |= {"wall_ms": wall_s * 1e3, "host_overhead": wall_s / step_s}
    return row


class Loop:
    """The compiled loop over a full state, ready to run from the same place again and again."""

    def __init__(self, subject: Subject, case: Case):
        self.programs = Programs(subject.params, subject.config)
        self._case = case
        self._span = bucket(case.context, SMALLEST_SPAN, case.context)
        self._state: State | None = slots.filled(subject, case.batch, case.context)

    def prepare(self) -> State:
        """The state with every row where its first step finds it."""
        assert self._state is not None
        self._state = slots.at(self._state, self._case.context - self._case.taken)
        return self._state

    def __call__(self, state: State) -> Output:
        """All steps; the state is given away and the new one kept."""
        case, self._state = self._case, None
        self._state, output = self.programs.decode_loop(
            state,
            np.ones((case.batch,), bool),
            np.int32(case.taken),
            max_steps=case.taken,
            span=self._span,
            top_n=None,
        )
        return output


def _device(subject: Subject, case: Case, ceilings, repeats, trace) -> tuple[dict, float]:
    loop = Loop(subject, case)
    begin = time.perf_counter()
    jax.block_until_ready(loop(loop.prepare()))
    first_s = time.perf_counter() - begin
    timing = measure(loop, loop.prepare, repeats=repeats).divided(case.taken)
    bound = roofline.decode(
        subject.config,
        ceilings.chip(),
        case.batch,
        case.mean_context,
        weights=subject.format,
        cache=subject.cache_format,
    )
    row = {
        **subject.describe(),
        "batch": case.batch,
        "context": case.context,
        "mean_context": case.mean_context,
        "steps": case.taken,
        **against_floor(timing, bound, ceilings, "step"),
        "first_call_s": first_s,
    }
    if trace is not None:
        state = jax.block_until_ready(loop.prepare())
        row["kernels"] = profile.kernels(
            trace,
            lambda: loop(state),
            loop.programs.texts(),
            ceilings.read,
            seconds=timing.median * case.taken,
            steps=case.taken,
        )
    return row, timing.median
