"""Throughput: many requests of seeded lengths through the engine, offline."""

import time
from dataclasses import dataclass

import numpy as np

from jaxinfer import roofline
from jaxinfer.bench.ceilings import Ceilings
from jaxinfer.bench.subject import Subject
from jaxinfer.bench.timing import Timing
from jaxinfer.engine import Engine
from jaxinfer.request import Request, SamplingParams
from jaxinfer.scheduler import Limits


@dataclass(frozen=True)
class Case:
    """requests with prompts of `input` and answers of `output` tokens on average, each uniform in
    1 - vary .. 1 + vary of that. slots: how many run at once.
    """

    requests: int = 512
    input: int = 512
    output: int = 128
    vary: float = 0.5
    slots: int = 64
    seed: int = 0

    def __post_init__(self):
        least = min(self.requests, self.input, self.output, self.slots)
        if least < 1 or not 0 <= self.vary < 1:
            raise ValueError(
                "a throughput case needs requests, input, output and slots of at least 1 and "
                f"0 <= vary < 1, got {self}"
            )

    def draw(self, vocab_size: int) -> list[Request]:
        """The requests, the same for the same case: greedy, to their last token."""
        rng = np.random.default_rng(self.seed)

        def lengths(mean):
            low, high = (max(1, round(mean * (1 + sign * self.vary))) for sign in (-1, 1))
            return rng.integers(low, high, self.requests, endpoint=True)

        return [
            Request(
                id=str(i),
                prompt_token_ids=tuple(rng.integers(0, vocab_size, size).tolist()),
                params=SamplingParams(temperature=0.0, max_new_tokens=int(new), ignore_eos=True),
            )
            for i, (size, new) in enumerate(
                zip(lengths(self.input), lengths(self.output), strict=True)
            )
        ]


def run(subject: Subject, case: Case, ceilings: Ceilings, *, repeats: int = 1) -> dict:
    """One row: seconds, output and total tokens per second, and the floor.

    The requests run once before the clock, which compiles what they need. floor_s: every prompt read
    at the measured FLOP/s, and all but the first tokens decoded with every slot full, one after the
    other. ValueError where a request does not fit the model's context.
    """
    requests = case.draw(subject.config.vocab_size)
    sizes = [(len(r.prompt_token_ids), r.params.max_new_tokens) for r in requests]
    longest = max(map(sum, sizes))
    most = subject.config.max_position
    if longest > most:
        raise ValueError(
            f"requests need to fit the model's {most} positions, got one of {longest}; "
            "lower --input_tokens or --output_tokens"
        )
    limits = Limits(slots=min(case.slots, len(requests)), max_length=longest)
    engine = Engine(
        subject.params, subject.config, limits, kv_dtype=subject.kv_dtype, seed=case.seed
    )
    expected = sum(new for _, new in sizes)

    def once() -> float:
        begin = time.perf_counter()
        made = sum(1 for _ in engine.run(requests))
        assert made == expected, (made, expected)
        return time.perf_counter() - begin

    first_s = once()
    timing = Timing(tuple(once() for _ in range(repeats)))
    read = sum(size for size, _ in sizes)
    floor_s = _floor(subject, sizes, limits.slots, ceilings)
    return {
        **subject.describe(),
        "requests": len(requests),
        "slots": limits.slots,
        "input_tokens": read,
        "output_tokens": expected,
        "seconds": timing.median,
        "spread": timing.spread,
        "repeats": repeats,
        "output_tokens_per_s": expected / timing.median,
        "total_tokens_per_s": (read + expected) / timing.median,
        "requests_per_s": len(requests) / timing.median,
        "floor_s": floor_s,
        "of_floor": floor_s / timing.median,
        "first_run_s": first_s,
        "programs": engine.compiled,
    }


def _floor(subject: Subject, sizes: list[tuple[int, int]], batch: int, ceilings: Ceilings) -> float:
    config, chip, weights, cache = (
        subject.config,
        ceilings.chip(),
        subject.format,
        subject.cache_format,
    )
    reading = sum(
        roofline.prefill(config, chip, 1, size, weights=weights, cache=cache).compute_s
        for size, _ in sizes
    )
    steps = sum(new - 1 for _, new in sizes) / batch
    context = round(sum(size + new / 2 for size, new in sizes) / len(sizes))
    step = roofline.decode(config, chip, batch, context, weights=weights, cache=cache)
    return reading + steps * step.latency_s
