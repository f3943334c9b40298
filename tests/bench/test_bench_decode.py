"""The decode loop that is measured is the engine's, and its counts are those of the arrays."""

import jax
import numpy as np
import pytest

from jaxinfer.bench import decode, slots, wall
from jaxinfer.bench.ceilings import Ceilings
from jaxinfer.bench.decode import Case, Loop
from jaxinfer.bench.subject import Subject
from jaxinfer.config import LayerConfig, Rope
from jaxinfer.engine import Engine
from jaxinfer.model import TextChunk
from jaxinfer.request import Completion, FinishReason, Request, SamplingParams, Token
from jaxinfer.scheduler import Limits
from tests import tiny

CEILINGS = Ceilings(copy=2e9, sum=1e9, matvec=1e9, matmul={"float32": 1e12, "bfloat16": 1e12})
FULL = (LayerConfig(rope=Rope(rotary_dim=16)),) * 2


def subject(seed=0, **changes) -> Subject:
    config = tiny.config(layers=FULL, **changes)
    return Subject("tiny", tiny.params(config, seed), config, "random", "float32", None)


def test_a_row_counts_what_the_arrays_hold():
    held = subject()
    row = decode.run(held, Case(5, 64, 8), CEILINGS, repeats=2, with_wall=False)
    config, params = held.config, held.params
    matrices = sum(
        leaf.size for layer in params.layers for leaf in jax.tree.leaves(layer) if leaf.ndim == 2
    )
    head = params.unembed.size
    seen = 64 - 4  # on average over eight steps that end at 64
    cache = 2 * 2 * config.num_kv_heads * config.head_dim * 5 * seen
    rows = 5 * config.d_model
    assert row["mean_context"] == seen
    assert row["steps"] == 8
    assert row["bytes"] == 4 * (matrices + head + cache + rows)
    attention = 2 * 2 * 5 * config.num_heads * config.head_dim * seen * 2
    assert row["flops"] == 2 * 5 * (matrices + head) + attention
    seconds = row["step_ms"] / 1e3
    assert row["tokens_per_s"] == pytest.approx(5 / seconds)
    assert row["bytes_per_s"] == pytest.approx(row["bytes"] / seconds)
    assert row["flop_per_s"] == pytest.approx(row["flops"] / seconds)
    assert row["of_read_ceiling"] == pytest.approx(row["bytes"] / seconds / 1e9)
    assert row["of_matmul_ceiling"] == pytest.approx(row["flops"] / seconds / 1e12)
    assert row["floor_ms"] == pytest.approx(row["bytes"] / 1e9 * 1e3)
    assert row["of_floor"] == pytest.approx(row["floor_ms"] / row["step_ms"])
    assert row["limited_by"] == "memory"
    assert "wall_ms" not in row
    assert "kernels" not in row


def test_the_loop_decodes_from_the_same_place_every_time():
    held = subject()
    loop = Loop(held, Case(3, 64, 8))
    first = np.asarray(loop(loop.prepare()).tokens)
    state = loop.prepare()
    assert state.cache.lengths.tolist() == [56] * 3
    assert first.shape == (3, 8)
    assert (first >= 0).all()
    again = np.asarray(loop(state).tokens)
    state = loop.prepare()
    # the slot that the first step writes is the only one that differs between two runs
    assert np.array_equal(again, np.asarray(loop(state).tokens))


def test_the_loop_is_the_engines(rng):
    """From an engine's own state it gives the engine's own tokens."""
    held = subject()
    (prompt,) = tiny.prompts(rng, [56])
    engine = Engine(held.params, held.config, Limits(slots=1, max_length=64, decode_steps=8))
    params = SamplingParams(temperature=0.0, max_new_tokens=8, ignore_eos=True)
    expected = [token.token_id for token in engine.run([Request("0", prompt, params)])]
    other = Engine(held.params, held.config, Limits(slots=1, max_length=64, decode_steps=8))
    one = SamplingParams(temperature=0.0, max_new_tokens=1, ignore_eos=True)
    list(other.run([Request("0", prompt, one)]))
    loop = Loop(held, Case(1, 64, 8))
    state = slots.at(other._device.state, 56)
    state = state.replace(tokens=jax.numpy.asarray([expected[0]], np.int32))
    found = np.asarray(loop(state).tokens)[0]
    assert found[:7].tolist() == expected[1:]


def test_a_full_state_is_random_and_fits_the_engines_shapes():
    held = subject()
    state = slots.filled(held, 4, 32)
    assert state.cache.layers[0].k.shape == (4, 2, 32, 16)
    for pages in state.cache.layers:
        for page in (pages.k, pages.v):
            assert 0.9 < float(np.std(page)) < 1.1
    first, second = state.cache.layers
    assert not np.array_equal(first.k, second.k)
    assert not np.array_equal(first.k, first.v)


def test_quantized_and_windowed_models_run():
    config = tiny.config()
    held = Subject("tiny", tiny.params(config, 1), config, "random", "float32", None)
    row = decode.run(held, Case(2, 48, 4), CEILINGS, repeats=1)
    assert row["wall_ms"] > 0
    assert row["host_overhead"] == pytest.approx(row["wall_ms"] / row["step_ms"])


def test_wall_time_is_left_out_where_it_does_not_fit():
    row = decode.run(subject(), Case(2, 16, 4), CEILINGS, repeats=1)
    assert wall.new_tokens(2, 16, 4) > 16
    assert "wall_ms" not in row


def test_the_steady_part_of_a_stream_is_measured():
    """Two rows; the later one starts at 5 s and gets groups of eight, one every 2 s."""
    done = Completion((1,), (2,), "", FinishReason.LENGTH, index=0)

    def chunk(index, last=False):
        return TextChunk(index, "", Token("", 0), done if last else None)

    arrivals = [(chunk(0), 1.0), (chunk(0), 3.0), (chunk(1), 5.0)]
    for group, when in enumerate((7.0, 9.0, 11.0)):
        for i in range(8):
            arrivals.append((chunk(0, last=group == 2 and i == 3), when))
            arrivals.append((chunk(1), when))
    assert wall._steady(arrivals, 2) == pytest.approx((9.0 - 5.0) / 16)
    alone = [(chunk(0), 1.0)] + [
        (chunk(0, last=i == 15), 1.0 + 4 * (i // 8 + 1)) for i in range(16)
    ]
    assert wall._steady(alone, 1) == pytest.approx((9.0 - 1.0) / 16)


def test_cases_that_cannot_be():
    with pytest.raises(ValueError, match="batch >= 1"):
        Case(0, 64)
    with pytest.raises(ValueError, match="at most the model's 128, got 256"):
        decode.run(subject(), Case(1, 256), CEILINGS)
    assert Case(1, 8, 100).taken == 2
