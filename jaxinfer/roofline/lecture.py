"""The textbook's accounting, to be shown beside the finer one.

As in the inference lecture of Stanford's CS336 (2025) and chapter 7 of "How to Scale Your Model":
every parameter is read in every step, the input embedding and the output matrix both counted, and
time is all bytes over the bandwidth. Norms and biases are not counted.
"""

from dataclasses import dataclass

from jaxinfer.config import ModelConfig
from jaxinfer.roofline import formats
from jaxinfer.roofline.chips import Chip
from jaxinfer.roofline.formats import Format


@dataclass(frozen=True)
class Lecture:
    """memory_bytes of all chips together; latency_s of a step; tokens per second of the batch."""

    memory_bytes: float
    latency_s: float
    throughput_tok_s: float


def parameters(config: ModelConfig) -> int:
    """2VD + L (2DNH + 2DKH + 3DF) (2DF where the feed-forward is not gated)."""
    D, F, V = config.d_model, config.d_ff, config.vocab_size
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    layer = (3 if config.gated else 2) * D * F + 2 * D * N * H + 2 * D * K * H
    return 2 * V * D + len(config.layers) * layer


def lecture(
    config: ModelConfig,
    chip: Chip,
    batch: int,
    context: int,
    *,
    weights: str | Format = "bfloat16",
    cache: str | Format = "bfloat16",
    chips: int = 1,
) -> Lecture:
    """A decode step of `batch` sequences of `context` positions, every layer keeping all of them."""
    stored, kept = formats.find(weights), formats.find(cache)
    elements = 2 * config.num_kv_heads * config.head_dim * len(config.layers)
    total = parameters(config) * stored.bits / 8 + batch * context * elements * kept.bits / 8
    latency = total / (chip.bandwidth * chips)
    return Lecture(total, latency, batch / latency)
