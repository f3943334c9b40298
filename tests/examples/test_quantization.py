"""The comparison of quantization methods, at toy size, on a corpus of its own."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from examples.performance import markdown
from examples.quantization import compare, outliers, variants
from examples.training import corpus
from examples.training.packages import Document
from jaxinfer import shipped, weights
from jaxinfer.calibrate import calibrate
from jaxinfer.generate import logits
from jaxinfer.quantize import Recipe
from jaxinfer.tokenizer import Tokenizer

WORDS = compare.__doc__.split()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[dict, bytes]:
    """A result, with the `folder` of its corpus, and its picture."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng()
    for name, count in (("held_out", 4), ("train", 7)):
        documents = [
            Document(f"p/{i}", "prose", " ".join(rng.choice(WORDS, 400))) for i in range(count)
        ]
        corpus.write(documents, folder / f"{name}.jsonl")
    output = folder / "out.json"
    compare.main(flags(folder, output, only="int8"))
    document = json.loads(output.read_text()) | {"folder": str(folder)}
    return document, output.with_suffix(".png").read_bytes()


def flags(folder, output, **changes) -> list[str]:
    settings = dict(model=shipped.draft(), documents=3, calibration_documents=4, repeats=1)
    settings |= dict(characters=1500, calibration_tokens=1024, window=128, stride=96)
    settings |= dict(skipped_documents=1, corpus=folder, output=output) | changes
    return [f"--{k}={v}" for k, v in settings.items()]


def test_every_variant_has_a_row(found):
    document, picture = found
    rows = document["rows"]
    assert [row["name"] for row in rows] == [
        v.name for v in variants.variants() if "int8" in v.name
    ]
    assert picture.startswith(b"\x89PNG")
    plain = document["reference"]
    for row in rows:
        sizes = [
            row["candidate"][key] / plain[key] for key in ("weight_bytes", "kv_bytes_per_token")
        ]
        assert (sizes[0] < 0.75) == (row["bits"] is not None)
        assert (sizes[1] < 0.75) == (row["kv_dtype"] is not None)
        assert 0 < row["kl"]["mean"] < (10 if row["planted"] else 1)
        assert row["candidate"]["decode_tokens_per_s"] > 0
        assert np.isfinite(row["perplexity_rise"])


def test_it_can_be_published(found):
    page = markdown.page([{**found[0], "path": "x/out.json"}])
    assert "### Quantization" in page
    assert "python -m examples.quantization.compare" in page
    assert page.count("| int8 GPTQ |") == 1


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "model"
    outliers.plant(shipped.draft(), folder)
    return folder


def answers(loaded, ids):
    return np.asarray(logits(loaded.params, loaded.config, jnp.asarray(ids, jnp.int32)))


def test_planted_outliers_are_the_same_function(planted, rng):
    ids = rng.integers(3, 8000, (2, 40))
    ours, theirs = (weights.load(f, dtype="float32") for f in (shipped.draft(), planted))
    same = [answers(loaded, ids) for loaded in (ours, theirs)]
    np.testing.assert_allclose(same[0], same[1], rtol=1e-3, atol=1e-3 * np.abs(same[0]).max())
    scale = [np.asarray(x.params.layers[0].pre_mlp.scale) for x in (ours, theirs)]
    assert sorted(set((scale[1] / scale[0]).tolist())) == [1, outliers.FACTOR]


def test_smoothquant_and_llm_int8_stand_planted_outliers_that_spoil_w8a8(planted):
    text = Tokenizer.load(shipped.draft()).encode(Path(compare.__file__).read_text())
    exact = weights.load(planted, dtype="float32")
    plain = weights.load(planted, dtype="float32", quantize="w8a8")
    wanted = answers(exact, [text[:256]])

    def error(loaded):
        return np.linalg.norm(answers(loaded, [text[:256]]) - wanted) / np.linalg.norm(wanted)

    spoilt = error(plain)
    assert spoilt > 0.1
    for method in ("smoothquant", "llm_int8"):
        found = calibrate(
            planted, Recipe(method), text[256:], window=256, tokens=1024, dtype="float32"
        )
        assert error(found) < 0.25 * spoilt, method


def test_a_setting_is_chosen_by_another_text_than_the_one_reported(tmp_path, found):
    folder = Path(found[0]["folder"])
    name, rows = "int4 GPTQ, g32 + zero", []
    for skipped in (0, 1):
        output = tmp_path / f"{skipped}.json"
        document = compare.main(
            flags(folder, output, only=name, skipped_documents=skipped, documents=2)
        )
        rows += document["rows"]
        page = markdown.page([{**document, "path": "x/out.json"}])
        assert f"tokens of other training text, the one then the other: {name}: " in page
    first, second = rows
    assert first["tried"] == second["tried"]
    assert first["perplexity_rise"] != second["perplexity_rise"]
    costs = {each["clip"]: each["perplexity_rise"] for each in first["tried"]}
    assert len(set(costs.values())) == 2
    assert first["clip"] == min(costs, key=costs.__getitem__)
    assert first["perplexity_rise"] not in costs.values()


def test_bars_are_judged_by_the_best_of_their_methods():
    def row(name, method, bits, rise, planted=False, kv_dtype=None):
        about = {"name": name, "method": method, "bits": bits, "planted": planted}
        about |= {"kv_dtype": kv_dtype, "perplexity_rise_error": 0.001}
        return {**about, "perplexity_rise": rise}

    rows = [
        row("a", "int8", 8, 0.0009),
        row("b", "gptq", 4, 0.03),
        row("c", "awq", 4, 0.019),
        row("d", "gptq", 8, 0.0),
        row("e", "int4", 4, 0.001),
        row("f", None, None, 0.002, kv_dtype="int8"),
        row("g", "smoothquant", 8, 0.5, planted=True),
        row("h", "llm_int8", 8, 0.6, planted=True),
        row("i", "llm_int8", 8, 0.8, planted=True),
        row("j", "smoothquant", 8, 0.1),
        row("k", None, None, 0.0),
    ]
    found = variants.judge(rows)
    assert [each["best"] for each in found] == ["a", "c", "f"]
    assert [each["met"] for each in found] == [True, True, False]
    found = variants.judge([*rows, row("w8a8, planted outliers", "w8a8", 8, 0.55, planted=True)])
    assert [each["best"] for each in found[3:]] == ["g", "h"]
    assert [each["met"] for each in found[3:]] == [True, False]
    assert not variants.judge(rows[1:2])[0]["met"]
