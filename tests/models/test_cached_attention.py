"""Attention over the cache shard by shard gives what the whole of it gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.models import four_devices


def test_shards_know_what_they_hold(seed):
    root = Path(__file__).resolve().parents[2]
    flags = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.four_devices", str(seed)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    reports = {report["case"]: report for report in map(json.loads, done.stdout.splitlines())}
    assert set(reports) == set(four_devices.CASES)
    assert all(report["difference"] < 1e-5 for report in reports.values()), reports
    assert all(report["placed"] for report in reports.values()), reports
