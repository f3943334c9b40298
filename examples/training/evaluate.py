"""Measure a trained model: held-out bits per byte beside gzip and xz, functions, samples.

python -m examples.training.evaluate --checkpoint checkpoints/pico-20m --corpus corpus
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import lzma
import math
import pathlib
import textwrap
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

import jaxinfer
from examples.training import checkpoint, corpus, distill, transformer
from examples.training.tokenizer import KINDS, encode
from examples.training.transformer import Params, Shape

SAMPLE_PROMPTS = (
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    'def read_json(path):\n    """Read a JSON file and return its contents."""\n',
    'class Stack:\n    """',
    "import argparse\n\n\ndef main():\n",
    "The purpose of this module is to",
    "In order to install the package, you",
    "A dictionary is a collection of",
)


def bits_per_byte(params: Params, shape: Shape, tokens: np.ndarray, size: int) -> float:
    """Bits the model needs for a stream of tokens, over the `size` bytes of its text.

    Windows of the whole context overlap by half, so every token but the first ones is predicted
    from at least half a context. The ends of documents are counted among the bits.
    """
    step = shape.context // 2
    padded = np.pad(tokens.astype(np.int32), (0, 2 * shape.context))

    @jax.jit
    def losses(params: Params, rows: jax.Array) -> jax.Array:
        scores = transformer.logits(params, shape, rows[:, :-1])
        return transformer.cross_entropy(scores, rows[:, 1:])

    nats, starts = 0.0, np.arange(0, len(tokens) - 1, step)
    for first in range(0, len(starts), 16):
        batch = np.resize(starts[first : first + 16], 16)
        rows = np.stack([padded[s : s + shape.context + 1] for s in batch])
        values = np.asarray(losses(params, jnp.asarray(rows)))
        for start, row in list(zip(batch, values, strict=True))[: len(starts) - first]:
            begin = 0 if start == 0 else shape.context - step
            end = min(shape.context, len(tokens) - 1 - start)
            nats += float(row[begin:end].sum()) if end > begin else 0.0
    return nats / math.log(2) / size


def function_prompts(documents: Iterator[corpus.Document], count: int) -> list[str]:
    """Signature and docstring of documented functions, one a file, dedented."""
    prompts = []
    for document in documents:
        for node in ast.walk(ast.parse(document.text)):
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and node.body[1:]:
                lines = document.text.split("\n")[node.lineno - 1 : node.body[0].end_lineno]
                prompt = textwrap.dedent("\n".join(lines)) + "\n"
                if len(prompt) < 600 and prompt.startswith("def "):
                    prompts.append(prompt)
                    break
        if len(prompts) == count:
            break
    return prompts


def function_text(prompt: str, completion: str) -> str | None:
    """The function that a completion finishes: up to the next line that is not indented.

    None when the completion ends before the function does, or gives it no body.
    """
    body: list[str] = []
    for line in completion.split("\n"):
        if line.strip() and not line.startswith(" ") and body:
            return prompt + "\n".join(body) + "\n"
        body.append(line)
    return None


def parses(text: str) -> bool:
    """Whether `text` is Python."""
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def complete(
    model: jaxinfer.Model, prompts: list[str], temperature: float, max_new_tokens: int
) -> list[jaxinfer.Completion]:
    """A completion for each prompt, none for none."""
    settings = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": 0}
    return model.generate(prompts, **settings) if prompts else []


def parse_rate(
    model: jaxinfer.Model, prompts: list[str], temperature: float, max_new_tokens: int
) -> dict[str, float]:
    """Of the functions started by `prompts`: how many end in time, and how many of those parse."""
    completions = complete(model, prompts, temperature, max_new_tokens)
    stopped = [c.finish_reason is jaxinfer.FinishReason.STOP for c in completions]
    texts = [c.text + "\n#" * stop for c, stop in zip(completions, stopped, strict=True)]
    functions = [function_text(p, t) for p, t in zip(prompts, texts, strict=True)]
    finished = [text for text in functions if text is not None]
    good = sum(map(parses, finished))
    return {
        "temperature": temperature,
        "prompts": len(prompts),
        "finished": len(finished),
        "parse": good,
        "parse_fraction": round(good / max(1, len(finished)), 4),
    }


def mean_acceptance(target: pathlib.Path, draft: pathlib.Path, tokens: np.ndarray) -> float:
    """Chance that speculative sampling at temperature 1 accepts a draft token, over whole windows."""
    (shape, ours), (draft_shape, theirs) = checkpoint.load(target), checkpoint.load(draft)

    @jax.jit
    def accepted(rows: jax.Array) -> jax.Array:
        scores = transformer.logits(ours, shape, rows)
        return jnp.mean(distill.acceptance(scores, transformer.logits(theirs, draft_shape, rows)))

    windows = tokens[: len(tokens) // shape.context * shape.context].reshape(-1, 1, shape.context)
    return round(float(np.mean([accepted(jnp.asarray(row, jnp.int32)) for row in windows])), 4)


def compressed(text: bytes) -> dict[str, float]:
    """Bits per byte of `gzip -9` and `xz -9`."""
    sizes = {"gzip -9": gzip.compress(text, 9), "xz -9": lzma.compress(text, preset=9)}
    return {name: round(8 * len(data) / len(text), 4) for name, data in sizes.items()}


def held_out_text(source: pathlib.Path, kind: str, max_bytes: int) -> list[corpus.Document]:
    """The first held-out documents of a kind, until they hold `max_bytes`."""
    documents, size = [], 0
    for document in corpus.read(source / "held_out.jsonl"):
        if document.kind == kind and size < max_bytes:
            documents.append(document)
            size += len(document.text.encode())
    return documents


def evaluate(
    folder: pathlib.Path,
    source: pathlib.Path,
    draft: pathlib.Path | None = None,
    max_bytes: int = 4_000_000,
    functions: int = 200,
    max_new_tokens: int = 256,
) -> dict:
    """All measurements of an exported checkpoint on the held-out part of a corpus."""
    shape, params = checkpoint.load(folder)
    encoder = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    found: dict = {"parameters": shape.num_parameters(), "held_out": {}}
    for kind in KINDS:
        documents = held_out_text(source, kind, max_bytes)
        text = "".join(document.text for document in documents).encode()
        tokens = encode(encoder, iter(documents))
        bits = round(bits_per_byte(params, shape, tokens, len(text)), 4)
        found["held_out"][kind] = {"bytes": len(text), "model": bits, **compressed(text)}
        if draft is not None:
            rate = mean_acceptance(folder, draft, tokens[: 64 * shape.context])
            found["held_out"][kind]["draft accepted"] = rate

    def fits(prompt: str) -> bool:
        return len(encoder.encode(prompt).ids) + max_new_tokens <= shape.context

    model = jaxinfer.load(folder, progress=False)
    prompts = function_prompts(iter(held_out_text(source, "python", max_bytes)), functions)
    prompts, samples = list(filter(fits, prompts)), list(filter(fits, SAMPLE_PROMPTS))
    found["functions"] = [parse_rate(model, prompts, t, max_new_tokens) for t in (0.0, 0.5, 0.8)]
    found["samples"] = {}
    for temperature in (0.0, 0.7):
        completions = complete(model, samples, temperature, max_new_tokens)
        texts = [prompt + c.text for prompt, c in zip(samples, completions, strict=True)]
        found["samples"][str(temperature)] = texts
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--corpus", type=pathlib.Path, required=True)
    parser.add_argument("--draft", type=pathlib.Path, help="a draft to measure the acceptance of")
    parser.add_argument("--max_bytes", type=int, default=4_000_000, help="of each kind")
    parser.add_argument("--functions", type=int, default=200)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    options = vars(parser.parse_args())
    folder, source = options.pop("checkpoint"), options.pop("corpus")
    print(json.dumps(evaluate(folder, source, **options), indent=1))


if __name__ == "__main__":
    main()
