"""Measure a trained model: held-out bits per byte beside gzip and xz, functions, samples.

python -m examples.training.evaluate --checkpoint checkpoints/pico-20m --corpus corpus
"""

from __future__ import annotations

import argparse
import ast
import functools
import gzip
import json
import lzma
import math
import pathlib
import textwrap
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from examples.training import checkpoint, corpus, transformer
from examples.training.tokenizer import KINDS, encode
from examples.training.transformer import Params, Shape

SAMPLE_PROMPTS = (
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    'def read_json(path):\n    """Read a JSON file and return its contents."""\n',
    "class Stack:\n    ",
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


def generate(
    params: Params,
    shape: Shape,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[int]]:
    """New tokens for each prompt, cut where the document ends; every step runs the whole text."""
    longest = max(map(len, prompts))
    rows = np.full((len(prompts), longest + max_new_tokens), checkpoint.PAD_ID, np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt
    lengths = jnp.asarray([len(prompt) for prompt in prompts])

    @functools.partial(jax.jit, donate_argnums=(1,))
    def extend(params: Params, rows: jax.Array, step: jax.Array) -> jax.Array:
        at = lengths + step
        states = transformer.hidden(params, shape, rows)
        last = jnp.take_along_axis(states, (at - 1)[:, None, None], axis=1)[:, 0]
        scores = (last @ params["embed"].T).astype(jnp.float32)
        key = jax.random.fold_in(jax.random.key(seed), step)
        drawn = jax.random.categorical(key, scores / max(temperature, 1e-6))
        token = drawn if temperature else jnp.argmax(scores, axis=-1)
        return rows.at[jnp.arange(len(prompts)), at].set(token)

    rows = jnp.asarray(rows)
    for step in range(max_new_tokens):
        rows = extend(params, rows, jnp.int32(step))
    completions = []
    for row, prompt in zip(np.asarray(rows), prompts, strict=True):
        new = row[len(prompt) : len(prompt) + max_new_tokens].tolist()
        completions.append(new[: new.index(checkpoint.EOS_ID)] if checkpoint.EOS_ID in new else new)
    return completions


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


def parse_rate(
    params: Params,
    shape: Shape,
    tokenizer: tokenizers.Tokenizer,
    prompts: list[str],
    temperature: float,
    max_new_tokens: int,
) -> dict[str, float]:
    """Of the functions started by `prompts`: how many end in time, and how many of those parse."""
    ids = [tokenizer.encode(prompt).ids for prompt in prompts]
    completions = generate(params, shape, ids, max_new_tokens, temperature)
    texts = [
        tokenizer.decode(new) + ("\n#" if len(new) < max_new_tokens else "") for new in completions
    ]
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


def compressed(text: bytes) -> dict[str, float]:
    """Bits per byte of `gzip -9` and `xz -9`."""
    sizes = {"gzip -9": gzip.compress(text, 9), "xz -9": lzma.compress(text, preset=9)}
    return {name: round(8 * len(data) / len(text), 4) for name, data in sizes.items()}


def evaluate(
    folder: pathlib.Path, source: pathlib.Path, max_bytes: int, functions: int, max_new_tokens: int
) -> dict:
    """All measurements of an exported checkpoint on the held-out part of a corpus."""
    shape, params = checkpoint.load(folder)
    if jax.default_backend() == "gpu":
        params = transformer.compute_copy(params, jnp.bfloat16)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    found: dict = {"parameters": shape.num_parameters(), "held_out": {}, "functions": []}
    for kind in KINDS:
        documents, size = [], 0
        for document in corpus.read(source / "held_out.jsonl"):
            if document.kind == kind and size < max_bytes:
                documents.append(document)
                size += len(document.text.encode())
        text = "".join(document.text for document in documents).encode()
        bits = bits_per_byte(params, shape, encode(tokenizer, iter(documents)), len(text))
        found["held_out"][kind] = {"bytes": len(text), "model": round(bits, 4), **compressed(text)}
        if kind == "python":
            prompts = function_prompts(iter(documents), functions)
    for temperature in (0.0, 0.5, 0.8):
        found["functions"].append(
            parse_rate(params, shape, tokenizer, prompts, temperature, max_new_tokens)
        )
    ids = [tokenizer.encode(prompt).ids for prompt in SAMPLE_PROMPTS]
    found["samples"] = []
    for temperature in (0.0, 0.7):
        new = generate(params, shape, ids, max_new_tokens, temperature)
        texts = [p + tokenizer.decode(n) for p, n in zip(SAMPLE_PROMPTS, new, strict=True)]
        found["samples"].append({"temperature": temperature, "texts": texts})
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True)
    parser.add_argument("--corpus", type=pathlib.Path, required=True)
    parser.add_argument("--max_bytes", type=int, default=4_000_000, help="of each kind")
    parser.add_argument("--functions", type=int, default=200)
    parser.add_argument("--max_new_tokens", type=int, default=160)
    arguments = parser.parse_args()
    options = {name: value for name, value in vars(arguments).items()}
    folder, source = options.pop("checkpoint"), options.pop("corpus")
    print(json.dumps(evaluate(folder, source, **options), indent=1))


if __name__ == "__main__":
    main()
