"""Plans respect every limit, in any order of events, and nothing leaks. No device is involved."""

import pytest

from jaxinfer.pages import PagePool
from jaxinfer.request import FinishReason, Request, SamplingParams
from jaxinfer.scheduler import Limits, Scheduler
from tests import tiny

EOS = 1


def request(i, prompt, new=6, **params):
    return Request(
        id=str(i), prompt_token_ids=prompt, params=SamplingParams(max_new_tokens=new, **params)
    )


def test_random_traffic_respects_every_limit(rng):
    limits = Limits(slots=3, max_length=64, chunk=8, budget=12, decode_steps=4)
    pool = PagePool(20)
    scheduler = Scheduler(limits, (pool,), ((16, 4),))
    prompts = tiny.prompts(rng, rng.integers(1, 40, 25))
    sequences = [
        scheduler.add(request(i, p, int(rng.integers(1, 20))), (EOS,))
        for i, p in enumerate(prompts)
    ]
    read = {i: 0 for i in range(len(prompts))}
    done = []
    while not scheduler.idle:
        plan = scheduler.plan()
        assert len(scheduler.running) <= limits.slots
        assert sum(len(chunk.tokens) for chunk in plan.chunks) <= limits.budget
        assert not {chunk.slot for chunk in plan.chunks} & set(plan.decode)
        by_slot = dict(scheduler.running)
        for chunk in plan.chunks:
            i = int(by_slot[chunk.slot].request.id)
            assert (
                chunk.tokens == prompts[i][read[i] : read[i] + len(chunk.tokens)]
            )  # in order, none twice
            read[i] += len(chunk.tokens)
            assert chunk.final == (read[i] == len(prompts[i]))
        sampling = [(chunk.slot, 1) for chunk in plan.chunks if chunk.final]
        for slot, steps in [*sampling, *((slot, plan.steps) for slot in plan.decode)]:
            for _ in range(steps):
                sequence = by_slot[slot]
                if not sequence.finished:
                    token = scheduler.record(sequence, int(rng.integers(0, 12)), None, None)
                    done += [sequence] if token.finish_reason else []
        if rng.random() < 0.1 and scheduler.running:  # somebody hangs up
            sequence = next(iter(scheduler.running.values()))
            scheduler.finish(sequence)
            scheduler.finish(sequence)  # once more changes nothing
            done.append(sequence)
    assert sorted(int(s.request.id) for s in done) == list(range(25))
    assert pool.free == pool.size
    for s in sequences:
        assert len(s.tokens) <= s.request.params.max_new_tokens
        assert EOS not in s.tokens[:-1]


def test_a_prompt_that_begins_as_the_slots_last_one_starts_there():
    scheduler = Scheduler(Limits(slots=2, max_length=64, reuse=True, rollback=64))
    first = scheduler.add(request(0, (5, 6, 7, 8), new=2), ())
    scheduler.plan()
    scheduler.record(first, 9, None, None)
    scheduler.plan()
    scheduler.record(first, 10, None, None)
    again = scheduler.add(request(1, (5, 6, 7, 8, 9, 10, 11), new=2), (), reuse=True)
    other = scheduler.add(request(2, (5, 9), new=2), (), reuse=True)
    plan = scheduler.plan()
    assert again.slot == first.slot
    assert again.reused == 5  # the last sampled token was never written
    assert other.reused == 0
    assert {chunk.slot: chunk.tokens for chunk in plan.chunks} == {
        again.slot: (10, 11),
        other.slot: (5, 9),
    }


@pytest.mark.parametrize(("written", "reused"), [(6, 4), (20, 0)])
def test_a_wrapped_ring_is_not_rolled_back_too_far(written, reused):
    scheduler = Scheduler(Limits(slots=1, max_length=64, reuse=True, rollback=3))
    first = scheduler.add(request(0, tuple(range(10, 10 + written)), new=1), ())
    scheduler.plan()
    scheduler.record(first, 9, None, None)
    again = scheduler.add(request(1, (10, 11, 12, 13, 99), new=1), (), reuse=True)
    scheduler.plan()
    assert again.reused == reused


def test_what_can_never_fit_is_refused():
    scheduler = Scheduler(Limits(slots=1, max_length=8))
    with pytest.raises(ValueError, match=r"fit 8 positions, got 5 \+ 6"):
        scheduler.add(request(0, (2,) * 5), ())
    assert scheduler.idle
    assert Scheduler(Limits(slots=1, max_length=8, endless=True)).add(request(0, (2,) * 50), ())


def test_finish_reasons():
    scheduler = Scheduler(Limits(slots=2, max_length=64))
    one = scheduler.add(request(0, (3,), new=2), (EOS,))
    two = scheduler.add(request(1, (3,), new=2, ignore_eos=True, stop_token_ids=(4,)), (EOS,))
    scheduler.plan()
    assert scheduler.record(one, EOS, None, None).finish_reason is FinishReason.STOP
    assert scheduler.record(two, EOS, None, None).finish_reason is None
    assert scheduler.record(two, 5, None, None).finish_reason is FinishReason.LENGTH
    assert scheduler.idle
