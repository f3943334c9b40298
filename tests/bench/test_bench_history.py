"""Results on disk: every run a file and a line."""

import json

import pytest

from jaxinfer.bench import environment, history


def document(date="2026-01-31T12:00:00Z", **row):
    head = {"kind": "bench decode", "date": date, "ceilings": None}
    return {**head, "rows": [{"model": "Llama 3.1/8B", "step_ms": 1.5, **row}]}


def test_runs_are_kept_one_after_the_other(tmp_path):
    folder = tmp_path / "new" / "folder"
    first = history.save(folder, document(kernels=[{"name": "dot"}]))
    second = history.save(folder, document("2026-02-01T00:00:00Z"))
    assert first.name == "decode-llama-3.1-8b-20260131T120000Z.json"
    assert json.loads(first.read_text())["rows"][0]["kernels"] == [{"name": "dot"}]
    runs = history.read(folder / history.HISTORY)
    assert runs == [document(), json.loads(second.read_text())]  # a line leaves the kernels out


@pytest.mark.parametrize("line", ["{", "[1]"])
def test_a_line_that_is_no_run_is_named(tmp_path, line):
    path = tmp_path / "history.jsonl"
    history.append(path, document())
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"history\.jsonl line 2 needs"):
        history.read(path)


def test_the_head_says_where_and_with_what():
    head = environment.describe("bench x", ["bench", "x", "--a=b c"], environment.hardware())
    assert head["command"] == "jaxinfer bench x '--a=b c'"
    assert head["kind"] == "bench x"
    assert head["hardware"]["platform"] == "cpu"
    assert head["hardware"]["cores"] >= 1
    assert {"jaxinfer", "python", "jax", "jaxlib", "numpy"} <= set(head["versions"])
    assert head["commit"] is None or len(head["commit"].removesuffix("+")) == 12
    assert environment.host_memory() > 1 << 28
