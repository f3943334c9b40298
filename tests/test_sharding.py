"""Tensor and data parallelism on eight CPU devices: one device's tokens, and two collectives a
layer.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxinfer import sharding
from jaxinfer.models import decoder, registry
from tests import eight_devices
from tests.models.small_configs import SMALL

NAMES = [name for name in SMALL if name not in ("llama-linear", "llama-dynamic", "phi3-short")]


@pytest.fixture(scope="module")
def reports():
    """What `eight_devices` reports of every family, from one process."""
    root = Path(__file__).resolve().parent.parent
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "tests.eight_devices", *NAMES],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {report["name"]: report for report in map(json.loads, done.stdout.splitlines())}


def test_every_family_is_sharded():
    assert {registry.family_of(SMALL[name]).name for name in NAMES} == {
        family.name for family in registry.FAMILIES
    }


@pytest.mark.parametrize("name", NAMES)
def test_one_devices_tokens(reports, name):
    report = reports[name]
    assert report["mesh"]["data"] == 2
    assert report["mesh"]["model"] in (2, 4)
    assert report["sharded"] == report["tokens"], report["seed"]
    assert report["cached_error"] < 1e-4, report["seed"]
    assert report["cacheless_error"] < 1e-4, report["seed"]


@pytest.mark.parametrize("name", eight_devices.SERVED)
def test_the_engine_serves_the_same_tokens(reports, name):
    assert reports[name]["served"] == reports[name]["tokens"], reports[name]["seed"]


def test_heads_are_repeated_and_the_vocabulary_padded(reports):
    """The meshes above do have more shards than some families have key-value heads, and cut a
    vocabulary unevenly.
    """
    for name in ("gemma", "gemma2"):
        hf, mesh = SMALL[name], reports[name]["mesh"]
        assert mesh["model"] > hf["num_key_value_heads"]
        assert hf["vocab_size"] % mesh["model"]


@pytest.mark.parametrize("program", ["decode", "whole"])
@pytest.mark.parametrize("name", eight_devices.COUNTED)
def test_collectives_of_a_layer(reports, name, program):
    """Two all-reduces and nothing else; OLMo 2 has one more, for its norms over all heads of q and
    k.
    """
    found = reports[name]["layer"][program]
    wanted = dict.fromkeys(eight_devices.COLLECTIVES, 0)
    wanted["all-reduce"] = 3 if name == "olmo2" else 2
    assert found == wanted


@pytest.mark.parametrize("program", ["decode", "whole"])
@pytest.mark.parametrize("name", eight_devices.COUNTED)
def test_collectives_outside_layers(reports, name, program):
    """One sum for the rows of the sharded embedding; the logits leave their vocabulary's shards."""
    found = reports[name]["outside"][program]
    wanted = dict.fromkeys(eight_devices.COLLECTIVES, 0) | {"all-reduce": 1, "all-gather": 1}
    assert found == wanted


@pytest.mark.parametrize("name", ["mistral", "gemma", "olmo2", "phi3-long", "gpt2"])
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_layout_round_trip(name, shards):
    """Canonical tensors -> fused per shard -> canonical tensors."""
    seed = int(np.random.default_rng().integers(2**31))
    hf = SMALL[name]
    config = registry.family_of(hf).read(hf)
    tensors = eight_devices.random_tensors(config, np.random.default_rng(seed))
    back = decoder.canonical(config, decoder.assemble(config, tensors, shards))
    assert set(back) == set(tensors)
    for key, value in tensors.items():
        np.testing.assert_array_equal(np.asarray(back[key]), value, err_msg=f"{key} {seed=}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 6, "num_kv_heads": 2}, "6 query heads"),
        ({"num_kv_heads": 3, "num_heads": 12}, "3 key-value"),
        ({"d_ff": 154}, "d_ff"),
    ],
)
def test_what_cannot_be_divided(change, message):
    hf = SMALL["mistral"]
    config = registry.family_of(hf).read(hf).replace(**change)
    with pytest.raises(ValueError, match=message):
        decoder.layout(config, 4)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("data", "data=2,model=4"),
        ("data=0", "data=2"),
        ("model=2,model=2", "once"),
        ("rows=2", "rows"),
        ("model=-1", "model"),
        ({"model": 10**6}, "1000000 devices"),
    ],
)
def test_bad_mesh(axes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(axes)
