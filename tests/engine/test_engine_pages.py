"""Pages change where keys and values lie and who shares them, and never an answer."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxinfer.config import LayerConfig, Rope
from jaxinfer.request import Request, SamplingParams
from tests import oracle, tiny
from tests.engine.small import (
    GREEDY,
    LIMITS,
    PAGE,
    Engines,
    check,
    collect,
    ids,
    requests,
    run_to_end,
)

ROOMY = 48  # pages: all slots at their longest


@pytest.fixture(scope="module")
def engines():
    seed = np.random.SeedSequence().entropy % 2**31
    print(f"seed={seed}")
    config = tiny.config()
    return Engines(config, tiny.params(config, seed))


def greedy(engines, prompt, count=15):
    return oracle.greedy(engines.params, engines.config, prompt, count)


def sampled(rng) -> SamplingParams:
    """Seeded, with everything that a history must survive a preemption for."""
    return SamplingParams(
        temperature=float(rng.uniform(0.5, 1.5)),
        seed=int(rng.integers(2**32)),
        top_p=0.9,
        repetition_penalty=1.3,
        frequency_penalty=0.4,
        min_tokens=3,
        bad_word_ids=((3, 4), (5,)),
        max_new_tokens=15,
        logprobs=2,
    )


@pytest.mark.parametrize("sharing", [True, False])
def test_a_prefix_is_read_once_and_changes_nothing(engines, rng, sharing):
    (shared, *rests) = tiny.prompts(rng, (21, 9, 4, 16))
    prompts = [shared + rest for rest in rests] + [shared]
    engine = engines(num_pages=ROOMY, prefix_sharing=sharing)
    for round in range(2):
        found = ids(collect(engine, requests(prompts)))
        assert found == [greedy(engines, p) for p in prompts]
        whole = [len(p) for p in prompts]
        blocks = len(shared) // PAGE * PAGE
        again = [(n - 1) // PAGE * PAGE for n in whole]
        hits = 3 * blocks if round == 0 else 3 * blocks + sum(again)
        assert engine.stats.prefix_tokens == (hits if sharing else 0)
        assert engine.stats.prompt_tokens == (round + 1) * sum(whole)
    assert (engine.stats.pages_kept > 0) == sharing


def test_other_tenants_share_nothing(engines, rng):
    (prompt,) = tiny.prompts(rng, (30,))
    engine = engines(num_pages=ROOMY)
    hits = []
    for salt in ("a", "b", "a"):
        sequence = engine.add(requests([prompt])[0], salt=salt)
        assert [t.token_id for t in run_to_end(engine)] == greedy(engines, prompt)
        hits.append(sequence.reused)
    assert hits == [0, 0, 28]


def test_a_conversation_finds_its_own_answer(engines, rng):
    (prompt,) = tiny.prompts(rng, (17,))
    engine = engines(num_pages=ROOMY)
    (answer,) = ids(collect(engine, requests([prompt])))
    longer = (*prompt, *answer, 7)
    sequence = engine.add(requests([longer])[0])
    assert [t.token_id for t in run_to_end(engine)] == greedy(engines, longer)
    assert sequence.reused == (17 + 14) // PAGE * PAGE  # the last token was never written


def test_continuations_share_their_prompts_pages_and_are_what_each_is_alone(engines, rng):
    (prompt,) = tiny.prompts(rng, (30,))
    params = dataclasses.replace(sampled(rng), n=3)
    engine, most = engines(num_pages=ROOMY), 0
    sequences = [engine.add(Request("0", prompt, params), index=i) for i in range(3)]
    for _ in run_to_end(engine):
        most = max(most, engine._allocator.pools[0].size - engine._allocator.pools[0].free)
    shared = (30 - 1) // PAGE
    assert most <= shared + 3 * -(-(45 - shared * PAGE) // PAGE)
    assert len({tuple(s.tokens) for s in sequences}) == 3
    for i, sequence in enumerate(sequences):
        alone = engines(num_pages=ROOMY, prefix_sharing=False)
        other = alone.add(Request("0", prompt, params), index=i)
        assert len(list(run_to_end(alone))) == len(sequence.tokens)
        assert other.tokens == sequence.tokens


@pytest.mark.parametrize("swap_space", [0, 2**20])
def test_sequences_that_give_way_say_what_they_say_alone(engines, rng, swap_space):
    """The tiny pool holds one and a third of these."""
    prompts = tiny.prompts(rng, (30, 28, 33, 25, 31))
    wanted = requests(prompts, dataclasses.replace(GREEDY, max_new_tokens=25))
    engine = engines(swap_space=swap_space)
    assert ids(collect(engine, wanted)) == [greedy(engines, p, 25) for p in prompts]
    while not engine.stats.preemptions:  # admission is careful, so it may take several rounds
        collect(engine, wanted)
    wanted = [Request(str(i), p, sampled(rng)) for i, p in enumerate(prompts)]
    apart = engines(prefix_sharing=False)
    alone = [collect(apart, [request])[0] for request in wanted]
    before, again = engine.stats.preemptions, 0
    while engine.stats.preemptions == before:
        for found, right in zip(collect(engine, wanted), alone, strict=True):
            assert ids([found]) == ids([right])
            np.testing.assert_allclose(
                [t.logprob for t in found], [t.logprob for t in right], atol=1e-3
            )
        again += 1
        assert again < 20
    check(engine)


def test_windows_let_go_of_what_nobody_sees(rng, seed):
    """As Gemma alternates them; a conversation of 60 positions takes a window's worth of pages."""
    rope, windows = Rope(rotary_dim=16), (9, None, 9)
    layers = tuple(LayerConfig(rope=rope, window=window) for window in windows)
    config = tiny.config(layers=layers)
    engines = Engines(config, tiny.params(config, seed))
    prompts = tiny.prompts(rng, (40, 33, 37))
    prompts[1] = prompts[0][:24] + prompts[1][24:]
    engine = engines()
    wanted = requests(prompts, dataclasses.replace(GREEDY, max_new_tokens=20))
    windowed = [i for i, group in enumerate(engine._allocator.groups) if group.window]
    most = 0
    sequences = [engine.add(request) for request in wanted]
    for _ in run_to_end(engine):
        held = [len(s.holding.pages[i]) for s in sequences for i in windowed if s.holding]
        most = max([most, *held])
    assert [s.tokens for s in sequences] == [greedy(engines, p, 20) for p in prompts]
    assert 0 < most <= -(-(max(w for w in windows if w) + LIMITS.chunk - 2) // PAGE) + 1
    assert ids(collect(engine, wanted)) == [greedy(engines, p, 20) for p in prompts]
    assert engine.stats.prefix_tokens > 0


def test_an_abort_at_any_moment_disturbs_nobody(engines, rng):
    prompts = tiny.prompts(rng, (5, 23, 11, 37, 1, 30, 18))
    expected = [greedy(engines, p) for p in prompts]
    engine = engines()
    for _ in range(12):
        sequences = [engine.add(request) for request in requests(prompts)]
        victims = set(rng.choice(len(prompts), 3, replace=False).tolist())
        moments = {int(i): int(rng.integers(0, 25)) for i in victims}
        steps = 0
        while not engine.idle:
            for i, moment in moments.items():
                if moment == steps:
                    engine.abort(sequences[i])
                    engine.abort(sequences[i])  # once more changes nothing
            engine.step()
            check(engine)
            steps += 1
        for i, sequence in enumerate(sequences):
            assert sequence.finished
            if i in victims:
                assert sequence.tokens == expected[i][: len(sequence.tokens)]
            else:
                assert sequence.tokens == expected[i]
    assert engine.stats.pages_used == 0


def test_new_parameters_take_over_between_two_steps(engines, rng):
    """What an answer has so far stays; the rest is what the new parameters make of it all."""
    prompts = tiny.prompts(rng, (22, 9, 30))
    engine = engines(num_pages=ROOMY)
    new = jax.tree.map(lambda x: x * 1.25 if x.ndim == 2 else x, engine._device.programs.params)
    sequences = [engine.add(request) for request in requests(prompts)]
    while not all(2 < len(s.tokens) < 9 for s in sequences):
        if any(s.finished for s in sequences):  # one was ahead: all again
            list(run_to_end(engine))
            sequences = [engine.add(request) for request in requests(prompts)]
        engine.step()
    compiled = engine.compiled
    engine.update_params(new)
    list(run_to_end(engine))
    assert engine.compiled == compiled
    changed = 0
    for s in sequences:
        old = oracle.greedy(engines.params, engines.config, s.request.prompt_token_ids, 15)
        fits = []
        for k in range(16):
            known = (*s.request.prompt_token_ids, *old[:k])
            rest = oracle.greedy(new, engines.config, known, 15 - k)
            fits.append(s.tokens == old[:k] + rest)
        assert any(fits[2:14])
        changed += s.tokens != old
    assert changed
    again = engine.add(requests(prompts[:1])[0])
    found = [t.token_id for t in run_to_end(engine)]
    assert found == oracle.greedy(new, engines.config, prompts[0], 15)
    assert again.reused <= 28  # only of what the new ones wrote


def test_what_old_parameters_wrote_is_not_found(engines, rng):
    (prompt,) = tiny.prompts(rng, (30,))
    engine = engines(num_pages=ROOMY)
    collect(engine, requests([prompt]))
    engine.update_params(engine._device.programs.params)
    sequence = engine.add(requests([prompt])[0])
    list(run_to_end(engine))
    assert sequence.reused == 0


def test_parameters_of_another_form_are_refused(engines):
    engine = engines(num_pages=ROOMY)
    params = engine._device.programs.params
    with pytest.raises(ValueError, match="shapes, dtypes and shardings"):
        engine.update_params(jax.tree.map(lambda x: x[..., :-1], params))
    with pytest.raises(ValueError, match="structure"):
        engine.update_params(jax.tree.leaves(params))
    assert engine._device.programs.params is params


def test_a_pause_holds_everything_and_a_resume_goes_on(engines, rng):
    (prompt,) = tiny.prompts(rng, (20,))
    engine = engines(num_pages=ROOMY)
    sequence = engine.add(requests([prompt])[0])
    found = [t.token_id for _ in range(5) for t in engine.step()]
    engine.pause()
    found += [t.token_id for t in engine.step()]
    steps = engine.stats.steps
    assert all(engine.step() == [] for _ in range(3))
    assert engine.stats.steps == steps
    assert not engine.idle
    engine.resume()
    found += [t.token_id for t in run_to_end(engine)]
    assert found == sequence.tokens == greedy(engines, prompt)
