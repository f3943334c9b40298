"""Plans: which mesh, what fits, what would; and pictures that are pictures."""

import dataclasses
import itertools
import random

import pytest

from jaxinfer import roofline
from jaxinfer.models import presets
from jaxinfer.roofline import Mesh, plan, plot, what_if
from jaxinfer.roofline.plan import Machine, Settings

SMALL = presets.find("llama-3.2-1b")
LARGE = presets.find("llama-3.1-70b")
QWEN = presets.find("qwen2.5-7b")


def test_topologies():
    slice8 = plan.topology("v5e:2x4")
    assert (slice8.chip.name, slice8.count, slice8.shape, slice8.devices) == ("v5e", 8, "2x4", 8)
    assert str(slice8) == "8 x v5e"
    assert plan.topology("H100:8").devices == 8
    cores = plan.topology("tpu7x:2x2x1")
    assert (cores.count, cores.devices, cores.unit) == (4, 8, "core")
    assert cores.device.bandwidth == cores.chip.bandwidth / 2
    assert plan.find_chip("RTX 4090").name == "rtx4090"


@pytest.mark.parametrize("text", ["v5e", "v5e:", "v5e:0x2", "v5e:2xx2", "v5e:a", ":4"])
def test_wrong_topologies(text):
    with pytest.raises(ValueError, match=r"v5e:2x4|one of h100"):
        plan.topology(text)


def test_every_mesh_is_tried():
    found = list(plan.meshes(LARGE, 16))
    assert found == [Mesh(16 // n, n) for n in (1, 2, 4, 8, 16)]
    assert list(plan.meshes(QWEN, 4)) == [Mesh(4, 1), Mesh(2, 2), Mesh(1, 4)]
    assert list(plan.meshes(QWEN, 8)) == [Mesh(8, 1), Mesh(4, 2), Mesh(2, 4)]  # 28 heads


def test_the_mesh_is_the_fastest_that_fits():
    rng = random.Random(random.SystemRandom().randrange(1 << 32))
    for _ in range(5):
        config = rng.choice([SMALL, LARGE, QWEN])
        machine = Machine(
            roofline.CHIPS[rng.choice(["v5e", "h100", "v6e"])], rng.choice([4, 8, 16])
        )
        batches = sorted(rng.sample(range(1, 300), 2))
        settings = Settings(rng.choice([512, 4096]), 256, rng.choice(["bfloat16", "int8"]))
        mesh = plan.propose(config, machine, batches, settings)
        pairs = itertools.product(batches, plan.meshes(config, machine.devices))
        rows = {pair: plan.row(config, machine, pair[1], pair[0], settings) for pair in pairs}
        fitting = [batch for (batch, _), row in rows.items() if row.fits]
        if not fitting:
            needs = {m: row.memory.total for (b, m), row in rows.items() if b == batches[0]}
            assert needs[mesh] == min(needs.values())
            continue
        best = max(fitting)
        assert rows[best, mesh].fits
        times = [row.decode.latency_s for (b, _), row in rows.items() if b == best and row.fits]
        assert rows[best, mesh].decode.latency_s == min(times)


def test_the_largest_batch():
    settings, mesh = Settings(2048, 2048), Mesh()
    machine = Machine(roofline.CHIPS["l4"])
    largest = plan.largest_batch(SMALL, machine, mesh, settings)
    assert plan.row(SMALL, machine, mesh, largest, settings).fits
    assert not plan.row(SMALL, machine, mesh, largest + 1, settings).fits
    assert plan.largest_batch(LARGE, machine, mesh, settings) == 0
    pair = plan.largest_batch(SMALL, Machine(machine.chip, 2), Mesh(data=2), settings)
    assert pair == 2 * largest


def test_what_would_make_it_fit():
    h100, settings = roofline.CHIPS["h100"], Settings(2048, 2048)
    found = plan.remedies(LARGE, Machine(h100), 1, settings)
    assert found == ["--quantize=int8", "2 x h100 with --mesh=data=1,model=2"]
    tight = plan.remedies(LARGE, Machine(roofline.CHIPS["rtx4090"]), 1, settings)
    assert tight == []  # 35 GB of int4 do not fit in 24, and four cards have 96 for 141
    pod = plan.remedies(LARGE, Machine(roofline.CHIPS["v5e"], 4), 1, settings)
    assert pod[0] == "--quantize=int4"
    assert pod[-1].startswith("16 x v5e")
    crowd = plan.remedies(SMALL, Machine(roofline.CHIPS["l4"]), 400, settings)
    assert "--kv_dtype=int8" in crowd[0]


def test_rounded_advice_is_true():
    """Each remedy is tried as it stands."""
    machine = Machine(roofline.CHIPS["v5e"], 8)
    settings = Settings(4096, 4096)
    for advice in plan.remedies(LARGE, machine, 32, settings):
        changed, more = settings, machine
        for word in advice.split():
            name, _, value = word.partition("=")
            if name == "--quantize":
                changed = dataclasses.replace(changed, weights=value)
            if name == "--kv_dtype":
                changed = dataclasses.replace(changed, cache=value)
        if advice[0].isdigit():
            more = Machine(machine.chip, int(advice.split()[0]))
        mesh = plan.propose(LARGE, more, [32], changed)
        assert plan.row(LARGE, more, mesh, 32, changed).fits
    assert not plan.row(LARGE, machine, Mesh(1, 8), 32, settings).fits


def test_effects():
    machine, settings = Machine(roofline.CHIPS["h100"], 2), Settings(8192, 8192)
    effects = {e.name: e for e in what_if.effects(LARGE, machine, Mesh(1, 2), 4, settings)}
    base = effects["as it is"]
    assert (
        base.latency_s == roofline.decode(LARGE, machine.device, 4, 8192, mesh=Mesh(1, 2)).latency_s
    )
    more, less = (
        effects[name]
        for name in (
            "multi-head attention, 64 key-value heads",
            "a window of 1,024 in 3 of 4 layers",
        )
    )
    assert more.latency_s > base.latency_s > less.latency_s
    assert more.memory_bytes > base.memory_bytes > less.memory_bytes
    shared = effects["two layers share a cache"]
    assert shared.latency_s == base.latency_s
    assert shared.memory_bytes < base.memory_bytes
    times = [effects[f"{kind} weights"].latency_s for kind in ("int8", "int4")]
    assert base.latency_s > times[0] > times[1]
    (draft,) = (e for name, e in effects.items() if name.startswith("a draft"))
    assert draft.latency_s < base.latency_s
    assert draft.memory_bytes > base.memory_bytes


def test_pictures(tmp_path):
    machine, settings = Machine(roofline.CHIPS["l4"]), Settings(2048, 2048)
    for batches in ((1,), (1, 4, 16, 64, 400)):
        rows = [plan.row(SMALL, machine, Mesh(), batch, settings) for batch in batches]
        path = tmp_path / f"{len(batches)}.png"
        plot.draw(rows, roofline.FORMATS["bfloat16"], "a title", path)
        head = path.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(head[16:20], "big") > 1000  # pixels wide
    for wrong in (tmp_path / "x.jpg", tmp_path / "none" / "x.png"):
        with pytest.raises(ValueError, match="--plot needs a f"):
            plot.check(wrong)
