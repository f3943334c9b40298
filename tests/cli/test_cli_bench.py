"""jaxinfer bench: what each of the four writes, how a sweep goes on, what it refuses."""

import json
from pathlib import Path

import pytest

from jaxinfer.bench import ceilings, decode, environment, history, startup
from jaxinfer.cli.bench.lists import methods, sizes

HEAD = {"kind", "date", "commit", "command", "hardware", "versions", "ceilings", "rows"}
ABOUT = {"model", "weights", "dtype", "quantize", "kv_dtype"}
RATES = {
    "spread",
    "repeats",
    "tokens_per_s",
    "bytes",
    "bytes_per_s",
    "flops",
    "flop_per_s",
    "intensity",
    "of_read_ceiling",
    "of_matmul_ceiling",
    "floor_ms",
    "of_floor",
    "limited_by",
    "first_call_s",
}


@pytest.fixture(autouse=True)
def small_ceilings(monkeypatch):
    monkeypatch.setitem(ceilings.SIZES, "cpu", ceilings.Sizes(1 << 20, 64, "float32"))


def test_decode_sweeps_over_everything(run, folder):
    command = ("bench", "decode", f"--model={folder}", "--repeats=1", "--device_only", "--steps=4")
    ran = run(*command, "--batch=1,2", "--context=16,32", "--quantize=none,int8", "--json")
    found = ran.json
    assert set(found) == HEAD
    assert found["kind"] == "bench decode"
    assert found["command"].startswith("jaxinfer bench decode ")
    assert "--batch=1,2" in found["command"]
    assert "--device_only" in found["command"]
    assert "--json" not in found["command"]  # it changes nothing that is measured
    assert found["ceilings"]["read_bytes_per_s"] > 0
    assert found["hardware"]["platform"] == "cpu"
    shape = {"batch", "context", "mean_context", "steps", "step_ms"}
    assert all(set(row) == ABOUT | RATES | shape for row in found["rows"])
    rows = [(row["quantize"], row["context"], row["batch"]) for row in found["rows"]]
    assert rows == [(m, c, b) for m in (None, "int8") for c in (16, 32) for b in (1, 2)]
    assert {row["model"] for row in found["rows"]} == {Path(folder).name}
    assert "int8: batch 2, context 32" in ran.err


def test_the_table_is_for_people_and_the_last_line_for_programs(run, folder, tmp_path):
    out, plot = tmp_path / "kept", tmp_path / "plot.png"
    ran = run(
        "bench",
        "decode",
        f"--model={folder}",
        "--repeats=1",
        "--context=64",
        "--steps=8",
        "--profile",
        f"--plot={plot}",
        f"--output={out}",
    )
    assert ran.code == 0, ran.err
    *lines, last = ran.out.splitlines()
    found = json.loads(last)
    (row,) = found["rows"]
    assert row["host_overhead"] == pytest.approx(row["wall_ms"] / row["step_ms"])
    assert lines[0] == f"bench decode: {Path(folder).name} on {found['hardware']['device']}"
    assert lines[1].startswith("ceilings measured here: copy ")
    assert any("ms/step" in line and "of floor" in line for line in lines)
    assert any("launches/step" in line for line in lines)
    assert len(row["kernels"]) > 5
    assert sum(kernel["share"] for kernel in row["kernels"]) == pytest.approx(1, abs=0.1)
    (kept,) = out.glob("decode-*.json")
    assert json.loads(kept.read_text()) == found
    (line,) = history.read(out / history.HISTORY)
    assert line["date"] == found["date"]
    assert list(out.glob("trace-*/none/batch-1-context-64/**/*.xplane.pb"))
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_prefill(run, folder):
    command = ("bench", "prefill", f"--model={folder}", "--repeats=1", "--json", "--batch=2")
    (row,) = run(*command, "--context=32", "--chunk=16").json["rows"]
    assert set(row) == ABOUT | RATES | {"batch", "context", "chunk", "ttft_ms"}
    assert (row["batch"], row["context"], row["chunk"]) == (2, 32, 16)


def test_throughput(run, folder):
    sizes = ("--requests=6", "--input_tokens=20", "--output_tokens=8", "--max_slots=3", "--seed=4")
    found = run("bench", "throughput", f"--model={folder}", *sizes, "--json").json
    assert set(found) == HEAD
    (row,) = found["rows"]
    assert (row["requests"], row["slots"]) == (6, 3)
    assert set(row) == ABOUT | {
        "requests",
        "slots",
        "input_tokens",
        "output_tokens",
        "seconds",
        "spread",
        "repeats",
        "output_tokens_per_s",
        "total_tokens_per_s",
        "requests_per_s",
        "floor_s",
        "of_floor",
        "first_run_s",
        "programs",
    }


def test_startup_in_fresh_processes(run, folder):
    found = run("bench", "startup", f"--model={folder}", "--weights=random", "--repeats=1").out
    found = json.loads(found.splitlines()[-1])
    assert set(found) == HEAD
    assert found["ceilings"] is None
    cold, warm = found["rows"]
    assert (cold["cache"], warm["cache"]) == ("cold", "warm")
    parts = ("interpreter", "import", "device", "load", "trace", "compile", "run")
    for row in (cold, warm):
        assert all(row[f"{part}_s"] >= 0 for part in parts)
        total = sum(row[f"{part}_s"] for part in parts)
        assert row["first_token_s"] == pytest.approx(total, abs=0.01)
        assert 0 < row["next_first_token_s"] < row["first_token_s"]
    assert cold["compile_s"] > 0


def test_a_process_that_fails_says_why(monkeypatch, folder):
    monkeypatch.setattr(startup, "CODE", "raise SystemExit('no such thing')")
    with pytest.raises(RuntimeError, match="no first token: no such thing"):
        startup.run(startup.Case(str(folder)), repeats=1)


def test_a_row_out_of_memory_does_not_end_the_sweep(run, folder, monkeypatch):
    whole = decode.run

    def scarce(held, case, *rest, **options):
        if case.batch == 2:
            raise RuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes"
            )
        return whole(held, case, *rest, **options)

    monkeypatch.setattr(decode, "run", scarce)
    command = ("bench", "decode", f"--model={folder}", "--repeats=1", "--device_only")
    ran = run(*command, "--batch=1,2,3", "--context=16")
    *lines, last = ran.out.splitlines()
    first, failed, third = json.loads(last)["rows"]
    assert (first["batch"], third["batch"]) == (1, 3)
    assert first["step_ms"] > 0
    assert third["step_ms"] > 0
    assert failed["error"].startswith("out of memory: RESOURCE_EXHAUSTED")
    assert set(failed) == ABOUT | {"batch", "context", "error"}
    assert any(line.split()[:4] == ["float32", "float32", "2", "16"] for line in lines)


def test_other_failures_end_it(run, folder, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("the device is on fire")

    monkeypatch.setattr(decode, "run", broken)
    ran = run("bench", "decode", f"--model={folder}", "--context=16")
    assert ran.code == 1
    assert ran.err.splitlines()[-1] == "jaxinfer: the device is on fire"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", [1]),
        ("4, 2,8", [4, 2, 8]),
        ("1,2,4,...,64", [1, 2, 4, 8, 16, 32, 64]),
        ("1,2,...,8", [1, 2, 4, 8]),
        ("16,32,48,...,96", [16, 32, 48, 64, 80, 96]),
        ("1,2,3,...,5,100", [1, 2, 3, 4, 5, 100]),
        ("10,15,...,30", [10, 15, 20, 25, 30]),
    ],
)
def test_sizes(text, expected):
    assert sizes("batch", text) == expected


@pytest.mark.parametrize("text", ["", "0", "1,,2", "-1", "1.5", "x", "...,4", "1,...,4", "1,2,..."])
def test_sizes_that_cannot_be(text):
    with pytest.raises(ValueError, match="--batch needs"):
        sizes("batch", text)


def test_methods():
    assert methods(None) == [None]
    assert methods("int8,none") == ["int8", None]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["decode", "--batch=1,2,...,7"], "that the row reaches"),
        (["decode", "--batch=two"], "positive integers separated by commas"),
        (["decode", "--context=100000"], "1,024 positions, got a context of 100,000"),
        (["decode", "--context=1"], "context >= 2"),
        (["decode", "--steps=0"], "steps >= 1"),
        (["decode", "--repeats=0"], "--repeats needs to be at least 1"),
        (["decode", "--quantize=int9"], "methods among none, int8, int4, fp8, w8a8, llm_int8"),
        (["decode", "--plot=x.txt"], "ends in .png"),
        (["decode", "--plot=no/such/folder/x.png"], "a folder that is there"),
        (["decode", "--model=llama-3.1-8b"], "add --weights=random"),
        (["decode", "--model=no/such/folder/at all"], "no folder"),
        (["prefill", "--chunk=0"], "chunk of at least 1"),
        (["throughput", "--vary=1"], "vary < 1"),
        (["throughput", "--requests=0"], "at least 1"),
        (["startup", "--prompt_tokens=0"], "--prompt_tokens needs to be at least 1"),
        (["startup", "--prompt_tokens=2000"], "1,024 positions"),
        (["startup", "--weights=real"], "--weights=real"),
    ],
)
def test_a_wrong_value_is_found_before_anything_is_measured(run, monkeypatch, argv, words):
    def measured(*_, **__):
        raise AssertionError("nothing may be measured")

    monkeypatch.setattr(ceilings, "measure_ceilings", measured)
    monkeypatch.setattr(environment, "hardware", measured)
    ran = run("bench", *argv)
    assert ran.code == 1
    assert ran.out == ""
    assert words in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("argv", [[], ["decod"], ["--batch=1"]])
def test_bench_alone_names_the_four(run, argv):
    ran = run("bench", *argv)
    assert ran.code == 2
    assert "bench needs one of decode, prefill, throughput, startup" in ran.err
    page = run("bench", "--help")
    assert page.code == 0
    assert all(f"bench {name}" in page.out for name in ("decode", "prefill", "startup"))
