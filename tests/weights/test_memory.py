"""What loading costs on the host, measured in a process of its own."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxinfer.models import decoder, registry
from tests.weights import checkpoints

SIZES = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 11,
    "vocab_size": 4001,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
PROGRAM = """
import json, pathlib, sys
import jax
from jaxinfer import weights

def peak():  # of this program alone: getrusage knows the largest of who started it
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

small, large, method = sys.argv[1:]
weights.load(small, quantize=method or None)
before = peak()
params = weights.load(large, quantize=method or None).params
held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
print(json.dumps([peak() - before, held]))
"""


@pytest.fixture(scope="module", params=[np.float32, ml_dtypes.bfloat16], ids=["f32", "bf16"])
def folders(request, tmp_path_factory):
    small, large = tmp_path_factory.mktemp("small"), tmp_path_factory.mktemp("large")
    _write(small, large, SIZES, request.param)
    return small, large


def _write(small, large, sizes, dtype) -> None:
    checkpoints.fresh(small, dtype)
    hf = checkpoints.LLAMA | sizes
    family = registry.family_of(hf)
    config = family.read(hf)
    rng = np.random.default_rng()
    canonical = {
        name: rng.random(shape, np.float32).astype(dtype)
        for name, shape in decoder.canonical_shapes(config).items()
    }
    checkpoints.write(large, hf, {})
    save_file(checkpoints.file_tensors(family, config, canonical), large / "model.safetensors")


def _measure(folders, method):
    arguments = [sys.executable, "-c", PROGRAM, *map(str, folders), method]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


def test_no_second_copy(folders):
    peak, held = _measure(folders, "")
    assert held > 190e6
    assert peak < 1.25 * held


@pytest.mark.parametrize(
    ("method", "least", "most"), [("int8", 45e6, 60e6), ("int4", 20e6, 40e6), ("fp8", 45e6, 60e6)]
)
def test_quantizing_never_holds_the_full_precision_model(folders, method, least, most):
    peak, held = _measure(folders, method)
    assert least < held < most
    assert peak < held + 25e6


WIDE = {  # some layers of about the shape of a model of 360M
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 5,
    "vocab_size": 1001,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}
LAYER = 2 * (4 * 1024 * 1024 + 3 * 1024 * 2816)  # bytes of one, as the files hold it


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    small, large = tmp_path_factory.mktemp("small"), tmp_path_factory.mktemp("wide")
    _write(small, large, WIDE, ml_dtypes.bfloat16)
    return small, large


@pytest.mark.parametrize("method", ["int8", "int4", "fp8", "w8a8", "llm_int8"])
def test_quantizing_holds_the_small_form_and_less_than_one_layer(wide, method):
    peak, held = _measure(wide, method)
    assert held < 5.3 * LAYER / (2 if method != "int4" else 3.4)
    assert peak <= held + LAYER
