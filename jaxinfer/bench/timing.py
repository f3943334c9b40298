"""How long device work takes: warmed up, synchronized, repeated; a median and its spread."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True)
class Timing:
    """Seconds of each repeat."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Slowest less fastest, as a part of the median: differences below it are noise."""
        return (max(self.seconds) - min(self.seconds)) / self.median

    def divided(self, count: float) -> "Timing":
        """The time of each of `count` equal parts."""
        return Timing(tuple(second / count for second in self.seconds))


def measure(
    run: Callable[[Any], Any],
    prepare: Callable[[], Any],
    *,
    repeats: int,
    warm_ups: int = 1,
) -> Timing:
    """Time `run(prepare())` until its result is ready; what `prepare` does is ready before the clock
    starts.
    """
    if repeats < 1:
        raise ValueError(f"repeats needs to be at least 1, got {repeats}")
    seconds = []
    for _ in range(warm_ups + repeats):
        given = jax.block_until_ready(prepare())
        begin = time.perf_counter()
        jax.block_until_ready(run(given))
        seconds.append(time.perf_counter() - begin)
    return Timing(tuple(seconds[warm_ups:]))
