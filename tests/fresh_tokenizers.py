"""Tokenizers trained on the spot, in the layouts of well-known checkpoints, for tests.

`byte_level` is laid out as Llama 3 and Qwen are, `llama2` and `gemma` as those (sentencepiece BPE
with byte fallback), `unigram` as a sentencepiece Unigram model with Metaspace.
"""

import json
import re
from pathlib import Path

import numpy as np
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

ENGLISH = re.findall(
    r"\w+",
    "the of and to in is that it was for on are with as his they be at one have this from or had "
    "by hot word but what some we can out other were all there when up use def return import class "
    "self None True lambda yield your how said an",
)
WORDS = [*ENGLISH, "naïve", "café", "Straße", "日本語", "中文", "한국어", "привет", "мир", "שלום"]
RARE = ["😀", "👩\u200d👩\u200d👧\u200d👦", "🇪🇺", "e\u0301", "\U0001d518\U0001d52b", "नमस्ते", "ไทย"]
RARE += ["\u200b", "\t", "\n\n", "  ", "<", "|>"]


def random_text(rng: np.random.Generator, words: int) -> str:
    """Words of several scripts, with emoji, combining characters and odd spaces between."""
    pieces = []
    for _ in range(words):
        pool = RARE if rng.random() < 0.2 else WORDS
        pieces.append(pool[rng.integers(len(pool))])
    return "".join(piece + " " * int(rng.choice([1, 1, 1, 0, 2])) for piece in pieces)


def corpus(rng: np.random.Generator) -> list[str]:
    """What the tokenizers are trained on: no rare characters, so that they fall back to bytes."""
    return [" ".join(rng.choice(ENGLISH, size=12)) for _ in range(200)]


def byte_level(rng: np.random.Generator, special: list[str]) -> Tokenizer:
    """Byte-level BPE; `special[0]` is BOS and is added to every text."""
    tokenizer = Tokenizer(models.BPE())
    split = Regex(
        r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(rng), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], tokenizer.token_to_id(special[0]))]
    )
    return tokenizer


def _with_byte_fallback(rng: np.random.Generator, special: list[str], normalizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizer
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*special, *bytes_], show_progress=False
    )
    tokenizer.train_from_iterator(corpus(rng), trainer)
    layout = json.loads(tokenizer.to_str())
    layout["added_tokens"] = [t for t in layout["added_tokens"] if t["content"] in special]
    layout["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(layout))


def llama2(rng: np.random.Generator) -> Tokenizer:
    """BPE with byte fallback; a space is put before a text and dropped at its beginning."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = _with_byte_fallback(rng, ["<unk>", "<s>", "</s>"], normalizer)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def gemma(rng: np.random.Generator) -> Tokenizer:
    """BPE with byte fallback; spaces stay as they are."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = _with_byte_fallback(rng, special, normalizers.Replace(" ", "▁"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return tokenizer


def unigram(rng: np.random.Generator) -> Tokenizer:
    """Unigram with Metaspace and byte fallback."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    trainer = trainers.UnigramTrainer(
        vocab_size=450, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus(rng), trainer)
    layout = json.loads(tokenizer.to_str())
    layout["added_tokens"] = [t for t in layout["added_tokens"] if t["content"] in special[:3]]
    layout["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(layout))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def write_folder(folder: Path, tokenizer: Tokenizer, config: dict, model_type: str) -> Path:
    """A checkpoint folder without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    return folder
