"""The benchmark of decode attention: what it compares gives the same, and each line says what it is."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.ragged_attention import bench, mosaic_gpu_decode, ragged_attention
from pallas_kernels.ragged_attention.cases import DECODE, Case, places

TINY = Case("tiny, 2 rows", (64, 7), 64, N=4, K=2, H=64)


@pytest.fixture
def tiny(monkeypatch):
    for name, value in dict(TOTAL=1000, CACHES=2, SECONDS=0.001, DECODE=(TINY,)).items():
        monkeypatch.setattr(bench, name, value)


@pytest.mark.parametrize("kept", ["bfloat16", "int8"])
def test_prints_a_line_a_form(tiny, capsys, kept):
    bench.main(["--backends", "xla", "--kept", kept])
    first, line = map(json.loads, capsys.readouterr().out.splitlines())
    assert "device" in first
    assert (line["case"], line["kept"], line["backend"]) == (TINY.name, kept, "xla")
    assert line["microseconds"] > 0


def test_what_nothing_can_do_is_said(tiny):
    found = bench.line(TINY, "int8", dict(write="fused"), bench.fused)
    assert "scales" in found["unsupported"]


def test_two_steps_write_and_attend(rng):
    def drawn(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    q, new, cache = drawn(2, 4, 64), [drawn(2, 2, 64) for _ in "kv"], [drawn(2, 2, 64, 64)] * 2
    attend = bench.two_steps(lambda *x, **rules: ragged_attention(*x, **rules, backend="xla"))
    out, kept = jax.jit(lambda *x: attend(*x, **TINY.rules))(q, new, cache, None, *places(TINY))
    for row, slot in enumerate((63, 6)):
        for pages, x in zip(kept, new, strict=True):
            np.testing.assert_array_equal(pages[row, :, slot], x[row])
    again = ragged_attention(q, *kept, None, *places(TINY), **TINY.rules, backend="xla")
    np.testing.assert_allclose(out, again, rtol=1e-5, atol=1e-5)


def test_the_sweep_holds_what_the_kernel_takes():
    swept = [case for case in DECODE if case.name in bench.SWEPT]
    assert len(swept) == len(bench.SWEPT) == 8
    for case in swept:
        forms = bench.forms_of(case, ["mosaic_gpu"], write=True, sweep=True)
        assert len(forms) == 3 + 2 * len(bench.SPLITS)
        for blocks in bench.SPLITS:
            fitted = mosaic_gpu_decode.fitting(blocks, case.H, case.N // case.K)
            assert fitted.stages >= 2
            assert fitted.warpgroups >= 1
