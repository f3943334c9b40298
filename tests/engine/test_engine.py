"""The engine equals the oracle through chunked prefill, ragged batches, wrapped rings and page
tables.
"""

import dataclasses

import numpy as np
import pytest

from jaxinfer.config import LayerConfig, Rope
from jaxinfer.engine import Engine
from jaxinfer.request import FinishReason, Request, SamplingParams
from jaxinfer.scheduler import Plan
from tests import oracle, tiny
from tests.engine.small import GREEDY, LIMITS, collect, ids, requests, run_to_end


@pytest.fixture(scope="module")
def model():
    seed = np.random.SeedSequence().entropy % 2**31
    print(f"seed={seed}")
    config = tiny.config()
    params = tiny.params(config, seed)
    prompts = tiny.prompts(np.random.default_rng(seed), (5, 23, 11, 37, 1))
    return config, params, prompts, [oracle.greedy(params, config, p, 15) for p in prompts]


def test_long_decodes_read_little_more_than_they_hold(model):
    config, params, *_ = model
    config = dataclasses.replace(config, max_position=2048)
    limits = dataclasses.replace(LIMITS, max_length=2048)
    spans = Engine(params, config, limits, page_size=64)._feeds.decode_spans
    assert spans[-1] == 2048
    assert {768, 1024, 1536} <= set(spans)
    for length in (1, 128, 129, 513, 769, 1537, 2048):
        span = next(n for n in spans if n >= length)
        assert span <= 128 or span <= (1.5 if length > 512 else 2) * length


def test_decodes_read_all_slots_where_copying_some_costs_more(model):
    config, params, *_ = model
    config = dataclasses.replace(config, max_position=2048)
    limits = dataclasses.replace(LIMITS, max_length=2048, decode_steps=8)
    feeds = Engine(params, config, limits)._feeds
    assert feeds.decode_spans == [128, 256, 512, 768, 1024, 2048]

    def span(longest, steps):
        return feeds.span(Plan((), (), (), (), (0,), steps, longest))

    assert [span(n, 8) for n in (1, 129, 600, 1024, 1025, 2048)] == [
        128,
        256,
        768,
        1024,
        2048,
        2048,
    ]
    assert [span(n, 1) for n in (1, 128, 129, 257, 600)] == [128, 128, 256, 2048, 2048]


@pytest.mark.parametrize("page_size", [None, 8])
def test_equals_the_oracle_and_never_recompiles(model, page_size):
    config, params, prompts, expected = model
    engine = Engine(params, config, LIMITS, page_size=page_size)
    seen = []
    compiled = engine.warm_up(lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))
    assert ids(collect(engine, requests(prompts))) == expected
    assert engine.idle
    assert ids(collect(engine, requests(prompts[::-1]))) == expected[::-1]
    assert ids(collect(engine, requests(prompts[2:3]))) == expected[2:3]
    assert engine.compiled == compiled


def test_any_mix_of_parameters_is_one_program_and_rows_are_independent(model):
    config, params, prompts, expected = model
    mixed = [
        SamplingParams(temperature=0.9, seed=1, max_new_tokens=9, top_k=5),
        SamplingParams(temperature=0, max_new_tokens=15, logprobs=3),
        SamplingParams(
            temperature=1.3, seed=2, top_p=0.8, repetition_penalty=1.2, max_new_tokens=12
        ),
        SamplingParams(temperature=0, max_new_tokens=15, stop_token_ids=(expected[3][5],)),
        SamplingParams(temperature=1.0, seed=3, min_p=0.1, presence_penalty=0.5, max_new_tokens=7),
    ]
    pairs = enumerate(zip(prompts, mixed, strict=True))
    wanted = [Request(id=str(i), prompt_token_ids=p, params=m) for i, (p, m) in pairs]
    engine = Engine(params, config, LIMITS)
    together = collect(engine, wanted)
    for request, found in zip(wanted, together, strict=True):
        (alone,) = collect(engine, [request])
        assert ids([alone]) == ids([found])
    assert ids([together[1]]) == [expected[1]]
    stop = expected[3].index(expected[3][5])
    assert ids([together[3]]) == [expected[3][: stop + 1]]
    assert together[3][-1].finish_reason is FinishReason.STOP
    assert together[1][-1].finish_reason is FinishReason.LENGTH


def test_logprobs_are_those_of_the_oracle(model):
    config, params, prompts, expected = model
    engine = Engine(params, config, LIMITS)
    (found,) = collect(engine, requests(prompts[:1], dataclasses.replace(GREEDY, logprobs=4)))
    logits = oracle.logits(params, config, [*prompts[0], *expected[0]])[len(prompts[0]) - 1 : -1]
    logits = logits - logits.max(axis=1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for token, row in zip(found, logprobs, strict=True):
        np.testing.assert_allclose(token.logprob, row[token.token_id], atol=1e-3)
        top = np.argsort(-row)[:4]
        assert [i for i, _ in token.top_logprobs] == top.tolist()
        np.testing.assert_allclose([x for _, x in token.top_logprobs], row[top], atol=1e-3)


def test_an_abort_disturbs_nobody(model):
    config, params, prompts, expected = model
    engine = Engine(params, config, LIMITS, page_size=8)
    sequences = [engine.add(request) for request in requests(prompts)]
    found = {i: [] for i in range(len(prompts))}
    while not engine.idle:
        for token in engine.step():
            i = int(token.request_id)
            found[i].append(token.token_id)
            if i == 1 and len(found[1]) == 3:
                engine.abort(sequences[1])
    assert found[1][:3] == expected[1][:3]
    assert len(found[1]) < 15
    del found[1]
    assert all(found[i] == expected[i] for i in found)


def test_a_stream_outlives_its_buffer(model):
    config, params, prompts, _ = model
    limits = dataclasses.replace(LIMITS, endless=True)
    engine = Engine(params, config, limits, stream_window=7, sinks=2)
    params_ = dataclasses.replace(GREEDY, max_new_tokens=100)
    found = ids(collect(engine, requests(prompts, params_)))
    assert found == [oracle.greedy(params, config, p, 100, stream=(2, 7)) for p in prompts]


def test_longrope_changes_factors_where_the_length_says(seed):
    """As transformers does: past the original context everything is computed anew with the long
    factors.
    """
    rng = np.random.default_rng(seed)
    factors = [tuple(float(x) for x in rng.uniform(1, 4, 8)) for _ in range(2)]
    rope = Rope(
        rotary_dim=16,
        scaling="longrope",
        original_max_position=20,
        short_factor=factors[0],
        long_factor=factors[1],
    )
    config = tiny.config(layers=(LayerConfig(rope=rope),) * 2)
    params = tiny.params(config, seed)
    prompts = tiny.prompts(rng, (15, 20, 27))
    found = ids(collect(Engine(params, config, LIMITS), requests(prompts)))
    assert found == [oracle.greedy(params, config, p, 15) for p in prompts]


def test_a_reused_prefix_gives_the_same_tokens(model):
    config, params, prompts, expected = model
    engine = Engine(params, config, dataclasses.replace(LIMITS, slots=1, reuse=True))
    assert ids(collect(engine, requests(prompts[3:4]))) == expected[3:4]
    longer = prompts[3] + tuple(expected[3][:9])
    for setting in (
        GREEDY,
        dataclasses.replace(GREEDY, repetition_penalty=1.5, frequency_penalty=0.3),
    ):
        fresh = Engine(params, config, LIMITS)
        wanted = requests([longer], dataclasses.replace(setting, max_new_tokens=6))
        sequence = engine.add(wanted[0], reuse=True)
        found = [token.token_id for token in run_to_end(engine)]
        assert sequence.reused >= len(longer) - 9
        assert [found] == ids(collect(fresh, wanted))


def test_a_bad_request_is_refused_and_leaves_no_trace(model):
    config, params, prompts, _ = model
    engine = Engine(params, config, LIMITS)
    with pytest.raises(ValueError, match="fit 64 positions"):
        engine.add(requests([prompts[0]], dataclasses.replace(GREEDY, max_new_tokens=100))[0])
    with pytest.raises(ValueError, match="101"):
        engine.add(requests([(5, 101)])[0])
    assert engine.idle
