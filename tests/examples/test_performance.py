"""The README's performance section is what the committed result files say, and nothing else."""

import json
from pathlib import Path

import pytest

from examples.performance import documents, markdown, readme

ROUGH = {"median": 12.0, "least": 11.0, "most": 13.0}


def document(kind: str, rows: list[dict], **changes) -> dict:
    head = {
        "kind": kind,
        "date": "2026-02-03T04:05:06Z",
        "commit": "0123456789ab",
        "command": f"jaxinfer {kind} --batch=1",
        "hardware": {"platform": "gpu", "device": "Some GPU", "devices": 1, "cores": 4},
        "versions": {"jax": "0.11.2"},
        "rows": rows,
    }
    return head | changes


def floor(**fields) -> dict:
    return {
        "model": "m",
        "dtype": "bfloat16",
        "quantize": None,
        "batch": 64,
        "context": 1024,
        "spread": 0.021,
        "tokens_per_s": 12345.6,
        "bytes_per_s": 3.03e12,
        "flop_per_s": 4.5e14,
        "of_read_ceiling": 0.737,
        "of_matmul_ceiling": 0.56,
        "floor_ms": 3.679,
        "of_floor": 0.731,
        **fields,
    }


def peer(name: str, batch: int, **fields) -> dict:
    case = {"model": "m", "peer": name, "batch": batch, "context": 16, "new": 5}
    return case | (fields or {"decode_tok_s": ROUGH, "prefill_tok_s": {**ROUGH, "median": 4567.8}})


PEERS = document(
    "peers",
    [
        peer("jaxinfer bf16", 1),
        peer("vllm bf16", 1, error="vllm bf16 failed:\nno room"),
        peer("llamacpp bf16", 1),
    ],
    repeats=3,
    missing=["transformers"],
    ratios={
        "m": [
            {
                "what": "decode",
                "batch": 1,
                "context": 16,
                "ours": "jaxinfer bf16",
                "theirs": "llamacpp bf16",
                "ratio": 1.234,
            }
        ]
    },
    note="Measured by hand.",
    startup={"first_text_s": {**ROUGH, "median": 2.12}, "empty_cache_s": 4.84},
)


@pytest.fixture
def root(tmp_path) -> Path:
    """A project with markers and two results."""
    for folder in documents.FOLDERS:
        (tmp_path / folder).mkdir(parents=True)
    decode = document("bench decode", [floor(step_ms=4.992)])
    (tmp_path / documents.FOLDERS[0] / "decode.json").write_text(json.dumps(decode))
    (tmp_path / documents.FOLDERS[1] / "peers.json").write_text(json.dumps(PEERS))
    text = f"# title\n\n{readme.BEGIN}\nold\n{readme.END}\n\nafter\n"
    (tmp_path / "README.md").write_text(text)
    return tmp_path


def test_the_readme_is_what_the_result_files_say(capsys):
    assert readme.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_readme_is_told_and_rewritten(root, capsys):
    path = root / "README.md"
    old = path.read_text()
    assert readme.main(["--check"], root) == 1
    assert "run python -m examples.performance.readme" in capsys.readouterr().err
    assert path.read_text() == old
    assert readme.main([], root) == 0
    assert readme.main(["--check"], root) == 0
    new = path.read_text()
    assert new.startswith("# title\n")
    assert new.endswith("\nafter\n")
    assert "old" not in new
    result = root / documents.FOLDERS[0] / "decode.json"
    result.write_text(result.read_text().replace("4.992", "4.2"))
    assert readme.main(["--check"], root) == 1


def test_every_table_says_where_its_numbers_come_from(root):
    page = markdown.page(documents.read(root))
    assert page.index("### Decode") < page.index("### Beside other engines")
    assert page.count("Some GPU, 2026-02-03, commit 0123456, JAX 0.11.2") == 2
    for name in ("decode", "peers"):
        assert f"{name}.json)" in page
    assert "`jaxinfer bench decode --batch=1`" in page
    row = "| m | bfloat16 | 64 | 1,024 | 4.99 | 2% | 12,346 | 3.03 TB/s | 74% | 3.68 | 73% |"
    assert row in page.splitlines()


def test_peers_stand_beside_each_other_with_ratios():
    lines = markdown.page([{**PEERS, "path": "p.json"}]).splitlines()
    assert "| engine | decode 1x16 | prefill 1x16 |" in lines
    assert "| jaxinfer bf16 | 12.0 | 4,568 |" in lines
    assert "| vLLM bf16 | failed | failed |" in lines
    assert "| *best jaxinfer / best llama.cpp* | 1.23 |  |" in lines
    assert "| *jaxinfer bf16 / llama.cpp bf16* | 1.23 |  |" in lines
    assert "Not installed there: transformers." in lines
    assert "Measured by hand." in lines
    assert any("2.1 s with a warm compile cache, 4.8 s with an empty one" in x for x in lines)


def test_other_kinds_and_rows_without_a_measurement():
    throughput = floor(
        requests=512,
        slots=64,
        input_tokens=262144,
        output_tokens=65536,
        seconds=9.591,
        output_tokens_per_s=6842.1,
        total_tokens_per_s=34421.0,
    )
    names = ("import", "device", "load", "trace", "compile", "first_token")
    startup = floor(cache="warm", **{f"{name}_s": 0.5 for name in names})
    documents_ = [
        document("bench prefill", [floor(ttft_ms=52.13)], commit="0123456789ab+"),
        document("bench decode", [{**floor(), "error": "out of memory: much more"}]),
        document("bench throughput", [throughput]),
        document("bench startup", [startup]),
    ]
    lines = markdown.page([{**one, "path": "p.json"} for one in documents_]).splitlines()
    assert any("commit 0123456+" in line for line in lines)
    assert (
        "| m | bfloat16 | 64 | 1,024 | 52.1 | 2% | 12,346 | 450 TFLOP/s | 56% | 3.68 | 73% |"
        in lines
    )
    assert "| m | bfloat16 | 64 | 1,024 | out of memory |  |  |  |  |  |  |" in lines
    assert (
        "| m | bfloat16 | 512 | 64 | 262,144 | 65,536 | 9.59 | 2% | 6,842 | 34,421 | 73% |" in lines
    )
    assert "| m | bfloat16 | warm | 0.5 | 0.5 | 0.5 | 0.5 | 0.5 | 0.5 | 2% |" in lines


def test_quantization_shows_quality_beside_bytes_and_its_bars():
    held = {"kv_bytes_per_token": 10240}
    reference = {
        "perplexity": 12.3456,
        "weight_bytes": 39.2e6,
        "decode_tokens_per_s": 310.4,
        **held,
    }
    candidate = {"perplexity": 12.4, "weight_bytes": 19.84e6, "decode_tokens_per_s": 571.0, **held}
    row = {
        "name": "int8",
        "candidate": candidate,
        "perplexity_rise": 0.00044,
        "perplexity_rise_error": 0.00011,
        "kl": {"mean": 0.000123},
        "top1_agreement": 0.9912,
    }
    bar = {"bar": "int8 within 0.1%", "best": "int8", "perplexity_rise": 0.00044, "error": 0.0001}
    found = document(
        "quantization",
        [row],
        reference=reference,
        model="m",
        tokens=60000,
        calibration_tokens=65536,
        repeats=5,
        bars=[{**bar, "met": True}, {**bar, "bar": "other", "met": False}],
    )
    lines = markdown.page([{**found, "path": "a/m.json"}]).splitlines()
    assert "| bfloat16 (reference) | 39.2 | 10,240 | 12.346 | 0 | 0 | 100.0% | 310 |" in lines
    assert "| int8 | 19.8 | 10,240 | 12.400 | +0.04% ± 0.01% | 0.00012 | 99.1% | 571 |" in lines
    assert any("[picture](a/m.png)" in line and "60,000 tokens" in line for line in lines)
    assert lines[-1] == (
        "int8 within 0.1%: met (int8, +0.04% ± 0.01%); other: missed (int8, +0.04% ± 0.01%)."
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "x.json needs to be JSON"),
        ("[]", "lacks kind, date, commit, command, hardware, rows"),
        (json.dumps(document("bench decode", [floor()], commit=None)), "lacks commit"),
        (json.dumps(document("bench dance", [floor()])), "got 'bench dance'"),
    ],
)
def test_a_file_that_does_not_say_where_it_comes_from_is_named(root, capsys, text, words):
    (root / documents.FOLDERS[1] / "x.json").write_text(text)
    assert readme.main(["--check"], root) == 1
    assert words in capsys.readouterr().err


def test_markers_are_needed(root, capsys):
    (root / "README.md").write_text("nothing")
    assert readme.main([], root) == 1
    assert "needs one line" in capsys.readouterr().err
