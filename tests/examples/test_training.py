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

import jaxinfer
from examples import train_tiny_model
from examples.train_tiny_model import DRAFT, SETTINGS, SHAPE
from examples.training import checkpoint, corpus, evaluate, filters, packages, train, transformer

STEPS = 60


@dataclasses.dataclass(frozen=True)
class Trained:
    """A folder with tokens/, target/ and draft/, and the lines that the trainings reported."""

    folder: pathlib.Path
    target: list[dict]
    draft: list[dict]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The recipe, run once on some modules of the standard library."""
    folder = tmp_path_factory.mktemp("recipe")
    standard = pathlib.Path(sysconfig.get_path("stdlib"))
    lines = train_tiny_model.run(folder, [standard / "email", standard / "json"], STEPS)
    return Trained(folder, **lines)


def test_training_lowers_the_loss(trained: Trained) -> None:
    """From about ln(512) = 6.2 nats to well under 5, on held-out text as well."""
    assert trained.target[0]["loss"] > 5.9, trained.target
    assert trained.target[-2]["loss"] < 4.8, trained.target
    assert trained.target[-1]["held_out"]["python"] < 5.2, trained.target


def test_distillation_lowers_the_divergence(trained: Trained) -> None:
    """KL(target || draft) falls, and the draft's tokens are accepted more often than a fresh one's."""
    assert trained.draft[-2]["loss"] < 0.6 * trained.draft[0]["loss"], trained.draft
    tokens = np.load(trained.folder / "tokens" / "held_out_python.npy")[: 8 * SHAPE.context]
    fresh = transformer.init(jax.random.key(7), DRAFT)
    words = trained.folder / "tokens" / "tokenizer.json"
    checkpoint.export(fresh, DRAFT, words, trained.folder / "fresh", dtype="float32")
    rates = [
        evaluate.mean_acceptance(trained.folder / "target", trained.folder / name, tokens)
        for name in ("draft", "fresh", "target")
    ]
    assert rates[0] > rates[1] + 0.1, rates
    assert rates[2] == pytest.approx(1.0, abs=1e-3), "a target accepts its own proposals"


def test_a_run_in_two_calls_equals_one(trained: Trained, tmp_path: pathlib.Path) -> None:
    """The saved state carries parameters, optimizer moments and the place in the data."""
    settings = dataclasses.replace(SETTINGS, steps=24, optimizer="adamw")
    streams = train.read_streams(trained.folder / "tokens")
    loss = train.language_model_loss(DRAFT, "float32")

    def call(settings: train.Settings) -> transformer.Params:
        start = transformer.init(jax.random.key(1), DRAFT)
        return train.run(start, streams, loss, loss, settings, report=lambda line: None)

    whole = call(settings)
    state = tmp_path / "state.safetensors"
    first = call(dataclasses.replace(settings, state=state, stop_after_minutes=0.0))
    assert state.exists()
    second = call(dataclasses.replace(settings, state=state))
    assert not np.allclose(first["down"], whole["down"], atol=1e-3), "the first call stops early"
    for name, value in whole.items():
        np.testing.assert_allclose(second[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_export_is_read_by_transformers_and_jaxinfer(trained: Trained) -> None:
    """Both give the recipe's logits on the exported float32 checkpoint, and the tokenizer's ids."""
    folder = trained.folder / "target"
    text = "def parse(self, text):\n        return [1234]\n"
    reader = transformers.AutoTokenizer.from_pretrained(folder)
    ids = reader(text)["input_ids"]
    assert ids[0] == checkpoint.BOS_ID
    assert reader.decode(ids[1:]) == text
    assert len(reader.tokenize("1234")) == 4, "digits stand alone"
    shape, params = checkpoint.load(folder)
    assert shape == SHAPE
    rows = np.random.default_rng().integers(3, SHAPE.vocab_size, (2, 48))
    ours = transformer.logits(params, SHAPE, jnp.asarray(rows))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(rows)).logits.numpy()
    loaded = jaxinfer.load(folder, progress=False)
    lengths = jnp.full(2, rows.shape[1])
    served = jaxinfer.logits(loaded.params, loaded.config, jnp.asarray(rows), lengths)
    for name, other in (("transformers", theirs), ("jaxinfer", np.asarray(served))):
        error = np.linalg.norm(ours - other) / np.linalg.norm(other)
        assert error < 1e-5, f"{name}: {error=} {rows=}"


def test_evaluation_measures_what_it_says(trained: Trained) -> None:
    """Bits per byte equal the plain sum where one window holds it all; functions are cut and
    parsed.
    """
    shape, params = checkpoint.load(trained.folder / "target")
    rows = np.random.default_rng().integers(3, SHAPE.vocab_size, SHAPE.context).astype(np.uint16)
    scores = transformer.logits(params, shape, jnp.asarray(rows[None, :-1], jnp.int32))
    nats = float(transformer.cross_entropy(scores, jnp.asarray(rows[None, 1:], jnp.int32)).sum())
    bits = evaluate.bits_per_byte(params, shape, rows, 100)
    assert bits == pytest.approx(nats / np.log(2) / 100, rel=1e-4), rows
    long = evaluate.bits_per_byte(params, shape, np.tile(rows, 4), 400)
    assert 0.5 * bits < long < 1.5 * bits, "every token of a longer stream counts once"
    completed = evaluate.function_text("def f(x):\n", "    return x\n\n\ndef g():\n    pas")
    assert completed == "def f(x):\n    return x\n\n\n"
    assert evaluate.parses(completed)
    assert evaluate.function_text("def f(x):\n", "    return x") is None, "it may go on"
    found = evaluate.evaluate(
        trained.folder / "target",
        trained.folder / "corpus",
        trained.folder / "draft",
        max_bytes=5000,
        functions=4,
        max_new_tokens=8,
    )
    for kind, measured in found["held_out"].items():
        bits = [measured[name] for name in ("model", "xz -9", "gzip -9")]
        assert all(1.0 < value < 5.0 for value in bits), f"{kind}: {found}"
        assert 0.0 < measured["draft accepted"] < 1.0, found
    assert all(f["parse"] <= f["finished"] <= f["prompts"] for f in found["functions"]), found
    assert found["samples"]["0.0"], "some sample prompt fits the context"
    assert all(text.startswith(evaluate.SAMPLE_PROMPTS) for text in found["samples"]["0.7"]), found


def test_split_keeps_near_copies_out_of_training() -> None:
    """A document that repeats most lines of a held-out one is dropped from the training set."""
    names = [f"package/file_{i}.py" for i in range(3000)]
    held = next(name for name in names if corpus.is_held_out(name))
    free = [name for name in names if not corpus.is_held_out(name)][:2]
    lines = [f"    value_{i} = compute_something({i}) + {i * i}" for i in range(40)]
    copy = [*lines[:30], *(line.replace("value", "other_name") for line in lines[30:])]
    fresh = [line.replace("compute_something", "transform_it") for line in lines]
    documents = [
        packages.Document(free[0], "python", "\n".join(copy)),
        packages.Document(free[1], "python", "\n".join(fresh)),
        packages.Document(held, "python", "\n".join(lines)),
    ]
    training, held_out = corpus.split(documents)
    assert [d.name for d in training] == [free[1]]
    assert [d.name for d in held_out] == [held]


def test_licences_and_filters() -> None:
    """Reciprocal licences, generated files and files that do not parse are refused."""
    assert filters.is_permissive("License-Expression: MIT\n\n")
    assert filters.is_permissive("Classifier: License :: OSI Approved :: BSD License\n\n")
    assert not filters.is_permissive("License: LGPL-3.0\n\n")
    assert not filters.is_permissive("License: MIT\nClassifier: License :: GPL\n\n")
    assert not filters.is_permissive("Name: nothing-stated\n\n")
    body = '    """Return the sum of the two given values."""\n    return left + right\n\n\n'
    good = "".join(f"def add_{name}(left, right):\n{body}" for name in ("a", "b", "c", "d"))
    assert filters.clean_python(good) == good.strip() + "\n"
    assert filters.clean_python("# Copyright someone\n# Licensed under MIT\n" + good).startswith(
        "def"
    )
    assert filters.clean_python("# Generated by a tool, do not edit\n" + good) is None
    assert filters.clean_python("# GNU General Public License\n" + good) is None
    assert filters.clean_python(good + "def broken(:\n") is None


def test_the_clock_fits_the_schedule_to_the_time() -> None:
    """A run of one minute at a tenth of a second a step ends its schedule after 600 steps."""
    clock = train.Clock(dataclasses.replace(SETTINGS, minutes=1.0))
    for done in range(0, 600, 50):
        clock.step += 50
        clock.record(5.0, 50)
        assert clock.progress() == pytest.approx(min(1.0, (done + 51) / 600), abs=1e-6)
        assert clock.done() == (done == 550)
    resumed = train.Clock(dataclasses.replace(SETTINGS, minutes=1.0), step=300, seconds=30.0)
    assert resumed.progress() == pytest.approx(301 / 600)
    rates = [train.schedule(p, warmup=0.1, decay=0.5) for p in (0.0, 0.05, 0.1, 0.5, 0.75, 1.0)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="steps or minutes"):
        train.Clock(SETTINGS)


def test_an_epoch_visits_every_window_once() -> None:
    """Starts lie a context apart, in a fresh order each epoch; skipping continues the same
    sequence.
    """
    draws = train.shuffled_starts(size=1000, context=10, batch=7, seed=3, skip=0)
    epoch = np.concatenate([next(draws) for _ in range(14)])
    assert len(set(epoch.tolist())) == len(epoch)
    assert len(set((epoch % 10).tolist())) == 1
    assert epoch.min() >= 0
    assert epoch.max() + 11 <= 1000
    resumed = train.shuffled_starts(size=1000, context=10, batch=7, seed=3, skip=14)
    np.testing.assert_array_equal(next(draws), next(resumed))


def test_unknown_optimizer_is_refused() -> None:
    """The error names what is known and what came."""
    with pytest.raises(ValueError, match=r"muon.*adamw.*got 'sgd'"):
        train.optimizer(dataclasses.replace(SETTINGS, optimizer="sgd"))
