"""The comparison of quantization methods, at toy size, on a corpus of its own."""

import json

import numpy as np
import pytest

from examples.performance import markdown
from examples.quantization import compare, variants
from examples.training import corpus
from examples.training.packages import Document
from jaxinfer import shipped

WORDS = compare.__doc__.split()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[dict, bytes]:
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng()
    for name in ("held_out", "train"):
        documents = [
            Document(f"p/{i}", "prose", " ".join(rng.choice(WORDS, 400))) for i in range(4)
        ]
        corpus.write(documents, folder / f"{name}.jsonl")
    output = folder / "out.json"
    settings = dict(model=shipped.draft(), documents=3, calibration_documents=4, repeats=1)
    settings |= dict(characters=1500, calibration_tokens=1024, window=128, stride=96, only="int8")
    compare.main(
        [f"--corpus={folder}", f"--output={output}", *(f"--{k}={v}" for k, v in settings.items())]
    )
    return json.loads(output.read_text()), output.with_suffix(".png").read_bytes()


def test_every_variant_has_a_row(found):
    document, picture = found
    rows = document["rows"]
    assert [row["name"] for row in rows] == [
        v.name for v in variants.variants() if "int8" in v.name
    ]
    assert picture.startswith(b"\x89PNG")
    plain = document["reference"]["weight_bytes"]
    for row in rows:
        assert (row["candidate"]["weight_bytes"] < 0.75 * plain) == (row["bits"] is not None)
        assert 0 < row["kl"]["mean"] < 1
        assert row["candidate"]["decode_tokens_per_s"] > 0
        assert np.isfinite(row["perplexity_rise"])


def test_it_can_be_published(found):
    page = markdown.page([{**found[0], "path": "x/out.json"}])
    assert "### Quantization" in page
    assert "python -m examples.quantization.compare" in page
    assert page.count("| int8 GPTQ |") == 1


def test_bars_are_judged_by_the_best_of_their_methods():
    def row(name, method, bits, rise):
        about = {"name": name, "method": method, "bits": bits}
        return {**about, "perplexity_rise": rise, "perplexity_rise_error": 0.001}

    rows = [
        row("a", "int8", 8, 0.0009),
        row("b", "gptq", 4, 0.03),
        row("c", "awq", 4, 0.019),
        row("d", "gptq", 8, 0.0),
        row("e", "int4", 4, 0.001),
    ]
    first, second = variants.judge(rows)
    assert (first["best"], first["met"]) == ("a", True)
    assert (second["best"], second["met"]) == ("c", True)
    assert not variants.judge(rows[1:2])[0]["met"]
