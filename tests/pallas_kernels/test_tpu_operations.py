"""The cache's kernels compile for real TPUs at the shapes of Llama 3 8B and 70B, in place."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pallas_kernels import tpu_operations
from tests.test_tpu_compile import SETTINGS, TOPOLOGIES

COMPILED = [
    (topology, case)
    for topology in TOPOLOGIES
    for case in tpu_operations.CASES | (tpu_operations.ODD if topology == TOPOLOGIES[0] else {})
]


@pytest.fixture(scope="module")
def reports():
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.pallas_kernels.tpu_operations", *TOPOLOGIES],
        env={**os.environ, **SETTINGS, "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = map(json.loads, done.stdout.splitlines())
    return {(line["topology"], line["case"]): line for line in lines}


@pytest.mark.parametrize(("topology", "case"), COMPILED)
def test_compiles_in_place(reports, topology, case):
    report = reports[topology, case]
    assert report["kernels"] == {"ragged_attention": 1, "ring_write": 1}
    assert report["aliased"] >= report["pages"]
    assert not report["copies"]
    assert report["temporaries"] < 0.01 * report["pages"]


def test_a_copy_would_be_found():
    text = """
  %p = bf16[4,2,64,128]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %copy.1 = bf16[4,2,64,128]{3,1,2,0:T(8,128)(2,1)S(1)} copy(%p), metadata={op_name="a"}
  %start = (bf16[4,64,2,128]{3,2,1,0}, bf16[4,64,2,128]{3,2,1,0}, u32[]{:S(2)}) copy-start(%p)
  %small = bf16[4,2,128]{2,1,0} copy(%q)
"""
    found = tpu_operations.copies_of((4, 2, 64, 128), text)
    assert found == ["copy [4,2,64,128]", "copy-start [4,64,2,128]"]
