"""Verdicts at their thresholds, errors of means, and settings as text."""

import math

import numpy as np
import pytest

from jaxinfer import quality
from jaxinfer.quality.report import mean_and_error


@pytest.mark.parametrize("at", range(len(quality.LEVELS)))
def test_a_verdict_is_the_first_level_whose_demands_are_met(at):
    level = quality.LEVELS[at]
    edge = (level.mean_kl, level.perplexity_rise, level.top1_agreement)
    found = quality.verdict(*edge)
    assert found.level == level.name
    assert level.advice in found.sentence
    names = [*(one.name for one in quality.LEVELS), "do not use"]
    beyond = (
        (edge[0] * 1.01, edge[1], edge[2]),
        (edge[0], edge[1] * 1.01, edge[2]),
        (edge[0], edge[1], edge[2] * 0.999),
    )
    demands = (
        f"mean KL <= {level.mean_kl:g}",
        f"perplexity <= {level.perplexity_rise:+.1%}",
        f"top-1 agreement >= {level.top1_agreement:.1%}",
    )
    for values, demand in zip(beyond, demands, strict=True):
        found = quality.verdict(*values)
        assert found.level == names[at + 1]
        assert f"{level.name}, which needs {demand}" in found.sentence


def test_a_better_candidate_is_not_punished_and_nan_is():
    assert quality.verdict(0.001, -0.3, 0.99).level == "indistinguishable"
    for values in ((math.nan, 0, 1), (0, math.inf, 1)):
        assert quality.verdict(*values).level == "do not use"


def test_the_error_of_a_mean_is_that_of_repeated_draws(rng):
    """Neighbours that depend on each other (a moving average of 8) make it larger."""
    draws = rng.standard_normal((400, 2007))
    smooth = np.stack([np.convolve(row, np.ones(8) / 8, mode="valid") for row in draws])
    for values in (draws, smooth):
        true = values.mean(axis=1).std()
        found = np.mean([mean_and_error(row)[1] for row in values])
        assert found == pytest.approx(true, rel=0.25)
    assert mean_and_error(np.full(50, 2.5)) == (2.5, 0)
    assert mean_and_error([1.0]) == (1.0, math.inf)


def test_settings_are_read_from_text():
    parse = quality.Setting.parse
    assert parse("", "folder") == quality.Setting("folder")
    assert parse("dtype=bfloat16, quantize=int8") == quality.Setting(None, "bfloat16", "int8")
    assert parse("model=other/one", "folder") == quality.Setting("other/one")
    assert str(parse("dtype=float32,quantize=w8a8")) == "dtype=float32,quantize=w8a8"
    assert str(quality.Setting()) == "as loaded"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "speed=9",
            "model=..., dtype=..., quantize=..., kv_dtype=..., kernels=... with commas between, got 'speed=9'",
        ),
        ("int8", "got 'int8'"),
        ("dtype=", "got 'dtype='"),
        ("dtype=float32,dtype=bfloat16", "'dtype' twice"),
        ("dtype=int3", "dtype needs one of"),
        ("quantize=int3", "quantize needs one of"),
    ],
)
def test_a_wrong_setting_is_named(text, words):
    with pytest.raises(ValueError, match=words):
        quality.Setting.parse(text)
