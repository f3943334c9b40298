"""Prefill: the time from prompts on the host to their first tokens on the host, against its floor."""

import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxinfer import roofline
from jaxinfer.bench import profile, slots
from jaxinfer.bench.ceilings import Ceilings
from jaxinfer.bench.rows import against_floor
from jaxinfer.bench.subject import Subject
from jaxinfer.bench.timing import measure
from jaxinfer.engine import PROMPT_GROWTH, SMALLEST_SPAN, bucket
from jaxinfer.step import Feed, Programs, State


@dataclass(frozen=True)
class Case:
    """batch prompts of `length` tokens, at most `chunk` tokens of each in a step (None: whole)."""

    batch: int
    length: int
    chunk: int | None = None

    def __post_init__(self):
        if self.batch < 1 or self.length < 1 or (self.chunk is not None and self.chunk < 1):
            raise ValueError(
                "a prefill case needs batch, context and chunk of at least 1, got "
                f"{self.batch}, {self.length} and {self.chunk}"
            )

    @property
    def most(self) -> int:
        """Tokens of one prompt in one step."""
        return min(self.chunk or self.length, self.length)


class Prefill:
    """The compiled steps that read all prompts of a case, and the prompts."""

    def __init__(self, subject: Subject, case: Case, seed: int = 0):
        self.programs = Programs(subject.params, subject.config)
        self._case = case
        self._state: State | None = slots.filled(
            subject, case.batch, case.length, max_chunk=case.most
        )
        shape = (case.batch, case.length)
        vocabulary = subject.config.vocab_size
        self._prompts = np.random.default_rng(seed).integers(0, vocabulary, shape, np.int32)

    def prepare(self) -> State:
        assert self._state is not None
        self._state = slots.at(self._state, 0)
        return self._state

    def __call__(self, state: State) -> np.ndarray:
        """The first token of each prompt, int32 [B, 1]."""
        case, self._state, output = self._case, None, None
        for start in range(0, case.length, case.most):
            stop = min(start + case.most, case.length)
            state, output = self.programs.advance(
                state,
                self._feed(start, stop),
                max_count=stop - start,
                span=bucket(stop, SMALLEST_SPAN, case.length, PROMPT_GROWTH),
                top_n=None,
            )
        assert output is not None
        self._state = state
        return np.asarray(output.tokens)

    def _feed(self, start: int, stop: int) -> Feed:
        B, length = self._prompts.shape
        return Feed(
            tokens=self._prompts[:, start:stop].reshape(-1),
            slots=np.arange(B, dtype=np.int32),
            counts=np.full((B,), stop - start, np.int32),
            reach=np.full((B,), length, np.int32),
            fresh=np.full((B,), start == 0),
            final=np.full((B,), stop == length),
            decodes=np.zeros((B,), bool),
        )


def run(
    subject: Subject,
    case: Case,
    ceilings: Ceilings,
    *,
    repeats: int = 5,
    trace: Path | None = None,
) -> dict:
    """One row: ttft_ms, tokens per second, FLOP/s and what they are of the ceilings.

    trace: a folder for a profile, whose table goes into `kernels`. ValueError where the model has no
    such context.
    """
    most = subject.config.max_position
    if case.length > most:
        raise ValueError(f"the context needs to be at most the model's {most}, got {case.length}")
    prefill = Prefill(subject, case)
    begin = time.perf_counter()
    prefill(prefill.prepare())
    first_s = time.perf_counter() - begin
    timing = measure(prefill, prefill.prepare, repeats=repeats)
    bound = roofline.prefill(
        subject.config,
        ceilings.chip(),
        case.batch,
        case.length,
        weights=subject.format,
        cache=subject.cache_format,
    )
    row = {
        **subject.describe(),
        "batch": case.batch,
        "context": case.length,
        "chunk": case.most,
        **against_floor(timing, bound, ceilings, "ttft"),
        "first_call_s": first_s,
    }
    if trace is not None:
        state = jax.block_until_ready(prefill.prepare())
        row["kernels"] = profile.kernels(
            trace,
            lambda: prefill(state),
            prefill.programs.texts(),
            ceilings.read,
            seconds=timing.median,
            steps=1,
        )
    return row
