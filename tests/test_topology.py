"""Programs for TPUs that are not here: the compiler's memory and collectives beside our estimate."""

import subprocess
import sys

import pytest

from jaxinfer import topology
from jaxinfer.config import LayerConfig, ModelConfig, Rope
from jaxinfer.roofline import CHIPS, Mesh, decode, memory
from jaxinfer.topology import Request

ROPE = Rope(rotary_dim=128)
CONFIG = ModelConfig(
    family="llama",
    vocab_size=32768,
    d_model=1024,
    d_ff=4096,
    num_heads=8,
    num_kv_heads=4,
    head_dim=128,
    layers=(LayerConfig(rope=ROPE), LayerConfig(rope=ROPE, window=256)),
    max_position=4096,
)


@pytest.mark.parametrize(
    ("data", "model", "method", "kept"), [(1, 4, None, "fp8"), (2, 2, "int8", "bfloat16")]
)
def test_estimates_are_the_compilers(data, model, method, kept):
    batch, context, chunk = 16, 2048, 128
    request = Request("v5e", "2x2", CONFIG, data, model, batch, context, chunk, method, kept)
    found = {one.program: one for one in topology.compile_for(request)}
    assert set(found) == {"decode", "prefill"}
    assert all(one.error is None for one in found.values())
    kinds = dict(weights=method or "bfloat16", cache=kept)
    held = memory(CONFIG, batch // data, context, shards=model, chunk=chunk, **kinds)
    step = found["decode"]
    assert step.arguments == pytest.approx(held.weights + held.cache, rel=0.01)
    assert step.aliased == pytest.approx(held.cache, rel=0.01)  # in place
    assert step.temporaries < 0.1 * step.arguments
    assert step.total == step.arguments + step.outputs - step.aliased + step.temporaries
    assert found["prefill"].temporaries > 0
    wanted = decode(CONFIG, CHIPS["v5e"], batch, context, mesh=Mesh(data, model)).collectives
    assert wanted == 5
    assert step.collectives == dict.fromkeys(topology.COLLECTIVES, 0) | {
        "all-reduce": wanted + (method is not None),  # the scales of the rows that are looked up
    }


def test_what_does_not_fit_is_said():
    request = Request("v5e", "1x1", CONFIG, 1, 1, 8192, 4096, 64)
    step = next(iter(topology.compile_for(request)))
    assert step.error is not None
    assert "15.75G" in step.error


def test_a_failure_is_one_line():
    request = Request("v5e", "3x5", CONFIG, 1, 1, 1, 128, 64)
    with pytest.raises(RuntimeError, match=r"compiling failed: .*3x5"):
        list(topology.compile_for(request))


def test_shapes():
    assert topology.shape_of("v5e", 8, "2x4") == "2x4"
    assert topology.shape_of("v5e", 8, "8") == "2x4"
    assert topology.shape_of("v5p", 4) == "2x2x1"
    with pytest.raises(ValueError, match="needs a TPU"):
        topology.shape_of("h100", 8)
    with pytest.raises(ValueError, match="the shape of 5 v5e chips"):
        topology.shape_of("v5e", 5)


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install libtpu"):
        topology.check()


def test_the_module_reads_requests_only():
    done = subprocess.run(
        [sys.executable, "-m", "jaxinfer.topology"],
        input='{"chip": "v5e"}',
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("ValueError: request needs")
