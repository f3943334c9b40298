"""Pictures and tables of made-up results."""

import importlib.util

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from jaxinfer.bench import plots, tables

CEILINGS = {
    "copy_bytes_per_s": 4.1e12,
    "sum_bytes_per_s": 4.1e12,
    "matvec_bytes_per_s": 4.2e12,
    "read_bytes_per_s": 4.2e12,
    "matmul_flop_per_s": {"bfloat16": 7e14, "float32": 5e13, "int8": 1.3e15},
}


def row(batch, quantize=None, **more):
    step, moved = 4.0 + batch / 40, 1.5e10 + batch * 1.3e8
    step = step / 2 if quantize else step
    found = {
        "model": "llama-3.1-8b",
        "weights": "random",
        "dtype": "bfloat16",
        "quantize": quantize,
        "kv_dtype": "bfloat16",
        "batch": batch,
        "context": 1024,
        "step_ms": step,
        "spread": 0.01,
        "tokens_per_s": batch / step * 1e3,
        "bytes": moved,
        "bytes_per_s": moved / step * 1e3,
        "flops": 1.6e10 * batch,
        "flop_per_s": 1.6e13 * batch / step,
        "intensity": 1.6e10 * batch / moved,
        "of_read_ceiling": 0.8,
        "of_matmul_ceiling": 0.1,
        "floor_ms": 0.8 * step,
        "of_floor": 0.8,
    }
    return found | more


def document(rows, kind="bench decode"):
    hardware = {"device": "NVIDIA H200"}
    return {"kind": kind, "hardware": hardware, "ceilings": CEILINGS, "rows": rows}


def test_a_picture_shows_the_points(tmp_path):
    one, more = tmp_path / "one.png", tmp_path / "more.png"
    plots.draw(document([row(1)]), one)
    rows = [row(batch, method) for method in (None, "int8") for batch in (1, 16, 256)]
    plots.draw(document([*rows, {"batch": 512, "error": "out of memory: x"}]), more)
    first, second = (matplotlib.image.imread(path)[..., :3] for path in (one, more))
    assert first.shape == second.shape
    assert first.shape[1] > 1000

    def colored(picture, color):
        wanted = np.asarray([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return (np.abs(picture - wanted).max(axis=-1) < 0.02).sum()

    assert colored(first, plots.COLORS[0]) > 100
    assert colored(first, plots.COLORS[1]) == 0
    assert colored(second, plots.COLORS[0]) > colored(first, plots.COLORS[0])
    assert colored(second, plots.COLORS[1]) > 100


def test_prefill_has_a_picture(tmp_path):
    rows = [row(batch, ttft_ms=20.0 * batch) for batch in (1, 4)]
    for one in rows:
        del one["step_ms"]
    plots.draw(document(rows, "bench prefill"), tmp_path / "p.svg")
    assert "time to first token (ms)" in (tmp_path / "p.svg").read_text()


def test_what_cannot_be_drawn_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="got none"):
        plots.draw(document([{"error": "x"}]), tmp_path / "p.png")
    with pytest.raises(ValueError, match=r"ends in \.png"):
        plots.check(tmp_path / "p.txt")
    with pytest.raises(ValueError, match="a folder that is there"):
        plots.check(tmp_path / "no" / "p.png")
    plots.check(tmp_path / "p.png")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'jaxinfer\[plot\]'"):
        plots.check(tmp_path / "p.png")


def test_numbers_with_units():
    assert tables.si(3.473e12, "B/s") == "3.47 TB/s"
    assert tables.si(691e12, "FLOP/s") == "691 TFLOP/s"
    assert tables.si(25.34e9, "B/s") == "25.3 GB/s"
    assert tables.si(12, "B") == "12.0 B"
    assert tables.ceilings(CEILINGS).endswith("float32 50.0 TFLOP/s, int8 1.30 Pop/s")


def render(table):
    console = Console(width=220)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_a_table_has_a_line_a_row_and_says_what_failed():
    rows = [
        row(1, wall_ms=5.0, host_overhead=1.25),
        row(64, "int8"),
        {"quantize": None, "dtype": "bfloat16", "kv_dtype": None, "batch": 512, "context": 1024}
        | {"error": "out of memory: tried to allocate"},
    ]
    lines = render(tables.results("decode", rows)).splitlines()
    assert sum("1,024" in line for line in lines) == 3
    assert any("x1.25" in line and "bfloat16" in line for line in lines)
    assert any(line.split()[:4] == ["int8", "bfloat16", "64", "1,024"] for line in lines)
    assert any("512" in line and "out of memory" in line for line in lines)


def test_kernels_without_bytes_leave_them_out():
    known = {"name": "gemm", "scope": "layer/mlp", "share": 0.5, "us_per_step": 12.5}
    known |= {"launches_per_step": 32.0, "bytes": 10**6, "bytes_per_s": 3e12}
    unknown = known | {"name": "copy", "bytes": None, "bytes_per_s": None, "of_read_ceiling": None}
    text = render(tables.kernels({"kernels": [known | {"of_read_ceiling": 0.75}, unknown]}))
    gemm, copy = (line for line in text.splitlines() if "layer/mlp" in line)
    assert gemm.split()[-3:] == ["3.00", "TB/s", "75%"]
    assert copy.split()[-1] == "50.0%"
