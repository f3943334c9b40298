"""What is timed, how often, and what is said about it."""

import statistics

import numpy as np
import pytest

from jaxinfer.bench.timing import Timing, measure


def test_median_spread_and_parts(rng):
    seconds = tuple(rng.uniform(1, 2, 7).tolist())
    timing = Timing(seconds)
    assert timing.median == statistics.median(seconds)
    assert timing.spread == pytest.approx((max(seconds) - min(seconds)) / timing.median)
    assert timing.divided(4).seconds == tuple(second / 4 for second in seconds)
    assert timing.divided(4).spread == pytest.approx(timing.spread)


def test_every_run_gets_what_was_prepared_for_it():
    prepared, ran = [], []

    def prepare():
        prepared.append(len(prepared))
        return np.asarray(prepared[-1])

    timing = measure(lambda given: ran.append(int(given)), prepare, repeats=3, warm_ups=2)
    assert len(timing.seconds) == 3
    assert ran == prepared == [0, 1, 2, 3, 4]
    assert min(timing.seconds) > 0


def test_no_repeat_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        measure(print, lambda: None, repeats=0)
