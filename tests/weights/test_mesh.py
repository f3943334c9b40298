"""Weights on meshes of eight fake CPU devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxinfer import sharding, weights
from tests.weights import checkpoints


def test_eight_devices(tmp_path):
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "tests.weights.eight_devices", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.endswith("every parameter is in place\n"), done.stderr[-2000:]


def test_a_mesh_that_does_not_fit_the_model(tmp_path):
    """Refused before a weight is read."""
    checkpoints.fresh(tmp_path, num_attention_heads=4, num_key_value_heads=2, intermediate_size=111)
    (tmp_path / "model.safetensors").unlink()
    mesh = jax.sharding.AbstractMesh((1, 2), sharding.AXES)
    with pytest.raises(ValueError, match="d_ff"):
        weights.load(tmp_path, mesh=mesh)
