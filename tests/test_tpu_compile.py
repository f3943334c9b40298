"""The step compiles for real TPUs, in bf16, with its cache in place and two collectives a layer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tpu_topologies

TOPOLOGIES = ("v5e:2x2", "v6e:2x2", "tpu7x:2x2x1")
MEMORY = {"v5e:2x2": 16e9, "v6e:2x2": 32e9, "tpu7x:2x2x1": 96e9}  # bytes a device, at most
SETTINGS = {  # libtpu asks nobody what machine this is
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # tests may run side by side
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    "JAX_ENABLE_COMPILATION_CACHE": "0",
}


@pytest.fixture(scope="module")
def reports():
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "tests.tpu_topologies", *TOPOLOGIES],
        env={**os.environ, **SETTINGS, "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {report["topology"]: report for report in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("program", ["decode", "prefill", "packed"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_compiles(reports, topology, program):
    report = reports[topology]
    assert report["platform"] == "tpu"
    assert report["cache"] == "bfloat16"
    found, config = report[program], tpu_topologies.CONFIG
    # one full ring, one of a window and a chunk
    slots = tpu_topologies.LENGTH + 512 + tpu_topologies.CHUNK - 1
    cache = (
        2
        * tpu_topologies.B
        * slots
        * config.num_kv_heads
        * config.head_dim
        * 2
        // tpu_topologies.SHARDS
    )
    assert found["aliased"] >= cache  # donated: no second copy
    assert not found["copies"]
    assert found["temporaries"] < 0.1 * found["arguments"]
    assert found["peak"] < MEMORY[topology]
    layers = len(config.layers)
    assert found["kernels"] == {"ragged_attention": layers, "ring_write": layers}


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_collectives(reports, topology):
    """Two sums a layer, and one for the rows of the sharded embedding."""
    wanted = dict.fromkeys(tpu_topologies.COLLECTIVES, 0)
    wanted["all-reduce"] = 2 * len(tpu_topologies.CONFIG.layers) + 1
    assert reports[topology]["decode"]["collectives"] == wanted
