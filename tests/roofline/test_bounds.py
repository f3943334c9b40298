"""Floors against plain arithmetic: two textbooks' examples, and figures worked out by hand."""

import dataclasses
import random

import pytest

from jaxinfer import roofline
from jaxinfer.models import presets
from jaxinfer.roofline import CHIPS, Chip, Interconnect, Mesh, memory

LLAMA_8B = presets.find("llama-3.1-8b")
LLAMA_70B = presets.find("llama-3.1-70b")
LLAMA_13B = presets.find("llama-2-13b")
H200 = dataclasses.replace(  # as measured, not as sold
    CHIPS["h200"], bandwidth=4.18e12, flops={"bfloat16": 691e12}
)


@pytest.mark.parametrize("K", [40, 8])
@pytest.mark.parametrize("batch", [1, 16, 64, 256])
def test_the_lecture_on_inference(K, batch):
    """CS336 2025: Llama-2-13B in bf16 on an H100 at 3.35 TB/s, S = 1024."""
    config = LLAMA_13B.replace(num_kv_heads=K)
    parameters = 2 * 32000 * 5120 + 40 * (
        3 * 5120 * 13824 + 2 * 5120 * 40 * 128 + 2 * 5120 * K * 128
    )
    cache = 1024 * K * 128 * 40 * 2 * 2
    total = 2 * parameters + batch * cache
    found = roofline.lecture(config, CHIPS["h100"], batch, 1024)
    assert found.memory_bytes == total
    assert found.latency_s == pytest.approx(total / 3.35e12)
    assert found.throughput_tok_s == pytest.approx(batch * 3.35e12 / total)
    # ours does not read the input embedding: 2 x 32000 x 5120 bytes less, but for the rows looked up
    ours = roofline.decode(config, CHIPS["h100"], batch, 1024)
    norms_and_rows = 1e-3 * total
    assert ours.memory_s * 3.35e12 == pytest.approx(total - 2 * 32000 * 5120, abs=norms_and_rows)
    assert ours.latency_s < found.latency_s


def test_figures_of_the_lecture():
    """As printed there: 26 GB and about 8 ms for one sequence, 80 GB hold at most 64 of K = 40."""
    one = roofline.lecture(LLAMA_13B, CHIPS["h100"], 1, 1024)
    assert one.memory_bytes == pytest.approx(26.87e9, rel=1e-3)
    assert one.latency_s == pytest.approx(8.02e-3, rel=1e-3)
    many = roofline.lecture(LLAMA_13B, CHIPS["h100"], 64, 1024)
    assert many.throughput_tok_s > 20 * one.throughput_tok_s
    grouped = roofline.lecture(LLAMA_13B.replace(num_kv_heads=8), CHIPS["h100"], 64, 1024)
    assert grouped.memory_bytes < 0.5 * many.memory_bytes
    assert not roofline.decode(LLAMA_13B, CHIPS["h100"], 256, 1024).fits
    assert roofline.decode(LLAMA_13B.replace(num_kv_heads=8), CHIPS["h100"], 256, 1024).fits


def test_the_scaling_books_70b_on_v5e():
    """Chapter 8: 70 GB of int8 weights and 32 x 8192 x 160 kB of int8 cache: 17 ms on 8 chips, 8.5 ms
    on 16.
    """
    by_hand = {n: (70e9 + 32 * 8192 * 160e3) / (n * 8.1e11) for n in (8, 16)}
    assert by_hand[8] == pytest.approx(17e-3, rel=0.02)
    assert by_hand[16] == pytest.approx(8.5e-3, rel=0.02)
    v5e = CHIPS["v5e"]
    settings = {"weights": "int8", "cache": "int8"}
    for chips, seconds in by_hand.items():
        naive = roofline.lecture(LLAMA_70B, v5e, 32, 8192, chips=chips, **settings)
        assert naive.latency_s == pytest.approx(seconds, rel=0.03)
    ours = roofline.decode(LLAMA_70B, v5e, 32, 8192, mesh=Mesh(model=8), **settings)
    assert ours.latency_s == pytest.approx(by_hand[8], rel=0.04)
    # 8 key-value heads do not divide over 16 chips: a second copy of the cache, or two groups of 8
    deep = roofline.decode(LLAMA_70B, v5e, 32, 8192, mesh=Mesh(model=16), **settings)
    cache = 32 * 8192 * 80 * 2 * (128 + 4)
    assert deep.memory.cache == cache
    assert ours.memory.cache == cache


HAND = {  # measured bandwidth and matmul of an H200
    ("bfloat16", 1): 3.62e-3,
    ("int8", 1): 1.83e-3,
    ("bfloat16", 64): 5.65e-3,
    ("int8", 64): 3.85e-3,
    ("bfloat16", 256): 11.8e-3,
}


@pytest.mark.parametrize(("weights", "batch"), HAND)
def test_floors_of_an_8b_model(weights, batch):
    found = roofline.decode(LLAMA_8B, H200, batch, 1024, weights=weights)
    assert found.latency_s == pytest.approx(HAND[weights, batch], rel=3e-3)
    assert found.limited_by == "memory"
    assert found.throughput_tok_s == pytest.approx(batch / found.latency_s)


def test_the_price_of_scales_for_groups():
    """int4 without scales 0.93 ms; a 2-byte scale for 128 values costs 1/32 of the weights' time."""
    plain = dataclasses.replace(roofline.FORMATS["int4"], group=None, scale_bytes=0)
    bare = roofline.decode(LLAMA_8B, H200, 1, 1024, weights=plain)
    assert bare.latency_s == pytest.approx(0.93e-3, rel=3e-3)
    grouped = roofline.decode(LLAMA_8B, H200, 1, 1024, weights="int4")
    weights = sum(part.weight_bytes for part in bare.parts.values()) / 4.18e12
    assert grouped.latency_s - bare.latency_s == pytest.approx(weights / 32, rel=1e-3)


def test_prefill_is_bound_by_arithmetic():
    found = roofline.prefill(LLAMA_8B, H200, 1, 2048)
    products = 2 * 2048 * (8_030_261_248 - 2 * 128256 * 4096)
    attention = 32 * 4 * 32 * 128 * 2048 * 2049 // 2
    head = 2 * 128256 * 4096
    assert found.latency_s == pytest.approx((products + attention + head) / 691e12, rel=1e-3)
    assert found.limited_by == "compute"
    assert found.throughput_tok_s == pytest.approx(2048 / found.latency_s)


def test_parts_that_do_not_overlap_take_longer():
    found = roofline.decode(LLAMA_8B, H200, 256, 1024)
    assert found.sequential_s > found.latency_s
    assert found.sequential_s == pytest.approx(
        sum(max(part.flops / 691e12, part.least_bytes / 4.18e12) for part in found.parts.values())
    )


@pytest.fixture
def rng():
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"{seed=}")
    return random.Random(seed)


def test_more_work_never_takes_less(rng):
    chip = CHIPS[rng.choice(list(CHIPS))].device()
    for _ in range(20):
        config = presets.find(rng.choice(list(presets.PRESETS)))
        batch, context = rng.randint(1, 200), rng.randint(2, 4000)
        base = roofline.decode(config, chip, batch, context)
        for bigger in (
            roofline.decode(config, chip, batch + 1, context),
            roofline.decode(config, chip, batch, context + 1),
            roofline.decode(config, chip, batch, context, new_tokens=2),
        ):
            assert bigger.latency_s >= base.latency_s
            assert bigger.memory_bytes >= base.memory_bytes
        assert base.latency_s <= base.sequential_s * (1 + 1e-9)
        smaller = [
            roofline.decode(config, chip, batch, context, weights=w) for w in ("int8", "int4")
        ]
        times = [bound.memory_s for bound in (base, *smaller)]
        assert times == sorted(times, reverse=True)
        faster = dataclasses.replace(chip, bandwidth=2 * chip.bandwidth)
        assert roofline.decode(config, faster, batch, context).memory_s == base.memory_s / 2


def test_meshes():
    one = roofline.decode(LLAMA_8B, H200, 8, 1024)
    halves = roofline.decode(LLAMA_8B, H200, 8, 1024, mesh=Mesh(model=2))
    assert halves.memory_s == pytest.approx(one.memory_s / 2, rel=1e-3)
    assert halves.compute_s == pytest.approx(one.compute_s / 2)
    assert halves.collectives == 2 * 32 + 1
    # each of 65 all-reduces: a chip sends half of [8, 4096] bf16 and then half again
    assert halves.interconnect_s == pytest.approx(65 * (2 * 0.5 * 8 * 4096 * 2) / 450e9)
    copies = roofline.decode(LLAMA_8B, H200, 8, 1024, mesh=Mesh(data=4))
    alone = roofline.decode(LLAMA_8B, H200, 2, 1024)
    assert copies.latency_s == alone.latency_s
    assert copies.throughput_tok_s == pytest.approx(4 * alone.throughput_tok_s)
    assert copies.memory_bytes == alone.memory_bytes
    assert copies.collectives == 0
    odd = roofline.decode(LLAMA_8B, H200, 5, 1024, mesh=Mesh(data=4))  # one copy has two rows
    assert odd.latency_s == alone.latency_s


def test_a_hop_is_the_least_a_message_takes():
    v5e = CHIPS["v5e"]
    found = roofline.decode(LLAMA_8B, v5e, 1, 1024, mesh=Mesh(model=8))
    data = 65 * (2 * 7 / 8 * 4096 * 2) / 200e9
    assert found.interconnect_s == pytest.approx(data + 65 * 2e-6)


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "w8a8", "int4"])
@pytest.mark.parametrize("context", [1, 60, 500])
@pytest.mark.parametrize("name", ["v5e", "h100"])
def test_critical_batch_by_trying_all(name, context, weights):
    settings = {"weights": weights, "cache": "int8"}
    chip = CHIPS[name]

    def computes(batch):
        step = roofline.decode(LLAMA_8B, chip, batch, context, **settings)
        return step.compute_s >= step.memory_s

    found = roofline.critical_batch(LLAMA_8B, chip, context, **settings)
    tried = next((batch for batch in range(1, 700) if computes(batch)), None)
    assert found == tried or (tried is None and (found is None or found >= 700))


def test_critical_batches_of_the_scaling_book():
    """Chapter 7: 240 on v5e in bf16, 120 with int8 weights and bf16 arithmetic."""
    v5e = CHIPS["v5e"]
    for weights, batch in (("bfloat16", 240), ("int8", 120), ("w8a8", 240)):
        found = roofline.critical_batch(LLAMA_8B, v5e, 1, weights=weights)
        assert found == pytest.approx(batch, rel=0.03)
    assert roofline.critical_batch(LLAMA_8B, v5e, 100_000) is None


def test_speculation():
    """Leviathan et al. 2023, equation 1, against drawing."""
    rng = random.Random(random.SystemRandom().randrange(1 << 32))
    for acceptance, n in ((0.8, 4), (0.3, 7), (0.0, 3)):
        total = 0
        for _ in range(20_000):
            total += 1
            for _ in range(n):
                if rng.random() >= acceptance:
                    break
                total += 1
        assert roofline.expected_tokens(acceptance, n) == pytest.approx(total / 20_000, rel=0.03)
    assert roofline.expected_tokens(1.0, 4) == 5
    with pytest.raises(ValueError, match="acceptance <= 1"):
        roofline.expected_tokens(1.5, 4)
    plain = roofline.decode(LLAMA_70B, H200, 1, 1024)
    verify = roofline.decode(LLAMA_70B, H200, 1, 1028, new_tokens=5)
    draft = roofline.decode(LLAMA_8B, H200, 1, 1024)
    found = roofline.speculate(plain, verify, draft, 4, 0.8)
    assert found.step_s == 4 * draft.latency_s + verify.latency_s
    assert found.tokens == pytest.approx((1 - 0.8**5) / 0.2)
    assert found.speedup == pytest.approx(plain.latency_s / found.token_s)
    assert 1.5 < found.speedup < found.tokens
    crowded = roofline.decode(LLAMA_70B, H200, 512, 128, new_tokens=5)
    busy = roofline.decode(LLAMA_70B, H200, 512, 124)
    assert roofline.speculate(busy, crowded, draft, 4, 0.8).speedup < 1  # nothing to gain


def test_chips():
    assert set(CHIPS) == {
        *("h100", "h200", "b200", "a100", "l4", "t4", "rtx4090"),
        *("v4", "v5e", "v5p", "v6e", "tpu7x"),
    }
    for name, chip in CHIPS.items():
        assert chip.name == name
        assert chip.source
        assert 50 < chip.peak("bfloat16") / chip.bandwidth * (12 if name == "t4" else 1) < 1000
        assert chip.peak("int8") >= chip.peak("bfloat16") >= chip.peak("float32")
    half = CHIPS["tpu7x"].device()
    assert half.memory_bytes == 96 * 2**30
    assert half.peak("bfloat16") == pytest.approx(1153.5e12)
    assert half.device() is half
    assert half.room == pytest.approx(94.74 * 2**30)
    assert CHIPS["h100"].room == 80e9
    assert CHIPS["a100"].peak("float8") == CHIPS["a100"].peak("bfloat16")  # none of its own
    assert CHIPS["t4"].peak("bfloat16") == CHIPS["t4"].peak("float32")


def test_attainable():
    h100 = CHIPS["h100"]
    assert roofline.attainable(h100, 1) == 3.35e12
    assert roofline.attainable(h100, 1e6) == 989.5e12


def test_a_machine_of_ones_own():
    chip = Chip("here", 8e9, 4e10, {"float32": 1e11})
    found = roofline.decode(LLAMA_8B, chip, 1, 128, weights="float32", cache="float32")
    assert not found.fits
    assert found.latency_s == pytest.approx(0.75, rel=0.02)
    with pytest.raises(ValueError, match="an interconnect"):
        roofline.decode(LLAMA_8B, chip, 1, 128, weights="float32", mesh=Mesh(model=2))
    with pytest.raises(ValueError, match="positive figures"):
        Chip("here", 8e9, 0, {"float32": 1e11})
    with pytest.raises(ValueError, match="at least one type"):
        Chip("here", 8e9, 1, {})
    with pytest.raises(ValueError, match="int8 or a wider type"):
        Chip("here", 8e9, 1, {"int4": 1}).peak("int8")
    with pytest.raises(ValueError, match="at least 1"):
        Mesh(data=0)
    assert str(Mesh(2, 4)) == "data=2,model=4"
    assert Interconnect("bus", 1).hop_s == 0


def test_memory_of_a_step():
    found = memory(LLAMA_8B, 4, 2048)
    assert found.weights == 2 * 8_030_261_248
    assert found.cache == 4 * 2048 * 131072
    assert 4 * 4 * 128256 < found.workspace < 10e6
    assert found.total == found.weights + found.cache + found.workspace
    wide = memory(LLAMA_8B, 4, 2048, tokens=2048).workspace
    assert wide - found.workspace == 2 * 2044 * (2 * 14336 + 4096) * 2
