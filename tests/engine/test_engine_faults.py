"""What fails costs those who took part in it; everybody else says what they say alone."""

import dataclasses

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
    """Programs of which the given calls raise; the others go through."""

    def __init__(self, programs, name, calls):
        self._programs, self._name, self._calls, self._count = programs, name, set(calls), 0

    def __getattr__(self, name):
        if name != self._name:
            return getattr(self._programs, name)

        def program(*args, **kwargs):
            self._count += 1
            if self._count in self._calls:
                raise RuntimeError("a device's error")
            return getattr(self._programs, name)(*args, **kwargs)

        return program


def survive(engine) -> tuple:
    """Run to the end through one failure: the sequences that it cost."""
    failures = []
    while not engine.idle:
        try:
            engine.step()
        except StepFailed as error:
            failures.append(error)
        check(engine)
    (failure,) = failures
    assert f"{len(failure.sequences)} sequences raised RuntimeError" in str(failure)
    return failure.sequences


@pytest.mark.parametrize("name", ["advance", "decode_loop", "admit", "assign"])
def test_a_failed_step_costs_its_sequences(engines, rng, name):
    prompts = tiny.prompts(rng, (20, 30, 9, 25, 14, 3))
    engine = engines()
    engine._device.programs = Failing(engine._device.programs, name, [2])
    sequences = [engine.add(request) for request in requests(prompts)]
    lost = survive(engine)
    assert 0 < len(lost) <= LIMITS.slots
    for s in sequences:
        right = oracle.greedy(engines.params, engines.config, s.request.prompt_token_ids, 15)
        assert s.finished
        assert s.tokens == (right[: len(s.tokens)] if s in lost else right)
    assert engine.stats.failures == 1
    assert engine.stats.pages_used == 0
    assert engine.failed is None


def test_what_is_read_late_may_fail_too(engines, rng, monkeypatch):
    prompts = tiny.prompts(rng, (20, 30, 9, 25))
    engine = engines()
    sequences = [engine.add(request) for request in requests(prompts)]
    engine.step()
    real, reads = jax.device_get, iter([1, 2, 3])

    def device_get(output):
        if next(reads, None) == 2:
            raise RuntimeError("lost on its way")
        return real(output)

    monkeypatch.setattr(jax, "device_get", device_get)
    lost = survive(engine)
    assert lost
    for s in set(sequences) - set(lost):
        prompt = s.request.prompt_token_ids
        assert s.tokens == oracle.greedy(engines.params, engines.config, prompt, 15)


def test_an_engine_that_fails_again_and_again_says_so_and_ends(engines, rng):
    engine = engines()
    engine._device.programs = Failing(engine._device.programs, "advance", range(100))
    sequences = [engine.add(r) for r in requests(tiny.prompts(rng, (5,) * 20))]
    for _ in range(MOST_FAILURES):
        assert engine.failed is None
        with pytest.raises(StepFailed):
            engine.step()
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
