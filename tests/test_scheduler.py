"""Plans respect every limit, in any order of events, and nothing leaks. No device is involved."""

import dataclasses

import pytest

from jaxinfer.pages import Allocator, Group, SwapSpace
from jaxinfer.request import FinishReason, Request, SamplingParams
from jaxinfer.scheduler import Limits, Scheduler
from tests import tiny
from tests.engine.grammars import random_walk

EOS = 1


def request(i, prompt, new=6, **params):
    return Request(
        id=str(i), prompt_token_ids=prompt, params=SamplingParams(max_new_tokens=new, **params)
    )


def play(scheduler, plan, rng, vocabulary=12):
    """What a device would sample in a plan, recorded: the tokens."""
    found = []
    by_slot = dict(scheduler.running)
    sampling = [(chunk.slot, 1) for chunk in plan.chunks if chunk.final]
    for slot, steps in [*sampling, *((slot, plan.steps) for slot in plan.decode)]:
        for _ in range(steps):
            if not by_slot[slot].finished:
                token = int(rng.integers(0, vocabulary))
                found.append(scheduler.record(by_slot[slot], token, None, None))
    return found


@pytest.mark.parametrize(("pages", "swap"), [(None, None), (20, None), (20, 20), (60, 20)])
def test_random_traffic_respects_every_limit(rng, pages, swap):
    """With 20 pages of 4 positions, sequences may have to give way to each other."""
    limits = Limits(slots=3, max_length=64, chunk=8, budget=12, decode_steps=4)
    allocator = pages and Allocator(4, [Group(pages, 16), Group(pages, 7, window=10)])
    scheduler = Scheduler(limits, allocator, swap and SwapSpace(swap, (1, 1)))
    prompts = tiny.prompts(rng, rng.integers(1, 40, 25), 3)
    sequences = [
        scheduler.add(
            request(i, p, int(rng.integers(1, 20))), (EOS,), priority=int(rng.integers(3))
        )
        for i, p in enumerate(prompts)
    ]
    read = {s: 0 for s in sequences}
    hung_up = set()
    for _ in range(10_000):
        if scheduler.idle:
            break
        plan = scheduler.plan()
        scheduler.check()
        assert len(scheduler.running) <= limits.slots
        assert sum(len(chunk.tokens) for chunk in plan.chunks) <= limits.budget
        assert not {chunk.slot for chunk in plan.chunks} & set(plan.decode)
        assert plan.steps == 1 or not plan.chunks
        if scheduler.waiting and plan.steps > 1:  # who waits could not enter, nor soon
            assert len(scheduler.running) == limits.slots or pages
            runs = [scheduler.running[slot] for slot in plan.decode]
            assert {s.planned - len(s.tokens) for s in runs} == {plan.steps}
        read |= {s: s.reused for s in plan.admitted}
        for chunk in plan.chunks:
            s = scheduler.running[chunk.slot]
            begin, count = chunk.start, len(chunk.tokens)
            assert begin == read[s]  # in order, none twice
            assert chunk.tokens == s.known[begin : begin + count]
            read[s] += count
            assert chunk.final == (read[s] == len(s.known))
        play(scheduler, plan, rng)
        scheduler.check()
        if rng.random() < 0.05 and not scheduler.idle:  # somebody hangs up
            alive = [*scheduler.running.values(), *scheduler.waiting]
            sequence = alive[rng.integers(len(alive))]
            scheduler.finish(sequence)
            scheduler.finish(sequence)  # once more changes nothing
            hung_up.add(sequence)
    assert scheduler.idle
    assert all(s.finished for s in sequences)
    assert allocator is None or all(pool.free == pool.size for pool in allocator.pools)
    assert pages == 20 or not scheduler.preemptions
    for s in sequences:
        assert len(s.tokens) <= s.request.params.max_new_tokens
        assert EOS not in s.tokens[:-1]
        ended = s.tokens and (
            s.tokens[-1] == EOS or len(s.tokens) == s.request.params.max_new_tokens
        )
        assert ended or s in hung_up


@pytest.mark.parametrize("first", [0, 1])
def test_who_ranks_last_gives_way_and_comes_back(rng, first):
    """Eight pages hold one sequence of 28 positions and a little of the other."""
    limits = Limits(slots=2, max_length=32, chunk=8, budget=16, decode_steps=4)
    scheduler = Scheduler(limits, Allocator(4, [Group(8, 8)]))
    prompts = tiny.prompts(rng, (12, 12))
    pair = [
        scheduler.add(request(i, p, 16), (), priority=int(i != first))
        for i, p in enumerate(prompts)
    ]
    order = []
    while not scheduler.idle:
        found = play(scheduler, scheduler.plan(), rng)
        order += [int(token.request_id) for token in found if token.finish_reason]
        scheduler.check()
    assert scheduler.preemptions > 0
    assert pair[first].visits == 1
    assert pair[1 - first].visits == 1 + scheduler.preemptions
    assert order == [first, 1 - first]
    assert [len(s.tokens) for s in pair] == [16, 16]


def test_a_queue_that_cannot_enter_does_not_slow_those_who_run(rng):
    """Bursts end where the first of them does, and the next enters at once."""
    scheduler = Scheduler(Limits(slots=2, max_length=64, decode_steps=4))
    prompts = tiny.prompts(rng, (3, 3, 3))
    first, second, third = (
        scheduler.add(request(i, p, new), ())
        for i, (p, new) in enumerate(zip(prompts, (7, 20, 5), strict=True))
    )
    steps = []
    while not first.finished:
        plan = scheduler.plan()
        steps.append(plan.steps)
        play(scheduler, plan, rng)
    assert steps == [1, 4, 2]
    assert third.slot < 0
    assert scheduler.plan().admitted == (third,)
    assert not second.finished


def test_bursts_end_for_those_who_can_enter(rng):
    """One made a place: a plan made before its last tokens have come is short, so that who waits
    enters soon.
    """
    scheduler = Scheduler(Limits(slots=2, max_length=64, decode_steps=4))
    prompts = tiny.prompts(rng, (3, 3, 3))
    for i, (p, new) in enumerate(zip(prompts, (5, 20, 5), strict=True)):
        scheduler.add(request(i, p, new), ())
    play(scheduler, scheduler.plan(), rng)
    running = dict(scheduler.running)
    ahead = scheduler.plan()
    assert ahead.steps == 4
    assert scheduler.plan().steps == 1  # the first has nothing left to be asked for
    for slot in ahead.decode:
        for _ in range(ahead.steps):
            scheduler.record(running[slot], 5, None, None)
    assert len(scheduler.plan().admitted) == 1


def test_pages_too_few_for_the_next_are_no_reason_for_single_steps(rng):
    scheduler = Scheduler(
        Limits(slots=3, max_length=32, chunk=8, decode_steps=4), Allocator(4, [Group(9, 8)])
    )
    prompts = tiny.prompts(rng, (8, 8, 16))
    for i, p in enumerate(prompts):
        scheduler.add(request(i, p, 8), ())
    play(scheduler, scheduler.plan(), rng)
    plan = scheduler.plan()
    assert [len(plan.chunks), len(scheduler.waiting), plan.steps] == [0, 1, 4]


def test_who_follows_a_grammar_is_asked_for_one_token_at_a_time(rng):
    """Others go on beside it."""
    scheduler = Scheduler(Limits(slots=2, max_length=64, decode_steps=4))
    walk = random_walk(rng, 30)
    guided = scheduler.add(dataclasses.replace(request(0, (3, 4)), grammar=walk), ())
    other = scheduler.add(request(1, (5, 6)), ())
    assert len(scheduler.plan().chunks) == 2
    assert scheduler.held
    assert scheduler.plan().decode == (other.slot,)
    scheduler.record(guided, walk.allowed(0)[0], None, None)
    assert not scheduler.held
    plan = scheduler.plan()
    assert set(plan.decode) == {guided.slot, other.slot}
    assert plan.steps == 1


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
