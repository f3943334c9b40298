"""Answers follow their grammars, beside others that follow none, and through everything else."""

import dataclasses

import numpy as np
import pytest

from jaxinfer.request import FinishReason, Request, SamplingParams
from tests import oracle, tiny
from tests.engine.grammars import EOS, Walk, greedy, random_walk
from tests.engine.small import (
    GREEDY,
    PAGE,
    TINY_POOL,
    Engines,
    collect,
    ids,
    requests,
    run_to_end,
)


@pytest.fixture(scope="module")
def engines():
    seed = np.random.SeedSequence().entropy % 2**31
    print(f"seed={seed}")
    config = tiny.config()
    return Engines(config, tiny.params(config, seed))


def guided(walks, prompts, params=GREEDY) -> list[Request]:
    return [
        dataclasses.replace(request, grammar=walk)
        for request, walk in zip(requests(prompts, params), walks, strict=True)
    ]


def expect(engines, prompt, walk) -> list[int]:
    if walk is None:
        return oracle.greedy(engines.params, engines.config, prompt, 15)
    return greedy(engines.params, engines.config, prompt, walk)


@pytest.mark.parametrize("sizes", [{}, {"page_size": None, "num_pages": None}])
def test_some_follow_grammars_and_some_do_not(engines, rng, sizes):
    """In pages, the pool is so small that they give way to each other."""
    engine = engines(**sizes)
    compiled = engine.warm_up()
    for _ in range(3):
        prompts = tiny.prompts(rng, (5, 23, 11, 37, 1, 30))
        walks = [random_walk(rng, int(n)) if i % 3 else None for i, n in enumerate(range(8, 14))]
        found = ids(collect(engine, guided(walks, prompts)))
        assert found == [expect(engines, p, w) for p, w in zip(prompts, walks, strict=True)]
    assert engine.compiled == compiled


def test_grammars_go_on_after_giving_way(engines, rng):
    engine = engines()
    prompts = tiny.prompts(rng, (30, 28, 33, 25, 31))
    walks = [random_walk(rng, 14) for _ in prompts]
    expected = [expect(engines, p, w) for p, w in zip(prompts, walks, strict=True)]
    for _ in range(20):
        assert ids(collect(engine, guided(walks, prompts))) == expected
        if engine.stats.preemptions:
            return
    raise AssertionError("nobody gave way")


def test_draws_and_log_probabilities_are_of_what_is_allowed(engines, rng):
    (prompt,) = tiny.prompts(rng, (12,))
    walk = random_walk(rng, 12)
    params = SamplingParams(
        temperature=1.2,
        seed=int(rng.integers(99)),
        n=3,
        max_new_tokens=15,
        logprobs=8,
        logprobs_mode="processed",
    )
    request = Request("0", prompt, params, grammar=walk)
    found: dict[int, list] = {0: [], 1: [], 2: []}
    for token in engines(page_size=None, num_pages=None).run([request]):
        found[token.index].append(token)
    assert len({tuple(t.token_id for t in tokens) for tokens in found.values()}) > 1
    for tokens in found.values():
        for k, token in enumerate(tokens):
            allowed = walk.allowed(k)
            assert token.token_id in allowed
            top = [i for i, value in token.top_logprobs if value > -np.inf]
            assert set(top) <= set(allowed)
            logits = oracle.logits(
                engines.params, engines.config, [*prompt, *(t.token_id for t in tokens[:k])]
            )[-1][allowed]
            scores = logits / 1.2
            total = scores.max() + np.log(np.exp(scores - scores.max()).sum())
            right = scores[allowed.index(token.token_id)] - total
            np.testing.assert_allclose(token.logprob, right, atol=1e-3)


def test_the_end_of_a_grammar_is_the_end_of_its_answer(engines, rng):
    (prompt,) = tiny.prompts(rng, (9,))
    engine = engines(page_size=None, num_pages=None)
    for params in (
        dataclasses.replace(GREEDY, ignore_eos=True),
        dataclasses.replace(GREEDY, min_tokens=9, stop_token_ids=(EOS,)),
    ):
        walk = random_walk(rng, 4)
        (found,) = collect(engine, guided([walk], [prompt], params))
        assert len(found) == 5
        assert found[-1].token_id == EOS
        assert found[-1].finish_reason is FinishReason.STOP
    (found,) = collect(engine, guided([random_walk(rng, 40)], [prompt]))
    assert [t.finish_reason for t in found] == [None] * 14 + [FinishReason.LENGTH]


def test_whoever_comes_next_into_a_slot_is_free(engines, rng):
    engine, slots = engines(page_size=None, num_pages=None), set()
    prompts = tiny.prompts(rng, (9, 7, 8))
    walks = [random_walk(rng, 5), None, random_walk(rng, 3)]
    for request, walk in zip(guided(walks, prompts), walks, strict=True):
        sequence = engine.add(request)
        list(run_to_end(engine))
        slots.add(sequence.slot)
        assert sequence.tokens == expect(engines, request.prompt_token_ids, walk)
    assert len(slots) == 1


@pytest.mark.parametrize("kind", ["breaks", "refuses"])
def test_a_grammar_that_fails_costs_its_own_request(engines, rng, kind):
    prompts = tiny.prompts(rng, (5, 23, 11, 37))
    bad = random_walk(rng, 12, **{kind: 6})
    walks = [random_walk(rng, 9), bad, None, random_walk(rng, 12)]
    engine = engines()
    found = collect(engine, guided(walks, prompts))
    last = found[1][-1]
    assert last.finish_reason is FinishReason.ERROR
    assert (
        last.error == f"the grammar failed: {'no way on' if kind == 'breaks' else 'not this way'}"
    )
    right = [expect(engines, p, w) for p, w in zip(prompts, walks, strict=True)]
    count = 6 if kind == "breaks" else 7
    assert ids(found) == [right[0], right[1][:count], *right[2:]]
    assert engine.failed is None
    assert engine.stats.pages_used == 0


def test_a_grammar_that_fails_at_once_is_refused(engines, rng):
    (prompt,) = tiny.prompts(rng, (5,))
    engine = engines()
    sequence = engine.add(requests([prompt])[0])
    with pytest.raises(RuntimeError, match="no way on"):
        engine.add(guided([random_walk(rng, 3, breaks=0)], [prompt])[0])
    list(run_to_end(engine))
    assert sequence.tokens == expect(engines, prompt, None)


def test_an_abort_between_two_masks_disturbs_nobody(engines, rng):
    prompts = tiny.prompts(rng, (5, 23, 11))
    walks = [random_walk(rng, 12) for _ in prompts]
    for moment in range(0, 20, 4):
        engine = engines()
        sequences = [engine.add(request) for request in guided(walks, prompts)]
        for _ in range(moment):
            engine.step()
        engine.abort(sequences[1])
        list(run_to_end(engine))
        for i in (0, 2):
            assert sequences[i].tokens == expect(engines, prompts[i], walks[i])


def test_a_grammar_of_other_tokens_is_refused(engines):
    class Other(Walk):
        vocab_size = tiny.VOCAB + 1

    with pytest.raises(ValueError, match="grammar: required one compiled for 101 tokens"):
        engines(page_size=PAGE, num_pages=TINY_POOL).add(guided([Other([])], [(3,)])[0])
