"""The prompts that are measured are really read."""

import numpy as np
import pytest

from jaxinfer.bench import prefill
from jaxinfer.bench.ceilings import Ceilings
from jaxinfer.bench.prefill import Case, Prefill
from jaxinfer.bench.subject import Subject
from tests import oracle, tiny

CEILINGS = Ceilings(copy=2e9, sum=1e9, matvec=1e9, matmul={"float32": 1e9})


def subject(seed) -> Subject:
    config = tiny.config()
    return Subject("tiny", tiny.params(config, seed), config, "random", "float32", None)


@pytest.mark.parametrize("chunk", [None, 7])
def test_first_tokens_are_those_of_the_oracle(chunk, seed):
    held = subject(seed)
    run = Prefill(held, Case(3, 20, chunk), seed)
    expected = [
        oracle.greedy(held.params, held.config, prompt.tolist(), 1) for prompt in run._prompts
    ]
    assert run(run.prepare()).tolist() == expected
    assert run(run.prepare()).tolist() == expected
    assert len({tuple(prompt) for prompt in run._prompts}) == 3


def test_a_row_counts_every_token(seed):
    held = subject(seed)
    row = prefill.run(held, Case(2, 32), CEILINGS, repeats=2)
    config, layers = held.config, held.params.layers
    matrices = sum(
        leaf.size
        for layer in layers
        for leaf in (layer.attention.qkv.w, layer.attention.out.w, layer.mlp.up.w, layer.mlp.down.w)
    )
    pairs = sum(i + 1 for i in range(32)) + sum(min(i + 1, tiny.WINDOW) for i in range(32))
    attention = 2 * 2 * 2 * config.num_heads * config.head_dim * pairs
    heads = 2 * 2 * held.params.unembed.size  # one token of each row needs logits
    assert row["flops"] == 2 * 2 * 32 * matrices + attention + heads
    assert row["tokens_per_s"] == pytest.approx(64 / (row["ttft_ms"] / 1e3))
    assert row["of_matmul_ceiling"] == pytest.approx(row["flops"] / row["ttft_ms"] * 1e3 / 1e9)
    assert row["limited_by"] == "compute"
    assert row["chunk"] == 32


def test_cases_that_cannot_be():
    with pytest.raises(ValueError, match="of at least 1"):
        Case(1, 8, 0)
    with pytest.raises(ValueError, match="at most the model's 128, got 256"):
        prefill.run(subject(0), Case(1, 256), CEILINGS)
    assert Case(1, 8, 100).most == 8
    assert np.int32(Case(1, 8).most) == 8
