"""Train a small language model and its draft from scratch on the CPU, in a few minutes.

The whole recipe of `examples/training` at toy size: source files of the standard library become a
corpus, a tokenizer, a trained target, a distilled draft; the exported target is then loaded and run
by jaxinfer. The shipped models come from the same functions with more text and more steps
(examples/training/README.md).

    python examples/train_tiny_model.py --to /tmp/tiny --steps 300
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import json
import pathlib
import sys
import sysconfig

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jaxinfer
from examples.training import checkpoint, corpus, distill, packages, tokenizer, train, transformer

SHAPE = transformer.Shape(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=16,
    context=64,
)
DRAFT = dataclasses.replace(SHAPE, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1)
SETTINGS = train.Settings(
    batch=8, context=64, learning_rate=1e-2, dtype="float32", log_every=10, decay=0.4
)


def write_corpus(folder: pathlib.Path, sources: list[pathlib.Path]) -> None:
    """Documents of Python files and, as prose, their docstrings; every eighth is held out."""
    python = [
        document
        for source in sources
        for document in packages.folder_documents(source, source.name)
    ]
    notes = [(d.name, ast.get_docstring(ast.parse(d.text)) or "") for d in python]
    prose = [packages.Document(name, "prose", note) for name, note in notes if len(note) > 100]
    for kind in (python, prose):
        if len(kind) < 2:
            raise ValueError(
                f"the sources need at least two usable files of a kind, got {len(kind)} in {sources}"
            )
    held_out = python[::8] + prose[::8]
    corpus.write((d for d in python + prose if d not in held_out), folder / "train.jsonl")
    corpus.write(held_out, folder / "held_out.jsonl")


def run(folder: pathlib.Path, sources: list[pathlib.Path], steps: int) -> dict[str, list[dict]]:
    """Corpus, tokenizer, target and draft below `folder`; returns what the two trainings reported."""
    write_corpus(folder / "corpus", sources)
    tokenizer.build(folder / "corpus", folder / "tokens", SHAPE.vocab_size, max_bytes=10**6)
    streams = train.read_streams(folder / "tokens")
    settings = dataclasses.replace(SETTINGS, steps=steps)
    export = functools.partial(
        checkpoint.export, tokenizer=folder / "tokens" / "tokenizer.json", dtype="float32"
    )
    lines: dict[str, list[dict]] = {"target": [], "draft": []}

    loss = train.language_model_loss(SHAPE, settings.dtype)
    target = transformer.init(jax.random.key(0), SHAPE)
    target = train.run(target, streams, loss, loss, settings, report=lines["target"].append)
    export(target, SHAPE, folder=folder / "target")

    loss = distill.distillation_loss(SHAPE, DRAFT, settings.dtype)
    draft = transformer.init(jax.random.key(1), DRAFT)
    draft = train.run(
        draft, streams, loss, loss, settings, frozen=target, report=lines["draft"].append
    )
    export(draft, DRAFT, folder=folder / "draft")
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--to", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    standard = pathlib.Path(sysconfig.get_path("stdlib"))
    lines = run(
        arguments.to, [standard / name for name in ("email", "json", "logging")], arguments.steps
    )
    for name, reported in lines.items():
        print(name, json.dumps(reported[0]), json.dumps(reported[-1]), sep="\n")
    model = jaxinfer.load(arguments.to / "target", progress=False)
    prompt = "def parse(self, text):\n"
    print(prompt + model.generate(prompt, max_new_tokens=32, temperature=0)[0].text)
    print("mean log-probability:", float(np.mean(model.score(prompt)[0].logprobs[1:])))


if __name__ == "__main__":
    main()
