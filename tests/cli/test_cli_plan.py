"""jaxinfer plan: rows, tables, errors, a compilation, a picture."""

import json
import re

import pytest

from jaxinfer import roofline
from jaxinfer.models import presets
from jaxinfer.roofline import Mesh


def test_rows_are_the_rooflines(run):
    found = run(
        "plan", "llama-3.1-8b", "--chip=h100", "--batch=64,1", "--context=1024", "--json"
    ).json
    config, chip = presets.find("llama-3.1-8b"), roofline.CHIPS["h100"]
    assert [row["batch"] for row in found["rows"]] == [64, 1]
    for row in found["rows"]:
        step = roofline.decode(config, chip, row["batch"], 1024)
        assert row["latency_s"] == step.latency_s
        assert row["throughput_tok_s"] == pytest.approx(row["batch"] / step.latency_s)
        assert row["ttft_s"] == roofline.prefill(config, chip, row["batch"], 1024).latency_s
        assert row["limited_by"] == "memory"
        assert row["fits"] is True
        assert row["memory_bytes"] == (
            row["weight_bytes"] + row["cache_bytes"] + row["workspace_bytes"]
        )
        naive = roofline.lecture(config, chip, row["batch"], 1024)
        assert row["lecture"]["latency_s"] == naive.latency_s
    assert found["parameters"] == 8_030_261_248
    assert found["kv_bytes_per_token"] == 131072
    assert found["mesh"] == {"data": 1, "model": 1}


def test_the_scaling_books_example(run):
    argv = ["--topology=v5e:2x4", "--quantize=int8", "--kv_dtype=int8", "--batch=32"]
    found = run("plan", "llama-3.1-70b", *argv, "--context=8192", "--json").json
    (row,) = found["rows"]
    assert row["latency_s"] == pytest.approx(17e-3, rel=0.04)
    assert found["mesh"] == {"data": 1, "model": 8}


def test_the_tables(run):
    argv = ["plan", "llama-3.1-70b", "--topology=h100:2", "--batch=1,64", "--context=8192"]
    found, ran = run(*argv, "--json").json, run(*argv, "--what_if")
    assert ran.code == 0
    assert ran.err == ""
    lines = ran.out.splitlines()
    assert max(map(len, lines)) <= 120
    assert any(line.startswith("mesh") and "data=1,model=2 (proposed)" in line for line in lines)
    for row in found["rows"]:
        (line,) = (x for x in lines if re.match(rf" *{row['batch']} ", x))
        assert ("yes" if row["fits"] else "no") in line.split()
        assert f"{row['latency_s'] * 1e3:.2f} ms" in line
    missing = found["rows"][1]["missing_bytes"]
    assert missing > 0
    assert (
        f"Batch 64 does not fit: it needs {found['rows'][1]['memory_bytes'] / 1e9:.1f} GB"
        in ran.out
    )
    assert f"{missing / 1e9:.1f} GB more than there is" in ran.out
    assert found["remedies"][0] in ran.out
    assert "two layers share a cache" in ran.out
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" in ran.out


def test_a_folder_and_the_shipped_model(run, folder):
    found = run("plan", folder, "--chip=t4", "--batch=2", "--context=128", "--json").json
    info = run("info", folder, "--dtype=bfloat16", "--json").json
    assert found["parameters"] == info["parameters"]
    assert found["rows"][0]["weight_bytes"] == info["bytes"]
    shipped = run("plan", "--chip=t4", "--batch=2", "--context=128", "--json").json
    assert shipped["model"] == "pico-20m"


def test_a_mesh_of_ones_own(run):
    argv = ["plan", "qwen3-8b", "--topology=v6e:2x2", "--batch=8", "--json"]
    found = run(*argv, "--mesh=data=2,model=2").json
    assert found["mesh"] == {"data": 2, "model": 2}
    assert found["mesh_proposed"] is False
    config, chip = presets.find("qwen3-8b"), roofline.CHIPS["v6e"]
    step = roofline.decode(config, chip, 8, 2048, mesh=Mesh(2, 2))
    assert found["rows"][0]["latency_s"] == step.latency_s


def test_this_machine_measured(run):
    argv = ["--chip=here", "--dtype=float32", "--kv_dtype=float32", "--batch=1", "--context=64"]
    found = run("plan", *argv, "--json").json
    assert found["source"] == "measured here"
    assert found["bandwidth"] > 1e9
    assert found["rows"][0]["latency_s"] > 1e-4


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["llama-3.1-8b"],
            "needs one of --chip (like v5e) and --topology (like v5e:2x4), got neither",
        ),
        (["llama-3.1-8b", "--chip=v5e", "--topology=v5e:2x2"], "got both"),
        (["llama-3.1-8b", "--chip=h300"], "one of h100, h200"),
        (["llama-3.1-8b", "--topology=v5e"], "like v5e:2x4"),
        (["lama-3.1-8b", "--chip=v5e"], "did you mean llama-3.1-8b"),
        (["zzz", "--chip=v5e"], "no known model is called 'zzz'; llama-2-7b, "),
        (["no/such folder/x", "--chip=v5e"], "no folder 'no/such folder/x'"),
        (["qwen3-8b", "--chip=v5e", "--batch=0"], "--batch=0: needs positive integers"),
        (["qwen3-8b", "--chip=v5e", "--batch=1,x"], "needs positive integers"),
        (["qwen3-8b", "--chip=v5e", "--prompt=9000"], "--prompt from 1 to --context"),
        (["qwen3-8b", "--chip=v5e", "--context=0"], "--context >= 1"),
        (["qwen3-8b", "--topology=v5e:2x2", "--mesh=model=2"], "is for 2 devices"),
        (["qwen3-8b", "--topology=v5e:1x3", "--mesh=model=3"], "tensor parallelism over 3"),
        (["qwen3-8b", "--topology=v5e:2x2", "--mesh=rows=2"], "mesh axes need"),
        (["qwen3-8b", "--chip=v5e", "--plot=x.gif"], "ends in .png"),
        (["qwen3-8b", "--chip=h100", "--compile"], "needs a TPU"),
        (["qwen3-8b", "--topology=v5e:6", "--compile"], "the shape of 6 v5e chips"),
        (["qwen3-8b", "--chip=v5e", "--quantize=fp8", "--compile"], "--compile needs weights"),
        (["qwen3-8b", "--chip=v5e", "--kv_dtype=float32", "--compile"], "--kv_dtype other than"),
    ],
)
def test_errors(run, argv, words):
    ran = run("plan", *argv)
    assert ran.code == 1
    assert ran.out == ""
    assert words in ran.err
    assert re.fullmatch(r"jaxinfer: [^\n]+\n", ran.err)


def test_a_hub_id_fetches_the_description_alone(run, folder, tmp_path, monkeypatch):
    asked = []

    def snapshot(name, *, revision, allow_patterns, ignore_patterns):
        asked.append((name, allow_patterns))
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    found = run("plan", "org/name", "--chip=l4", "--batch=1", "--context=64", "--json").json
    assert asked == [("org/name", ["config.json", "jaxinfer.json"])]
    assert found["model"] == "org/name"


def test_compiling(run, folder):
    """Four query heads on four chips: a head each, with half of the key-value heads repeated."""
    argv = ["--topology=v5e:2x2", "--mesh=model=4", "--batch=1", "--context=256"]
    ran = run("plan", folder, *argv, "--compile", "--json")
    found = ran.json["compile"]
    assert found["mesh"] == {"data": 1, "model": 4}
    assert ran.err == ""
    assert found["fits"] is True
    assert found["topology"] == "v5e:2x2"
    step, prompt = found["programs"]
    assert (step["program"], prompt["program"]) == ("decode", "prefill")
    assert step["collectives"]["all-reduce"] > 0
    assert step["arguments"] > 0


def test_a_picture(run, tmp_path):
    path = tmp_path / "roofline.png"
    ran = run("plan", "gemma-3-4b", "--topology=v6e:4", "--batch=1,8", f"--plot={path}", "--json")
    assert json.loads(ran.out)["chips"] == 4
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert str(path) in ran.err
