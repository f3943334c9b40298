"""The ceilings' programs do what is counted, and give a chip for the roofline."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.bench import ceilings, environment
from jaxinfer.bench.ceilings import Ceilings, Sizes, measure_ceilings


def test_the_programs_copy_add_and_multiply(rng):
    x = rng.normal(size=(6, 8)).astype(np.float32)
    assert np.array_equal(ceilings._copy(jnp.zeros((6, 8)), x), x)
    assert float(ceilings._sum(x)) == pytest.approx(x.sum(), abs=1e-4)
    w = rng.normal(size=(5, 8)).astype(np.float32)
    product = ceilings._product(x, w, jnp.dtype("float32"))
    np.testing.assert_allclose(product, x @ w.T, atol=1e-5)
    narrow = rng.integers(-127, 128, (4, 8)).astype(np.int8)
    exact = narrow.astype(np.int64) @ narrow.astype(np.int64).T
    assert np.array_equal(ceilings._product(narrow, narrow, jnp.dtype("int32")), exact)


def test_every_ceiling_is_measured_and_named():
    seen = []
    found = measure_ceilings(Sizes(1 << 20, 64, "float32"), repeats=2, progress=seen.append)
    assert seen == ["copy", "read", "matmul bfloat16", "matmul float32", "matmul int8"]
    assert min(found.copy, found.sum, found.matvec, *found.matmul.values()) > 0
    assert set(found.matmul) == {"bfloat16", "float32", "int8"}
    assert found.read == max(found.sum, found.matvec)


def test_rates_follow_from_the_time(monkeypatch):
    monkeypatch.setattr(ceilings, "_seconds", lambda *_: 2.0)
    monkeypatch.setattr(ceilings, "_copy_seconds", lambda *_: 0.5)
    found = measure_ceilings(Sizes(1 << 20, 64, "float32"))
    assert found.copy == 2 * (1 << 20) / 0.5  # read once and written once
    assert found.sum == found.matvec == (1 << 20) / 2
    assert found.matmul["int8"] == 2 * 64**3 / 2
    assert found.describe()["matmul_flop_per_s"] == found.matmul
    assert found.describe()["read_bytes_per_s"] == found.read


def test_the_machine_is_a_chip():
    found = Ceilings(copy=3e12, sum=4e12, matvec=4.5e12, matmul={"bfloat16": 7e14, "float32": 5e13})
    chip = found.chip()
    assert chip.bandwidth == 4.5e12
    assert chip.peak("bfloat16") == chip.peak("float16") == chip.peak("int8") == 7e14
    assert chip.peak("float32") == 5e13
    assert chip.name == environment.hardware()["device"]
    assert chip.memory_bytes > 1 << 28
