"""The benchmark of skinny products runs, and says what it ran."""

import json

import pytest

from pallas_kernels.skinny_matmul import bench
from pallas_kernels.skinny_matmul.cases import of_model


@pytest.mark.parametrize("layers", [False, True])
def test_it_prints_a_line_a_measurement(monkeypatch, capsys, layers):
    cases = {case.name: case for case in of_model("tiny", 128, 2, 1, 64, 128, 64)}
    monkeypatch.setattr(bench, "CASES", cases)
    monkeypatch.setattr(bench, "TOTAL", 1)
    monkeypatch.setattr(bench, "SECONDS", 1e-4)
    runs = bench.runs_of(["xla", "mosaic_gpu"], [])
    bench.measure("tiny", "int4", 2, runs, layers)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    measured = [line for line in lines if line["backend"] == "xla"]
    refused = [line for line in lines if line["backend"] == "mosaic_gpu"]
    names = ["tiny/layer"] if layers else list(cases)
    assert [line["case"] for line in measured] == names
    for line in measured:
        assert line["us"] > 0
        assert line["rows"] == 2
    # 128 columns hold one group: the kernel says why not and the others go on
    assert len(refused) == len(names)
    assert all("columns" in line["refused"] for line in refused)


def test_bytes_are_those_of_values_and_scales():
    weight = bench.weight_of("int4", 16, 256, 0)
    assert bench.bytes_of(weight) == 16 * 128 + 16 * 2 * 2


def test_a_sweep_tries_all_forms():
    blocks = [
        labels["blocks"] for labels, _ in bench.runs_of([], [*bench.SWEEP, *bench.SWEEP_WIDE])
    ]
    assert {entry.get("whole") for entry in blocks} == {True, False, None}
    assert len({json.dumps(entry) for entry in blocks}) == len(blocks)
