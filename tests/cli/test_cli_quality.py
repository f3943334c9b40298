"""jaxinfer quality on a tiny checkpoint: numbers, table, picture, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest

FEW = ("--prompts=2", "--prompt_tokens=5", "--new_tokens=4", "--window=32")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "held_out.txt"
    path.write_text(Path(__file__).read_text()[:700], encoding="utf-8")
    return path


def test_equal_settings_are_indistinguishable(run, folder, text):
    found = run(
        "quality", text, f"--model={folder}", "--candidate=dtype=float32", *FEW, "--json"
    ).json
    assert found["verdict"] == "indistinguishable"
    assert found["kl"]["max"] == 0
    assert found["top1_agreement"] == 1
    perplexity = run("perplexity", text, f"--model={folder}", "--window=32", "--json").json
    for side in ("reference", "candidate"):
        assert found[side]["perplexity"] == pytest.approx(perplexity["perplexity"], rel=1e-4)
        assert found[side]["bits_per_byte"] == pytest.approx(perplexity["bits_per_byte"], rel=1e-4)
    assert (found["tokens"], found["bytes"]) == (perplexity["tokens"], perplexity["bytes"])


def test_rounded_weights_are_smaller_and_differ(run, folder, text, tmp_path):
    ran = run(
        "quality",
        text,
        f"--model={folder}",
        "--reference=dtype=float32",
        "--candidate=dtype=bfloat16,quantize=int8",
        *FEW,
        "--json",
        f"--plot={tmp_path / 'kl.png'}",
    )
    found = ran.json
    assert found["candidate"]["weight_bytes"] < found["reference"]["weight_bytes"]
    assert found["candidate"]["setting"].endswith("dtype=bfloat16,quantize=int8")
    assert 0 < found["kl"]["mean"] <= found["kl"]["max"]
    assert found["thresholds"][0]["name"] == "indistinguishable"
    assert (tmp_path / "kl.png").read_bytes().startswith(b"\x89PNG")


def test_a_narrow_cache_is_half_the_size_and_differs(run, folder, text):
    found = run(
        "quality",
        text,
        f"--model={folder}",
        "--reference=kv_dtype=bfloat16",
        "--candidate=kv_dtype=fp8",
        *FEW,
        "--json",
    ).json
    sides = [found[side]["kv_bytes_per_token"] for side in ("reference", "candidate")]
    assert sides == [2 * 2 * 2 * 2 * 16, 2 * 2 * 2 * (16 + 4)]
    assert 0 < found["kl"]["mean"] < 0.1
    perplexity = run(
        "perplexity", text, f"--model={folder}", "--kv_dtype=fp8", "--window=32", "--json"
    ).json["perplexity"]
    assert found["candidate"]["perplexity"] == pytest.approx(perplexity, rel=1e-4)
    assert found["reference"]["perplexity"] != pytest.approx(perplexity, rel=1e-6)


def test_a_table_with_a_verdict(run, folder, text):
    ran = run("quality", text, f"--model={folder}", "--candidate=quantize=int8", *FEW)
    assert ran.code == 0, ran.err
    for words in ("perplexity", "bits per byte", "top-1 agreement", "top-5 overlap", "Advice:"):
        assert words in ran.out


def test_several_candidates_stand_in_one_table_and_picture(run, folder, text, tmp_path):
    few = (*FEW, "--prompts=0", f"--model={folder}")
    settings = ("quantize=int8", "quantize=w8a8", "dtype=bfloat16")
    candidates = [f"--candidate={setting}" for setting in settings]
    picture = tmp_path / "sizes.png"
    found = run("quality", text, *few, *candidates, "--speed", "--json", f"--plot={picture}").json
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = found["candidates"]
    assert len(rows) == 3
    for row, setting in zip(rows, settings, strict=True):
        alone = run("quality", text, *few, f"--candidate={setting}", "--json").json
        assert row["candidate"]["setting"].endswith(setting)
        assert row["candidate"]["decode_tokens_per_s"] > 0
        for name in ("kl", "perplexity_rise", "top1_agreement", "verdict"):
            assert row[name] == alone[name]
    ran = run("quality", text, *few, *candidates)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    for setting, row in zip(settings, rows, strict=True):
        numbers, verdict = (line for line in lines if setting in line)
        assert f"{row['candidate']['perplexity']:.4f}" in numbers
        assert f"{row['top1_agreement']:.2%}" in numbers
        assert len(numbers.rstrip()) <= 80
        assert verdict == f"{setting}: {row['verdict']}"


def test_a_model_of_another_vocabulary_is_refused(run, folder, text, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = sorted(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    ran = run("quality", text, f"--model={folder}", f"--candidate=model={other}", *FEW)
    assert ran.code == 1
    assert "one tokenizer, got different ones" in ran.err
    ran = run("quality", text, f"--model={folder}", "--candidate=model=checkpoints/pico-2m-draft")
    assert ran.code == 1
    assert "one vocabulary, got 331 and " in ran.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "needs --file"),
        (("--file=nowhere.txt",), "needs --candidate"),
        (("--file=nowhere.txt", "--candidate=quantize=int8"), "nowhere.txt"),
        (("--file=x", "--candidate=quantize=int8", "--plot=nowhere/kl.png"), "got 'nowhere'"),
        (("--file={text}", "--candidate=kv_dtype=int4"), "one of float32, bfloat16, int8, fp8"),
        (("--file={text}", "--candidate=speed=2"), "with commas between, got 'speed=2'"),
        (("--file={text}", "--candidate=quantize=int8", "--window=9999"), "at most 256 positions"),
    ],
)
def test_mistakes_are_named(run, folder, text, flags, words):
    ran = run("quality", f"--model={folder}", *(flag.format(text=text) for flag in flags))
    assert ran.code == 1
    assert words in ran.err
    assert len(ran.err.splitlines()) == 1
