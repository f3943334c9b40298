"""Pages of who gives way wait on the host, come back elsewhere, and no answer changes."""

import dataclasses

import numpy as np
import pytest

from jaxinfer.config import LayerConfig, Rope
from tests import tiny
from tests.engine.small import GREEDY, LIMITS, PAGE, Engines, check, requests, run_to_end

ROPE = Rope(rotary_dim=16)


@pytest.fixture(scope="module")
def windowed():
    layers = tuple(LayerConfig(rope=ROPE, window=window) for window in (9, None, 9))
    config = tiny.config(layers=layers)
    return Engines(config, tiny.params(config, np.random.SeedSequence().entropy % 2**31))


def answers(engine, wanted):
    sequences = [engine.add(request) for request in wanted]
    list(run_to_end(engine))
    return [s.tokens for s in sequences]


@pytest.mark.parametrize(("kv_dtype", "streams"), [(None, False), ("int8", False), ("fp8", True)])
def test_what_comes_back_is_what_was_there(windowed, rng, kv_dtype, streams):
    """Rings of windows and of sinks, wide and narrow: what was read once is not read again."""
    limits = dataclasses.replace(LIMITS, endless=streams)
    options = {"kv_dtype": kv_dtype, "prefix_sharing": False}
    if streams:
        options |= {"stream_window": 30, "sinks": 2}
    size = 14 if streams else 20
    maker = Engines(windowed.config, windowed.params) if kv_dtype or streams else windowed
    engine = maker(limits, num_pages=size, **options)
    wanted = requests(
        tiny.prompts(rng, (30, 28, 33, 25)), dataclasses.replace(GREEDY, max_new_tokens=25)
    )
    alone = [answers(engine, [request])[0] for request in wanted]
    assert engine.stats.swaps_out == 0
    while not engine.stats.swaps_in:
        assert answers(engine, wanted) == alone
    stats = engine.stats
    assert stats.preemptions >= stats.swaps_out == stats.swaps_in  # not of who had only entered
    assert stats.swap_bytes_in == stats.swap_bytes_out > 0
    assert stats.swap_used == 0
    again = maker(limits, num_pages=size, swap_space=0, **options)
    assert answers(again, wanted) == alone
    assert again.stats.swaps_out == 0


def test_a_small_space_holds_some_and_the_rest_is_read_again(windowed, rng):
    each = 4096  # of a page of a group at most
    engine = windowed(prefix_sharing=False, swap_space=6 * each)
    wanted = requests(
        tiny.prompts(rng, (30, 9, 28, 8, 33, 25)), dataclasses.replace(GREEDY, max_new_tokens=25)
    )
    alone = [answers(engine, [request])[0] for request in wanted]
    rounds = 0
    while engine.stats.preemptions == engine.stats.swaps_out or not engine.stats.swaps_out:
        assert answers(engine, wanted) == alone
        wanted, alone = wanted[1:] + wanted[:1], alone[1:] + alone[:1]
        rounds += 1
        assert rounds < 20
    assert engine.stats.swap_used == 0


def test_copies_are_dropped_with_whom_they_belong_to(windowed, rng):
    engine = windowed(prefix_sharing=False)
    wanted = requests(
        tiny.prompts(rng, (30, 28, 33)), dataclasses.replace(GREEDY, max_new_tokens=25)
    )
    for end in ("abort", "update"):
        sequences = [engine.add(request) for request in wanted]
        while not engine.stats.swap_used:
            if engine.idle:
                sequences = [engine.add(request) for request in wanted]
            engine.step()
        parked = next(s for s in sequences if s.parked is not None)
        assert parked.parked.content is not None
        if end == "abort":
            engine.abort(parked)
        else:
            engine.update_params(engine._device.programs.params)
        assert parked.parked is None
        assert engine.stats.swap_used == 0
        check(engine)
        list(run_to_end(engine))


def test_copying_compiles_nothing_after_warm_up(windowed, rng):
    engine = windowed(prefix_sharing=False)
    compiled = engine.warm_up()
    wanted = requests(
        tiny.prompts(rng, (30, 28, 33)), dataclasses.replace(GREEDY, max_new_tokens=25)
    )
    before = engine.stats.swaps_in
    while engine.stats.swaps_in == before:
        answers(engine, wanted)
    assert engine.compiled == compiled
    assert PAGE * engine._allocator.pools[0].size < 3 * 58
