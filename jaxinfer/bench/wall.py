"""Seconds per token as a caller of `Model` sees them, host and all, beside the device's own time."""

import time
from collections.abc import Iterable

import numpy as np

from jaxinfer.bench.subject import Subject
from jaxinfer.model import Model, TextChunk

DECODE_STEPS = 8  # as `Model` has it: tokens come from the device in groups of so many
READ_AT_ONCE = 2048  # prompt tokens that a step reads (`scheduler.Limits.budget`)


def new_tokens(batch: int, context: int, steps: int) -> int:
    """Tokens that each row must generate: it leaves context less that many for its prompt."""
    reading = -(-batch * context // READ_AT_ONCE)  # steps while some rows still read their prompts
    return steps + reading + 2 * DECODE_STEPS


def seconds_per_step(
    subject: Subject, batch: int, context: int, steps: int, seed: int = 0
) -> float:
    """Wall time of a decode step of `Model.stream` with `batch` rows, all decoding, that end near
    `context` positions.

    Measured from the last row's first token to the last group of tokens before any row ends, and at
    least `steps` of them; the programs are compiled by a run before. The context must have room:
    see `new_tokens`.
    """
    new = new_tokens(batch, context, steps)
    assert new < context, (new, context)
    model = Model(
        subject.params,
        subject.config,
        max_slots=batch,
        decode_steps=DECODE_STEPS,
        kv_dtype=subject.kv_dtype,
    )
    rng = np.random.default_rng(seed)
    prompts = rng.integers(0, subject.config.vocab_size, (batch, context - new)).tolist()

    def run() -> float:
        chunks = model.stream(prompts, temperature=0, ignore_eos=True, max_new_tokens=new)
        return _steady(((chunk, time.perf_counter()) for chunk in chunks), batch)

    run()
    return run()


def _steady(arrivals: Iterable[tuple[TextChunk, float]], batch: int) -> float:
    """Seconds per token of the row that started last, while every row decodes.

    After its first token a row gets DECODE_STEPS at a time; the last whole group before any row ends
    closes the window.
    """
    times: list[list[float]] = [[] for _ in range(batch)]
    started: list[int] = []
    cut = None
    for chunk, when in arrivals:
        if not times[chunk.index]:
            started.append(chunk.index)
        times[chunk.index].append(when)
        if chunk.completion is not None and cut is None:
            cut = started[-1], len(times[started[-1]])
    assert cut is not None
    assert len(started) == batch
    row, seen = cut
    groups = (seen - 1) // DECODE_STEPS
    return (times[row][groups * DECODE_STEPS] - times[row][0]) / (groups * DECODE_STEPS)
