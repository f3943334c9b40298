"""Windows count every token once with enough context; the sums are numpy's."""

import itertools
import math

import numpy as np
import pytest

from jaxinfer.perplexity import Perplexity, measure, windows


def test_windows_count_every_token_but_the_first_once(rng):
    for _ in range(200):
        window = int(rng.integers(2, 40))
        stride, length = int(rng.integers(1, window)), int(rng.integers(2, 150))
        found = windows(length, window, stride)
        counted = [i for part in found for i in range(part.first, part.stop)]
        assert counted == list(range(1, length))
        for i, part in enumerate(found):
            assert part.stop - part.start == min(window, length)
            assert i == 0 or part.first - part.start >= window - stride


def test_measure_sums_what_counts(rng):
    ids = [int(i) for i in rng.integers(0, 50, 77)]
    table = np.log(rng.dirichlet(np.ones(50), 50))

    def score(part):
        return [math.nan, *(table[a, b] for a, b in itertools.pairwise(part))]

    nats = -sum(table[a, b] for a, b in itertools.pairwise(ids))
    for window, stride in ((2, 1), (10, 3), (77, 76), (100, 1)):
        found = measure(score, ids, windows(len(ids), window, stride), size=123)
        assert found.tokens == 76
        assert found.nats == pytest.approx(nats)
        assert found.perplexity == pytest.approx(np.exp(nats / 76))
        assert found.bits_per_byte == pytest.approx(nats / np.log(2) / 123)


def test_extremes():
    assert Perplexity(nats=1e6, tokens=1, size=1).perplexity == math.inf
    assert Perplexity(nats=1.0, tokens=1, size=0).bits_per_byte == math.inf


@pytest.mark.parametrize(
    ("length", "window", "stride"), [(1, 8, 4), (9, 8, 8), (9, 8, 0), (9, 1, 1)]
)
def test_bounds(length, window, stride):
    with pytest.raises(ValueError, match=r"at least 2 tokens|1 <= stride < window"):
        windows(length, window, stride)
