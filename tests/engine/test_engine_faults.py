"""What fails costs nobody, or the one request that makes it fail; all others say what they say
alone.
"""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from jaxinfer.engine import MOST_FAILURES, StepFailed
from jaxinfer.request import SamplingParams
from jaxinfer.scheduler import QueueFull
from tests import oracle, tiny
from tests.engine.small import GREEDY, LIMITS, Engines, check, collect, ids, requests, run_to_end


@pytest.fixture(scope="module")
def engines():
    seed = np.random.SeedSequence().entropy % 2**31
    print(f"seed={seed}")
    config = tiny.config()
    return Engines(config, tiny.params(config, seed))


class Failing:
    """Programs of which one raises when `when` says so of its arguments; the others go through."""

    def __init__(self, programs, name, when):
        self._programs, self._name, self._when = programs, name, when

    def __getattr__(self, name):
        if name != self._name:
            return getattr(self._programs, name)

        def program(*args, **kwargs):
            if self._when(*args):
                raise RuntimeError("a device's error")
            return getattr(self._programs, name)(*args, **kwargs)

        return program


def calls(*which):
    """True at these calls, the first being 1."""
    count = itertools.count(1)
    return lambda *args: next(count) in which


def expect(engines, sequence) -> list[int]:
    prompt, count = sequence.request.prompt_token_ids, sequence.request.params.max_new_tokens
    return oracle.greedy(engines.params, engines.config, prompt, count)


@pytest.mark.parametrize("name", ["advance", "decode_loop", "admit", "assign"])
def test_a_step_that_fails_once_costs_nobody(engines, rng, name):
    prompts = tiny.prompts(rng, (20, 30, 9, 25, 14, 3))
    engine = engines()
    engine._device.programs = Failing(engine._device.programs, name, calls(2))
    sequences = [engine.add(request) for request in requests(prompts)]
    list(run_to_end(engine))
    assert [s.tokens for s in sequences] == [expect(engines, s) for s in sequences]
    assert engine.stats.failures == 1


def test_what_is_read_late_may_fail_too(engines, rng, monkeypatch):
    prompts = tiny.prompts(rng, (20, 30, 9, 25))
    engine = engines()
    sequences = [engine.add(request) for request in requests(prompts)]
    engine.step()
    real, fails = jax.device_get, calls(3)

    def device_get(output):
        if fails():
            raise RuntimeError("lost on its way")
        return real(output)

    monkeypatch.setattr(jax, "device_get", device_get)
    list(run_to_end(engine))
    assert [s.tokens for s in sequences] == [expect(engines, s) for s in sequences]
    assert engine.stats.failures == 1


def test_a_sequence_that_fails_every_step_costs_itself(engines, rng):
    """It is found by running alone those who were in the step with it."""
    bad = tiny.VOCAB - 1
    prompts = tiny.prompts(rng, (20, 30, 9, 25, 14, 3), bad)
    prompts[3] = (bad,) * 5 + prompts[3]
    engine = engines()
    engine._device.programs = Failing(
        engine._device.programs, "advance", lambda state, feed: (feed.tokens == bad).sum() > 4
    )
    sequences = [engine.add(request) for request in requests(prompts)]
    failures = []
    while not engine.idle:
        try:
            engine.step()
        except StepFailed as error:
            failures.append(error)
        check(engine)
    (failure,) = failures
    assert failure.sequences == (sequences[3],)
    assert "raised RuntimeError: a device's error" in str(failure)
    assert sequences[3].finished
    for s in (*sequences[:3], *sequences[4:]):
        assert s.tokens == expect(engines, s)
    assert engine.failed is None
    assert engine.stats.failures == 2
    assert engine.stats.pages_used == 0


def test_an_engine_that_fails_again_and_again_says_so_and_ends(engines, rng):
    engine = engines()
    engine._device.programs = Failing(engine._device.programs, "advance", lambda *args: True)
    sequences = [engine.add(r) for r in requests(tiny.prompts(rng, (5,) * 20))]
    assert engine.step() == []
    for left in range(MOST_FAILURES - 2, -1, -1):
        assert engine.failed is None
        with pytest.raises(StepFailed) as caught:
            engine.step()
        assert len(caught.value.sequences) == (1 if left else 20 - MOST_FAILURES + 2)
    assert isinstance(engine.failed, RuntimeError)
    assert all(s.finished for s in sequences)
    with pytest.raises(RuntimeError, match="make another"):
        engine.step()
    with pytest.raises(RuntimeError, match="make another"):
        engine.add(requests([(3,)])[0])


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (dataclasses.replace(GREEDY, max_new_tokens=64), "fit 64 positions"),
        (SamplingParams(stop_token_ids=(tiny.VOCAB,)), "stop_token_ids"),
        (SamplingParams(logit_bias={tiny.VOCAB: 1.0}), "logit_bias"),
        (SamplingParams(bad_words=("still text",)), "bad_words"),
    ],
)
def test_what_a_sampler_cannot_do_is_refused_when_it_comes(engines, rng, params, said):
    prompts = tiny.prompts(rng, (20, 9))
    engine = engines()
    sequences = [engine.add(request) for request in requests(prompts)]
    engine.step()
    with pytest.raises(ValueError, match=said):
        engine.add(requests([(3, 4)], params)[0])
    list(run_to_end(engine))
    for s, p in zip(sequences, prompts, strict=True):
        assert s.tokens == oracle.greedy(engines.params, engines.config, p, 15)


def test_a_full_queue_refuses(engines, rng):
    engine = engines(dataclasses.replace(LIMITS, queue=2))
    wanted = requests(tiny.prompts(rng, (4,) * 3))
    for request in wanted[:2]:
        engine.add(request)
    with pytest.raises(QueueFull, match="full"):
        engine.add(wanted[2])
    list(run_to_end(engine))
    assert len(ids(collect(engine, wanted[2:]))[0]) == 15
