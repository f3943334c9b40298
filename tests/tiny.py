"""Tiny random models and prompts: odd sizes, mixed layers, logits with clear winners."""

import jax
import numpy as np

from jaxinfer.config import LayerConfig, ModelConfig, Rope
from jaxinfer.models import decoder

VOCAB = 101
WINDOW = 5


def config(**changes) -> ModelConfig:
    """Two layers, one of them with a sliding window."""
    rope = Rope(rotary_dim=16)
    fields = dict(
        family="llama",
        vocab_size=VOCAB,
        d_model=48,
        d_ff=72,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        layers=(LayerConfig(rope=rope), LayerConfig(rope=rope, window=WINDOW)),
        max_position=128,
    )
    return ModelConfig(**fields | changes)


def params(config: ModelConfig, seed: int) -> decoder.Params:
    """Random parameters, matrices scaled up so that the most likely token is not a near tie."""
    drawn = decoder.init(config, jax.random.key(seed))
    return jax.tree.map(lambda x: x * 3 if x.ndim == 2 else x, drawn)


def prompts(rng: np.random.Generator, lengths, vocab_size: int = VOCAB) -> list[tuple[int, ...]]:
    """Random token ids of the given lengths."""
    return [tuple(int(i) for i in rng.integers(0, vocab_size, n)) for n in lengths]


def rectangle(rows) -> tuple[np.ndarray, np.ndarray]:
    """Ragged rows -> tokens [B, T] padded with ids that must not matter, and lengths [B]."""
    lengths = np.asarray([len(row) for row in rows], np.int32)
    tokens = np.full((len(rows), lengths.max()), 7, np.int32)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = row
    return tokens, lengths
