"""The training recipe, end to end on the CPU: corpus, tokenizer, training, export, distillation."""

from __future__ import annotations

import dataclasses
import pathlib
import sysconfig

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from examples.training import checkpoint, corpus, distill, tokenizer, train, transformer
from examples.training.transformer import Shape

SHAPE = Shape(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=16,
    context=64,
)
SETTINGS = train.Settings(steps=60, batch=8, context=64, learning_rate=1e-2, dtype="float32", log_every=10, decay=0.3)


def _no_report(line: dict) -> None:
    del line


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder of token streams, made from some modules of the standard library."""
    folder = tmp_path_factory.mktemp("recipe")
    standard = pathlib.Path(sysconfig.get_path("stdlib"))
    documents = [
        *corpus.folder_documents(standard / "email", "email"),
        *corpus.folder_documents(standard / "json", "json"),
    ]
    prose = "".join(f"This is line {i} of the text that the model is to read.\n" for i in range(60))
    held_out, training = documents[:1], documents[1:]
    corpus.write(training, folder / "corpus" / "train.jsonl")
    held_out = [*held_out, corpus.Document("note", "prose", prose)]
    corpus.write(held_out, folder / "corpus" / "held_out.jsonl")
    meta = tokenizer.build(folder / "corpus", folder / "tokens", SHAPE.vocab_size, 10**6)
    assert meta["train_tokens"] > 10_000
    return folder / "tokens"


@pytest.fixture(scope="module")
def trained(tokens: pathlib.Path) -> tuple[transformer.Params, list[dict]]:
    """A tiny model trained for sixty steps, and what was reported."""
    lines: list[dict] = []
    loss = train.language_model_loss(SHAPE, SETTINGS.dtype)
    params = transformer.init(jax.random.key(0), SHAPE)
    params = train.run(params, train.read_streams(tokens), loss, loss, SETTINGS, report=lines.append)
    return params, lines


def test_training_lowers_the_loss(trained: tuple[transformer.Params, list[dict]]) -> None:
    """From about ln(512) = 6.2 nats to well under 5, on held-out text as well."""
    _, lines = trained
    assert lines[0]["loss"] > 5.9, lines[0]
    assert lines[-2]["loss"] < 4.8, lines[-2]
    assert lines[-1]["held_out"]["python"] < 5.2, lines[-1]


def test_a_run_in_two_calls_equals_one(tokens: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The saved state carries parameters, optimizer moments and the place in the data."""
    settings = dataclasses.replace(SETTINGS, steps=24)
    streams = train.read_streams(tokens)
    loss = train.language_model_loss(SHAPE, "float32")

    def start() -> transformer.Params:
        return transformer.init(jax.random.key(1), SHAPE)

    whole = train.run(start(), streams, loss, loss, settings, report=_no_report)
    cut = dataclasses.replace(settings, state=tmp_path / "state.safetensors", stop_after_minutes=0.0)
    train.run(start(), streams, loss, loss, cut, report=_no_report)
    assert cut.state.exists()
    rest = dataclasses.replace(cut, stop_after_minutes=10.0)
    parts = train.run(start(), streams, loss, loss, rest, report=_no_report)
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_export_is_read_by_transformers(
    trained: tuple[transformer.Params, list[dict]], tokens: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """transformers' logits on the exported float32 checkpoint equal the recipe's; so do the ids."""
    params, _ = trained
    checkpoint.export(params, SHAPE, tokens / "tokenizer.json", tmp_path, dtype="float32")
    text = "def parse(self, text):\n        return [1234]\n"
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = reader(text)["input_ids"]
    assert ids[0] == checkpoint.BOS_ID
    assert reader.decode(ids[1:]) == text
    assert len(reader.tokenize("1234")) == 4, "digits stand alone"
    rows = np.random.default_rng().integers(3, SHAPE.vocab_size, (2, 48))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(rows)).logits.numpy()
    ours = transformer.logits(params, SHAPE, jnp.asarray(rows))
    error = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
    assert error < 1e-5, f"{error=} {rows=}"
    shape, again = checkpoint.load(tmp_path)
    assert shape == SHAPE
    np.testing.assert_array_equal(again["down"], params["down"])


def test_distillation_lowers_the_divergence(
    trained: tuple[transformer.Params, list[dict]], tokens: pathlib.Path
) -> None:
    """KL(target || draft) falls, and with it rises the chance that a draft token is accepted."""
    target, _ = trained
    draft = dataclasses.replace(SHAPE, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1)
    loss = distill.distillation_loss(SHAPE, draft, "float32")
    start = transformer.init(jax.random.key(2), draft)
    lines: list[dict] = []
    streams = train.read_streams(tokens)
    rows = jnp.asarray(streams["python"][:64][None].astype(np.int32))
    theirs = transformer.logits(target, SHAPE, rows)
    before = distill.acceptance(theirs, transformer.logits(start, draft, rows)).mean()
    settings = dataclasses.replace(SETTINGS, steps=40)
    params = train.run(start, streams, loss, loss, settings, frozen=target, report=lines.append)
    after = distill.acceptance(theirs, transformer.logits(params, draft, rows)).mean()
    assert lines[-2]["loss"] < 0.6 * lines[0]["loss"], lines
    assert after > before + 0.1, f"{before=} {after=}"


def test_split_keeps_near_copies_out_of_training() -> None:
    """A document that repeats most lines of a held-out one is dropped from the training set."""
    names = [f"package/file_{i}.py" for i in range(3000)]
    held = next(name for name in names if corpus.is_held_out(name))
    free = [name for name in names if not corpus.is_held_out(name)][:2]
    lines = [f"    value_{i} = compute_something({i}) + {i * i}" for i in range(40)]
    copy = [*lines[:30], *(line.replace("value", "other_name") for line in lines[30:])]
    fresh = [line.replace("compute_something", "transform_it") for line in lines]
    documents = [
        corpus.Document(free[0], "python", "\n".join(copy)),
        corpus.Document(free[1], "python", "\n".join(fresh)),
        corpus.Document(held, "python", "\n".join(lines)),
    ]
    training, held_out = corpus.split(documents)
    assert [d.name for d in training] == [free[1]]
    assert [d.name for d in held_out] == [held]


def test_licences_and_filters() -> None:
    """Reciprocal licences, generated files and files that do not parse are refused."""
    assert corpus.is_permissive("License-Expression: MIT\n\n")
    assert corpus.is_permissive("Classifier: License :: OSI Approved :: BSD License\n\n")
    assert not corpus.is_permissive("License: LGPL-3.0\n\n")
    assert not corpus.is_permissive("License: MIT\nClassifier: License :: GPL\n\n")
    assert not corpus.is_permissive("Name: nothing-stated\n\n")
    body = '    """Return the sum of the two given values."""\n    return left + right\n\n\n'
    good = "".join(f"def add_{name}(left, right):\n{body}" for name in ("a", "b", "c", "d"))
    assert corpus.clean_python(good) == good.strip() + "\n"
    assert corpus.clean_python("# Copyright someone\n# Licensed under MIT\n" + good).startswith("def")
    assert corpus.clean_python("# Generated by a tool, do not edit\n" + good) is None
    assert corpus.clean_python("# GNU General Public License\n" + good) is None
    assert corpus.clean_python(good + "def broken(:\n") is None


def test_unknown_optimizer_is_refused() -> None:
    """The error names what is known and what came."""
    with pytest.raises(ValueError, match="muon.*adamw.*got 'sgd'"):
        train.optimizer(dataclasses.replace(SETTINGS, optimizer="sgd"))
