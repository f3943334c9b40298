"""Perplexity of texts longer than a model's context, by overlapping windows.

Knows no model: a function scores ids.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Tokens start .. stop are shown to the model; those from `first` on count."""

    start: int
    first: int
    stop: int


@dataclass(frozen=True)
class Perplexity:
    """nats: minus the summed log-probability of `tokens` predicted tokens, whose text has `size`
    bytes.
    """

    nats: float
    tokens: int
    size: int

    @property
    def perplexity(self) -> float:
        """exp of the mean nats per token; infinite where that overflows."""
        mean = self.nats / self.tokens
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.size if self.size else math.inf


def windows(length: int, window: int, stride: int) -> list[Window]:
    """Windows over `length` tokens that count every token but the first exactly once.

    All hold `window` tokens (fewer only where the text has fewer), and end `stride` apart, so that
    a token after the first window has at least window - stride before it. ValueError: a text of
    less than two tokens, or bounds that do not satisfy 1 <= stride < window.
    """
    if length < 2:
        raise ValueError(f"perplexity needs a text of at least 2 tokens, got {length}")
    if not 1 <= stride < window:
        raise ValueError(f"windows need 1 <= stride < window, got {window=}, {stride=}")
    stop = min(window, length)
    found = [Window(0, 1, stop)]
    while stop < length:
        first, stop = stop, min(stop + stride, length)
        found.append(Window(stop - window, first, stop))
    return found


def measure(
    score: Callable[[Sequence[int]], Sequence[float]],
    ids: Sequence[int],
    parts: Iterable[Window],
    *,
    size: int,
) -> Perplexity:
    """Score `ids` window by window. score: the log-probability (nats) of each of its ids; the first
    is not looked at.

    size: bytes of the text that the ids after the first one spell.
    """
    nats, tokens = 0.0, 0
    for part in parts:
        values = score(ids[part.start : part.stop])
        counted = values[part.first - part.start :]
        nats -= math.fsum(counted)
        tokens += len(counted)
    return Perplexity(nats, tokens, size)
