"""jaxinfer convert: there and back, and what it refuses."""

import json

import numpy as np
from safetensors.numpy import load_file


def greedy(run, folder):
    return run(
        "generate", f"--model={folder}", "hello", "--temperature=0", "--max_new_tokens=10", "--json"
    ).json


def test_there_and_back_is_the_same_checkpoint(run, folder, tmp_path):
    there, back = tmp_path / "orbax", tmp_path / "back"
    assert run("convert", folder, there, "--json").json["layout"] == "orbax"
    assert (
        run("info", there, "--json").json["parameters"]
        == run("info", folder, "--json").json["parameters"]
    )
    assert run("convert", f"--model={there}", f"--output={back}").code == 0
    before, after = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype
        np.testing.assert_array_equal(value, after[name])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (back / name).read_bytes()
    expected = greedy(run, folder)
    for other in (there, back):
        found = greedy(run, other)
        assert found["token_ids"] == expected["token_ids"]
        assert found["text"] == expected["text"]


def test_dtype_and_quantization(run, folder, tmp_path):
    narrow, rounded = tmp_path / "narrow", tmp_path / "rounded"
    assert run("convert", folder, narrow, "--to=huggingface", "--dtype=bfloat16").code == 0
    assert json.loads((narrow / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert list(run("info", narrow, "--json").json["stored_bytes"]) == ["BF16"]
    again = tmp_path / "again"  # without --dtype it stays as it is
    assert run("convert", narrow, again).code == 0
    assert list(run("info", again, "--json").json["stored_bytes"]) == ["bfloat16"]
    assert run("convert", folder, rounded, "--quantize=int8").code == 0
    assert run("info", rounded, "--json").json["quantize"] == "int8"
    assert len(greedy(run, rounded)["token_ids"]) > 0
    refused = run("convert", rounded, tmp_path / "no")
    assert refused.code == 1
    assert "unquantized" in refused.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "narrow", "rounded"]


def test_formats_of_other_projects(run, folder, tmp_path):
    ours, theirs, back = tmp_path / "ours", tmp_path / "theirs", tmp_path / "back"
    assert run("convert", folder, ours, "--quantize=int4").code == 0
    assert run("convert", folder, theirs, "--quantize=int4", "--format=gptq").code == 0
    described = json.loads((theirs / "config.json").read_text())["quantization_config"]
    assert described["quant_method"] == "gptq"
    assert run("info", theirs, "--json").json["quantize"].startswith("gptq 4 bits")
    assert "gptq 4 bits" in run("info", theirs).out
    assert run("convert", theirs, back).code == 0
    expected = greedy(run, theirs)["token_ids"]
    assert greedy(run, back)["token_ids"] == expected
    again = tmp_path / "again"
    assert run("convert", ours, again, "--format=awq").code == 0
    assert run("info", again, "--json").json["quantize"].startswith("awq 4 bits")
    refused = run("convert", folder, tmp_path / "no", "--quantize=int4", "--to=huggingface")
    assert refused.code == 1
    assert "--format" in refused.err
    refused = run("convert", folder, tmp_path / "no", "--format=gptq")
    assert refused.code == 1
    assert "quantized" in refused.err
    refused = run("convert", folder, tmp_path / "no", "--quantize=fp8", "--format=awq")
    assert refused.code == 1
    assert not (tmp_path / "no").exists()


def test_only_checkpoints_are_overwritten_and_only_on_request(run, folder, tmp_path):
    target = tmp_path / "out"
    assert run("convert", folder, target).code == 0
    refused = run("convert", folder, target, "--quantize=int8")
    assert refused.code == 1
    assert "--overwrite" in refused.err
    assert run("convert", folder, target, "--quantize=int8", "--overwrite").code == 0
    assert run("info", target, "--json").json["quantize"] == "int8"
    other = tmp_path / "letters"
    other.mkdir()
    (other / "dear.txt").write_text("you")
    refused = run("convert", folder, other, "--overwrite")
    assert refused.code == 1
    assert (other / "dear.txt").read_text() == "you"


def test_a_failed_overwrite_leaves_what_was_there(run, folder, tmp_path):
    target, broken = tmp_path / "out", tmp_path / "broken"
    assert run("convert", folder, target).code == 0
    broken.mkdir()
    (broken / "config.json").write_bytes((folder / "config.json").read_bytes())
    (broken / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-7])
    assert run("convert", broken, target, "--overwrite").code == 1
    assert greedy(run, target)["token_ids"] == greedy(run, folder)["token_ids"]


def test_the_way_back_needs_config_json(run, folder, tmp_path):
    there = tmp_path / "orbax"
    assert run("convert", folder, there).code == 0
    (there / "config.json").unlink()
    refused = run("convert", there, tmp_path / "back")
    assert refused.code == 1
    assert "--config" in refused.err
    assert run("convert", there, tmp_path / "back", f"--config={folder / 'config.json'}").code == 0


def test_a_model_may_replace_itself_but_not_the_folder_around_it(run, folder, tmp_path):
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "inner"
    assert run("convert", folder, outer).code == 0
    assert run("convert", folder, inner).code == 0
    refused = run("convert", inner, outer, "--overwrite", "--to=huggingface")
    assert refused.code == 1
    assert "holds the model that is read" in refused.err
    assert run("convert", inner, inner, "--overwrite", "--to=huggingface").code == 0
    assert run("info", inner, "--json").json["layout"] == "huggingface"
