"""Train the byte-level BPE tokenizer and turn the corpus into token streams.

The pre-tokenizer is the Qwen2 pattern: single digits, a word with the space before it, and runs of
white space kept whole, so that an indentation is one token. Readers that must name the pattern
(GGUF's `tokenizer.ggml.pre`) call it "qwen2". A document becomes `<s> text </s>` in the streams.

    python -m examples.training.tokenizer --corpus corpus --to tokens --vocab_size 8192
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Iterator

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from examples.training import corpus

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KINDS = ("python", "prose")


def train(texts: Iterator[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer of `vocab_size` entries; ids 0, 1, 2 are bos, eos and padding."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=32,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def sample(documents: Iterator[corpus.Document], max_bytes: int) -> Iterator[str]:
    """Texts of the first documents, `max_bytes` in all (hash order makes that a fair draw)."""
    for document in documents:
        max_bytes -= len(document.text)
        if max_bytes < 0:
            return
        yield document.text


def encode(tokenizer: tokenizers.Tokenizer, documents: Iterator[corpus.Document]) -> np.ndarray:
    """One stream uint16[n] of `<s> document </s>` after another."""
    end = np.asarray([tokenizer.token_to_id(EOS)], np.uint16)
    parts: list[np.ndarray] = []
    batch: list[str] = []

    def flush() -> None:
        for encoding in tokenizer.encode_batch(batch):
            parts.extend((np.asarray(encoding.ids, np.uint16), end))
        batch.clear()

    for document in documents:
        batch.append(document.text)
        if len(batch) == 1024:
            flush()
    flush()
    return np.concatenate(parts) if parts else end[:0]


def build(source: pathlib.Path, folder: pathlib.Path, vocab_size: int, max_bytes: int) -> dict:
    """Write tokenizer.json, train.npy, held_out_<kind>.npy and meta.json; returns the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train(sample(corpus.read(source / "train.jsonl"), max_bytes), vocab_size)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = encode(tokenizer, corpus.read(source / "train.jsonl"))
    np.save(folder / "train.npy", tokens)
    meta: dict = {"vocab_size": vocab_size, "train_tokens": len(tokens), "held_out": {}}
    for kind in KINDS:
        documents = [d for d in corpus.read(source / "held_out.jsonl") if d.kind == kind]
        tokens = encode(tokenizer, iter(documents))
        np.save(folder / f"held_out_{kind}.npy", tokens)
        size = sum(len(d.text.encode()) for d in documents)
        meta["held_out"][kind] = {
            "bytes": size,
            "tokens": len(tokens),
            "bytes_per_token": size / max(1, len(tokens) - 2 * len(documents)),
        }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))
    return meta


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=pathlib.Path, required=True)
    parser.add_argument("--to", type=pathlib.Path, required=True)
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument(
        "--max_bytes", type=int, default=80_000_000, help="text that BPE learns from"
    )
    arguments = parser.parse_args()
    meta = build(arguments.corpus, arguments.to, arguments.vocab_size, arguments.max_bytes)
    print(json.dumps(meta))


if __name__ == "__main__":
    main()
