"""An engine's pages are sized from the memory that its device says it has."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxinfer.cache import Ring
from jaxinfer.config import LayerConfig, Rope
from jaxinfer.engine import Engine, memory
from jaxinfer.pages import Allocator
from jaxinfer.request import Request, SamplingParams
from jaxinfer.scheduler import Limits, Scheduler
from tests import tiny
from tests.engine.small import LIMITS, PAGE

ROPE = Rope(rotary_dim=16)


def cache_bytes(engine) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(engine._device.state.cache.layers))


@pytest.fixture(scope="module")
def model():
    config = tiny.config(layers=(LayerConfig(rope=ROPE), LayerConfig(rope=ROPE, window=5)) * 2)
    return tiny.params(config, np.random.SeedSequence().entropy % 2**31), config


@pytest.mark.parametrize(
    ("fraction", "kv_dtype"), [(0.5, None), (0.9, None), (1.0, None), (0.9, "int8"), (0.5, "fp8")]
)
def test_a_cache_takes_its_share_and_no_more(model, monkeypatch, rng, fraction, kv_dtype):
    limit, used = 4_000_000, int(rng.integers(100_000, 1_000_000))
    monkeypatch.setattr(memory, "device_memory", lambda mesh: (limit, used))
    options = dict(memory_fraction=fraction, kv_dtype=kv_dtype)
    engine = Engine(*model, LIMITS, page_size=PAGE, **options)
    full = next(i for i, g in enumerate(engine._allocator.groups) if g.window is None)
    one = cache_bytes(engine) // engine._allocator.pools[full].size  # at most a page's
    assert cache_bytes(engine) <= limit * fraction - used
    assert cache_bytes(engine) + 2 * one > limit * fraction - used


def test_too_little_memory_is_told_at_the_start(model, monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda mesh: (100_000, 90_000))
    with pytest.raises(MemoryError, match="lower max_length or chunk, raise memory_fraction"):
        Engine(*model, LIMITS, page_size=PAGE, memory_fraction=0.9)
    for fraction in (0, 1.5):
        with pytest.raises(ValueError, match="memory_fraction"):
            Engine(*model, LIMITS, page_size=PAGE, memory_fraction=fraction)


def test_a_device_that_does_not_say_gets_enough_for_all(model):
    engine = Engine(*model, LIMITS, page_size=PAGE, memory_fraction=0.9)
    assert memory.device_memory(None) is None
    assert max(g.pages for g in engine._allocator.groups) == LIMITS.slots * 64 // PAGE


def test_the_tightest_device_counts():
    class Device:
        def __init__(self, limit, used):
            self._stats = {"bytes_limit": limit, "bytes_in_use": used}

        def memory_stats(self):
            return self._stats

    class Mesh:
        local_devices = (Device(100, 10), Device(100, 60), Device(200, 20))

    assert memory.device_memory(Mesh()) == (100, 60)
    Mesh.local_devices[1]._stats = {}
    assert memory.device_memory(Mesh()) is None


def test_a_stream_needs_pages_for_all_that_it_keeps(model):
    endless = dataclasses.replace(LIMITS, endless=True)
    options = {"page_size": PAGE, "stream_window": 20, "sinks": 2}
    with pytest.raises(ValueError, match="num_pages of at least 8, got 7"):
        Engine(*model, endless, num_pages=7, **options)
    assert Engine(*model, endless, num_pages=8, **options).idle


@pytest.mark.parametrize("window", [None, 9, 30])
def test_enough_pages_for_all_slots_make_nobody_give_way(rng, window):
    """However far plans run ahead of what has been recorded, and at the longest lengths."""
    slots, size, longest = 4, 8, 64
    limits = Limits(slots=slots, max_length=longest, chunk=16, budget=24, decode_steps=4)
    rings = [Ring(longest)]
    if window is not None:
        most = limits.chunk + size - 1
        rings.append(Ring(-(-min(longest, window + most - 1) // size) * size, window))
    groups = memory.plan_groups(rings, limits, size, None)
    assert groups[0].pages == slots * longest // size
    scheduler = Scheduler(limits, Allocator(size, groups))
    for i, p in enumerate(tiny.prompts(rng, rng.integers(1, longest - 1, 20), 50)):
        params = SamplingParams(max_new_tokens=longest - len(p))
        scheduler.add(Request(str(i), p, params), ())
    flight = []
    while not scheduler.idle:
        running = dict(scheduler.running)
        if (plan := scheduler.plan()) is not None:
            flight.append((plan, running | scheduler.running))
        if plan is None or len(flight) > 1:
            done, running = flight.pop(0)
            for slot in [*(c.slot for c in done.chunks if c.final), *done.decode]:
                s = running[slot]
                for _ in range(done.steps if slot in done.decode else 1):
                    if not s.finished:
                        scheduler.record(s, int(rng.integers(50)), None, None)
        scheduler.check()
    assert scheduler.preemptions == 0
