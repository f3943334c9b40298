"""What one run of an engine is, and what it reports."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

THREADS = 2


@dataclass(frozen=True)
class Timing:
    """prefill_s: from the start until every row has its first token. decode_tokens came in the
    decode_s after it, all rows together. tokens [B][n]: what was generated, greedily.
    """

    prefill_s: float
    decode_s: float
    decode_tokens: int
    tokens: list[list[int]]


def prompts(batch: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Random prompts, the same for every engine that is given the same seed."""
    return np.random.default_rng(seed).integers(3, vocab_size, (batch, length)).tolist()


def from_events(
    began: float, events: Sequence[tuple[float, int, int]], batch: int, new: int
) -> Timing:
    """events: (when, row, token) as they came, more than `new` a row. The decode counted lies
    between the last row's first token and the first row's token `new`: tokens come in bursts, one
    of which may be under way at either end.
    """
    whens = [[when for when, row, _ in events if row == b] for b in range(batch)]
    first, last = max(w[0] for w in whens), min(w[new - 1] for w in whens)
    counted = sum(first < when <= last for when, _, _ in events)
    tokens = [[token for _, row, token in events if row == b][:new] for b in range(batch)]
    return Timing(first - began, last - first, counted, tokens)


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, least and most of repeated measurements, to four digits."""
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: float(f"{value:.4g}") for name, value in found.items()}
