"""jaxinfer quantize: every method to a checkpoint that every command loads, and what it refuses."""

from pathlib import Path

import pytest

from jaxinfer.cli import main
from jaxinfer.quantize import CALIBRATED, METHODS

SMALL = ("--window=64", "--calibration_tokens=512", "--group_size=32")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(Path(__file__).read_text(), encoding="utf-8")
    return path


def flags(method, text) -> tuple:
    calibration = (f"--calibration_file={text}", *SMALL[:2]) if method in CALIBRATED else ()
    group = SMALL[2:] if method in ("int4", "awq", "gptq") else ()
    return (f"--method={method}", *calibration, *group)


@pytest.mark.parametrize("method", [*METHODS, *CALIBRATED])
def test_every_method_writes_a_smaller_checkpoint_that_loads(run, folder, text, tmp_path, method):
    out = tmp_path / "out"
    found = run("quantize", folder, out, *flags(method, text), "--json").json
    assert found["quantize"] == method
    assert found["folder"] == str(out)
    assert found["bytes"] < 0.45 * run("info", folder, "--dtype=float32", "--json").json["bytes"]
    assert run("info", out, "--json").json["bytes"] == found["bytes"]
    said = run("generate", f"--model={out}", "a", "--max_new_tokens=4", "--json").json
    assert len(said["token_ids"]) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_other_commands_load_it_too(run, folder, text, tmp_path):
    out = tmp_path / "out"
    assert run("quantize", folder, out, *flags("gptq", text), "--zero_points").code == 0
    model = f"--model={out}"
    assert run("score", model, "a b c", "--json").code == 0
    scored = run("perplexity", text, model, "--window=64", "--json").json
    few = ("--prompts=0", "--window=64", "--json")
    compared = run("quality", text, f"--model={folder}", f"--candidate=model={out}", *few).json
    assert compared["candidate"]["perplexity"] == pytest.approx(scored["perplexity"], rel=1e-4)
    assert compared["kl"]["mean"] > 0
    decoded = run("bench", "decode", model, "--batch=1", "--context=32", "--repeats=1", "--json")
    (row,) = decoded.json["rows"]
    assert row["quantize"] == "int4"


def test_outlier_columns_are_chosen_by_text_where_there_is_one(run, folder, text, tmp_path):
    by_text, by_weights = tmp_path / "text", tmp_path / "weights"
    calibration = (f"--calibration_file={text}", *SMALL[:2])
    assert run("quantize", folder, by_text, "--method=llm_int8", *calibration).code == 0
    assert run("quantize", folder, by_weights, "--method=llm_int8").code == 0
    sizes = [run("info", out, "--json").json["bytes"] for out in (by_text, by_weights)]
    assert sizes[0] != sizes[1]


def test_what_commands_load_they_can_also_round():
    """--quantize stands wherever --model names weights that are loaded."""
    for name, command in main.COMMANDS.items():
        known = set(command.flags().values)
        if "model" in known and name not in ("info", "quality", "quantize", "bench serve"):
            assert "quantize" in known, name


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), "needs --method, one of int8, int4"),
        (("--method=int3",), "int3"),
        (("--method=awq",), "--method=awq needs --calibration_file"),
        (("--method=int8", "--calibration_file={text}"), "which looks at weights alone"),
        (("--method=int8", "--bits=4"), "int8 needs 8 bits, got 4"),
        (("--method=gptq", "--bits=3", "--calibration_file={text}"), "4 or 8 bits, got 3"),
        (("--method=int4", "--group_size=12"), "multiple of 8"),
        (("--method=int4", "--group_size=64"), "whole groups of 64 columns, got 96"),
        (("--method=int8", "--group_size=64"), "a group needs four-bit weights"),
        (("--method=int8", "--zero_points"), "zero points need four-bit weights"),
        (("--method=int8", "--shared=tensor"), "only fp8 has a choice"),
        (("--method=awq", "--calibration_file=nowhere.txt"), "nowhere.txt"),
        (("--method=awq", "--calibration_file={text}", "--window=1"), "at least 2 tokens"),
        (("--method=awq", "--calibration_file={short}"), "tokens of text, got"),
        (("--method=int8", "--bits=many"), "bits"),
    ],
)
def test_mistakes_are_named_in_one_line_and_leave_nothing(
    run, folder, text, tmp_path, given, words
):
    short = tmp_path / "short.txt"
    short.write_text("few words")
    given = tuple(flag.format(text=text, short=short) for flag in given)
    ran = run("quantize", folder, tmp_path / "out", *given)
    assert ran.code == 1
    assert words in ran.err
    assert "Traceback" not in ran.err
    assert "jaxinfer: " in ran.err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_what_is_there_stays_unless_asked(run, folder, tmp_path):
    out = tmp_path / "out"
    assert run("quantize", folder, "--method=int8").err.strip().endswith("got none")
    assert run("quantize", folder, out, "--method=int8").code == 0
    again = run("quantize", folder, out, "--method=fp8")
    assert again.code == 1
    assert "--overwrite" in again.err
    assert run("quantize", folder, out, "--method=fp8", "--overwrite").code == 0
    assert run("info", out, "--json").json["quantize"] == "fp8"
    twice = run("quantize", out, tmp_path / "twice", "--method=int8")
    assert twice.code == 1
    assert "Hugging Face layout, got an Orbax checkpoint" in twice.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_calibration_needs_a_tokenizer(run, bare, text, tmp_path):
    ran = run("quantize", bare, tmp_path / "out", *flags("awq", text))
    assert ran.code == 1
    assert "tokenizer.json" in ran.err
    assert run("quantize", bare, tmp_path / "out", "--method=int8").code == 0
