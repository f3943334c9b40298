"""Offline throughput: the same requests every time, and what a run of them says."""

import pytest

from jaxinfer.bench import throughput
from jaxinfer.bench.ceilings import Ceilings
from jaxinfer.bench.subject import Subject
from jaxinfer.bench.throughput import Case
from tests import tiny

CEILINGS = Ceilings(copy=2e9, sum=1e9, matvec=1e9, matmul={"float32": 1e9})


def test_lengths_are_seeded_and_in_their_range(seed):
    case = Case(requests=300, input=40, output=10, vary=0.5, seed=seed)
    drawn, again = case.draw(50), case.draw(50)
    assert drawn == again
    prompts = [len(request.prompt_token_ids) for request in drawn]
    answers = [request.params.max_new_tokens for request in drawn]
    assert (min(prompts), max(prompts)) == (20, 60)
    assert (min(answers), max(answers)) == (5, 15)
    assert 36 < sum(prompts) / 300 < 44
    assert all(0 <= token < 50 for request in drawn for token in request.prompt_token_ids)
    assert {len(r.prompt_token_ids) for r in Case(5, 40, 10, vary=0.0).draw(50)} == {40}


def test_a_row_adds_up():
    config = tiny.config()
    held = Subject("tiny", tiny.params(config, 0), config, "random", "float32", None)
    case = Case(requests=5, input=12, output=6, slots=2)
    row = throughput.run(held, case, CEILINGS, repeats=2)
    drawn = case.draw(config.vocab_size)
    assert row["input_tokens"] == sum(len(r.prompt_token_ids) for r in drawn)
    assert row["output_tokens"] == sum(r.params.max_new_tokens for r in drawn)
    assert row["output_tokens_per_s"] == pytest.approx(row["output_tokens"] / row["seconds"])
    assert row["total_tokens_per_s"] == pytest.approx(
        (row["input_tokens"] + row["output_tokens"]) / row["seconds"]
    )
    assert row["requests_per_s"] == pytest.approx(5 / row["seconds"])
    assert row["of_floor"] == pytest.approx(row["floor_s"] / row["seconds"])
    assert row["slots"] == 2
    assert row["programs"] > 0


def test_cases_that_cannot_be():
    with pytest.raises(ValueError, match="vary < 1"):
        Case(vary=1.0)
    config = tiny.config()
    held = Subject("tiny", tiny.params(config, 0), config, "random", "float32", None)
    with pytest.raises(ValueError, match="128 positions"):
        throughput.run(held, Case(requests=2, input=200), CEILINGS)
