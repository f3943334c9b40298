"""Attention over the cache, whole, shard by shard and with the write in one operation: the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer import cache, ragged
from jaxinfer.models import cached_attention
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


@pytest.mark.parametrize("paged", [False, True])
def test_one_operation_writes_and_attends(rng, monkeypatch, paged):
    """Where the kernels' room offers to do both at once it is asked, and gives the same."""
    B, K, H, ring = 3, 2, 16, cache.Ring(32, 20)
    before, counts = jnp.asarray([40, 5, 0]), jnp.asarray([1, 0, 1])
    batch = ragged.rectangle(jnp.zeros((B, 1), jnp.int32), counts, before)
    size, table = 32, None
    if paged:
        size, table = 16, jnp.asarray(rng.permutation(2 * B).reshape(B, 2), jnp.int32)
    shape = (B * 32 // size, K, size, H)
    held = cache.Pages(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in "kv"))
    q, k, v = (jnp.asarray(rng.normal(size=(B, n, H)), jnp.float32) for n in (4, K, K))
    asked = []

    def attend_and_write(*given, **rules):
        asked.append(rules["max_count"])
        return one_operation(*given, **rules)

    one_operation = cached_attention.attend_and_write
    monkeypatch.setattr(cached_attention, "attend_and_write", attend_and_write)
    found = []
    for inside in (False, True):
        monkeypatch.setattr(cached_attention, "writes_inside", lambda *_, i=inside, **__: i)
        out, pages = cached_attention.attend(
            q, k, v, None, held, ring, table, batch, scale=0.25, softcap=None
        )
        found.append((np.asarray(out)[[0, 2]], np.asarray(pages.k), np.asarray(pages.v)))
    assert asked == [1]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    assert (found[1][1] != np.asarray(held.k)).any()
