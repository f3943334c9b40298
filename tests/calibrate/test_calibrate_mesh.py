"""Calibrated weights on a mesh of fake CPU devices."""

import os
import subprocess
import sys
from pathlib import Path


def test_calibrated_on_one_device_served_by_two(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.calibrate.two_devices", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=os.environ
        | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout.endswith("two devices give what one does\n"), done.stderr[-2000:]
